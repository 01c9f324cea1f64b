"""A run in one picture: temperature, energy and density in time, and the radial distribution functions."""

import itertools
import textwrap
from typing import Any, Literal

import numpy as np
from ase.formula import Formula
from ase.symbols import Symbols
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmlip.describing import plus_minus
from jaxmlip.figures import figure
from jaxmlip.observables.observable import Observable
from jaxmlip.observables.structure import RDF
from jaxmlip.observables.thermodynamics import Density, PotentialEnergy, Temperature
from jaxmlip.simulation.trajectory import Run
from jaxmlip.validation.averages import average, observe, settled

MOST_PAIRS = 6
"""Pairs of elements whose distribution is drawn, those of the most frequent elements."""

REACH = 6.0
"""Å, of the distributions."""


def plot_run(run: Run, *, equilibration: Literal["auto"] | float | int = "auto") -> Figure:
    """Series of all replicas with what is discarded, averages with their errors, and radial distribution functions.

        jm.plot_run(jm.load_run("run.h5")).savefig("run.png")

    Args:
        run: from `simulate` or `load_run`.
        equilibration: what averages discard, see `average`.

    Returns:
        A figure: temperature, potential energy per atom, density where the cell moves, and distributions where the
        structure is periodic.

    Raises:
        ValueError: if no replica ran to the end, or nothing is left of the run.
    """
    if not run.completed.any():
        raise ValueError(f"No replica ran to the end, so that there is no average. Replica 0: {run.outcomes[0].value}.")
    first, status = settled(run, equilibration)
    shown: list[tuple[Observable, float, str]] = [
        (Temperature(), 1.0, "temperature / K"),
        (PotentialEnergy(), 1.0 / len(run.numbers), "potential energy / eV atom$^{-1}$"),
    ]
    if run.cells.ndim == 4 and run.pbc.all():
        shown.append((Density(), 1.0, "density / g cm$^{-3}$"))
    panels = len(shown) + int(run.pbc.all())
    drawn, axes = figure(-(-panels // 2), 2, 10.0, 3.2 * -(-panels // 2))
    for ax, (observable, scale, label) in zip(axes.flat, shown, strict=False):
        _series(ax, run, observable, scale, first, equilibration)
        ax.set_ylabel(label)
    if run.pbc.all():
        _distributions(axes.flat[len(shown)], run, equilibration)
    for ax in axes.flat[panels:]:
        ax.set_axis_off()
    formula = Formula(str(Symbols(run.numbers))).format("metal")
    told = textwrap.fill(f"{formula}, {int(run.completed.sum())} of {run.n_replicas} replicas: {status.value}", 110)
    drawn.suptitle(told, fontsize=10)
    return drawn


def _series(ax: Axes, run: Run, observable: Observable, scale: float, first: int, equilibration: Any) -> None:
    """A line for each replica, what is discarded in grey, and the average as a band of one standard error."""
    values, times = scale * observe(run, observable), run.time_fs / 1000.0
    for replica in values:
        ax.plot(times, replica, lw=0.7, alpha=0.7)
    if first:
        ax.axvspan(times[0], times[min(first, len(times) - 1)], color="0.85", zorder=0, label="discarded")
    found = scale * average(run, observable, equilibration=equilibration)
    value, error = float(found.value), float(found.error)
    ax.axhline(value, color="k", lw=1.0, label=plus_minus(value, error))
    if np.isfinite(error):
        ax.axhspan(value - error, value + error, color="k", alpha=0.15, lw=0)
    ax.set_xlabel("time / ps")
    ax.legend(fontsize=7, loc="best")


def _distributions(ax: Axes, run: Run, equilibration: Any) -> None:
    """Of pairs of elements, each with a band of one standard error."""
    elements = [str(Symbols([number])) for number in np.unique(run.numbers)]
    elements.sort(key=lambda symbol: -int(np.sum(Symbols(run.numbers) == symbol)))
    pairs = list(itertools.combinations_with_replacement(elements, 2))[:MOST_PAIRS]
    highest = 0.0
    for number, (one, other) in enumerate(pairs):
        found = average(run, RDF(one, other, r_max=REACH), equilibration=equilibration)
        assert found.axis is not None
        value, error = np.asarray(found.value), np.nan_to_num(np.asarray(found.error))
        ax.plot(found.axis, value, color=f"C{number}", label=f"{one}–{other}")
        ax.fill_between(found.axis, value - error, value + error, color=f"C{number}", alpha=0.25, lw=0)
        highest = max(highest, float(np.sort(value)[-5:].min()))
    ax.axhline(1.0, color="0.6", lw=0.8)
    ax.set(xlabel="r / Å", ylabel="g(r)", xlim=(0.5, REACH), ylim=(0, 1.3 * max(highest, 1.0)))
    ax.legend(fontsize=7)
