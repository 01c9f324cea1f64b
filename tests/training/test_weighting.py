"""Whether stress is trained on, and with what weight, where the settings leave it open."""

import dataclasses

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from water_pairs import HIGH, LOW

from jaxmlip.potentials.ase import AseTeacher
from jaxmlip.potentials.equivariant import Equivariant
from jaxmlip.potentials.evaluation import label, predict
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.batches import LazySamples, Recipe, Sample, make_samples
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.distill import _labels_stress, distillation_problem
from jaxmlip.training.labels import lifted_references
from jaxmlip.training.loss import Terms
from jaxmlip.training.problem import TrainingProblem, TrainingSettings
from jaxmlip.training.step import update
from jaxmlip.training.strategies.continued import SingleFidelity
from jaxmlip.training.strategies.fresh import Differential, Direct
from jaxmlip.training.strategies.multi_fidelity import MultiFidelity
from jaxmlip.training.trainer import train, train_many
from jaxmlip.training.weighting import LEAST_SPREAD, resolved, stress_weight, terms_of
from jaxmlip.units import GPA

MODEL = Equivariant(channels=2, l_max=0, correlation=1, layers=1, cutoff=4.0, radial_mlp=(4,))
SETTINGS = TrainingSettings(epochs=12, batch_size=4, learning_rate=0.02, ema_decay=0.9)

pytestmark = pytest.mark.filterwarnings("ignore:H and O occur in one ratio only")


@pytest.fixture(scope="module")
def solids(clusters) -> list[Frame]:
    """Clusters in boxes of all sizes, labelled with stress by the high level."""
    return label([boxed(atoms, 8.0 + 0.1 * number) for number, atoms in enumerate(clusters[:16])], HIGH, stress=True)


def boxed(atoms: Atoms, length: float) -> Atoms:
    atoms = atoms.copy()
    atoms.set_cell([length, length + 1, length + 2])
    atoms.set_pbc(True)
    return atoms


def samples(frames: list[Frame]) -> list[Sample]:
    return make_samples(frames, 4.0, 0.0, HIGH.references)


def problem(frames: list[Frame], validation: list[Frame], settings: TrainingSettings = SETTINGS) -> TrainingProblem:
    """From LOW's parameters to HIGH's labels."""
    terms = terms_of(settings, frames)
    return TrainingProblem(LOW.replace(references=HIGH.references), samples(frames), samples(validation), terms, terms)


def crystal(energy: float, force: float, stress: float) -> Frame:
    """Two atoms, each with a force along x, in a box under isotropic stress."""
    atoms = Atoms("Ar2", [[0.0, 0, 0], [2.5, 0, 0]], cell=[5.0, 5, 5], pbc=True)
    return Frame(atoms, energy, force * np.array([[1.0, 0, 0], [-1, 0, 0]]), stress * np.eye(3))


