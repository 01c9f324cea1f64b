"""Ensembles at constant pressure: the cell is part of the state."""

import dataclasses
from typing import Any, ClassVar, Literal, cast

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxmlip.simulation.ensembles import NVT, PS, Ensemble, NVTNoseHoover
from jaxmlip.simulation.motion import centred, chain_energy, kinetic_energy, maxwell_boltzmann, nose_hoover_chain
from jaxmlip.simulation.schedules import Number, PerReplica, Schedule, check_range, schedule
from jaxmlip.systems.cells import inverses, volumes
from jaxmlip.types import AnyArray, Leaf, Vectors
from jaxmlip.units import GPA

CellMotion = Literal["isotropic", "orthorhombic", "flexible"]

STRAINS: dict[str, int] = {"isotropic": 1, "orthorhombic": 3, "flexible": 6}
"""Independent components of the strain by which a cell moves."""


class CellState(flax.struct.PyTreeNode):
    """State of one replica whose cell moves.

    Attributes:
        position, momentum, force: [atoms, 3].
        mass: [atoms, 1].
        rng: random key.
        cell: [3, 3], lattice vectors as rows, Å.
        stress: [3, 3], ∂E/∂ε / V at the positions, eV/Å³, without the kinetic part; filled in by the engine.
    """

    position: Leaf
    momentum: Leaf
    force: Leaf
    mass: Leaf
    rng: Leaf
    cell: Leaf
    stress: Leaf

    def set(self, **changes: Any) -> Any:
        """A copy with other values, as jax-md's steps want it."""
        return self.replace(**changes)


