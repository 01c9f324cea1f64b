"""Conformance tests for ensembles; see `check_ensemble`."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.simulation.dynamics import Ensemble, initial_state, reservoirs
from jaxmlip.simulation.motion import HELD_MASS, PADDING_MASS, kinetic_energy
from jaxmlip.simulation.schedules import longest_ramp_ps
from jaxmlip.simulation.step import integrated
from jaxmlip.systems.cells import volumes
from jaxmlip.types import Leaf
from jaxmlip.units import FS, GPA

ATOMS = 27
MASSES = 1.0, 2.0, 16.0, 40.0
"""amu, in turn."""

PERIOD = 60
"""Steps in a period of the wells."""

EDGE = 9.0
"""Å, of the cell; each atom has the volume of one in a metal or in ice."""

MODULUS_GPA = 30.0
"""Three times the bulk modulus of the cell."""

TIME_CONSTANTS = 6
"""How many of the longest a run takes until it is sampled, and then once more."""

MOST_STEPS = 40_000
"""Of a run."""

NOTHING = 1e-20
"""A momentum, in √(amu eV): that of padding that follows the centre of mass is less."""

SIGMAS, TIMESTEP_ERROR = 5.0, 0.02
"""By how many standard errors, and by what share beside, averages may be off."""


def check_ensemble(ensemble: Ensemble, *, timestep_fs: float | int = 1.0, replicas: int = 32, seed: int = 0) -> None:
    """Hold an ensemble to what simulations rely on, on atoms in harmonic wells that move with their centre of mass.

    In double precision: the description is a pytree, and its dynamics of the class that it says; states have what
    `states.State` (and `StateWithCell`) names; a step of zero length changes nothing but forces and random keys; equal
    seeds give equal trajectories, others others, and replicas are the same together and alone; the cell moves where
    `moves_cell` says so, and only there; padding changes nothing for the other atoms where `pads`, and it and held
    atoms have no momentum and stay; total energy plus `reservoir` is constant where `conserves`; the canonical
    distribution is stationary: the kinetic temperature, by `degrees_of_freedom`, and the energy of the wells are those
    of kT, within five standard errors and 2 %; where there is a "thermostat" among `time_constants_ps`, also from atoms
    that start at the minima. Where the cell moves and the dynamics has a `pressure`, that is the mean pressure.

    It takes twelve of the longest of the ensemble's time constants: give it short ones.

    Args:
        ensemble: with numbers that neither change in time nor differ between replicas.
        timestep_fs: fs, of steps in wells whose period is sixty of them.
        replicas: whose averages are compared.
        seed: of momenta and noise.

    Raises:
        AssertionError: naming the law that does not hold, with the numbers.
        ValueError: if the ensemble's numbers change in time, or its time constants are too long.
    """
    with jax.enable_x64(True):
        _check_description(ensemble, replicas)
        bench = _Bench(ensemble, float(timestep_fs), replicas, seed)
        _check_state(bench)
        _check_step_of_zero_length(bench)
        _check_seeds(bench)
        _check_cell(bench)
        _check_held(bench)
        if ensemble.pads:
            _check_padding(bench)
        _check_averages(bench)


class _Wells(flax.struct.PyTreeNode):
    """½ Σ k |d − D|² + ½ K V₀ Σ e², d away from centres that follow the cell, D their mean, e the cell's strain.

    Attributes:
        centres: [atoms, 3], in fractions of the cell.
        springs: [atoms], k; 0 for padding.
    """

    centres: Leaf
    springs: Leaf

    def energies(self, position: Any, cell: Any) -> tuple[Any, Any]:
        """Of the wells and of the cell, eV."""
        away = position - self.centres @ cell
        weights = self.springs[:, None] / self.springs.sum()
        of_wells = 0.5 * (self.springs[:, None] * (away - (weights * away).sum(0)) ** 2).sum()
        strain = 0.5 * (cell @ cell.T / EDGE**2 - jnp.eye(3))
        return of_wells, 0.5 * MODULUS_GPA * GPA * EDGE**3 * (strain**2).sum()

    def forces(self, position: Any, cell: Any) -> tuple[Any, Any]:
        """Forces and stress."""

        def energy(position: Any, strain: Any) -> Any:
            matrix = jnp.eye(3) + 0.5 * (strain + strain.T)
            return sum(self.energies(position @ matrix, cell @ matrix))

        slopes = jax.grad(energy, argnums=(0, 1))(position, jnp.zeros((3, 3)))
        return -slopes[0], slopes[1] / volumes(cell)


class _Bench:
    """Runs the ensemble's dynamics in the wells."""

    def __init__(self, ensemble: Ensemble, timestep_fs: float, replicas: int, seed: int) -> None:
        self.ensemble, self.replicas, self.dt = ensemble, replicas, timestep_fs * FS
        self.dynamics, self.key = ensemble.dynamics(replicas), jax.random.key(seed)
        self.kT = self.dynamics.at(0.0).kT[0]
        self.cells = jnp.tile(EDGE * jnp.eye(3), (replicas, 1, 1))
        self.masses = np.resize(MASSES, ATOMS)
        sites = (np.indices((3, 3, 3)).reshape(3, -1).T + 0.5) / 3.0
        # Of different periods, lest deterministic dynamics be a motion of the whole.
        frequencies = 2.0 * np.pi / (PERIOD * self.dt) / np.linspace(1.0, 3.0, ATOMS)
        self.wells = _Wells(jnp.asarray(sites), jnp.asarray(self.masses * frequencies**2))
        times = ensemble.time_constants_ps
        self.relaxation = max(2 * PERIOD, round(TIME_CONSTANTS * max(times.values(), default=0.0) * 1000 / timestep_fs))
        if self.relaxation > MOST_STEPS:
            raise ValueError(
                f"Twelve of the time constants {times} ps are {2 * self.relaxation} steps of {timestep_fs:g} fs, more "
                f"than {2 * MOST_STEPS}: check the ensemble with shorter ones."
            )

    def start(self, *, spread: bool = False, masses: Any = None, key: Any = None) -> Any:
        """States with forces; at the minima of the wells, or spread as they are at kT."""
        masses = self.masses if masses is None else masses
        places = jnp.tile(self.wells.centres @ (EDGE * jnp.eye(3)), (self.replicas, 1, 1))
        if spread:
            noise = jax.random.normal(jax.random.fold_in(self.key, 1), places.shape)
            places = places + jnp.sqrt(self.kT / self.wells.springs)[:, None] * noise
        masses = jnp.tile(jnp.asarray(masses), (self.replicas, 1))
        key = self.key if key is None else key
        state = initial_state(places, masses, self.cells, key, jnp.arange(self.replicas), self.dynamics)
        return self.run(state, 1, dt=0.0)[0]

    def run(self, state: Any, steps: int, *, dt: float | None = None, wells: Any = None) -> tuple[Any, dict[str, Any]]:
        """States after so many steps, and means of what was seen after each, [replicas]."""
        wells = self.wells if wells is None else wells
        return _run(self.dynamics, state, wells, self.cells, self.dt if dt is None else dt, steps)