def test_weight_by_hand():
    """Energies ±0.02 eV/atom about their mean, a third of the forces ±0.3 eV/Å, of the stresses ±0.015 eV/Å³."""
    frames = [crystal(-3.0 - 0.04, 0.3, 0.05 + 0.015), crystal(-3.0 + 0.04, -0.3, 0.05 - 0.015)]
    made = make_samples(frames, 3.0, 0.0, np.zeros(119))
    energies = 0.01 * (0.02 - 0.005)
    forces, stresses = 0.01 * (0.3 - 0.005) / 3, 0.01 * (0.015 - 0.005) / 3
    expected = 0.125 * (2.0 * energies + 10.0 * forces) / stresses
    assert stress_weight(made, TrainingSettings(energy_weight=2.0)) == float(f"{expected:.3g}") == 38.0
    squares = 0.125 * (1.0 * 0.02**2 + 10.0 * 0.3**2 / 3) / (0.015**2 / 3)
    assert stress_weight(made, TrainingSettings(loss="mse")) == float(f"{squares:.3g}")
    # In the quadratic part a spread half as large has four times the weight, up to a limit.
    halved, tiny, none = (
        [dataclasses.replace(sample, stress=sample.stress * 0 + change * (1 - 2 * k)) for k, sample in enumerate(made)]
        for change in (0.005, 1e-9, np.nan)
    )
    others = 0.125 * (energies + 10.0 * forces)
    assert stress_weight(halved, TrainingSettings()) == float(f"{others / (0.5 * 0.005**2):.3g}")
    assert stress_weight(tiny, TrainingSettings()) == float(f"{others / (0.5 * LEAST_SPREAD**2):.3g}")
    assert stress_weight(none, TrainingSettings()) == 0.0
    assert LEAST_SPREAD == 0.5 * GPA
    # Levels of theory that differ by a constant do not widen the spread.
    shifted = [dataclasses.replace(sample, stress=sample.stress + 1.0, head=1) for sample in made]
    assert stress_weight([*made, *shifted], TrainingSettings(energy_weight=2.0)) == 38.0
    # What does not move says nothing: forces that vanish by symmetry leave energies, and these leave the stress alone.
    still = [dataclasses.replace(sample, forces=0 * sample.forces) for sample in made]
    np.testing.assert_allclose(stress_weight(still, TrainingSettings()), 0.125 * energies / stresses, rtol=2e-3)
    assert stress_weight([dataclasses.replace(s, energy=np.nan) for s in still], TrainingSettings()) == 1.0


def test_nothing_changes_without_stress(high):
    """Open, a weight of 0, or the settings before: the same program, bits and records."""
    given = problem(high[:24], high[24:])
    assert given.terms == Terms(True, True, False)
    zero = SETTINGS.model_copy(update={"stress_weight": 0.0})
    assert resolved(given, SETTINGS) == zero
    one = train(given, zero, progress=False)
    compiled = update._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    other = train(given, SETTINGS, progress=False)
    assert update._cache_size() == compiled  # pyright: ignore[reportAttributeAccessIssue]
    jax.tree.map(np.testing.assert_array_equal, one.potential, other.potential)
    for mine, yours in zip(one.history, other.history, strict=True):
        assert "stress_weight" not in mine
        np.testing.assert_equal({**mine, "wall_s": 0}, {**yours, "wall_s": 0})


def stress_rmse(potential: Potential, frames: list[Frame]) -> float:
    predicted = predict(potential, [frame.atoms for frame in frames], stress=True)
    return float(np.sqrt(np.mean([(p.stress - f.stress) ** 2 for p, f in zip(predicted, frames, strict=True)])))


def test_stress_of_some_frames_is_trained_on(high, solids, tmp_path):
    """Clusters without stress beside solids with it: the weight is the solids', alone, in stacks and when resumed."""
    frames = [*high[:8], *solids[:12]]
    given = problem(frames, solids[12:])
    assert given.terms == Terms(True, True, True)
    weight = resolved(given, SETTINGS).stress_weight
    without = [dataclasses.replace(sample, stress=np.full((3, 3), np.nan)) for sample in given.train[:8]]
    assert weight == stress_weight([*without, *given.train[8:]], SETTINGS)
    lazy = LazySamples(frames, Recipe(4.0, 0.0, np.asarray(HIGH.references)))
    assert stress_weight(lazy, SETTINGS) == weight

    trained = train(given, SETTINGS, folder=tmp_path, progress=False)
    assert {record["stress_weight"] for record in trained.history} == {weight}
    start, end = (stress_rmse(each.potential, solids[12:]) for each in (given, trained))
    assert end < 0.3 * start
    again = train(given, SETTINGS, folder=tmp_path, progress=False)  # from its last checkpoint
    np.testing.assert_equal(again.history, trained.history)
    (stacked, other) = train_many([given, problem(frames[:16], solids[12:])], SETTINGS, progress=False)
    assert stacked.history[-1]["validation_loss"] == trained.history[-1]["validation_loss"]
    assert other.history[-1]["stress_weight"] != weight