@dataclasses.dataclass(frozen=True)
class NPT(Ensemble):
    """Constant pressure and temperature by stochastic cell rescaling, with Langevin dynamics (BAOAB) of the atoms.

    Bernetti and Bussi, J. Chem. Phys. 153, 114107 (2020); anisotropic: Del Tatto, Raiteri, Bernetti and Bussi, Appl.
    Sci. 12, 1139 (2022). In each step, between the first half kick and the first drift, lattice vectors h, positions
    and momenta are strained, h ← h (1 + ε), r ← r (1 + ε), p ← p (1 + ε)⁻¹, by the first-order step

        ε = P{ β/(3τ) (Π − P₀ 1) dt + √(2D dt) W } + (n/3) D dt 1,    D = β kT / (3 V τ),

    where Π = Σ p pᵀ/m / V − σ is the pressure tensor at the start of the step, W has independent standard normal
    elements, and P projects onto the n strains that move: multiples of 1 (isotropic, n = 1), diagonal (orthorhombic,
    n = 3), symmetric (flexible, n = 6). The last term is Itô's; it makes the stationary distribution
    exp(−(H + P₀ V)/kT) dV, uniform over shapes of the cell (Haar measure). Symmetric strains leave out the rotations of
    the published equations, which no average depends on.

    The thermostat and the strain act on all 3N degrees of freedom, with which temperature and pressure are counted.

    Attributes:
        temperature_K: K.
        pressure_GPa: target P₀, GPa.
        cell: which strains move: "isotropic"; "orthorhombic", the lengths along x, y and z, so that a right-angled cell
            along the axes keeps its angles; or "flexible". Fluids need one of the first two: nothing holds the shape of
            their cell.
        pressure_time_ps: relaxation time τ of the volume, ps, if the compressibility is right.
        compressibility_per_GPa: isothermal compressibility β; by default that of ice Ih at its melting point (0.118,
            IAPWS R10-06), rounded. Averages depend on neither τ nor β; rates depend on τ/β.
        friction_per_ps: friction coefficient of the thermostat, 1/ps.

    Raises:
        ValueError: for values that are not finite, or not positive (except for the pressure).
    """

    moves_cell: ClassVar[bool] = True

    temperature_K: PerReplica
    pressure_GPa: PerReplica = 0.0
    cell: CellMotion = "isotropic"
    pressure_time_ps: Number = 1.0
    compressibility_per_GPa: Number = 0.12
    friction_per_ps: Number = 2.0

    def __post_init__(self) -> None:
        """Refuse values that cannot be simulated."""
        check_range("NPT", "temperature_K", self.temperature_K, 0.0, 1e5)
        check_range("NPT", "pressure_GPa", self.pressure_GPa, -1e6, 1e6)
        check_range("NPT", "pressure_time_ps", self.pressure_time_ps, 0.0, 1e6)
        check_range("NPT", "compressibility_per_GPa", self.compressibility_per_GPa, 0.0, 1e6)
        check_range("NPT", "friction_per_ps", self.friction_per_ps, 0.0, 1e6)
        check_cell_motion(self.cell)

    @property
    def time_constants_ps(self) -> dict[str, float]:
        """Those of thermostat and volume."""
        return {"thermostat": 1.0 / self.friction_per_ps, "barostat": float(self.pressure_time_ps)}

    def schedules(self, replicas: int) -> dict[str, Schedule]:
        """k_B T in eV, P₀ in eV/Å³, γ, β/τ in Å³/eV per unit of time, and n."""
        rate = self.compressibility_per_GPa / self.pressure_time_ps
        return NVT(self.temperature_K, self.friction_per_ps).schedules(replicas) | {
            "pressure": schedule("pressure_GPa", self.pressure_GPa, GPA, replicas),
            "response": schedule("pressure_time_ps", rate, 1.0 / (GPA * PS), replicas),
            "strains": schedule("cell", STRAINS[self.cell], 1.0, replicas),
        }

    @staticmethod
    def degrees_of_freedom(atoms: Any, held: Any = False) -> Any:
        """3N."""
        del held
        return 3 * atoms

    @staticmethod
    def init(
        key: Any, positions: Vectors, masses: Any, cell: Float[AnyArray, "3 3"], numbers: dict[str, Any]
    ) -> CellState:
        """Maxwell–Boltzmann momenta at kT with the centre of mass at rest."""
        key, split = jax.random.split(key)
        mass, momentum = maxwell_boltzmann(split, positions, masses, numbers["kT"])
        return CellState(positions, momentum, jnp.zeros_like(positions), mass, key, cell, jnp.zeros_like(cell))

    @staticmethod
    def move(state: CellState, dt: Any, numbers: dict[str, Any]) -> CellState:
        """Half a kick, the strain of the cell, half a drift, the thermostat, half a drift."""
        key, split = jax.random.split(state.rng)
        strain = _strain(split, state, dt, numbers)
        state = _kicked(state, dt / 2).replace(rng=key)
        state = state.replace(
            cell=state.cell + state.cell @ strain,
            position=state.position + state.position @ strain,
            momentum=state.momentum @ inverses(jnp.eye(3, dtype=strain.dtype) + strain),
        )
        # NVT's first kick has been given.
        return NVT.move(state.replace(force=jnp.zeros_like(state.force)), dt, numbers)

    @staticmethod
    def finish(state: CellState, forces: Vectors, dt: Any, numbers: dict[str, Any]) -> CellState:
        """Half a kick."""
        del numbers
        return _kicked(state.replace(force=forces), dt / 2)


class ExtendedState(flax.struct.PyTreeNode):
    """State of one replica under Martyna–Tobias–Klein dynamics.

    Attributes:
        position, momentum, force: [atoms, 3].
        mass: [atoms, 1].
        cell, stress: as in `CellState`.
        growth: [], momentum p of ln V / 3.
        inertia: [], its mass W.
        thermostat, barostat: jax-md's chains, of the atoms and of `growth`.
    """

    position: Leaf
    momentum: Leaf
    force: Leaf
    mass: Leaf
    cell: Leaf
    stress: Leaf
    growth: Leaf
    inertia: Leaf
    thermostat: Leaf
    barostat: Leaf


