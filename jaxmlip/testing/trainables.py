"""Conformance test for potentials that strategies train: parameters, groups, readouts, fresh ones."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlip.potentials.potential import LABELS, N_SPECIES, Potential
from jaxmlip.potentials.trainable import Group, Role, Trainable, trainable
from jaxmlip.systems.graph import Graph, graph_from_atoms
from jaxmlip.testing.potentials import default_structures

SCALE, SHIFT = 0.5, -0.25
"""eV, of potentials that are made anew here."""


def check_trainable(potential: Potential, *, relative: float = 1e-6, seed: int = 0) -> None:
    """Hold a potential to what strategies and the trainer rely on, see `jaxmlip.Trainable`.

    `rebuild` of `jaxmlip.trainable` gives the potential back in every bit, moves nothing but parameters, and leaves
    references on the host in double precision; every parameter belongs to a group, readouts and references lie at depth
    0, the trunk below them and the embedding at the bottom; energies have a finite derivative by all parameters, and
    one that is not zero in each group. Readouts are as many as `heads`; each can be taken alone, copied to several, and
    the last made fresh. A fresh potential has one readout, the same parameters in number and shape, other values, the
    same ones for the same seed, energies that follow from scale and shift, and has seen no label. New references are
    kept to the last bit.

    Args:
        potential: any Trainable; one with a single readout is also given a second one, if it can have several.
        relative: error allowed of energies, as a share of the largest.
        seed: of structures and fresh parameters.

    Raises:
        AssertionError: naming the law that does not hold.
    """
    kind = type(potential).__name__
    assert isinstance(potential, Trainable), f"A {kind} does not derive from jaxmlip.Trainable."
    with jax.enable_x64(True):
        bench = _Bench(potential, relative, seed)
        _check_rebuild(potential)
        _check_groups(potential)
        _check_gradient(potential, bench)
        _check_heads(potential, bench, seed)
        _check_fresh(potential, bench, seed)
        _check_references(potential)
        _check_record(potential)


class _Bench:
    """Atomic energies of every readout for a small cluster, in double precision."""

    def __init__(self, potential: Trainable, relative: float, seed: int) -> None:
        atoms = default_structures(potential, seed)[0]
        self.graph = graph_from_atoms(atoms, potential.cutoff, potential.inner_cutoff, dtype=np.float64)
        self.relative = relative

    def readouts(self, potential: Potential) -> np.ndarray:
        """[atoms, heads], eV."""
        return np.asarray(_readouts(in_double(potential), self.graph))

    def same(self, law: str, found: np.ndarray, wanted: np.ndarray) -> None:
        """Raise AssertionError unless energies agree."""
        assert found.shape == wanted.shape, f"{law}: readouts of shape {found.shape} instead of {wanted.shape}."
        off, most = np.abs(found - wanted).max(), self.relative * max(1.0, np.abs(wanted).max())
        assert off <= most, f"{law}: off by {off:.3g} eV, more than {most:.3g} ({found} instead of {wanted})."


def in_double(potential: Potential) -> Potential:
    """The potential with parameters in double precision."""
    return potential.with_params(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), potential.params))


@jax.jit
def _readouts(potential: Potential, graph: Graph) -> Any:
    return potential.readouts(graph)


def _equal(law: str, found: Any, wanted: Any) -> None:
    """Raise AssertionError unless two pytrees are the same, types of arrays included."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted), f"{law}: the structure is another."
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    for (path, mine), other in pairs:
        name = jax.tree_util.keystr(path)
        types = np.asarray(mine).dtype, np.asarray(other).dtype
        assert types[0] == types[1], f"{law}: {name} is {types[0]} instead of {types[1]}."
        assert np.array_equal(mine, other, equal_nan=True), f"{law}: {name} has other values."


def _check_rebuild(potential: Trainable) -> None:
    """On the host and inside a transformation."""
    params, rebuild = trainable(potential)
    _equal("rebuild(params) is the potential", rebuild(params), potential)
    moved = jax.tree.map(lambda leaf: np.asarray(leaf + 1, np.asarray(leaf).dtype), params)
    other = rebuild(moved)
    assert isinstance(other, type(potential)), f"rebuild: it gives a {type(other).__name__}."
    _equal("rebuild takes the parameters it is given", other.params, moved)
    _equal("rebuild moves nothing but parameters", other.with_params(params), potential)

    def inside(params: Any) -> Any:
        built = rebuild(params)
        references = built.references
        assert isinstance(references, np.ndarray), "rebuild: references must stay on the host, as numpy arrays."
        assert references.dtype == np.float64, f"rebuild: references are {references.dtype} instead of float64."
        assert np.array_equal(references, potential.references), "rebuild: references have other values."
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(built.params))

    jax.eval_shape(jax.grad(inside), params)


def _check_groups(potential: Trainable) -> None:
    """Every parameter in a group, and depths in order."""
    groups = potential.groups()
    structures = jax.tree.structure(groups), jax.tree.structure(potential.params)
    assert structures[0] == structures[1], "groups: the pytree is not like params, with a Group for each of its leaves."
    found = jax.tree.leaves(groups)
    for group in found:
        assert isinstance(group, Group), f"groups: there is a {type(group).__name__} in place of a Group."
        assert group.role in get_args(Role), f"groups: the role {group.role!r} is none of {get_args(Role)}."
    depths = {role: {group.depth for group in found if group.role == role} for role in get_args(Role)}
    for role in ("readout", "references"):
        assert depths[role] <= {0}, f"groups: {role} lies at depth {max(depths[role])} instead of 0."
    trunk = depths["trunk"] or {0}
    assert min(trunk) >= (1 if depths["trunk"] else 0), "groups: the last layer of the trunk lies at depth 1, not 0."
    below = min(depths["embedding"], default=max(trunk) + 1)
    assert below > max(trunk), f"groups: the embedding, at depth {below}, is not below the trunk, at {max(trunk)}."


