"""Conformance test for potentials: derivatives, symmetries, periodicity, cutoff, padding, stacks."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from scipy.spatial.transform import Rotation

from jaxmlip.potentials.evaluation import compiled_evaluate, round_up
from jaxmlip.potentials.potential import Potential, Prediction, stack
from jaxmlip.systems.graph import Graph, batch_graphs, graph_from_atoms
from jaxmlip.testing.ensembles import check_ensemble as check_ensemble
from jaxmlip.testing.observables import check_observable as check_observable

STEP = 1e-4
"""Å (and strain): of finite differences, whose error is of fourth order in it."""

BOND = 1.15
"""Distance of neighbours in the structures made here, in sums of covalent radii."""


def check_potential(
    potential: Potential, structures: Sequence[Atoms] | None = None, *, relative: float = 1e-6, seed: int = 0
) -> None:
    """Hold a potential to what training, dynamics and validation rely on.

    In double precision: forces and stress are derivatives of the energy (finite differences of fourth order); energies
    do not change, and forces and stress turn, with translations, rotations, reflections and permutations; atoms may be
    moved by lattice vectors, a doubled cell has twice the energy, and lists that reach beyond the cutoff change
    nothing; energy and forces of a pair end without a step at the cutoff; an isolated atom feels nothing; padding and
    batching change nothing; a stack of potentials under `jax.vmap` gives what its members give. In single precision:
    the same numbers, to its rounding.

    Args:
        potential: any Potential with array leaves.
        structures: a finite one and one that is periodic in all three directions; by default a few atoms of the
            elements that the potential knows, about a bond length apart, in a cell smaller than most cutoffs.
        relative: error allowed, as a share of the largest force (energy, stress) of the structures.
        seed: of rotations, directions and structures.

    Raises:
        AssertionError: naming the law that does not hold, with both numbers.
        ValueError: if the structures are not one of each kind.
    """
    with jax.enable_x64(True):
        double = jax.tree.map(_in_double, potential)
        chosen = default_structures(potential, seed) if structures is None else list(structures)
        if [bool(each.pbc.all()) for each in chosen] != [False, True]:
            raise ValueError("check_potential needs two structures: a finite one, and one that is periodic throughout.")
        bench = _Bench(double, chosen, relative)
        for structure in chosen:
            _check_derivatives(bench, structure, seed)
            _check_symmetries(bench, structure, seed)
        _check_periodicity(bench, chosen[1])
        _check_reach(bench, chosen)
        _check_cutoff(bench)
        _check_isolated_atom(bench)
        _check_batch(bench, chosen)
        _check_stack(bench, chosen[0])
        single = jax.tree.map(_in_single, potential)
        for structure in chosen:
            one = bench.predicted(structure)
            other = bench.predicted(structure, potential=single, dtype=np.float32)
            bench.same("single precision", other, one, relative=1e-3)


def default_structures(potential: Potential, seed: int = 0) -> list[Atoms]:
    """A cluster of five and a triclinic cell of four atoms of up to three elements that a potential knows."""
    rng = np.random.default_rng(seed)
    known = [number for number in potential.species if number < len(covalent_radii)]
    chosen = sorted(rng.choice(known, size=min(3, len(known)), replace=False).tolist())
    numbers = [chosen[k % len(chosen)] for k in range(5)]
    length = BOND * 2 * float(np.mean(covalent_radii[numbers]))
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    shaken = length * (corners + rng.normal(scale=0.06, size=corners.shape))
    cell = 2 * length * np.array([[1.0, 0.05, 0.0], [0.1, 1.05, 0.02], [-0.06, 0.08, 0.95]])
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    places = sites @ cell + length * rng.normal(scale=0.06, size=sites.shape)
    return [Atoms(numbers, shaken), Atoms(numbers[:4], places, cell=cell, pbc=True)]


class _Bench:
    """Evaluates structures of any size by one compiled function, and compares what comes out."""

    def __init__(self, potential: Potential, structures: Sequence[Atoms], relative: float) -> None:
        self.potential, self.relative = potential, relative
        doubled = structures[1].repeat((2, 1, 1))
        reach = 1.2 * potential.cutoff
        graphs = [self._single(each, reach, np.float64) for each in (*structures, doubled)]
        self.atoms = sum(len(each) for each in structures) + len(doubled) + 3
        self.slots = round_up(max(graph.n_slots for graph in graphs) * 5 // 4)
        self.inner = min(self.slots, round_up(max(graph.inner for graph in graphs) * 5 // 4))

    def _single(self, atoms: Atoms, reach: float, dtype: type) -> Graph:
        inner = self.potential.inner_cutoff
        return graph_from_atoms(atoms, reach, reach - self.potential.cutoff + inner if inner else 0.0, dtype=dtype)

    def graph(self, *structures: Atoms, reach: float | None = None, dtype: type = np.float64) -> Graph:
        """Structures as one padded batch of the shape that all share."""
        reach = self.potential.cutoff if reach is None else reach
        singles = [self._single(each, reach, dtype) for each in structures]
        batch = batch_graphs(singles, n_atoms=self.atoms, n_graphs=3, slots=self.slots)
        return batch.replace(inner=self.inner if self.potential.inner_cutoff else 0)

    def predicted(
        self, *structures: Atoms, reach: float | None = None, potential: Any = None, dtype: type = np.float64
    ) -> Prediction:
        """Energies, forces and stresses of the structures, in double precision on the host, without padding."""
        graph = self.graph(*structures, reach=reach, dtype=dtype)
        found = jax.device_get(compiled_evaluate(self.potential if potential is None else potential, graph, True))
        number, atoms = len(structures), sum(len(each) for each in structures)
        parts = found.energy[:number], found.forces[:atoms], found.stress[:number]
        return Prediction(*(np.asarray(part, np.float64) for part in parts))

    def same(self, law: str, found: Prediction, wanted: Prediction, relative: float | None = None) -> None:
        """Compare all three, each to the scale of what it should be."""
        for name in ("energy", "forces", "stress"):
            self.close(f"{law}: {name}", getattr(found, name), getattr(wanted, name), relative)

    def close(self, law: str, found: Any, wanted: Any, relative: float | None = None) -> None:
        """Raise AssertionError unless two arrays agree; NaN (no stress without a volume) must stand in both."""
        found, wanted = np.asarray(found), np.asarray(wanted)
        most = (self.relative if relative is None else relative) * float(np.nanmax(np.abs(wanted), initial=1.0))
        assert np.array_equal(np.isnan(found), np.isnan(wanted)), f"{law}: NaN in one of {found} and {wanted}."
        off = float(np.nanmax(np.abs(found - wanted), initial=0.0))
        assert off <= most, f"{law}: off by {off:.3g}, more than {most:.3g} ({found} instead of {wanted})."


def _in_double(leaf: Any) -> Any:
    return np.asarray(leaf, np.float64) if jnp.issubdtype(np.asarray(leaf).dtype, jnp.floating) else leaf


def _in_single(leaf: Any) -> Any:
    return np.asarray(leaf, np.float32) if jnp.issubdtype(np.asarray(leaf).dtype, jnp.floating) else leaf


def _moved(atoms: Atoms, positions: np.ndarray, strain: np.ndarray | None = None) -> Atoms:
    """The atoms elsewhere, and strained with their cell."""
    moved = atoms.copy()
    matrix = np.eye(3) if strain is None else np.eye(3) + strain
    moved.positions = positions @ matrix
    moved.cell = atoms.cell.array @ matrix
    return moved


def _check_derivatives(bench: _Bench, atoms: Atoms, seed: int) -> None:
    """Forces along a random direction, and the stress along a random symmetric strain."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=atoms.positions.shape)
    strain = rng.normal(size=(3, 3))
    strain = 0.5 * (strain + strain.T)
    prediction = bench.predicted(atoms)
    cases = {"forces are −∂E/∂R": (direction, 0 * strain, -float((prediction.forces * direction).sum()))}
    if atoms.pbc.all():
        virial = float((prediction.stress[0] * strain).sum()) * atoms.get_volume()
        cases["stress is ∂E/∂ε / V"] = (0 * direction, strain, virial)
    for law, (along, strained, wanted) in cases.items():

        def energy(step: float, along: Any = along, strained: Any = strained) -> float:
            moved = _moved(atoms, atoms.positions + step * along, step * strained)
            return float(bench.predicted(moved).energy[0])

        slope = (8 * (energy(STEP) - energy(-STEP)) - (energy(2 * STEP) - energy(-2 * STEP))) / (12 * STEP)
        bench.close(f"{law} ({atoms.symbols}), along a random direction", wanted, slope)