@dataclasses.dataclass(frozen=True)
class NPTNoseHoover(Ensemble):
    """Constant pressure and temperature by deterministic dynamics; the cell keeps its shape.

    Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177 (1994), integrated as by Tuckerman et al., J. Phys. A 39, 5629
    (2006), with Nosé–Hoover chains of three, jax-md's, for the atoms and for the cell. The centre of mass is kept at
    rest: temperature and pressure are counted with 3N − 3 degrees of freedom, and volumes are distributed as
    Q(N, V, T) exp(−P₀ V/kT) / V. `Run.conserved` is the extended enthalpy.

    Attributes:
        temperature_K: K.
        pressure_GPa: target P₀, GPa.
        temperature_time_ps: period τ of the chain of the atoms.
        pressure_time_ps: period τ_b of the cell, of mass W = 3N kT τ_b², and of its chain.

    Raises:
        ValueError: for values that are not finite, or not positive (except for the pressure).
    """

    moves_cell: ClassVar[bool] = True
    conserves: ClassVar[bool] = True
    pads: ClassVar[bool] = False

    temperature_K: PerReplica
    pressure_GPa: PerReplica = 0.0
    temperature_time_ps: Number = 0.1
    pressure_time_ps: Number = 1.0

    def __post_init__(self) -> None:
        """Refuse values that cannot be simulated."""
        check_range("NPTNoseHoover", "temperature_K", self.temperature_K, 0.0, 1e5)
        check_range("NPTNoseHoover", "pressure_GPa", self.pressure_GPa, -1e6, 1e6)
        check_range("NPTNoseHoover", "temperature_time_ps", self.temperature_time_ps, 0.0, 1e3)
        check_range("NPTNoseHoover", "pressure_time_ps", self.pressure_time_ps, 0.0, 1e6)

    @property
    def time_constants_ps(self) -> dict[str, float]:
        """Those of thermostat and volume."""
        return {"thermostat": float(self.temperature_time_ps), "barostat": float(self.pressure_time_ps)}

    def schedules(self, replicas: int) -> dict[str, Schedule]:
        """k_B T in eV, P₀ in eV/Å³, and both periods in internal units."""
        return NVTNoseHoover(self.temperature_K, self.temperature_time_ps).schedules(replicas) | {
            "pressure": schedule("pressure_GPa", self.pressure_GPa, GPA, replicas),
            "cell_period": schedule("pressure_time_ps", self.pressure_time_ps, PS, replicas),
        }

    @staticmethod
    def init(key: Any, positions: Vectors, masses: Any, cell: Any, numbers: dict[str, Any]) -> ExtendedState:
        """Momenta of the atoms at kT with the centre of mass at rest; cell and chains are at rest."""
        mass, momentum = maxwell_boltzmann(key, positions, masses, numbers["kT"])
        kinetic = kinetic_energy(momentum, mass)
        none = jnp.zeros((), positions.dtype)
        degrees = NPTNoseHoover.degrees_of_freedom(len(positions))
        of_atoms, of_cell = nose_hoover_chain(0.0, numbers["period"]), nose_hoover_chain(0.0, numbers["cell_period"])
        return ExtendedState(
            position=positions,
            momentum=momentum,
            force=jnp.zeros_like(positions),
            mass=mass,
            cell=cell,
            stress=jnp.zeros_like(cell),
            growth=none,
            inertia=_inertia(positions, numbers),
            thermostat=of_atoms.initialize(degrees, kinetic, numbers["kT"]),
            barostat=of_cell.initialize(1, none, numbers["kT"]),
        )

    @staticmethod
    def move(state: ExtendedState, dt: Any, numbers: dict[str, Any]) -> ExtendedState:
        """Chains, half a kick of cell and atoms, and the drift of both."""
        kT = numbers["kT"]
        of_atoms, of_cell = nose_hoover_chain(dt, numbers["period"]), nose_hoover_chain(dt, numbers["cell_period"])
        # The masses follow the temperature.
        momentum, thermostat = of_atoms.half_step(state.momentum, of_atoms.update_mass(state.thermostat, kT), kT)
        growth, barostat = of_cell.half_step(state.growth, of_cell.update_mass(state.barostat, kT), kT)
        state = state.replace(momentum=momentum, growth=growth, thermostat=thermostat, barostat=barostat)
        state = state.replace(inertia=_inertia(state.position, numbers))
        state = state.replace(growth=state.growth + 0.5 * dt * _cell_force(state, numbers))
        state = _kicked_with_cell(state, 0.5 * dt)
        strain = dt * state.growth / state.inertia
        drift = dt * state.momentum / state.mass * jnp.exp(0.5 * strain) * _sinhc(0.5 * strain)
        position = state.position + jnp.expm1(strain) * state.position + drift
        return state.replace(position=position, cell=state.cell + jnp.expm1(strain) * state.cell)

    @staticmethod
    def finish(state: ExtendedState, forces: Vectors, dt: Any, numbers: dict[str, Any]) -> ExtendedState:
        """Half a kick of atoms and cell, and the chains."""
        kT = numbers["kT"]
        of_atoms, of_cell = nose_hoover_chain(dt, numbers["period"]), nose_hoover_chain(dt, numbers["cell_period"])
        state = _kicked_with_cell(state.replace(force=forces), 0.5 * dt)
        state = state.replace(momentum=centred(state.momentum, state.mass))
        growth = state.growth + 0.5 * dt * _cell_force(state, numbers)
        kinetic = kinetic_energy(state.momentum, state.mass)
        momentum, thermostat = of_atoms.half_step(state.momentum, state.thermostat.set(kinetic_energy=kinetic), kT)
        of_growth = state.barostat.set(kinetic_energy=0.5 * growth**2 / state.inertia)
        growth, barostat = of_cell.half_step(growth, of_growth, kT)
        return state.replace(momentum=momentum, growth=growth, thermostat=thermostat, barostat=barostat)

    @staticmethod
    def reservoir(state: ExtendedState, numbers: dict[str, Any]) -> Any:
        """P₀ V, the kinetic energy of the cell, and the energies of the chains, eV."""
        of_cell = numbers["pressure"] * volumes(state.cell) + 0.5 * state.growth**2 / state.inertia
        return of_cell + chain_energy(state.thermostat, numbers["kT"]) + chain_energy(state.barostat, numbers["kT"])


