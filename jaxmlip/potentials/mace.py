"""Turns a MACE model of mace-torch into an EquivariantPotential that gives the same numbers.

Network and model have the same equations and, with one exception, the same parameters. The exception is the symmetric
contraction, whose paths may be chosen and counted in several ways (versions of mace-torch do). What they all weight are
polynomials of the features; so both sides are written as coefficients of the same monomials, and the weights on the
network's paths are those that give the model's polynomials.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxmlip.potentials.contraction import path_counts, polynomials
from jaxmlip.potentials.equivariant import Equivariant, EquivariantPotential
from jaxmlip.potentials.equivariant_layers import paths
from jaxmlip.potentials.potential import N_SPECIES
from jaxmlip.potentials.radial import SILU_SCALE

TOLERANCES = {"float64": 1e-10, "float32": 1e-6}
"""How far, relative to their norm, a model's polynomials may be from the network's, by the precision they are in."""


def from_mace(extracted: Mapping[str, Any], head: str | int | None = None) -> EquivariantPotential:
    """The potential that gives what a MACE model does, references included.

    Its parameters are float64 numpy arrays; it computes in the precision of the graph, as every potential.

    Args:
        extracted: of `jaxmlip.potentials.mace_checkpoint.extract` or `read_mace`.
        head: name or number of the head to take; needed only for a model of several.

    Raises:
        ValueError: if the model has several heads and none or an unknown one is chosen, or if it is none that
            the network can represent.
    """
    row = _head_row(list(extracted["heads"]), head)
    order = np.argsort(extracted["atomic_numbers"])
    known = tuple(int(extracted["atomic_numbers"][place]) for place in order)
    layers, width = extracted["layers"], extracted["readout_hidden"]
    settings = {
        name: extracted[name]
        for name in (
            *("channels", "l_max", "correlation", "layers", "message_l", "cutoff", "radial_functions"),
            *("envelope_power", "distance_transform", "repulsion", "first_interaction"),
        )
    }
    if width is not None:
        settings["readout_hidden"] = width
    specification = Equivariant(**settings, radial_mlp=tuple(extracted["radial_mlp"]))

    params: dict[str, Any] = {"embedding": extracted["embedding"][order]}
    for i in range(layers):
        part = {name.removeprefix(f"{i}."): x for name, x in extracted.items() if name.startswith(f"{i}.")}
        params[f"interaction_{i}"] = _interaction(part, specification, specification.message_l if i else 0)
        params[f"product_{i}"] = _product(
            part, specification, 0 if i == layers - 1 else specification.message_l, order, extracted["precision"]
        )
        if "map.0" in part:
            maps = {f"map_{ell}": part[f"map.{ell}"][:, order] for ell in range(specification.l_max + 1)}
            params[f"map_{i}"] = maps
        params[f"readout_{i}"] = _readout(part, row)

    references = np.zeros(N_SPECIES)
    references[list(known)] = extracted["atomic_energies"][row, order]
    scale = extracted["scale"][[row]]
    return EquivariantPotential(
        params=params,
        references=references,
        scale=scale,
        shift=extracted["shift"][[row]],
        # In ScaleShiftMACE the repulsion is scaled as everything else, and MACE has the scale 1.
        repulsion=scale.copy(),
        specification=specification,
        known=known,
        average_neighbors=float(extracted["average_neighbors"]),
        heads=1,
    )


def _head_row(names: list[str], head: str | int | None) -> int:
    """The number of a head."""
    if head is None and len(names) == 1:
        return 0
    listed = ", ".join(f"{place}: {name}" for place, name in enumerate(names))
    if head is None:
        raise ValueError(f"The model has {len(names)} heads ({listed}); choose one of them.")
    if isinstance(head, str) and head in names:
        return names.index(head)
    if isinstance(head, int) and 0 <= head < len(names):
        return head
    raise ValueError(f"There is no head {head!r}; the model has {listed}.")


def _interaction(part: Mapping[str, np.ndarray], specification: Equivariant, l_in: int) -> dict[str, Any]:
    """Parameters of an `Interaction`."""
    theirs = [tuple(map(int, path)) for path in part["paths"]]
    ours = paths(l_in, specification.l_max)
    if sorted(theirs) != sorted(ours):
        raise ValueError(f"The model couples {len(theirs)} paths {theirs} where the network couples {ours}.")
    order = [theirs.index(path) for path in ours]
    hidden = len(specification.radial_mlp)
    # A factor that follows the activation of a layer acts as well on the weights of the next.
    factors = [1.0, *(float(part[f"silu.{k}"]) / SILU_SCALE for k in range(hidden))]
    radial = [factors[k] * part[f"radial.{k}"] for k in range(hidden + 1)]
    result: dict[str, Any] = {
        "radial_network": {f"weight_{k}": radial[k] for k in range(hidden)},
        "radial": radial[-1][:, order],
    }
    result |= {f"up_{ell}": part[f"up.{ell}"] for ell in range(l_in + 1)}
    mix = part["mix"][order]
    for ell in range(specification.l_max + 1):
        result[f"mix_{ell}"] = mix[[path[2] == ell for path in ours]]
    return result


def _product(
    part: Mapping[str, np.ndarray], specification: Equivariant, l_out: int, order: np.ndarray, precision: str
) -> dict[str, Any]:
    """Parameters of a `Product`; `order` of the elements."""
    result = {}
    for ell in range(l_out + 1):
        weights = []
        for degree in range(1, specification.correlation + 1):
            change = _change_of_paths(
                part[f"monomials.{ell}.{degree}"],
                part[f"coefficients.{ell}.{degree}"],
                *(specification.l_max, specification.correlation, ell, degree),
                tolerance=TOLERANCES[precision],
            )
            weights.append(np.einsum("pq,eqc->epc", change, part[f"weights.{ell}.{degree}"][order]))
        result[f"weights_{ell}"] = np.concatenate(weights, axis=1)
        result[f"linear_{ell}"] = part[f"linear.{ell}"]
        if f"skip.{ell}" in part:
            result[f"skip_{ell}"] = part[f"skip.{ell}"][:, order]
    return result


def _change_of_paths(
    monomials: np.ndarray,
    coefficients: np.ndarray,
    l_max: int,
    correlation: int,
    l_out: int,
    degree: int,
    *,
    tolerance: float,
) -> Float[np.ndarray, "ours theirs"]:
    """What turns weights on a model's paths into weights on the network's: both make the same polynomials."""
    table = polynomials(l_max, correlation, l_out)
    first = np.cumsum([0, *path_counts(l_max, correlation, l_out)])[degree - 1 : degree + 1]
    rows = {}
    for m, (start, stop) in enumerate(itertools.pairwise(table.starts)):
        for row in range(start, stop):
            factors = table.factors[:, row]
            rows[(m, *sorted(factors[factors < (l_max + 1) ** 2].tolist()))] = row
    ours = {key: table.coefficients[row, first[0] : first[1]] for key, row in rows.items() if len(key) == degree + 1}
    theirs = {tuple(key.tolist()): row for key, row in zip(monomials, coefficients, strict=True)}
    keys = sorted(ours.keys() | theirs.keys())
    basis = np.zeros((len(keys), first[1] - first[0]))
    wanted = np.zeros((len(keys), coefficients.shape[1]))
    for place, key in enumerate(keys):
        basis[place] = ours.get(key, 0.0)
        wanted[place] = theirs.get(key, 0.0)
    norm = np.linalg.norm(wanted)
    if norm == 0.0:
        return np.zeros((basis.shape[1], wanted.shape[1]))
    change = np.linalg.lstsq(basis, wanted, rcond=None)[0]
    residual = np.linalg.norm(basis @ change - wanted) / norm
    if residual > tolerance:
        raise ValueError(
            f"The model's products of order {degree} with output l = {l_out} are not polynomials of the network: "
            f"{residual:.1e} of them is left over."
        )
    return change


def _readout(part: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    """Parameters of a `Readout` of one head."""
    if "readout" in part:
        return {"linear": part["readout"][:, [row]].T}
    # MACE divides by the root of all heads' hidden units.
    outer = part["readout_2"][[row]] * float(part["silu.readout"]) / SILU_SCALE / len(part["readout_2"]) ** 0.5
    return {"linear_1": part["readout_1"][:, [row]].transpose(1, 0, 2), "linear_2": outer}