def _check_symmetries(bench: _Bench, atoms: Atoms, seed: int) -> None:
    """Translations, a rotation with a reflection, and a permutation."""
    rng = np.random.default_rng(seed + 1)
    here = bench.predicted(atoms)
    bench.same("translation", bench.predicted(_moved(atoms, atoms.positions + rng.normal(size=3))), here)
    turn = -Rotation.from_quat(rng.normal(size=4)).as_matrix()
    turned = atoms.copy()
    turned.positions, turned.cell = atoms.positions @ turn.T, atoms.cell.array @ turn.T
    wanted = Prediction(here.energy, here.forces @ turn.T, turn @ here.stress @ turn.T)
    bench.same("rotation and reflection", bench.predicted(turned), wanted)
    order = rng.permutation(len(atoms))
    permuted = bench.predicted(atoms[order])
    bench.same("permutation", permuted, Prediction(here.energy, here.forces[order], here.stress))


def _check_periodicity(bench: _Bench, crystal: Atoms) -> None:
    """Atoms elsewhere by lattice vectors, and a doubled cell."""
    here = bench.predicted(crystal)
    away = np.arange(3 * len(crystal)).reshape(-1, 3) % 3 - 1
    bench.same("lattice translations", bench.predicted(_moved(crystal, crystal.positions + away @ crystal.cell)), here)
    doubled = bench.predicted(crystal.repeat((2, 1, 1)))
    wanted = Prediction(2 * here.energy, np.concatenate([here.forces] * 2), here.stress)
    bench.same("a doubled cell", doubled, wanted)


