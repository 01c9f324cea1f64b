"""Magnetic moments as a label: in batches, in the loss and its gradient, in trainings and in reports.

The potential is one whose moments are a closed form, so that nothing but it and the loss is compiled.
"""

import csv
import dataclasses
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from water_pairs import HIGH, LOW

from jaxmlip.potentials.adapters import trainable_references
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.errors import compare
from jaxmlip.potentials.evaluation import predict
from jaxmlip.potentials.potential import N_SPECIES, evaluate
from jaxmlip.potentials.scaled import Scaled
from jaxmlip.potentials.trainable import Group, Trainable, grouped
from jaxmlip.systems.batches import make_batches, make_samples
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.graph import Graph, edge_vectors
from jaxmlip.testing import check_trainable
from jaxmlip.training.labels import anchors
from jaxmlip.training.loss import Terms, Weights, loss
from jaxmlip.training.metrics import COLUMNS, Metrics
from jaxmlip.training.problem import TrainingProblem, TrainingSettings
from jaxmlip.training.strategies.continued import SingleFidelity
from jaxmlip.training.strategies.fresh import Differential, Direct
from jaxmlip.training.trainer import train
from jaxmlip.types import Leaf

EVERYTHING = Terms(True, True, True, True)
WEIGHTS = Weights(energy=2.0, forces=3.0, stress=5.0, magmoms=7.0, huber_delta=0.1, huber_deltas={"magmoms": 0.02})


@flax.struct.dataclass
class Magnet(Trainable):
    """E_i = a ρ_i and m_i = |b ρ_i − c| with ρ_i = Σ_j exp(−r) (1 − r²/9)³, within 3 Å."""

    params: Leaf
    references: Leaf = flax.struct.field(default_factory=lambda: np.zeros(N_SPECIES))
    scale: Leaf = 1.0
    shift: Leaf = 0.0

    @property
    def cutoff(self) -> float:
        return 3.0

    @property
    def species(self) -> tuple[int, ...]:
        return (1, 8)

    @property
    def has_magnetic_moments(self) -> bool:
        return True

    def outputs(self, graph: Graph):
        vectors, mask = edge_vectors(graph)
        length = jnp.sqrt((jnp.asarray(vectors) ** 2).sum(-1))
        near = jnp.exp(-length) * (1 - jnp.minimum(length / 3.0, 1.0) ** 2) ** 3
        density = jnp.where(mask, near, 0.0).sum(1)[:, None]
        energies = self.scale * self.params["a"] * density + self.shift
        moments = jnp.abs(self.params["b"] * density - self.params["c"])
        real = jnp.asarray(graph.atom_mask)[:, None]
        return jnp.where(real, energies, 0.0), jnp.where(real, moments, 0.0)

    def atomic_energies(self, graph: Graph):
        return self.outputs(graph)[0][:, 0]

    def groups(self):
        return grouped(self.params, lambda path: Group("readout"))

    def fresh(self, *, references, scale, shift, seed, species=None):
        drawn = np.random.default_rng(seed).uniform(0.5, 1.5, 3).astype(np.float32)
        return Magnet(dict(zip("abc", drawn, strict=True)), references, scale, shift)


def magnet(a: float = 1.0, b: float = 2.0, c: float = 0.7, kind: type = np.float32) -> Magnet:
    return Magnet({"a": kind(a), "b": kind(b), "c": kind(c)})


@pytest.fixture(scope="module")
def frames(clusters: list[Atoms]) -> list[Frame]:
    """Four clusters in boxes, labelled by a magnet; of two, the moments point the other way."""
    boxed = [atoms.copy() for atoms in sorted(clusters, key=len)[:4]]
    for atoms in boxed:
        atoms.set_cell([12.0, 11.0, 10.0])
        atoms.set_pbc(True)
    found = predict(magnet(), boxed, stress=True)
    for frame in found[:2]:
        frame.atoms.arrays["magmoms"] = -frame.magmoms
    return found


