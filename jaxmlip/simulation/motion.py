"""Masses and momenta of one replica, or of all: what moves, what does not, and how much of it there is.

Atoms that take no part in the motion are told by their mass: padding weighs next to nothing, atoms that a constraint
holds weigh more than anything. Formulas that divide by masses need no cases then; the engine keeps both at rest.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxmlip.types import AnyArray, Vectors

PADDING_MASS = 1e-30
"""Mass of a padding atom, amu: nothing to the centre of mass, yet something to divide by."""

HELD_MASS = 1e30
"""Mass by which the engine knows atoms that are held, amu; their own is kept for what is said of the run."""

Masses = Float[AnyArray, "*replicas atoms 1"]


def mobile(mass: Masses) -> Bool[AnyArray, "*replicas atoms 1"]:
    """Which atoms move: those that are neither padding nor held."""
    return (mass > 2 * PADDING_MASS) & (mass < HELD_MASS / 2)


def n_mobile(mass: Masses) -> Int[AnyArray, " *replicas"]:
    """Number of atoms that move."""
    return mobile(mass).sum((-2, -1))


def any_held(mass: Masses) -> Any:
    """Whether any atom is held, [replicas]: then no momentum is conserved, and the centre of mass is free to move."""
    return (mass > HELD_MASS / 2).any((-2, -1))


def at_rest(before: Any, state: Any) -> Any:
    """States of all replicas whose padding and held atoms are where they were before, without momentum."""
    moves = mobile(state.mass)
    position, momentum = jnp.where(moves, state.position, before.position), jnp.where(moves, state.momentum, 0.0)
    return dataclasses.replace(state, position=position, momentum=momentum)


def maxwell_boltzmann(
    key: Any, positions: Vectors, masses: Float[AnyArray, " atoms"], kT: Any
) -> tuple[Float[AnyArray, "atoms 1"], Vectors]:
    """Masses [atoms, 1], and momenta at kT, of what moves; the centre of mass is at rest unless `centred` says no."""
    mass = jnp.asarray(masses, positions.dtype)[:, None]
    momentum = jnp.sqrt(mass * kT) * jax.random.normal(key, positions.shape, positions.dtype)
    return mass, centred(jnp.where(mobile(mass), momentum, 0.0), mass)


def centred(momentum: Vectors, mass: Float[AnyArray, "atoms 1"]) -> Vectors:
    """Momenta without the velocity of the centre of mass; unchanged for a single atom, and where any is held."""
    total = mass.sum()
    free = (n_mobile(mass) == 1) | (total > HELD_MASS / 2)
    return jnp.where(free, momentum, momentum - mass * momentum.sum(axis=0) / total)


def kinetic_energy(momentum: Vectors, mass: Float[AnyArray, "atoms 1"]) -> Float[AnyArray, ""]:
    """Σ p²/2m, eV."""
    return 0.5 * (momentum**2 / mass).sum()


def free_space(positions: Vectors, displacement: Vectors, **_: Any) -> Vectors:
    """Positions stay unwrapped: periodicity is in the shifts of the neighbour list."""
    return positions + displacement


def nose_hoover_chain(dt: Any, period: Any) -> Any:
    """jax-md's functions of a chain of three, in two Suzuki–Yoshida steps of third order for each half step."""
    from jax_md import simulate

    return simulate.nose_hoover_chain(dt, chain_length=3, chain_steps=2, sy_steps=3, tau=period)


def chain_energy(chain: Any, kT: Any) -> Any:
    """Kinetic and potential energy of one of jax-md's chains, eV."""
    kinetic = (0.5 * chain.momentum**2 / chain.mass).sum()
    return kinetic + kT * (chain.degrees_of_freedom * chain.position[0] + chain.position[1:].sum())
