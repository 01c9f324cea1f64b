"""The posterior of a readout: it moves nothing else, explains energies, and its draws spread as it says."""

import jax
import numpy as np
import pytest
from ase import Atoms
from simple_potentials import lennard_jones
from water_pairs import LOW

from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.evaluation import label, predict
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.clusters import cut_clusters
from jaxmlip.systems.ice import ice_ih
from jaxmlip.training.strategies.base import samples_of
from jaxmlip.validation.last_layer import last_layer_posterior

MODEL = Equivariant(channels=4, l_max=1, correlation=2, layers=1, cutoff=4.0, radial_mlp=(8,))

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