def test_the_potential_of_these_tests_conforms() -> None:
    check_trainable(magnet())


def test_moments_are_predicted_with_the_rest(frames: list[Frame]) -> None:
    """By the potential, by sums (of the first that has any) and by what is scaled; of others, what came is carried."""
    structures = [frame.atoms for frame in frames]
    assert min(frame.magmoms.max() for frame in frames[2:]) > 0.05
    (found,) = predict(LOW + Scaled(magnet(), 0.5) + magnet(b=5.0), structures[3:])
    np.testing.assert_allclose(found.magmoms, frames[3].magmoms, atol=1e-6)
    assert found.carried == ()
    (other,) = predict(LOW, structures[3:])
    np.testing.assert_array_equal(other.magmoms, frames[3].magmoms)
    assert other.carried == ("magmoms",)
    (bare,) = anchors(LOW, frames[3:])
    assert np.isnan(bare.magmoms).all()


def test_errors_are_of_magnitudes(frames: list[Frame]) -> None:
    """And of what the potential itself says; without any there are no entries."""
    structures = [frame.atoms for frame in frames]
    report = compare(frames, predict(magnet(c=0.6), structures))
    wanted = np.concatenate([np.abs(frame.magmoms) for frame in frames])
    said = np.concatenate([frame.magmoms for frame in predict(magnet(c=0.6), structures)])
    assert report.magmom_atoms == len(wanted)
    assert report.magmom_rmse_muB == pytest.approx(np.sqrt(((said - wanted) ** 2).mean()), rel=1e-6)
    assert report.magmom_max_muB == pytest.approx(np.abs(said - wanted).max(), rel=1e-6)
    assert report.magmom_rmse_muB_error > 0
    assert not any(name.startswith("magmom") for name in compare(frames, predict(LOW, structures)).to_json())


def test_loss_and_gradient(x64, frames: list[Frame]) -> None:
    """Against numpy and central differences in double precision; sign and absent moments are left out."""
    del x64
    partly = [dataclasses.replace(frame, atoms=frame.atoms.copy()) for frame in frames]
    partly[0].atoms.arrays["magmoms"][3] = np.nan
    del partly[3].atoms.arrays["magmoms"]
    samples = make_samples(partly, 3.0, 0.0, np.zeros(N_SPECIES), weight=2.0, dtype=np.float64)
    (batch,) = make_batches(samples, 4)
    at = magnet(1.1, 1.7, 0.8, np.float64)
    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnames=("terms", "kind"))
    (value, sums), slope = compiled(at, batch, WEIGHTS, terms=EVERYTHING)
    prediction = evaluate(at, batch.graph, stress=True, magmoms=True)
    label = np.abs(np.concatenate([f.atoms.arrays.get("magmoms", np.full(len(f.atoms), np.nan)) for f in partly]))
    error = (np.asarray(prediction.magmoms)[: len(label)] - label)[~np.isnan(label)]
    assert 0 < (np.abs(error) > 0.02).sum() < len(error)
    near = np.minimum(np.abs(error), 0.02)
    assert float(sums["magmoms"].loss.sum()) == pytest.approx(2 * (0.5 * near**2 + 0.02 * (np.abs(error) - near)).sum())
    assert sums["magmoms"].count.sum() == len(error) == len(label) - 1 - len(partly[3].atoms)
    assert float(sums["magmoms"].squared.sum()) == pytest.approx((error**2).sum())
    for name in "abc":
        ends = [
            compiled(at.replace(params=at.params | {name: at.params[name] + step}), batch, WEIGHTS, terms=EVERYTHING)
            for step in (1e-5, -1e-5)
        ]
        assert float(slope.params[name]) == pytest.approx(float(ends[0][0][0] - ends[1][0][0]) / 2e-5, rel=1e-5), name
    (alone, _), _ = compiled(at, batch, WEIGHTS, terms=Terms(False, False, False, True))
    assert float(alone) == pytest.approx(float(7 * sums["magmoms"].loss.sum() / sums["magmoms"].count.sum()))
    (without, _), _ = compiled(at, batch, WEIGHTS, terms=Terms(True, True, True, False))
    assert float(value) == pytest.approx(float(without + alone))


