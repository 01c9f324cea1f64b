"""Where an error of a student's comes from: what is predicted of it by atom, motion, element and distance.

To first order, ⟨A⟩_student − ⟨A⟩_teacher = ⟨A_student − A_teacher⟩ + β cov(A, ΔU), ΔU = U_teacher − U_student, in the
student's frames. Whatever splits ΔU into a sum splits the error: the work along paths from the mean structure does, by
atoms and motions, and pair forces that are fitted to the difference of forces, by pairs and distances; see
`force_paths`. What a split does not catch is a share of its own.
"""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float
from matplotlib.axes import Axes

from jaxmlip.observables.estimate import Estimate
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.statistics import correlated_mean
from jaxmlip.observables.structure import RDF
from jaxmlip.potentials.pairs import PairForces, element_pairs
from jaxmlip.potentials.potential import Potential
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.molecules import Molecule, molecules_in
from jaxmlip.units import KB
from jaxmlip.validation.averages import frame_states, observe, settled
from jaxmlip.validation.energies import frame_energies
from jaxmlip.validation.force_paths import Work, pair_energies, work_of_paths
from jaxmlip.validation.ladder import no_better
from jaxmlip.validation.ways import Response, spacing

By = Literal["atoms", "elements", "motions", "pairs", "distances"]

MOTIONS = ("translation", "rotation", "vibration")
"""Of molecules."""

REST = "rest"
"""What a split does not catch."""

LEFT_OVER = 0.1
"""Spread within replicas of what paths leave of β ΔU, relative to that of β ΔU, beyond which they lead nowhere."""


@dataclasses.dataclass(frozen=True, repr=False)
class PredictedError:
    """An observable's error as linear response predicts it, and its shares.

    Attributes:
        observable: whose error.
        total: student − teacher; its error includes the second order.
        itself: the share in it of values that depend on the potential, ⟨A_student − A_teacher⟩; 0 of others.
        values: as the teacher has them, [replicas, frames, ...].
        change: β ΔU in all frames, [replicas, frames].
        energies: its shares, [replicas, frames, shares], by what they are shares of.
        names: of the shares.
        distances: Å, of the knots of the pair forces.
        pair_forces: fitted to the difference of forces, teacher − student; None if that was not asked for.
        refused: why some splits are not there.
    """

    observable: Observable
    total: Estimate
    itself: Estimate
    values: Float[np.ndarray, "replicas frames *shape"]
    change: Float[np.ndarray, "replicas frames"]
    energies: Mapping[str, Float[np.ndarray, "replicas frames _"]]
    names: Mapping[str, tuple[str, ...]]
    distances: Float[np.ndarray, " knots"]
    pair_forces: PairForces | None
    refused: Mapping[str, str]

    def __repr__(self) -> str:
        """The total, and what it can be split by."""
        split = f", by {', '.join(self.energies)}" if self.energies else ""
        return f"<PredictedError of {self.observable.name}: {self._number(self.total)!r}{split}>"

    def by(self, what: By, *, whole: bool = False) -> Estimate:
        """Shares of the error (but `itself`), in the order of `names`, with standard errors; they add up.

        Of functions it is shares of ∫ |student − teacher| over their axis.

        Args:
            what: "atoms", "elements", "motions" of molecules, "pairs" of elements, or "distances" of pairs.
            whole: of functions, give the functions instead, [shares, ...].

        Raises:
            ValueError: if there is no such split, saying why.
        """
        if what not in self.energies:
            raise ValueError(
                f"The error of {self.observable.name} is not split by {what}: "
                f"{self.refused.get(what, 'choose from ' + ', '.join(self.energies))}"
            )
        values = self.values if whole else self._projected(self.values)
        energies = self.energies[what]
        deviation = values - values.mean(axis=(0, 1))
        number = energies.shape[0] * energies.shape[1]
        change = (energies - energies.mean(axis=(0, 1))) * (number / (number - 1.0))
        series = change.reshape(*change.shape, *[1] * (values.ndim - 2)) * deviation[:, :, None]
        return no_better(correlated_mean(series), self.total.status)

    def draw(self, axes: Sequence[Axes] | np.ndarray) -> None:
        """Three panels: motions and elements, atoms, distances of pairs; bars are standard errors.

        Args:
            axes: three, to draw into.

        Raises:
            ValueError: unless there are three.
        """
        if len(axes) != 3:
            raise ValueError(f"The shares of an error are three panels, not {len(axes)}.")
        unit = "" if not self._unit else f" / {self._unit}"
        for ax, part in zip(axes, (self._draw_groups, self._draw_atoms, self._draw_distances), strict=True):
            part(ax)
            ax.set_ylabel(f"share of error{unit}")
        axes[0].set_title(f"{self.observable.name}: {self._number(self.total).plain()}", loc="left")

    def _draw_groups(self, ax: Axes) -> None:
        place, ticks, labels = 0, [], []
        groups: tuple[tuple[By, str], ...] = (("motions", "C0"), ("elements", "C1"), ("pairs", "C2"))
        for what, color in groups:
            if what in self.energies:
                shares, names = self.by(what), self.names[what]
                where = np.arange(place, place + len(names))
                ax.bar(where, shares.value, yerr=shares.error, color=color, label=f"by {what}", capsize=2)
                ticks += where.tolist()
                labels += names
                place += len(names) + 1
        ax.set_xticks(ticks, labels, rotation=90, fontsize="x-small")
        ax.legend(fontsize="x-small")

    def _draw_atoms(self, ax: Axes) -> None:
        if "atoms" not in self.energies:
            said = textwrap.fill(f"by atoms: {self.refused['atoms']}", 36)
            # Counted in the layout, it would push the other panels away.
            ax.text(0.5, 0.5, said, ha="center", va="center", size="small", transform=ax.transAxes).set_in_layout(False)
            ax.set_axis_off()
            return
        shares, names = self.by("atoms"), self.names["atoms"]
        symbols = [name.split()[0] for name in names if name not in ("cell", REST)]
        for symbol in dict.fromkeys(symbols):
            mine = np.flatnonzero(np.array(symbols) == symbol)
            ax.errorbar(mine, shares.value[mine], yerr=shares.error[mine], fmt=".", label=symbol, lw=0.8)
        ax.set_xlabel("atom")
        ax.legend(fontsize="x-small")

    def _draw_distances(self, ax: Axes) -> None:
        shares, count = self.by("distances"), len(self.distances)
        for number, pair in enumerate(self.names["pairs"][:-1]):
            mine = slice(number * count, (number + 1) * count)
            ax.errorbar(self.distances, shares.value[mine], yerr=shares.error[mine], label=pair, lw=1.0)
        ax.set_xlabel("distance / Å")
        ax.legend(fontsize="x-small")

    @property
    def _unit(self) -> str:
        axis = self.observable.axis
        return self.observable.unit if axis is None else "Å" if isinstance(self.observable, RDF) else ""

    def _projected(self, values: np.ndarray) -> np.ndarray:
        """Of functions, the integral over the axis that the total's sign gives."""
        if self.observable.axis is None:
            return values
        return values @ (spacing(self.observable) * np.sign(self.total.value))

    def _number(self, estimate: Estimate) -> Estimate:
        """Of functions, ∫ |total|; its error is that of the shares of all of ΔU, without the second order."""
        if self.observable.axis is None:
            return dataclasses.replace(estimate, unit=self.observable.unit)
        all_of_it = {"motions": self.change[:, :, None]}
        whole = dataclasses.replace(self, energies=all_of_it, names={"motions": ("all",)}).by("motions")
        return dataclasses.replace(
            whole,
            value=np.asarray(whole.value[0]),
            error=np.asarray(whole.error[0]),
            dof=float(np.ravel(whole.dof)[0]),
            blocks=None,
            source=None,
            unit=self._unit,
        )


