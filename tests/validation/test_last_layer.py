"""The posterior of a readout: it moves nothing else, explains energies, and its draws spread as it says."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from made_runs import as_run
from simple_potentials import lennard_jones
from water_pairs import LOW

from jaxmlip.observables.observable import Observable
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.evaluation import label, predict
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.clusters import cut_clusters
from jaxmlip.systems.graph import graph_from_atoms
from jaxmlip.systems.ice import ice_ih
from jaxmlip.training.strategies.base import samples_of
from jaxmlip.units import KB
from jaxmlip.validation.last_layer import last_layer_posterior
from jaxmlip.validation.uncertainty import observable_uncertainty

MODEL = Equivariant(channels=4, l_max=0, correlation=1, layers=1, cutoff=4.0, radial_mlp=(8,))

pytestmark = pytest.mark.filterwarnings("ignore:H and O occur in one ratio only")


@pytest.fixture(scope="module")
def potential() -> EquivariantPotential:
    return MODEL.build((1, 8), average_neighbors=8.0, references=np.asarray(LOW.references), scale=0.3)


@pytest.fixture(scope="module")
def clusters() -> list[Atoms]:
    ice = ice_ih(96, seed=0)
    ice.rattle(0.06, seed=1)
    return cut_clusters([ice], radius=3.2, number=27, seed=2)


def test_only_the_readout_moves(potential: EquivariantPotential, clusters: list[Atoms]) -> None:
    posterior = last_layer_posterior(potential, label(clusters[:24], LOW))
    ensemble = posterior.ensemble(40, seed=1)
    groups = jax.tree.leaves(potential.groups(), is_leaf=lambda leaf: hasattr(leaf, "role"))
    moved = [bool(np.any(leaf)) for leaf in jax.tree.leaves(ensemble.params["change"])]
    readouts = [group.role == "readout" for group in groups]
    assert any(moved)
    assert all(readout for readout, change in zip(readouts, moved, strict=True) if change)
    # Energies of unseen clusters: those of the draws spread about the mean as the posterior says in closed form.
    mean, deviation = posterior.energies(samples_of(posterior.foundation, label(clusters[24:], LOW), 0))
    drawn = np.array([_energies(_member(ensemble, k), clusters[24:]) for k in range(40)])
    central = _energies(posterior.potential(), clusters[24:])
    np.testing.assert_allclose(drawn.mean(0), central, atol=4 * deviation.max() / np.sqrt(40))
    np.testing.assert_allclose(drawn.std(0, ddof=1), deviation, rtol=0.45)
    assert len(mean) == 3


def test_refuses_what_has_no_readout(potential: EquivariantPotential, clusters: list[Atoms]) -> None:
    frames = label(clusters[:3], LOW)
    with pytest.raises(ValueError, match="LennardJones has no readout"):
        last_layer_posterior(lennard_jones(), frames)
    with pytest.raises(ValueError, match="2 readouts"):
        last_layer_posterior(potential.with_heads(2), frames)
    with pytest.raises(ValueError, match="There are 1 frames with energies"):
        last_layer_posterior(potential, frames[:1])


def _member(ensemble: Potential, number: int) -> Potential:
    return jax.tree.map(lambda leaf: leaf[number], ensemble)


def _energies(potential: Potential, structures: list[Atoms]) -> np.ndarray:
    """EV."""
    return np.array([frame.energy for frame in predict(potential, structures)])


@dataclasses.dataclass(frozen=True)
class Distance(Observable):
    """Between the first two atoms."""

    @property
    def name(self) -> str:
        return "distance"

    @property
    def unit(self) -> str:
        return "Å"

    def per_frame(self, frame: Any, potential: Any = None) -> Any:
        return jnp.linalg.norm(frame.positions[0] - frame.positions[1])


def test_carried_to_an_observable(potential: EquivariantPotential, clusters: list[Atoms]) -> None:
    """Response is linear in the weights, whose covariance is known: its deviation in closed form, and that of draws."""
    posterior = last_layer_posterior(potential, label(clusters[:24], LOW))
    kelvin, replicas, frames, start = 3e4, 8, 5, clusters[25]
    rng = np.random.default_rng(0)
    x = start.positions - start.positions.mean(0) + 15.0
    x = x + 0.05 * rng.normal(size=(replicas, frames, *x.shape))
    run = as_run(x, start.numbers, 30.0 * np.eye(3))
    found = observable_uncertainty(
        run, posterior.potential(), posterior, [Distance()], temperature_K=kelvin, draws=40, equilibration=0
    )["distance"]
    structures = [Atoms(start.numbers, each) for each in x.reshape(-1, len(start), 3)]
    _, features = posterior.features([graph_from_atoms(each, potential.cutoff) for each in structures])
    distances = np.array([each.get_distance(0, 1) for each in structures])
    away = -(distances - distances.mean()) / (len(distances) - 1.0) / (KB * kelvin)
    counts = np.zeros((1, len(posterior.elements)))  # is the same in all frames, and no covariance with anything
    exact = float(posterior.linear.predict([counts, *(away[None] @ each for each in features)])[1][0])
    assert found.method == "response"
    np.testing.assert_allclose(found.members.std(ddof=1), exact, rtol=0.3)
    # Without the noise of so few frames the spread is no larger, and not lost in it.
    assert 0.0 <= found.model <= 1.3 * exact