@jax.jit
def _run(dynamics: Any, state: Any, wells: _Wells, cells: Any, dt: Any, steps: Any) -> tuple[Any, dict[str, Any]]:
    """See `_Bench.run`; the number of steps is traced, lest each compile anew."""

    def now(state: Any) -> Any:
        return state.cell if dynamics.moves_cell else cells

    def forces(state: Any) -> tuple[Any, Any, None]:
        return *jax.vmap(wells.forces)(state.position, now(state)), None

    def step(number: Any, carry: Any) -> Any:
        state, sums, first, off = carry
        time = (number + 1) * dt
        state, _ = integrated(forces, dynamics, state, time, dt, resting=True)
        of_wells, of_cell = jax.vmap(wells.energies)(state.position, now(state))
        kinetic, volume = jax.vmap(kinetic_energy)(state.momentum, state.mass), volumes(now(state))
        virial = jnp.trace(state.stress, axis1=1, axis2=2) if dynamics.moves_cell else 0.0
        seen = {"kinetic": kinetic, "wells": of_wells, "pressure": (2.0 * kinetic / volume - virial) / 3.0}
        held = reservoirs(state, dynamics, time) if dynamics.conserves else 0.0
        total = kinetic + of_wells + of_cell + held
        first = jnp.where(number == 0, total, first)
        sums = jax.tree.map(jnp.add, sums, seen)
        return state, sums, first, jnp.maximum(off, jnp.abs(total - first))

    none = jnp.zeros(len(state.position))
    sums = dict.fromkeys(("kinetic", "wells", "pressure"), none)
    state, sums, _, off = jax.lax.fori_loop(0, steps, step, (state, sums, none, none))
    return state, {name: each / steps for name, each in sums.items()} | {"not conserved": off}