def predicted_error(
    run: Run,
    student: Potential,
    teacher: Potential,
    observables: Sequence[Observable],
    *,
    temperature_K: float | int,
    by: Sequence[By] = get_args(By),
    equilibration: Literal["auto"] | float | int = "auto",
    pair_reach: float | int = 6.0,
    pair_knots: int = 40,
    progress: bool = False,
) -> dict[str, PredictedError]:
    """What errors of a student's averages linear response predicts, and which atoms and interactions make them.

    The teacher is called once a frame for energies; for pairs and distances once for forces, and for the other splits
    three times on the path to each frame.

    Args:
        run: that the student has sampled at constant volume or constant pressure.
        student: any Potential.
        teacher: any Potential.
        observables: whose values are functions of a frame with plain means.
        temperature_K: of the ensemble.
        by: splits that are wanted; none for the totals alone, which cost least.
        equilibration: what to discard, see `average`.
        pair_reach: Å, up to which distances of pairs are told apart.
        pair_knots: into how many.
        progress: show a bar for the energies.

    Returns:
        By names of the observables. Splits by atoms, elements and motions are left out, and say why, where atoms do not
        stay at their sites; motions are those of molecules where the structure has some, else of the atoms.

    Raises:
        ValueError: for elements that a potential does not know, observables that make no sense for the run or are of
            fluctuations, or a run without frames in equilibrium.
    """
    for observable in observables:
        if observable.of_fluctuations:
            raise ValueError(f"The {observable.name} is no mean, of which there is a linear response.")
    first, status = settled(run, equilibration)
    if (left := run.n_frames - first) < 2:
        raise ValueError(f"Only {left} frames of the run are in equilibrium: run longer.")
    kept, beta = run.during(slice(first, None)), 1.0 / (KB * temperature_K)
    bound = [observable.bound_to(run[0]) for observable in observables]  # before molecules may have dissociated
    values = [[_values(kept, each, who) for who in (student, teacher)] for each in bound]
    of_student, of_teacher = frame_energies(kept, [student, teacher], progress=progress)
    change = beta * (of_teacher - of_student)
    shares, found = _shares(kept, student, teacher, change / beta, by, (float(pair_reach), pair_knots)), {}
    energies = {what: _with_rest(beta * each, change) for what, each in shares.energies.items()}
    for observable, (own, others) in zip(observables, values, strict=True):
        (_, _, total), itself = Response(change).averages(observable, [own], [others]), correlated_mean(own - others)
        parts = (energies, shares.names, shares.distances, shares.pair_forces, shares.refused)
        found[observable.name] = PredictedError(observable, no_better(total, status), itself, others, change, *parts)
    return found


