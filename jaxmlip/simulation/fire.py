"""FIRE, the fast inertial relaxation engine, as a gradient transformation of optax."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxmlip.types import Leaf

START_DT, MAX_DT = 0.1, 1.0
"""FIRE's first and longest timestep, for unit masses, eV and Å."""

MIXING, LESS_MIXING, LONGER, SHORTER, PATIENCE = 0.1, 0.99, 1.1, 0.5, 5
"""FIRE's α at the start, its factor, those of the timestep, and the downhill steps that must come before them."""


class FireState(flax.struct.PyTreeNode):
    """State of a minimisation.

    Attributes:
        velocity: of the coordinates, a pytree like them.
        dt, mixing: [], FIRE's present timestep and α.
        downhill: [], steps since the force last pointed against the velocity.
    """

    velocity: Leaf
    dt: Leaf
    mixing: Leaf
    downhill: Leaf


def fire() -> optax.GradientTransformation:
    """Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), as in ASE: the velocity before the step is mixed.

    Updates are displacements, not limited in length. Where the gradient is zero and nothing moves yet, nothing changes.
    """

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        real = jax.tree.leaves(zeros)[0].dtype
        return FireState(zeros, jnp.full((), START_DT, real), jnp.full((), MIXING, real), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        force = jax.tree.map(jnp.negative, updates)
        speed, steepness = optax.tree.norm(state.velocity), optax.tree.norm(force)
        power: Any = optax.tree.vdot(force, state.velocity)
        down = power > 0
        turned = state.mixing * speed / jnp.maximum(steepness, 1e-20)
        # At rest, as in the first step, there is nothing to slow down.
        patient = down & (state.downhill > PATIENCE)
        shorter = jnp.where(speed > 0, SHORTER * state.dt, state.dt)
        longer = jnp.where(patient, jnp.minimum(LONGER * state.dt, MAX_DT), state.dt)
        dt = jnp.where(down, longer, shorter)

        def faster(velocity: Any, force: Any) -> Any:
            return jnp.where(down, (1.0 - state.mixing) * velocity + turned * force, 0.0) + dt * force

        velocity = jax.tree.map(faster, state.velocity, force)
        after = FireState(
            velocity=velocity,
            dt=dt,
            mixing=jnp.where(down, jnp.where(patient, LESS_MIXING * state.mixing, state.mixing), MIXING),
            downhill=jnp.where(down, state.downhill + 1, 0),
        )
        return jax.tree.map(lambda each: dt * each, velocity), after

    return optax.GradientTransformation(init, update)