def _check_description(ensemble: Ensemble, replicas: int) -> None:
    """What can be seen without a step."""
    kind = type(ensemble).__name__
    leaves, structure = jax.tree.flatten(ensemble)
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert repr(rebuilt) == repr(ensemble), f"the description is a pytree: {ensemble} comes back as {rebuilt}."
    dynamics = ensemble.dynamics(replicas)
    found, said = type(dynamics).__name__, ensemble.integrator.__name__
    assert found == said, f"the dynamics of {kind} is a {found}, and its integrator says {said}."
    for path, leaf in jax.tree_util.tree_leaves_with_path(dynamics):
        where = jax.tree_util.keystr(path)
        shape = np.shape(leaf)
        assert shape == (replicas,), f"the numbers of a dynamics are schedules: {where} has the shape {shape}."
    if longest_ramp_ps(dynamics):
        raise ValueError(f"check_ensemble needs numbers that do not change in time, and those of {kind} do.")


def _check_state(bench: _Bench) -> None:
    """The protocol."""
    state = bench.start()
    shapes = {name: (bench.replicas, ATOMS, width) for name, width in (("position", 3), ("momentum", 3), ("mass", 1))}
    shapes["force"] = shapes["position"]
    if bench.ensemble.moves_cell:
        shapes |= {"cell": (bench.replicas, 3, 3), "stress": (bench.replicas, 3, 3)}
    for name, shape in shapes.items():
        found = getattr(getattr(state, name, None), "shape", ())
        assert found == shape, f"states have a {name}: its shape is {found} instead of {shape}."
    assert hasattr(state, "set"), "states have a method set, as jax-md's have: derive from states.BasicState."


