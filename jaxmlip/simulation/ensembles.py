"""Statistical ensembles at constant volume as frozen descriptions, each with the dynamics that samples it.

They are put together from the steps that jax-md's own simulators are made of. The ready-made `(init, apply)` of
`jax_md.simulate` call the force of one replica from within and drop the energy: here a step pauses where forces are
needed, so that one call gives energies and forces of all replicas. Tests hold them to jax-md's trajectories.

The centre of mass starts at rest. Where nothing but the potential could move it (NVE, Nosé–Hoover, velocity rescaling)
it stays there, and temperatures are counted with 3N − 3 degrees of freedom; Langevin dynamics thermostats it with the
other 3N − 3. Where atoms are held by constraints, N is the number of the others, no momentum is conserved, and there
are 3N degrees of freedom in every ensemble.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxmlip.simulation.dynamics import PS, Dynamics, Ensemble
from jaxmlip.simulation.motion import (
    any_held,
    centred,
    chain_energy,
    free_space,
    kinetic_energy,
    maxwell_boltzmann,
    n_mobile,
    nose_hoover_chain,
)
from jaxmlip.simulation.schedules import Number, PerReplica, check_range, schedule
from jaxmlip.simulation.states import BasicState
from jaxmlip.types import AnyArray, Leaf, Vectors
from jaxmlip.units import KB


class VelocityVerlet(Dynamics):
    """Newton's equations, a kick and a drift and a kick; see `NVE`."""

    conserves: ClassVar[bool] = True

    def init(self, key: Any, positions: Vectors, masses: Any, cell: Any) -> Any:
        """Momenta at kT with the centre of mass at rest."""
        from jax_md import simulate

        del cell
        mass, momentum = maxwell_boltzmann(key, positions, masses, self.kT)
        return simulate.NVEState(positions, momentum, jnp.zeros_like(positions), mass)  # type: ignore[call-arg]

    def move(self, state: Any, dt: Any) -> Any:
        """Half a kick, and a drift."""
        from jax_md import simulate

        return simulate.position_step(simulate.momentum_step(state, dt / 2), free_space, dt)

    def finish(self, state: Any, forces: Vectors, dt: Any) -> Any:
        """Half a kick."""
        from jax_md import simulate

        return simulate.momentum_step(state.set(force=forces), dt / 2)


@dataclasses.dataclass(frozen=True)
class NVE(Ensemble):
    """Constant volume and energy (velocity Verlet).

    Temperatures are counted with 3N − 3 degrees of freedom: the centre of mass starts at rest, and internal forces
    leave it there. `Run.conserved` is the total energy.

    Attributes:
        temperature_K: of the velocities at the start, K; equilibration shares it with the potential energy.

    Raises:
        ValueError: for a temperature that is not positive and finite.
    """

    integrator: ClassVar[type[Dynamics]] = VelocityVerlet

    temperature_K: PerReplica

    def __post_init__(self) -> None:
        """Refuse values that cannot be simulated."""
        check_range("NVE", "temperature_K", self.temperature_K, 0.0, 1e5)

    def dynamics(self, replicas: int) -> VelocityVerlet:
        """k_B T in eV."""
        return VelocityVerlet(schedule("temperature_K", self.temperature_K, KB, replicas))


class Langevin(Dynamics):
    """Langevin dynamics in the splitting BAOAB; see `NVT`.

    Attributes:
        friction: γ, in the inverse of the internal unit of time.
    """

    friction: Leaf

    @staticmethod
    def degrees_of_freedom(atoms: Any, held: Any = False) -> Any:
        """3N."""
        del held
        return 3 * atoms

    def init(self, key: Any, positions: Vectors, masses: Float[AnyArray, " atoms"], cell: Any) -> Any:
        """Maxwell–Boltzmann momenta at kT with the centre of mass at rest; forces are zero until the first step."""
        from jax_md import simulate

        del cell
        key, split = jax.random.split(key)
        mass, momentum = maxwell_boltzmann(split, positions, masses, self.kT)
        return simulate.NVTLangevinState(positions, momentum, jnp.zeros_like(positions), mass, key)  # type: ignore[call-arg]

    def move(self, state: Any, dt: Any) -> Any:
        """B, A, O, A: half a kick, half a drift, the thermostat, half a drift."""
        from jax_md import simulate

        state = simulate.momentum_step(state, dt / 2)
        state = simulate.position_step(state, free_space, dt / 2)
        state = simulate.stochastic_step(state, dt, self.kT, self.friction)
        return simulate.position_step(state, free_space, dt / 2)

    def finish(self, state: Any, forces: Vectors, dt: Any) -> Any:
        """B: half a kick."""
        from jax_md import simulate

        return simulate.momentum_step(state.set(force=forces), dt / 2)