def test_tiers_keep_moments_with_their_atoms(frames: list[Frame]) -> None:
    samples = make_samples(frames, 3.0, 0.0, np.zeros(N_SPECIES))
    (flat,), (tiered,) = (make_batches(samples, 4, tiers=tiers) for tiers in (1, 3))
    before, after = (
        np.c_[batch.forces, batch.magmoms[:, None]][np.asarray(batch.graph.atom_mask)] for batch in (flat, tiered)
    )
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(np.unique(before, axis=0), np.unique(after, axis=0))


def test_training_on_moments(frames: list[Frame]) -> None:
    """They are learnt, by offsets of references too; the history has their error, and the record their name."""
    settings = TrainingSettings(epochs=40, batch_size=4, learning_rate=0.05, magmoms_weight=20.0, stress_weight=0)
    problem = SingleFidelity(references="trainable", trainable_from="keep").problem(
        magnet(1.3, 1.5, 0.5), frames[:3], validation=frames[3:], settings=settings
    )
    trained = train(problem, settings, progress=False)
    errors = [record["validation_magmom_rmse_muB"] for record in trained.history]
    assert errors[-1] < 0.2 * errors[0]
    assert isinstance(trained.potential, type(trainable_references(magnet())))
    deployed = SingleFidelity().deploy(trained)
    report = compare(frames[3:], predict(deployed, [frames[3].atoms]))
    assert report.magmom_rmse_muB == pytest.approx(errors[trained.best_epoch], rel=1e-3)


def test_who_predicts_none_says_so(frames: list[Frame]) -> None:
    settings = TrainingSettings(magmoms_weight=1.0, stress_weight=0)
    model = Equivariant(channels=2, l_max=0, correlation=1, layers=1, cutoff=3.0, radial_mlp=(4,))
    with pytest.raises(ValueError, match="magmoms_weight is positive, but a EquivariantPotential predicts no magnetic"):
        Direct().from_labels(model, frames[:3], validation=frames[3:], settings=settings)
    with pytest.raises(ValueError, match="absolute values, of which no potential for a difference"):
        Differential(references="keep").problem(magnet(), frames[:3], validation=frames[3:], settings=settings)
    for frame in (silent := [dataclasses.replace(f, atoms=f.atoms.copy()) for f in frames]):
        del frame.atoms.arrays["magmoms"]
    with pytest.raises(ValueError, match=r"needs magmoms, but no training frame has that label .*magmoms_weight to 0"):
        SingleFidelity(references="keep").problem(magnet(), silent[:3], validation=silent[3:], settings=settings)


def test_settings_of_before_have_the_digests_they_had() -> None:
    plain = TrainingSettings().model_dump()
    assert not {"magmoms_weight", "huber_deltas"} & plain.keys()
    mine = TrainingSettings(magmoms_weight=0.1, huber_deltas={"stress": 6e-4})
    assert TrainingSettings.model_validate(mine.model_dump()) == mine
    assert (mine.delta_of("stress"), mine.delta_of("forces")) == (6e-4, 0.01)
    assert TrainingProblem(HIGH, [], [], Terms(), Terms()).minimised(mine).weights()["forces"] == 10.0


def test_metrics_of_before_there_were_moments_are_kept(tmp_path: Path) -> None:
    """A run that goes on with a newer version has an empty column where an older one had none."""
    before = [name for name in COLUMNS if name != "magmom_rmse_muB"]
    row = dict.fromkeys(before, "0.5") | {"epoch": "3", "set": "validation"}
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, before)
        writer.writeheader()
        writer.writerows([row, row | {"epoch": "9"}])
    Metrics(tmp_path, "none", last_epoch=3).close()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        (kept,) = csv.DictReader(file)
    assert kept == row | {"magmom_rmse_muB": ""}
