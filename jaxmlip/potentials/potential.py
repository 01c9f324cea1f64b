"""What a potential is: the energy of a Graph, everything else by differentiating it."""

import abc
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jaxtyping import Float, Int

from jaxmlip.describing import elements, parameters, short
from jaxmlip.digests import digest
from jaxmlip.potentials.blocks import Form
from jaxmlip.pytrees import Distinct
from jaxmlip.systems.graph import Graph, strained
from jaxmlip.types import AnyArray, Leaf, Matrices, PerAtom, PerGraph, Vectors

N_SPECIES = 119
"""Length of tables indexed by atomic number (0, the padding atom, to 118)."""

LABELS = ("energy", "forces", "stress", "magmoms")
"""What a potential may be trained on."""


class TrainingRecord:
    """Labels that a potential was trained on, where they are known.

    It is static, but says nothing of what is computed. So that programs and stacks are shared by potentials that differ
    in their history alone, all records are equal to JAX; what they hold is compared as `TrainingRecord.labels`.
    """

    def __init__(self, labels: Iterable[str] | None = None) -> None:
        """Keep labels of `LABELS`: none of them, as of new parameters, or None where nobody knows.

        Raises:
            ValueError: for a label that does not exist.
        """
        there = None if labels is None else set(labels)
        if there is not None and not there <= set(LABELS):
            raise ValueError(f"A potential is trained on {', '.join(LABELS)}, not on {sorted(there - set(LABELS))}.")
        self.labels = None if there is None else tuple(label for label in LABELS if label in there)

    def __eq__(self, other: object) -> bool:
        """Whether the other is a record."""
        return isinstance(other, TrainingRecord)

    def __hash__(self) -> int:
        """The same for all."""
        return hash(TrainingRecord)

    def __repr__(self) -> str:
        """The same for all: digests of programs do not depend on it."""
        return "TrainingRecord"


UNKNOWN = TrainingRecord()


class Potential(Distinct, abc.ABC):
    """Energy of a Graph. Subclasses are frozen pytrees (`flax.struct.dataclass`).

    Parameters are leaves and everything else is static, so that `jax.vmap` over a stack of potentials is an ensemble,
    `jax.grad` of a function of a potential is a sensitivity, and `low + delta` is a potential.

    Attributes:
        params: parameters as a pytree of arrays.
        references: [119], elemental reference energies in eV by atomic number, float64 on the host. They never enter
            the energy on the device, where float32 would lose what matters: `reference_energy` adds them at the border.
    """

    params: Leaf
    references: Leaf

    if TYPE_CHECKING:

        def replace(self, **updates: Any) -> Self:
            """A copy with other values, as flax.struct.dataclass provides it."""
            ...

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep the repr: a dataclass would print all parameters in its place."""
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):
            cls.__repr__ = cls.__repr__

    def __repr__(self) -> str:
        """Kind, elements, cutoff and parameters."""
        try:
            known, cutoff = elements(self.species), f"cutoff {self.cutoff:g} Å"
            several = np.shape(self.references)[:-1]
        except Exception:  # while jax rebuilds a tree, leaves are anything
            return f"<{type(self).__name__}>"
        stacked = f"a stack of {several[0]}" if several else ""
        return short(
            type(self).__name__, *self._described(), stacked, known, cutoff, parameters(jax.tree.leaves(self.params))
        )

    def _described(self) -> tuple[str, ...]:
        """What a subclass adds to the repr."""
        return ()

    @property
    @abc.abstractmethod
    def cutoff(self) -> float:
        """Distance in Å within which neighbours matter."""

    @property
    def inner_cutoff(self) -> float:
        """Distance in Å that the leading `Graph.inner` slots must cover; 0 if the potential does not use them."""
        return 0.0

    @property
    @abc.abstractmethod
    def species(self) -> tuple[int, ...]:
        """Atomic numbers the potential knows, ascending."""

    @property
    def reads_elements(self) -> bool:
        """Whether the potential saves work where graphs say how many elements they have (`Graph.elements`)."""
        return False

    @property
    def trained_on(self) -> tuple[str, ...] | None:
        """Labels ("energy", "forces", "stress", "magmoms") that the potential has ever seen; None if nobody knows."""
        return None

    def having_seen(self, labels: Iterable[str]) -> "Potential":
        """The potential, which says that it was trained on these labels too, if it keeps a record."""
        del labels
        return self

    @property
    def opaque(self) -> bool:
        """Whether JAX does not see the parameters, so that nothing can be trained."""
        return False

    def with_params(self, params: Any) -> "Potential":
        """The potential with other parameters; all else, references among it, is as it was."""
        return self.replace(params=params)

    @abc.abstractmethod
    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Contribution of each atom in eV, relative to its elemental reference; 0 for padding atoms."""

    def readouts(self, graph: Graph) -> Float[AnyArray, "atoms heads"]:
        """Atomic energies of every fidelity the potential has a readout for; one, unless a subclass has more."""
        return self.atomic_energies(graph)[:, None]

    def energy(self, graph: Graph) -> PerGraph:
        """Energy of each graph in eV, relative to the elemental references; 0 for padding graphs."""
        return graph.sum_over_atoms(self.atomic_energies(graph))

    @property
    def has_magnetic_moments(self) -> bool:
        """Whether the potential predicts magnetic moments; then `outputs` gives them."""
        return False

    def outputs(self, graph: Graph) -> tuple[Float[AnyArray, "atoms heads"], Float[AnyArray, "atoms heads"] | None]:
        """Atomic energies in eV and magnitudes of magnetic moments in μB of every readout; None without moments."""
        return self.readouts(graph), None

    def energy_and_moments(self, graph: Graph) -> tuple[PerGraph, PerAtom | None]:
        """`energy`, and magnitudes of magnetic moments in μB, in one pass; None without moments."""
        if not self.has_magnetic_moments:
            return self.energy(graph), None
        energies, moments = self.outputs(graph)
        assert moments is not None
        return graph.sum_over_atoms(energies[:, 0]), moments[:, 0]

    def references_for(self, species: Sequence[int] | Int[np.ndarray, " atoms"]) -> Float[np.ndarray, "119"]:
        """`references` in float64; a potential that finds them out when they are needed does so for these elements."""
        del species
        return np.asarray(self.references, np.float64)

    def check(self, atoms: Atoms, *, stress: bool = False) -> None:
        """Whether the potential can say of a structure what is asked for, asked before anything runs.

        Raises:
            ValueError: if it does not know an element, or cannot give a stress.
        """
        del stress
        check_species(self, atoms.numbers)

    def complaint(self) -> str:
        """In a sentence, what last went wrong on the host since this was asked before; empty if nothing did."""
        return ""

    def __add__(self, other: "Potential") -> "Potential":
        """The potential whose energies (and references) are the sums: `low + delta`."""
        return Sum((self, other))