def test_validation_needs_no_stress_that_nobody_asked_for(high, solids):
    """Open, stress may be missing among the validation frames; with a weight it may not."""
    arguments = {"validation": high[:4], "settings": SETTINGS}
    assert Direct().from_labels(MODEL, solids, **arguments).terms.stress
    arguments["settings"] = SETTINGS.model_copy(update={"stress_weight": 1.0})
    with pytest.raises(ValueError, match="The loss needs stress, but no validation frame has that label"):
        Direct().from_labels(MODEL, solids, **arguments)


def test_clusters_have_no_stress(high):
    """What a file says of the stress of a structure without a volume is not a label."""
    absurd = [dataclasses.replace(frame, stress=np.eye(3)) for frame in high[:4]]
    assert terms_of(SETTINGS, absurd) == Terms(True, True, False)


@pytest.mark.parametrize(
    "strategy",
    [*(pytest.param(s, marks=pytest.mark.slow) for s in (Direct(), SingleFidelity(), Differential())), MultiFidelity()],
    ids=lambda s: s.name,
)
def test_energies_alone_hide_stress(strategy, solids):
    """Nothing depends on stresses of the high fidelity; those that are replayed are seen."""
    foundation = MODEL.build((1, 8), average_neighbors=8.0, references=np.asarray(LOW.references), scale=0.3)
    arguments = {"validation": solids[12:], "settings": SETTINGS}
    low = label([frame.atoms for frame in solids[:8]], LOW)
    shown = strategy.problem(foundation, solids[:12], low=low, **arguments)
    assert shown.terms.stress
    hidden = strategy.problem(foundation, solids[:12], low=low, labels="energy", **arguments)
    assert not hidden.terms.stress
    assert all(np.isnan(sample.stress).all() for sample in hidden.train)
    assert resolved(hidden, SETTINGS).stress_weight == 0.0
    if strategy.name == "multi_fidelity":
        with_stress = label([frame.atoms for frame in low], LOW, stress=True)
        replayed = strategy.problem(foundation, solids[:12], low=with_stress, labels="energy", **arguments)
        assert (replayed.terms.stress, replayed.selection.stress) == (True, False)
        assert resolved(replayed, SETTINGS).stress_weight == stress_weight(replayed.train, SETTINGS)


def test_teachers_stress_is_labelled_where_there_is_one(clusters):
    """Only of solids, and a teacher without stress is told of."""
    water = molecule("H2O")[[0, 1, 2]]
    solid = boxed(water, 12.0)
    assert _labels_stress([water, solid], LOW, SETTINGS)
    assert not _labels_stress([water], LOW, SETTINGS)
    assert not _labels_stress([solid], LOW, SETTINGS.model_copy(update={"stress_weight": 0.0}))
    assert _labels_stress([solid], AseTeacher("ase.calculators.lj:LennardJones"), SETTINGS)
    tip3p = AseTeacher("ase.calculators.tip3p:TIP3P")
    with pytest.warns(UserWarning, match="trained without stress, which its teacher does not give"):
        assert not _labels_stress([water, solid], tip3p, SETTINGS)
    asked = SETTINGS.model_copy(update={"stress_weight": 1.0})
    with pytest.raises(ValueError, match="does not implement stress"):
        label([solid], tip3p, stress=_labels_stress([solid], tip3p, asked))


def test_forces_alone(high):
    """Without energies a new potential's references are 0, and a foundation's are kept."""
    blind = [dataclasses.replace(frame, energy=np.nan) for frame in high]
    settings = TrainingSettings(energy_weight=0.0)
    fresh = distillation_problem(MODEL, blind[:8], blind[8:12], settings=settings)
    assert fresh.terms == Terms(False, True, False)
    np.testing.assert_array_equal(fresh.potential.references, np.zeros(119))
    np.testing.assert_array_equal(lifted_references(LOW, blind), LOW.references)
    with pytest.raises(ValueError, match=r"needs energy, but no training frame .* or set energy_weight to 0"):
        distillation_problem(MODEL, blind[:8], blind[8:12], settings=SETTINGS)
    with pytest.raises(ValueError, match="nothing to minimise"):
        TrainingSettings(energy_weight=0.0, forces_weight=0.0)