def _inertia(positions: Vectors, numbers: dict[str, Any]) -> Any:
    return 3.0 * len(positions) * numbers["kT"] * numbers["cell_period"] ** 2


def _scaling(state: ExtendedState) -> float:
    """1 + 3/N_f, by which the cell's velocity acts on momenta."""
    return 1.0 + 3.0 / NPTNoseHoover.degrees_of_freedom(len(state.position))


def _cell_force(state: ExtendedState, numbers: dict[str, Any]) -> Any:
    """dp/dt of the cell, eV."""
    kinetic = (state.momentum**2 / state.mass).sum()
    excess = jnp.trace(state.stress) + 3.0 * numbers["pressure"]
    return _scaling(state) * kinetic - volumes(state.cell) * excess


def _kicked_with_cell(state: ExtendedState, dt: Any) -> ExtendedState:
    """Forces and the cell's velocity act on momenta for a time dt."""
    x = _scaling(state) * dt * state.growth / state.inertia
    momentum = state.momentum * jnp.exp(-x) + dt * state.force * jnp.exp(-0.5 * x) * _sinhc(0.5 * x)
    return state.replace(momentum=momentum)


def _sinhc(x: Any) -> Any:
    """sinh(x)/x by its series; x is small."""
    return 1.0 + x**2 / 6.0 + x**4 / 120.0 + x**6 / 5040.0


def check_cell_motion(name: str) -> CellMotion:
    """The name, if it is one of a way that cells move; else ValueError."""
    if name not in STRAINS:
        raise ValueError(f"A cell moves in one of the ways {', '.join(STRAINS)}, not {name!r}.")
    return cast(CellMotion, name)


def pressure_tensor(state: CellState) -> Float[AnyArray, "3 3"]:
    """Σ p pᵀ/m / V − σ, eV/Å³."""
    kinetic = (state.momentum / state.mass).T @ state.momentum
    return kinetic / volumes(state.cell) - state.stress


def _kicked(state: CellState, dt: Any) -> CellState:
    return state.replace(momentum=state.momentum + dt * state.force)


def _strain(key: Any, state: CellState, dt: Any, numbers: dict[str, Any]) -> Float[AnyArray, "3 3"]:
    """The strain ε of one step; see `NPT`."""
    unit = jnp.eye(3, dtype=state.cell.dtype)
    strains, response = numbers["strains"], numbers["response"]
    diffusion = response * numbers["kT"] / (3.0 * volumes(state.cell))
    noise = jnp.sqrt(2.0 * diffusion * dt) * jax.random.normal(key, (3, 3), state.cell.dtype)
    drift = response / 3.0 * dt * (pressure_tensor(state) - numbers["pressure"] * unit)
    moved = drift + noise
    symmetric = 0.5 * (moved + moved.T)
    diagonal = symmetric * unit
    isotropic = jnp.trace(moved) / 3.0 * unit
    projected = jnp.where(strains < 2, isotropic, jnp.where(strains < 4, diagonal, symmetric))
    return projected + strains / 3.0 * diffusion * dt * unit