@flax.struct.dataclass
class Sum(Potential):
    """Sum of potentials, as in differential learning."""

    terms: tuple

    def _described(self) -> tuple[str, ...]:
        return (" + ".join(type(term).__name__ for term in self.terms),)

    @property
    def params(self) -> tuple:
        """Parameters of the terms, in order."""
        return tuple(term.params for term in self.terms)

    def with_params(self, params: Any) -> "Potential":
        """The sum of the terms with other parameters, in order."""
        return self.replace(terms=tuple(term.with_params(own) for term, own in zip(self.terms, params, strict=True)))

    @property
    def opaque(self) -> bool:
        """Whether JAX does not see the parameters of one of the terms."""
        return any(term.opaque for term in self.terms)

    @property
    def references(self) -> Float[np.ndarray, "*models 119"]:
        """Sum of the terms' references, eV."""
        return np.sum([np.asarray(term.references, np.float64) for term in self.terms], axis=0)

    @property
    def cutoff(self) -> float:
        """The longest of the terms', Å."""
        return max(term.cutoff for term in self.terms)

    @property
    def inner_cutoff(self) -> float:
        """The longest of the terms', Å."""
        return max(term.inner_cutoff for term in self.terms)

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers that every term knows."""
        return tuple(sorted(set.intersection(*(set(term.species) for term in self.terms))))

    @property
    def reads_elements(self) -> bool:
        """Whether any of the terms saves work by it."""
        return any(term.reads_elements for term in self.terms)

    @property
    def trained_on(self) -> tuple[str, ...] | None:
        """Labels that any of the terms has seen; None if of one of them nobody knows."""
        return all_labels(term.trained_on for term in self.terms)

    def atomic_energies(self, graph: Graph) -> PerAtom:
        """Sum of the terms' atomic energies, eV."""
        return sum((term.atomic_energies(graph) for term in self.terms), start=jnp.zeros((), graph.positions.dtype))

    def energy(self, graph: Graph) -> PerGraph:
        """Sum of the terms' energies, eV; a term need not have atomic energies."""
        return sum((term.energy(graph) for term in self.terms), start=jnp.zeros((), graph.positions.dtype))

    @property
    def has_magnetic_moments(self) -> bool:
        """Whether any of the terms predicts magnetic moments."""
        return any(term.has_magnetic_moments for term in self.terms)

    def energy_and_moments(self, graph: Graph) -> tuple[PerGraph, PerAtom | None]:
        """Sum of the terms' energies, eV, and the moments of the first term that has any: a difference has none."""
        parts = [term.energy_and_moments(graph) for term in self.terms]
        energy = sum((energy for energy, _ in parts), start=jnp.zeros((), graph.positions.dtype))
        return energy, next((moments for _, moments in parts if moments is not None), None)

    def references_for(self, species: Sequence[int] | Int[np.ndarray, " atoms"]) -> Float[np.ndarray, "119"]:
        """Sum of the terms' references, eV."""
        return np.sum([term.references_for(species) for term in self.terms], axis=0)

    def check(self, atoms: Atoms, *, stress: bool = False) -> None:
        """Whether all terms can say what is asked for; ValueError if not."""
        check_species(self, atoms.numbers)
        for term in self.terms:
            term.check(atoms, stress=stress)

    def complaint(self) -> str:
        """What went wrong in the terms."""
        return " ".join(filter(None, [term.complaint() for term in self.terms]))