def _check_reach(bench: _Bench, structures: Sequence[Atoms]) -> None:
    """Lists with a skin."""
    for atoms in structures:
        farther = bench.predicted(atoms, reach=1.2 * bench.potential.cutoff)
        bench.same("neighbours beyond the cutoff", farther, bench.predicted(atoms))


def _check_cutoff(bench: _Bench) -> None:
    """A pair of each element with the first, just inside and just outside of the cutoff."""
    first, last = bench.potential.species[0], bench.potential.species[-1]
    ends = []
    for away in (-1e-5, 1e-5):
        pair = Atoms([first, last], [[0, 0, 0], [bench.potential.cutoff + away, 0, 0]])
        ends.append(bench.predicted(pair))
    bench.close("a pair's energy at the cutoff", ends[0].energy, ends[1].energy, 1e-5)
    bench.close("a pair's forces at the cutoff", ends[0].forces, ends[1].forces, 1e-4)


def _check_isolated_atom(bench: _Bench) -> None:
    """No force, and an energy."""
    lone = bench.predicted(Atoms([bench.potential.species[0]], [[0.3, 0.2, 0.1]]))
    assert np.isfinite(lone.energy).all(), f"an isolated atom: its energy is {lone.energy[0]}."
    bench.close("an isolated atom: forces", lone.forces, np.zeros((1, 3)))


def _check_batch(bench: _Bench, structures: Sequence[Atoms]) -> None:
    """Structures together and alone."""
    together = bench.predicted(*structures)
    alone = [bench.predicted(atoms) for atoms in structures]
    wanted = jax.tree.map(lambda *parts: np.concatenate(parts), *alone)
    bench.same("structures in one batch", together, wanted)


def _check_stack(bench: _Bench, atoms: Atoms) -> None:
    """Two potentials whose parameters differ, mapped and one by one."""
    other = jax.tree.map(_slightly_changed, bench.potential)
    graph = bench.graph(atoms)
    energies = jax.jit(jax.vmap(lambda potential: potential.energy(graph)))
    mapped = energies(stack([bench.potential, other]))[:, 0]
    single = [float(bench.predicted(atoms, potential=each).energy[0]) for each in (bench.potential, other)]
    bench.close("a stack of potentials", mapped, single)


def _slightly_changed(leaf: Any) -> Any:
    return 1.01 * leaf if jnp.issubdtype(np.asarray(leaf).dtype, jnp.floating) else leaf