class _Shares(NamedTuple):
    """Of ΔU in all frames; see `PredictedError`."""

    energies: dict[str, np.ndarray]
    names: dict[str, tuple[str, ...]]
    distances: np.ndarray
    pair_forces: PairForces | None
    refused: dict[str, str]


def _shares(
    run: Run, student: Potential, teacher: Potential, change: np.ndarray, by: Sequence[By], pairs: tuple[float, int]
) -> _Shares:
    """All splits that are wanted; `pairs` has reach and knots of the pair forces."""
    energies, names, knots, fitted = {}, {}, np.zeros(0), None
    refused = dict.fromkeys([what for what in get_args(By) if what not in by], "that was not asked for")
    if not by:
        return _Shares(energies, names, knots, fitted, refused)
    frames = frame_states(run, potential=student)
    if {"atoms", "elements", "motions"} & {*by}:
        energies, names, why = _splits(run, student, teacher, frames, change)
        refused = why | refused
    if {"pairs", "distances"} & {*by}:
        of_pairs, fitted = pair_energies(student, teacher, frames, reach=pairs[0], knots=pairs[1])
        energies |= {"pairs": of_pairs.sum(3), "distances": of_pairs.reshape(*of_pairs.shape[:2], -1)}
        names |= _pair_names(fitted)
        knots = fitted.knots
    energies = {what: each for what, each in energies.items() if what in by}
    return _Shares(energies, {what: (*names[what], REST) for what in energies}, knots, fitted, refused)


def _pair_names(fitted: PairForces) -> dict[str, tuple[str, ...]]:
    """Of the shares by pairs of elements, and by their distances."""
    pairs = tuple("–".join(chemical_symbols[number] for number in pair) for pair in element_pairs(fitted.known))
    return {"pairs": pairs, "distances": tuple(f"{pair} {knot:.2f} Å" for pair in pairs for knot in fitted.knots)}


def _values(run: Run, observable: Observable, potential: Potential) -> np.ndarray:
    needed = potential if observable.depends_on_potential else None
    return np.asarray(observe(run, observable, potential=needed), np.float64)


def _splits(
    run: Run, student: Potential, teacher: Potential, frames: Any, change: Float[np.ndarray, "replicas frames"]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]], dict[str, str]]:
    """Shares of ΔU by atoms, elements and motions, their names, and why there are none."""
    moves_cell = run.cells.ndim == 4 and bool((run.frame_cells != run.frame_cells[:, :1]).any())
    molecules = _molecules(run)
    where = frames, run.positions[run.completed], molecules, moves_cell
    for common in (True, False):  # where replicas have settled in several places, their mean is none of them
        try:
            work = work_of_paths(student, teacher, *where, common)
        except ValueError as error:
            refused = str(error)
            continue
        refused = _left_over(work, change)
        if refused is None:
            break
    else:
        return {}, {}, dict.fromkeys(("atoms", "elements", "motions"), refused)
    symbols = [chemical_symbols[number] for number in run.numbers]
    elements = sorted(set(symbols))
    by_atom = work.atoms.sum(3)
    by_element = np.stack([by_atom[:, :, np.array(symbols) == each].sum(2) for each in elements], axis=2)
    parts = {"atoms": by_atom, "elements": by_element, "motions": work.atoms.sum(2)}
    names = {
        "atoms": tuple(f"{symbol} {number}" for number, symbol in enumerate(symbols)),
        "elements": tuple(elements),
        "motions": ("displacement",) if molecules is None else MOTIONS,
    }
    if moves_cell:
        parts = {what: np.concatenate([each, work.cell[:, :, None]], axis=2) for what, each in parts.items()}
        names = {what: (*each, "cell") for what, each in names.items()}
    return parts, names, {}


def _left_over(work: Work, change: np.ndarray) -> str | None:
    """What there is to say if the work of paths is not the difference of energies."""
    of_atoms = work.atoms.sum(3)
    rest = change - of_atoms.sum(2) - work.cell
    within = (rest - rest.mean(axis=1, keepdims=True)).std()
    if within <= LEFT_OVER * change.std():
        return None
    worst = int(np.argmax((of_atoms - of_atoms.mean(axis=1, keepdims=True)).std(axis=(0, 1))))
    return (
        f"paths from the mean structure leave {within / change.std():.0%} of the difference of energies, most likely "
        f"because atom {worst} has several places: shares of atoms and motions are those of crystals that keep order."
    )


def _molecules(run: Run) -> tuple[Molecule, ...] | None:
    """Of the structure, unless it is a network or of single atoms."""
    try:
        found = molecules_in(run[0])
    except ValueError:
        return None
    return found if any(len(molecule.atoms) > 1 for molecule in found) else None


def _with_rest(energies: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Shares of β ΔU and what they leave of it."""
    return np.concatenate([energies, (change - energies.sum(axis=2))[:, :, None]], axis=2)