def _check_step_of_zero_length(bench: _Bench) -> None:
    """From a state that is amid its motion."""
    before, _ = bench.run(bench.start(spread=True), PERIOD // 3)
    after, _ = bench.run(before, 1, dt=0.0)
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        name = jax.tree_util.keystr(path)
        if not jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            scale = float(jnp.abs(old).max(initial=1e-9))
            off = float(jnp.abs(new - old).max(initial=0.0))
            assert off <= 1e-9 * scale, f"a step of zero length changes nothing: {name} changes by {off:.3g}."


def _check_seeds(bench: _Bench) -> None:
    """Of equal and of other seeds, and of replicas together and alone."""
    first, again = (bench.run(bench.start(), PERIOD)[0] for _ in range(2))
    assert (first.position == again.position).all(), "equal seeds give equal trajectories: two runs differ."
    other = bench.run(bench.start(key=jax.random.key(12345)), PERIOD)[0]
    assert (first.position != other.position).any(), "other seeds give other trajectories: two runs are equal."
    positions = np.asarray(first.position)
    same = (positions[1:] == positions[:1]).all((1, 2))
    assert not same.any(), "replicas are independent: some have equal trajectories."
    alone = jax.tree.map(lambda leaf: leaf[2:3], bench.start())
    numbers = jax.tree.map(lambda leaf: leaf[2:3], bench.dynamics)
    single = _run(numbers, alone, bench.wells, bench.cells[2:3], bench.dt, PERIOD)[0]
    off = float(jnp.abs(single.position[0] - first.position[2]).max())
    assert off < 1e-8, f"replicas are independent: one alone comes {off:.3g} Å elsewhere than among others."


def _check_cell(bench: _Bench) -> None:
    """Moves where it is said to move, and nowhere else."""
    before = bench.start()
    after, _ = bench.run(before, PERIOD)
    moved = hasattr(after, "cell") and bool((after.cell != before.cell).any())
    said = f"moves_cell is {bench.ensemble.moves_cell}"
    assert moved == bench.ensemble.moves_cell, f"the cell moves only where moves_cell: it {said}, and it does not hold."


def _check_held(bench: _Bench) -> None:
    """Two atoms that are held, in an ensemble whose cell does not move."""
    if bench.ensemble.moves_cell:
        return
    masses = np.where(np.arange(ATOMS) < 2, HELD_MASS, bench.masses)
    state = bench.dynamics.with_degrees(
        bench.start(masses=masses), int(bench.dynamics.degrees_of_freedom(ATOMS - 2, True))
    )
    assert jnp.abs(state.momentum[:, :2]).max() < NOTHING, "held atoms have no momentum: init gives them one."
    after, _ = bench.run(state, PERIOD)
    assert jnp.isfinite(after.position).all(), "held atoms: positions cease to be finite where there are some."
    assert (after.position[:, :2] == state.position[:, :2]).all(), "held atoms stay: they move."
    assert (after.position[:, 2:] != state.position[:, 2:]).any(), "held atoms: the others do not move either."


def _check_padding(bench: _Bench) -> None:
    """Two atoms of padding behind the others."""
    state, more = bench.start(), 2
    masses = np.append(bench.masses, [PADDING_MASS] * more)
    wells = _Wells(
        jnp.concatenate([bench.wells.centres, jnp.zeros((more, 3))]),
        jnp.concatenate([bench.wells.springs, jnp.zeros(more)]),
    )
    places = jnp.concatenate([state.position, jnp.zeros((bench.replicas, more, 3))], axis=1)
    numbers, masses = jnp.arange(bench.replicas), jnp.tile(masses, (bench.replicas, 1))
    padded = initial_state(places, masses, bench.cells, bench.key, numbers, bench.dynamics)
    assert jnp.abs(padded.momentum[:, ATOMS:]).max() < NOTHING, "padding has no momentum: init gives it one."
    steps = PERIOD // 2
    padded, _ = bench.run(bench.run(padded, 1, dt=0.0, wells=wells)[0], steps, wells=wells)
    alone, _ = bench.run(state, steps)
    for name in ("position", "momentum"):
        off = float(jnp.abs(getattr(padded, name)[:, :ATOMS] - getattr(alone, name)).max())
        assert off < 1e-6, f"padding changes nothing for the other atoms: {name} differs by {off:.3g}."


def _check_averages(bench: _Bench) -> None:
    """What is conserved, and averages at the temperature and pressure."""
    thermostat = "thermostat" in bench.ensemble.time_constants_ps
    state, steps = bench.start(spread=not thermostat), bench.relaxation
    if thermostat or bench.ensemble.moves_cell:
        state, early = bench.run(state, steps)
        _check_conserved(bench, early["not conserved"])
    _, found = bench.run(state, steps)
    _check_conserved(bench, found["not conserved"])
    degrees = bench.dynamics.degrees_of_freedom(ATOMS)
    _close("the kinetic temperature is that of kT", found["kinetic"] / (0.5 * degrees * bench.kT), 1.0)
    wells = found["wells"] / (0.5 * (3 * ATOMS - 3) * bench.kT)
    _close("the energy of harmonic wells is that of kT", wells, 1.0)
    target = getattr(bench.dynamics.at(0.0), "pressure", None)
    if bench.ensemble.moves_cell and target is not None:
        scale = ATOMS * float(bench.kT) / EDGE**3
        wanted = 1.0 + float(target[0]) / scale
        # With dV/V in place of dV, the mean is off by kT/V, 1 / atoms of the scale.
        _close("the mean pressure is that of the barostat", 1.0 + found["pressure"] / scale, wanted, 2.0 / ATOMS)


def _check_conserved(bench: _Bench, changes: Any) -> None:
    """In units of kT, of which the total energy would fluctuate by many."""
    if bench.ensemble.conserves:
        off = float(changes.max() / bench.kT)
        assert off < 1.0, f"total energy and reservoir are conserved: their sum changes by {off:.3g} kT."


def _close(law: str, values: Any, wanted: float, tolerance: float = 0.0) -> None:
    """Raise AssertionError unless the mean of independent means [replicas] is what is wanted."""
    means = np.asarray(values)
    error = means.std(ddof=1) / np.sqrt(len(means))
    most = SIGMAS * error + TIMESTEP_ERROR * abs(wanted) + tolerance
    off = means.mean() - wanted
    assert abs(off) <= most, f"{law}: the ratio is {means.mean():.4f} ± {error:.4f} instead of {wanted:.4f}."
