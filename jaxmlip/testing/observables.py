"""Conformance tests for observables; see `check_observable`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from scipy.spatial.transform import Rotation

from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.observable import Observable, References
from jaxmlip.potentials.potential import Potential, Prediction
from jaxmlip.systems.capacity import Capacity, needs_of
from jaxmlip.systems.device_lists import cell_heights
from jaxmlip.systems.graph import periodic_cell
from jaxmlip.systems.ice import ice_ih

STEP = 1e-4
"""Å (or √(amu eV)): of finite differences, whose error is of fourth order in it."""

FIELDS = ("positions", "momenta", "cell")
"""By which a value may be differentiated."""


def check_observable(
    observable: Observable,
    structure: Atoms | None = None,
    *,
    potential: Potential | None = None,
    differentiable: Sequence[str] = FIELDS,
    relative: float = 1e-6,
    seed: int = 0,
) -> None:
    """Hold an observable to what averages, reweighting and gradients rely on.

    In double precision: it has a name and a unit, and is hashable; values are finite, and of one shape for all frames;
    they do not change with a translation of all atoms, lattice translations of single ones, or permutations of equal
    atoms (for what is bound to molecules, with these found anew); under a rotation with the cell they stay, or turn as
    vectors [..., 3] or tensors [..., 3, 3] do; under `jax.jit` and `jax.vmap` they are what they are without;
    derivatives are finite, and those of finite differences; `mean` with equal weights is the plain
    mean; `completed` keeps the shape.

    Args:
        observable: any.
        structure: what to look at; rattled ice of 16 molecules by default. Momenta, forces and what else a frame may
            know are drawn at random.
        potential: whose observable it is, for one that depends on a potential; array leaves.
        differentiable: fields of a frame by which the value can be differentiated, of "positions", "momenta" and
            "cell"; `()` for counts, which jump.
        relative: error allowed, as a share of the largest value.
        seed: of all that is random.

    Raises:
        AssertionError: naming the law that does not hold, with the numbers.
        ValueError: if the observable refuses the structure.
    """
    with jax.enable_x64(True):
        atoms = ice_ih(molecules=16, seed=seed) if structure is None else structure
        double = jax.tree.map(_in_double, potential)
        frame = _frame(atoms, double, np.random.default_rng(seed))
        unbound, observable = observable, observable.bound_to(atoms)
        observable.check(frame)
        bench = _Bench(observable, double, relative, unbound)
        _check_words(observable)
        value = bench.value(frame)
        _check_value(bench, frame, value)
        _check_symmetries(bench, atoms, frame, value, np.random.default_rng(seed + 1))
        _check_transformations(bench, frame, value)
        _check_derivatives(bench, frame, differentiable, seed)
        _check_mean(bench, frame, value)


class _Bench:
    """Values of an observable, compiled once."""

    def __init__(self, observable: Observable, potential: Any, relative: float, unbound: Observable) -> None:
        self.observable, self.potential, self.relative, self.unbound = observable, potential, relative, unbound
        self._compiled = jax.jit(self.raw)

    def raw(self, frame: FrameState) -> Any:
        """Uncompiled."""
        return self.observable.per_frame(frame, self.potential)

    def value(self, frame: FrameState) -> np.ndarray:
        """On the host."""
        return np.asarray(self._compiled(frame))

    def value_anew(self, frame: FrameState, structure: Atoms) -> np.ndarray:
        """With the molecules of another structure; on the host."""
        bound = self.unbound.bound_to(structure)
        if bound == self.observable:
            return self.value(frame)
        return np.asarray(jax.jit(bound.per_frame)(frame, self.potential))

    def off(self, found: Any, wanted: Any) -> float:
        """By how much two values differ, in what is allowed."""
        scale = self.relative * max(float(np.abs(wanted).max(initial=0.0)), 1e-3)
        return float(np.abs(np.asarray(found) - np.asarray(wanted)).max(initial=0.0)) / scale

    def same(self, law: str, found: Any, wanted: Any) -> None:
        """Raise AssertionError unless two values agree."""
        assert np.shape(found) == np.shape(wanted), f"{law}: shapes are {np.shape(found)} and {np.shape(wanted)}."
        off = self.off(found, wanted)
        assert off <= 1.0, f"{law}: off by {off:.3g} times what is allowed ({found} instead of {wanted})."


def _in_double(leaf: Any) -> Any:
    return np.asarray(leaf, np.float64) if jnp.issubdtype(np.asarray(leaf).dtype, jnp.floating) else leaf


def _frame(atoms: Atoms, potential: Potential | None, rng: np.random.Generator) -> FrameState:
    """A frame that knows all there is to know."""
    number, cell = len(atoms), periodic_cell(atoms)
    positions = atoms.positions + rng.normal(scale=0.05, size=(number, 3))
    stress = rng.normal(scale=0.01, size=(3, 3))
    heights = cell_heights(cell)
    capacity = None
    if potential is not None:
        cutoffs = potential.cutoff, potential.inner_cutoff
        needs = needs_of([positions], cell[None], 0.95 * heights, cutoffs, 0.0, number)
        capacity = Capacity.holding(needs, 0.95 * heights, potential.cutoff, number)
    return FrameState(
        positions=jnp.asarray(positions),
        cell=jnp.asarray(cell),
        masses=jnp.asarray(atoms.get_masses()),
        momenta=jnp.asarray(rng.normal(size=(number, 3)) * np.sqrt(0.03 * atoms.get_masses()[:, None])),
        degrees=jnp.asarray(3.0 * number - 3.0),
        potential_energy=jnp.asarray(rng.normal()),
        forces=jnp.asarray(rng.normal(size=(number, 3))),
        stress=jnp.asarray(0.5 * (stress + stress.T)),
        prediction=Prediction(
            jnp.asarray(rng.normal(size=1)),
            jnp.asarray(rng.normal(size=(number, 3))),
            jnp.asarray(0.5 * (stress + stress.T)[None] + 0.01 * np.eye(3)),
        ),
        numbers=tuple(atoms.numbers.tolist()),
        heights=tuple((0.95 * heights).tolist()),
        capacity=capacity,
    )


def _changed(frame: FrameState, of_atoms: Callable[[Any], Any]) -> FrameState:
    """The frame with what is of atoms changed: positions, momenta and forces."""
    known = {name: of_atoms(getattr(frame, name)) for name in ("positions", "momenta", "forces")}
    assert frame.prediction is not None
    prediction = frame.prediction.replace(forces=of_atoms(frame.prediction.forces))
    return frame.replace(**known, prediction=prediction)


def _check_words(observable: Observable) -> None:
    """What tables and compiled functions need."""
    kind = type(observable).__name__
    assert str(observable.name or "").strip(), f"an observable has a name: {kind} has none."
    assert isinstance(observable.unit, str), f"an observable has a unit, '' for pure numbers: {kind} has none."
    try:
        hash(observable)
    except TypeError as error:
        raise AssertionError(f"an observable is hashable, a frozen dataclass: {kind} is not ({error}).") from error


def _check_value(bench: _Bench, frame: FrameState, value: np.ndarray) -> None:
    """Finite, and of one shape."""
    assert np.isfinite(value).all(), f"values are finite: one is {value}."
    assert np.issubdtype(value.dtype, np.floating), f"values are real numbers: they are of the type {value.dtype}."
    squeezed = frame.replace(positions=0.97 * frame.positions, cell=0.97 * frame.cell)
    found = bench.value(squeezed)
    assert found.shape == value.shape, f"all values have one shape: {found.shape} and {value.shape} are there."
    assert np.isfinite(found).all(), f"values are finite: one is {found} in a compressed cell."


def _check_symmetries(
    bench: _Bench, atoms: Atoms, frame: FrameState, value: np.ndarray, rng: np.random.Generator
) -> None:
    """Translations, lattice translations, permutations and a rotation."""
    shift = jnp.asarray(rng.normal(size=3))
    moved = bench.value(frame.replace(positions=frame.positions + shift))
    bench.same("a translation of all atoms changes nothing", moved, value)
    if atoms.pbc.any():
        images = jnp.asarray(rng.integers(-1, 2, size=(len(atoms), 3))) @ frame.cell
        bench.same(
            "lattice translations of atoms change nothing",
            bench.value(frame.replace(positions=frame.positions + images)),
            value,
        )
    order = np.arange(len(atoms))
    for element in np.unique(atoms.numbers):
        mine = np.flatnonzero(atoms.numbers == element)
        order[mine] = rng.permutation(mine)
    permuted = _changed(frame, lambda each: each[order]).replace(masses=frame.masses[order])
    bench.same("a permutation of equal atoms changes nothing", bench.value_anew(permuted, atoms[order]), value)
    turn = jnp.asarray(Rotation.from_quat(rng.normal(size=4)).as_matrix())
    turned = _changed(frame, lambda each: each @ turn.T)
    assert frame.stress is not None
    assert turned.prediction is not None
    stresses = {"stress": turn @ frame.stress @ turn.T}
    other = turned.prediction.replace(stress=turn @ turned.prediction.stress @ turn.T)
    found = bench.value(turned.replace(cell=frame.cell @ turn.T, prediction=other, **stresses))
    wanted = [value]
    wanted += [value @ turn.T] if value.shape[-1:] == (3,) else []
    wanted += [turn @ value @ turn.T] if value.shape[-2:] == (3, 3) else []
    closest = min(wanted, key=lambda each: bench.off(found, each))
    bench.same("a rotation changes nothing, or turns vectors and tensors", found, closest)


def _check_transformations(bench: _Bench, frame: FrameState, value: np.ndarray) -> None:
    """Without `jit`, and mapped."""
    other = frame.replace(positions=frame.positions + 0.01 * jnp.sin(jnp.arange(3.0)) * frame.positions)
    bench.same("values are the same under jax.jit", value, np.asarray(bench.raw(frame)))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), frame, other)
    mapped = np.asarray(jax.jit(jax.vmap(bench.raw))(both))
    bench.same("values are the same under jax.vmap", mapped, np.stack([value, bench.value(other)]))


def _check_derivatives(bench: _Bench, frame: FrameState, exact: Sequence[str], seed: int) -> None:
    """Of a random combination of the value's elements, along a random direction of each field."""
    fields = {name: getattr(frame, name) for name in FIELDS if getattr(frame, name) is not None}
    weights = jnp.asarray(np.random.default_rng(seed + 2).normal(size=bench.value(frame).shape))

    @jax.jit
    def combined(fields: dict[str, Any]) -> Any:
        return (weights * bench.raw(frame.replace(**fields))).sum()

    slopes = jax.jit(jax.grad(combined))(fields)
    for name, where in fields.items():
        slope, direction = slopes[name], np.random.default_rng(seed + 3).normal(size=where.shape)
        assert np.isfinite(slope).all(), f"derivatives by {name} are finite: some are not."
        if name not in exact:
            continue

        def at(steps: int, name: str = name, moved: Any = STEP * direction) -> float:
            return float(combined(fields | {name: fields[name] + steps * moved}))

        wanted = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * STEP)
        found, scale = float((slope * direction).sum()), max(float(np.abs(slope).max()), abs(wanted), 1e-3)
        off = abs(found - wanted) / scale
        assert off < 1e-5, (
            f"derivatives by {name} are those of finite differences: {found:.8g} instead of {wanted:.8g}."
        )


def _check_mean(bench: _Bench, frame: FrameState, value: np.ndarray) -> None:
    """Of two replicas with three frames each."""
    factors = np.arange(1.0, 7.0).reshape(2, 3, *[1] * value.ndim)
    values = jnp.asarray(factors * value)
    plain = np.asarray(bench.observable.mean(values))
    for constant in (0.0, 700.0):
        weighted = np.asarray(bench.observable.mean(values, jnp.full((2, 3), constant)))
        bench.same("mean with equal weights is the plain mean", weighted, plain)
    atoms = np.full(2, len(frame.numbers))
    completed = bench.observable.completed(np.asarray(values), References(np.zeros(2), np.zeros(2), atoms))
    assert completed.shape == values.shape, f"completed keeps the shape: {completed.shape}, not {values.shape}."