@dataclasses.dataclass(frozen=True)
class NVT(Ensemble):
    """Constant volume and temperature by Langevin dynamics (BAOAB).

    The splitting of Leimkuhler and Matthews (Appl. Math. Res. Express 2013, 34; J. Chem. Phys. 138, 174102 (2013)),
    whose configurational averages are exact for harmonic forces at every stable timestep. The thermostat acts on all
    3N degrees of freedom, the centre of mass included, which starts at rest and then diffuses.

    Attributes:
        temperature_K: K.
        friction_per_ps: friction coefficient γ in 1/ps; averages do not depend on it, rates do.

    Raises:
        ValueError: for values that are not positive and finite.
    """

    integrator: ClassVar[type[Dynamics]] = Langevin

    temperature_K: PerReplica
    friction_per_ps: Number = 2.0

    def __post_init__(self) -> None:
        """Refuse values that cannot be simulated."""
        check_range("NVT", "temperature_K", self.temperature_K, 0.0, 1e5)
        check_range("NVT", "friction_per_ps", self.friction_per_ps, 0.0, 1e6)

    @property
    def time_constants_ps(self) -> dict[str, float]:
        """1/γ, in which the energy relaxes."""
        return {"thermostat": 1.0 / self.friction_per_ps}

    def dynamics(self, replicas: int) -> Langevin:
        """k_B T in eV and γ in internal units."""
        return Langevin(
            kT=schedule("temperature_K", self.temperature_K, KB, replicas),
            friction=schedule("friction_per_ps", self.friction_per_ps, 1.0 / PS, replicas),
        )


class NoseHoover(VelocityVerlet):
    """A Nosé–Hoover chain of three, jax-md's; see `NVTNoseHoover`.

    Attributes:
        period: τ, in the internal unit of time.
    """

    pads: ClassVar[bool] = False

    period: Leaf

    def init(self, key: Any, positions: Vectors, masses: Any, cell: Any) -> Any:
        """Momenta at kT with the centre of mass at rest, and a chain at rest."""
        from jax_md import simulate

        del cell
        mass, momentum = maxwell_boltzmann(key, positions, masses, self.kT)
        state: Any = simulate.NVTNoseHooverState(positions, momentum, jnp.zeros_like(positions), mass, None)  # type: ignore[call-arg]
        degrees = self.degrees_of_freedom(positions.shape[0])
        chain = nose_hoover_chain(0.0, self.period).initialize(degrees, kinetic_energy(momentum, mass), self.kT)
        return state.set(chain=chain)

    def with_degrees(self, state: Any, degrees: int) -> Any:
        """The chain acts on so many; its masses follow in the first step."""
        return state.set(chain=state.chain.set(degrees_of_freedom=degrees))

    def move(self, state: Any, dt: Any) -> Any:
        """The chain for half a step, half a kick, and a drift."""
        chain = nose_hoover_chain(dt, self.period)
        # The chain's masses follow the temperature.
        current = chain.update_mass(state.chain, self.kT)
        momentum, current = chain.half_step(state.momentum, current, self.kT)
        return super().move(state.set(momentum=momentum, chain=current), dt)

    def finish(self, state: Any, forces: Vectors, dt: Any) -> Any:
        """Half a kick, and the chain for half a step."""
        state = super().finish(state, forces, dt)
        momentum = centred(state.momentum, state.mass)
        current = state.chain.set(kinetic_energy=kinetic_energy(momentum, state.mass))
        momentum, current = nose_hoover_chain(dt, self.period).half_step(momentum, current, self.kT)
        return state.set(momentum=momentum, chain=current)

    def reservoir(self, state: Any) -> Any:
        """Kinetic and potential energy of the chain, eV."""
        return chain_energy(state.chain, self.kT)


@dataclasses.dataclass(frozen=True)
class NVTNoseHoover(Ensemble):
    """Constant volume and temperature by a Nosé–Hoover chain of three, jax-md's.

    Martyna, Klein and Tuckerman, J. Chem. Phys. 97, 2635 (1992), integrated as by Tuckerman et al., J. Phys. A 39, 5629
    (2006), with two Suzuki–Yoshida steps of third order. Deterministic, and not ergodic for harmonic crystals near
    their minimum. The thermostat acts on 3N − 3 degrees of freedom; the centre of mass is kept at rest. `Run.conserved`
    is the extended Hamiltonian.

    Attributes:
        temperature_K: K.
        temperature_time_ps: period τ of the chain, whose masses are 3(N − 1) kT τ² and kT τ².

    Raises:
        ValueError: for values that are not positive and finite.
    """

    integrator: ClassVar[type[Dynamics]] = NoseHoover

    temperature_K: PerReplica
    temperature_time_ps: Number = 0.1

    def __post_init__(self) -> None:
        """Refuse values that cannot be simulated."""
        check_range("NVTNoseHoover", "temperature_K", self.temperature_K, 0.0, 1e5)
        check_range("NVTNoseHoover", "temperature_time_ps", self.temperature_time_ps, 0.0, 1e3)

    @property
    def time_constants_ps(self) -> dict[str, float]:
        """The period of the chain."""
        return {"thermostat": float(self.temperature_time_ps)}

    def dynamics(self, replicas: int) -> NoseHoover:
        """k_B T in eV and τ in internal units."""
        return NoseHoover(
            kT=schedule("temperature_K", self.temperature_K, KB, replicas),
            period=schedule("temperature_time_ps", self.temperature_time_ps, PS, replicas),
        )