class Prediction(flax.struct.PyTreeNode):
    """What a potential says of a Graph.

    Attributes:
        energy: [graphs], eV, relative to the elemental references.
        forces: [atoms, 3], eV/Å; zero on padding atoms.
        stress: [graphs, 3, 3], eV/Å³, positive under tension; None unless asked for, NaN where a graph has no volume
            because it is not periodic in all three directions.
        magmoms: [atoms], magnitudes of magnetic moments, μB; None unless asked for.
    """

    energy: Leaf
    forces: Leaf
    stress: Leaf = None
    magmoms: Leaf = None


def evaluate(potential: Potential, graph: Graph, *, stress: bool = False, magmoms: bool = False) -> Prediction:
    """Energy, forces −∂E/∂R and, if asked for, stress ∂E/∂ε / V by automatic differentiation, and magnetic moments.

    The strain ε is symmetric and acts on positions and cell alike (Knuth et al., Comput. Phys. Commun. 190, 33 (2015)).
    """

    def outputs(graph: Graph) -> tuple[PerGraph, PerAtom | None]:
        return potential.energy_and_moments(graph) if magmoms else (potential.energy(graph), None)

    if not stress:
        energy, gradient, moments = _value_and_gradient(lambda r: outputs(graph.replace(positions=r)), graph.positions)
        return Prediction(energy=energy, forces=-gradient, magmoms=moments)

    def under_strain(variables: tuple[Vectors, Matrices]) -> tuple[PerGraph, PerAtom | None]:
        return outputs(strained(graph, *variables))

    no_strain = jnp.zeros_like(graph.cell)
    energy, (gradient, virial), moments = _value_and_gradient(under_strain, (graph.positions, no_strain))
    volume = graph.volume()[:, None, None]
    solid = volume > 0
    stresses = jnp.where(solid, virial / jnp.where(solid, volume, 1.0), jnp.nan)
    return Prediction(energy, -gradient, stresses, moments)


def _value_and_gradient(outputs, at):
    """Energies per graph, the gradient of their sum, and moments."""

    def total(variables):
        energies, moments = outputs(variables)
        return energies.sum(), (energies, moments)

    gradient, (energies, moments) = jax.grad(total, has_aux=True)(at)
    return energies, gradient, moments


def reference_energy(potential: Potential, species: Int[np.ndarray, " atoms"]) -> float:
    """Sum in float64 of the elemental references of a structure's atoms, eV; to be added to `Potential.energy`."""
    return float(np.sum(potential.references_for(species)[np.asarray(species)]))


def fingerprint(potential: Potential) -> str:
    """SHA-256 of a potential's numbers and of all that is static: equal in another process, for an equal potential."""
    leaves, structure = jax.tree.flatten(potential)
    without_places = re.sub(r" at 0x[0-9a-f]+", "", str(structure))
    # Classes are there by their names already, and `node_class` would tie the digest to where they are defined;
    # and on which machine a potential is computed is no part of what it is.
    of_here = rf"(, )?(?:<class '[^']*'>|'(?:{'|'.join(get_args(Form))})')(?(1)|,? ?)"
    return digest(*leaves, re.sub(of_here, "", without_places))


def check_species(potential: Potential, species: Int[np.ndarray, " atoms"]) -> None:
    """Raise ValueError, naming the elements, if a potential does not know all of them."""
    from ase.data import chemical_symbols

    unknown = sorted(set(np.asarray(species).tolist()) - set(potential.species) - {0})
    if unknown:
        names = ", ".join(chemical_symbols[z] for z in unknown)
        known = " ".join(chemical_symbols[z] for z in potential.species)
        raise ValueError(f"The potential does not know {names}; the elements it knows are {known}.")


def all_labels(parts: Iterable[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """Labels that are in any of the parts, None if one of them is None; see `Potential.trained_on`."""
    known = list(parts)
    seen = {label for part in known if part is not None for label in part}
    return None if None in known else tuple(label for label in LABELS if label in seen)


def without_stress(potential: Potential) -> str | None:
    """What there is to say of a potential's stresses: a sentence if it was trained, but never on any.

    Forces say little of the pressure: a student of rock salt whose forces were as good as another's was 4 % too light.
    """
    seen = potential.trained_on
    if not seen or "stress" in seen:
        return None
    labels = " and ".join({"energy": "energies", "magmoms": "magnetic moments"}.get(label, label) for label in seen)
    return (
        f"The potential was trained on {labels}, but never on stress: its pressure, and with it densities at constant "
        "pressure, may be wrong by several per cent however good its forces are; train it on data with stress."
    )


def stack(potentials: "list[Potential]") -> Potential:
    """Potentials of equal structure as one whose leaves have a leading axis, for `jax.vmap`."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *potentials)
