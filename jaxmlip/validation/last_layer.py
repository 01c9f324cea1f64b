"""The posterior of a trained potential's readout: Laplace's approximation of its last layer, from energies."""

from collections.abc import Sequence

from jaxmlip.potentials.checks import check_one
from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.trainable import Trainable, check_one_head
from jaxmlip.systems.dataset import Frame
from jaxmlip.training.strategies.base import samples_of
from jaxmlip.training.strategies.tangent import TangentPosterior, tangent_posterior


def last_layer_posterior(potential: Potential, frames: Sequence[Frame]) -> TangentPosterior:
    """What the energies of frames leave open of a potential's readout, everything below it held.

    Laplace's approximation over the last layer (Kristiadi, Hein and Hennig, ICML 2020, arXiv:2002.10118; Daxberger et
    al., NeurIPS 2021, arXiv:2106.14806) with the Gauss–Newton form of the curvature: a Gaussian of the readout's
    parameters about the trained ones, with features ∂E/∂(parameters) and the prior and the noise of largest marginal
    likelihood, here of the energies that the trained potential does not explain. `posterior.potential()` is its mean,
    about which `posterior.ensemble(16)` draws; both are linear in the change, as is the approximation.

    Forces that a potential was trained on are not looked at, so that its error is overestimated rather than
    underestimated; what lies below the readout is not varied, which errs the other way.

    Args:
        potential: trained, with one readout.
        frames: with energies of the level that it was trained on, best of frames that it has not seen.

    Raises:
        ValueError: for a potential that is no `Trainable` or has several readouts or none, frames that are fewer than
            two or have no energy, and as `fit_by_evidence`.
    """
    if not isinstance(potential, Trainable):
        raise ValueError(
            f"A {type(potential).__name__} has no readout of which a posterior could be taken (see jaxmlip.Trainable); "
            "give a committee of potentials in its place."
        )
    check_one(potential, "last_layer_posterior")
    check_one_head(potential)
    if len(frames) < 2:
        raise ValueError(f"There are {len(frames)} frames with energies, and a posterior needs two or more.")
    return tangent_posterior(potential, samples_of(potential, frames, 0), roles=("readout",))