def _check_gradient(potential: Trainable, bench: _Bench) -> None:
    """Finite, and not zero."""
    double = in_double(potential)
    shape = (bench.graph.n_atoms, potential.heads)
    weights = np.random.default_rng(0).normal(size=shape)
    slope = jax.jit(jax.grad(lambda params: jnp.sum(weights * double.with_params(params).readouts(bench.graph))))(
        double.params
    )
    sizes: dict[Group, float] = {}
    for group, leaf in zip(jax.tree.leaves(potential.groups()), jax.tree.leaves(slope), strict=True):
        assert np.isfinite(leaf).all(), f"gradient: the one by a parameter of the {group.role} is not finite."
        sizes[group] = max(sizes.get(group, 0.0), float(np.abs(leaf).max(initial=0.0)))
    for group, size in sizes.items():
        assert size > 0, f"gradient: energies do not depend on the {group.role} at depth {group.depth}."


def _check_heads(potential: Trainable, bench: _Bench, seed: int) -> None:
    """Each alone, and a single one copied."""
    readouts = bench.readouts(potential)
    wanted = (bench.graph.n_atoms, potential.heads)
    assert readouts.shape == wanted, f"heads: readouts have shape {readouts.shape} instead of {wanted}."
    for head in range(potential.heads):
        alone = potential.select_head(head)
        assert alone.heads == 1, f"heads: select_head({head}) has {alone.heads} readouts."
        # An adapter of references puts its offsets there, out of sight of the energy on the device.
        moved = (np.asarray(alone.references) - np.asarray(potential.references))[np.asarray(bench.graph.species)]
        bench.same(f"heads: select_head({head})", bench.readouts(alone)[:, 0] + moved, readouts[:, head])
    for head in (-1, potential.heads):
        try:
            potential.select_head(head)
        except ValueError:
            continue
        raise AssertionError(f"heads: there is no head {head}, but select_head({head}) raises no ValueError.")
    if potential.heads > 1:
        return
    try:
        two = potential.with_heads(2, fresh=seed)
    except ValueError:  # a class may have one readout only
        return
    found = bench.readouts(two)
    assert found.shape == (wanted[0], 2), f"heads: with_heads(2) has readouts of shape {found.shape}."
    bench.same("heads: with_heads(2) copies the readout", found[:, 0], readouts[:, 0])
    assert not np.allclose(found[:, 1], readouts[:, 0]), "heads: with_heads(2, fresh=seed) makes no fresh readout."
    bench.same("heads: with_heads(2) without a seed", bench.readouts(potential.with_heads(2)), readouts[:, [0, 0]])


def _check_fresh(potential: Trainable, bench: _Bench, seed: int) -> None:
    """What it takes over, and that all else is new."""
    references = np.zeros(N_SPECIES)
    references[list(potential.species)] = np.random.default_rng(seed).normal(size=len(potential.species))

    def fresh(scale: float = SCALE, shift: float = SHIFT, seed: int = seed) -> Trainable:
        return potential.fresh(references=references, scale=scale, shift=shift, seed=seed)

    new, like = fresh(), potential.select_head(0)
    assert new.heads == 1, f"fresh: there are {new.heads} readouts instead of one."
    assert (new.cutoff, new.species) == (like.cutoff, like.species), "fresh: cutoff or elements are others."
    shapes = [jax.tree.map(np.shape, each.params) for each in (new, like)]
    assert shapes[0] == shapes[1], "fresh: parameters have other names or shapes than those of the potential."
    _equal("fresh: references are those that are given", np.asarray(new.references), references)
    assert new.trained_on in ((), None), f"fresh: random parameters have seen {new.trained_on}."
    _equal("fresh: the same seed gives the same potential", fresh(), new)
    for other, what in ((fresh(seed=seed + 1), "of another seed"), (like, "of the potential itself")):
        pairs = zip(jax.tree.leaves(new.params), jax.tree.leaves(other.params), strict=True)
        assert not all(np.array_equal(a, b) for a, b in pairs), f"fresh: the parameters are those {what}."
    energies = bench.readouts(new)
    bench.same("fresh: shift is added to an atom's energy", bench.readouts(fresh(shift=SHIFT + 1)), energies + 1)
    twice, thrice = (bench.readouts(fresh(scale=times * SCALE)) for times in (2, 3))
    bench.same("fresh: scale multiplies the network's output", thrice - twice, twice - energies)
    assert np.abs(twice - energies).max() > 0, "fresh: scale has no effect."


def _check_references(potential: Trainable) -> None:
    """Kept to the last bit, and nothing else moves."""
    changed = np.asarray(potential.references, np.float64) * (1 + 2**-40)
    other = potential.with_references(changed)
    _equal("with_references keeps double precision", np.asarray(other.references), changed)
    _equal("with_references leaves parameters alone", other.params, potential.params)


def _check_record(potential: Trainable) -> None:
    """The record of labels leaves structure and numbers alone."""
    seen = potential.having_seen(LABELS)
    assert isinstance(seen, Trainable), f"having_seen gives a {type(seen).__name__}, which cannot be trained."
    _equal("having_seen leaves all numbers alone", seen, potential)
    known = potential.trained_on is None or seen.trained_on == LABELS
    assert known, f"having_seen: after {LABELS} the record says {seen.trained_on}."
