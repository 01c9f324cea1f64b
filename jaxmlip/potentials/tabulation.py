"""Radial functions of a trained potential as tables: the same potential, to a stated error, in less time."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlip.potentials.architecture import Architecture
from jaxmlip.potentials.equivariant import EquivariantPotential
from jaxmlip.potentials.potential import Potential
from jaxmlip.potentials.radial import bessel, envelope, hermite, radial_features

GRID = 1024
"""Distances at which the radial functions of a layer are decomposed."""

FEWEST_KNOTS, MOST_KNOTS = 512, 16384


def tabulate(potential: Potential, tolerance: float = 1e-5) -> EquivariantPotential:
    """Replace the radial networks by tables.

    The radial functions of a layer, one for every path and channel, are nearly linearly dependent: a few functions
    span them all to any useful accuracy. A singular value decomposition finds these, cubic Hermite splines tabulate
    them, and a matrix product of theirs takes the place of the network's final layer. Number of functions and of knots
    are the smallest that keep every radial function within the tolerance at every distance.

    A potential of this kind is for use, not for further training: the tables would be trained as they are.

    Args:
        potential: with parameters of any precision; the tables get the same.
        tolerance: largest error of a radial function, relative to the largest value of all of a layer's.

    Raises:
        ValueError: if the potential is not an equivariant one, its radial functions depend on more than the distance
            (Agnesi transform, learned radial scale), it has tables already, or the tolerance is not between 0 and 1 or
            cannot be kept.
    """
    if refusal := why_no_tables(potential):
        raise ValueError(refusal)
    assert isinstance(potential, EquivariantPotential)
    if not 0 < tolerance < 1:
        raise ValueError(f"The tolerance is {tolerance}, but it must be between 0 and 1.")
    params = dict(potential.params)
    for layer in range(potential.specification.layers):
        name = f"interaction_{layer}"
        interaction = dict(params[name])
        table, radial = _table(potential.specification, interaction.pop("radial_network"), interaction, tolerance)
        dtype = np.asarray(interaction["radial"]).dtype
        params[name] = interaction | {"table": jnp.asarray(table, dtype), "radial": jnp.asarray(radial, dtype)}
    return potential.replace(params=params, tabulated=True)


def why_no_tables(potential: Potential) -> str:
    """Why a potential cannot be tabulated, as a sentence; nothing if it can."""
    if not isinstance(potential, EquivariantPotential):
        return f"A {type(potential).__name__} has no radial networks: only an equivariant potential has tables."
    if potential.tabulated:
        return "The potential has tables of its radial functions already; tabulate the original."
    if potential.specification.distance_transform != "none" or potential.specification.learned_radial_scale:
        return (
            "The radial functions depend on the elements (distance_transform or learned_radial_scale), and only "
            "functions of the distance alone can be tabulated."
        )
    return ""


def _table(
    specification: Architecture, network: dict, interaction: dict, tolerance: float
) -> tuple[Float[np.ndarray, "intervals 4 functions"], Float[np.ndarray, "functions paths channels"]]:
    """Splines of a layer's independent radial functions, and what makes all radial functions of them."""
    final = np.asarray(interaction["radial"], np.float64)
    matrix = final.reshape(len(final), -1)

    def hidden(lengths: Float[np.ndarray, " lengths"]) -> tuple[np.ndarray, np.ndarray]:
        """Last hidden features and their derivatives by the distance."""
        with jax.enable_x64(True):
            weights = [np.asarray(network[key], np.float64) for key in sorted(network)]
            weights = [jnp.asarray(weight / len(weight) ** 0.5) for weight in weights]
            r = jnp.asarray(np.maximum(lengths, 1e-6))  # the basis divides by r, and is smooth at 0

            def of(r: jax.Array) -> jax.Array:
                smooth = envelope(r, specification.cutoff, specification.envelope_power)[:, None]
                return radial_features(
                    weights, bessel(r, specification.radial_functions, specification.cutoff) * smooth
                )

            value, slope = jax.jvp(of, (r,), (jnp.ones_like(r),))
            return np.asarray(value), np.asarray(slope)

    features, _ = hidden(np.linspace(0.0, specification.cutoff, GRID))
    functions = features @ matrix
    left, sizes, right = np.linalg.svd(functions, full_matrices=False)
    largest = np.abs(functions).max()
    for rank in range(1, len(sizes) + 1):
        if np.abs(functions - (left[:, :rank] * sizes[:rank]) @ right[:rank]).max() <= 0.5 * tolerance * largest:
            break
    # Of the hidden features, the combinations whose products with `right` are the radial functions.
    to_independent = matrix @ right[:rank].T

    knots = FEWEST_KNOTS
    while True:
        at = np.linspace(0.0, specification.cutoff, knots + 1)
        value, slope = hidden(at)
        step = specification.cutoff / knots
        table = hermite(value @ to_independent, step * slope @ to_independent)
        between = at[:-1] + 0.5 * step
        middle = table.transpose(1, 0, 2)
        found = middle[0] + 0.5 * (middle[1] + 0.5 * (middle[2] + 0.5 * middle[3]))
        if np.abs(found @ right[:rank] - hidden(between)[0] @ matrix).max() <= tolerance * largest:
            return table, right[:rank].reshape(rank, *final.shape[1:])
        knots *= 2
        if knots > MOST_KNOTS:
            raise ValueError(f"{MOST_KNOTS} knots do not reach a tolerance of {tolerance}; allow a larger one.")