class RescaledState(BasicState):
    """State of one replica under stochastic velocity rescaling.

    Attributes:
        rng: random key.
        given: [], energy in eV that the thermostat has taken from the atoms since the start.
    """

    rng: Leaf
    given: Leaf


class VelocityRescaling(VelocityVerlet):
    """Stochastic velocity rescaling; see `NVTVelocityRescaling`.

    Attributes:
        rate: 1/τ, in the inverse of the internal unit of time.
    """

    rate: Leaf

    def init(self, key: Any, positions: Vectors, masses: Any, cell: Any) -> RescaledState:
        """Momenta at kT with the centre of mass at rest."""
        del cell
        key, split = jax.random.split(key)
        mass, momentum = maxwell_boltzmann(split, positions, masses, self.kT)
        none = jnp.zeros((), positions.dtype)
        return RescaledState(positions, momentum, jnp.zeros_like(positions), mass, key, none)

    def finish(self, state: RescaledState, forces: Vectors, dt: Any) -> RescaledState:
        """Half a kick, and the thermostat for a whole step."""
        state = super().finish(state, forces, dt)
        momentum = centred(state.momentum, state.mass)
        key, split = jax.random.split(state.rng)
        degrees = self.degrees_of_freedom(n_mobile(state.mass), any_held(state.mass))
        # As many leading numbers as there are degrees of freedom: the same, however many there are in all.
        noise = jax.random.normal(split, (momentum.size,), momentum.dtype)
        noise = jnp.where(jnp.arange(momentum.size) < degrees, noise, 0.0)
        kinetic = kinetic_energy(momentum, state.mass)
        kept = jnp.exp(-dt * self.rate)
        renewed = (1.0 - kept) * self.kT / (2.0 * jnp.maximum(kinetic, 1e-30))
        along = jnp.sqrt(kept) + jnp.sqrt(renewed) * noise[0]
        squared = along**2 + renewed * (noise[1:] ** 2).sum()
        # Eq. A8: the velocities turn round where the component along them changes sign.
        factor = jnp.where(along < 0, -1.0, 1.0) * jnp.sqrt(squared)
        return state.replace(momentum=factor * momentum, rng=key, given=state.given + kinetic * (1.0 - squared))

    def reservoir(self, state: RescaledState) -> Any:
        """What was taken from the atoms, eV."""
        return state.given


@dataclasses.dataclass(frozen=True)
class NVTVelocityRescaling(Ensemble):
    """Constant volume and temperature by stochastic velocity rescaling (CSVR).

    Bussi, Donadio and Parrinello, J. Chem. Phys. 126, 014101 (2007), eq. A7: the kinetic energy follows its canonical
    distribution, and the dynamics is disturbed little. All velocities are scaled by one factor, so that independent
    harmonic modes are not brought into equilibrium with each other. It acts on 3N − 3 degrees of freedom; the centre of
    mass is kept at rest. `Run.conserved` is the total energy without what the thermostat gave.

    Attributes:
        temperature_K: K.
        temperature_time_ps: relaxation time τ of the kinetic energy, ps.

    Raises:
        ValueError: for values that are not positive and finite.
    """

    integrator: ClassVar[type[Dynamics]] = VelocityRescaling

    temperature_K: PerReplica
    temperature_time_ps: Number = 0.1

    def __post_init__(self) -> None:
        """Refuse values that cannot be simulated."""
        check_range("NVTVelocityRescaling", "temperature_K", self.temperature_K, 0.0, 1e5)
        check_range("NVTVelocityRescaling", "temperature_time_ps", self.temperature_time_ps, 0.0, 1e3)

    @property
    def time_constants_ps(self) -> dict[str, float]:
        """τ."""
        return {"thermostat": float(self.temperature_time_ps)}

    def dynamics(self, replicas: int) -> VelocityRescaling:
        """k_B T in eV and 1/τ in internal units."""
        return VelocityRescaling(
            kT=schedule("temperature_K", self.temperature_K, KB, replicas),
            rate=schedule("temperature_time_ps", 1.0 / self.temperature_time_ps, 1.0 / PS, replicas),
        )
