"""Figures of a study. Every function draws into the axes it is given; nothing is computed here but positions of ink."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jaxmlip.observables.estimate import Estimate
from jaxmlip.systems.dataset import Frame
from jaxmlip.validation.calibration import Calibration
from jaxmlip.validation.certificate import ForceErrorCertificate

STRATEGY_COLORS = {
    "foundation": "0.55",
    "direct": "#CC79A7",
    "differential": "#E69F00",
    "single_fidelity": "#56B4E9",
    "multi_fidelity": "#009E73",
    "tangent_kernel": "#D55E00",
    "pair_difference": "#0072B2",
}
"""Colour-blind safe (Okabe and Ito); one colour per strategy, marker and line style tell the labels."""

SPARE_COLORS = ("#F0E442", "#882255", "#44AA99", "#AA4499", "#999933", "#332288")
"""For strategies of other packages (Tol's muted scheme, but for the first)."""

LABEL_MARKERS = {"energy_forces": "o", "energy": "s"}
LABEL_LINES = {"energy_forces": "-", "energy": "--"}


def strategy_color(strategy: str) -> str:
    """The colour of a strategy; the same in every figure, also for those of other packages."""
    spare = SPARE_COLORS[zlib.crc32(strategy.encode()) % len(SPARE_COLORS)]
    return STRATEGY_COLORS.get(strategy, spare)


def readable(name: str) -> str:
    """`multi_fidelity.energy_forces` as a reader would say it."""
    strategy, _, labels = name.partition(".")
    words = strategy.replace("_", "-")
    return f"{words} ({'E + F' if labels == 'energy_forces' else 'E only'})" if labels else words


def learning_curve(ax: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    """Validation errors of energy and forces by epoch, on two logarithmic axes."""
    rows = [row for row in history if row.get("validation_force_rmse_meV_A") is not None]
    epochs = [row["epoch"] for row in rows]
    ax.plot(epochs, [row["validation_force_rmse_meV_A"] for row in rows], color="#0072B2", label="forces")
    ax.set(xlabel="epoch", ylabel="validation force RMSE / meV Å$^{-1}$", yscale="log")
    ax.yaxis.label.set_color("#0072B2")
    right = ax.twinx()
    right.plot(epochs, [row["validation_energy_rmse_meV_atom"] for row in rows], color="#D55E00", ls="--")
    right.set(ylabel="validation energy RMSE / meV atom$^{-1}$", yscale="log")
    right.yaxis.label.set_color("#D55E00")


def force_parity(ax: Axes, reference: Sequence[Frame], predicted: Sequence[Frame], title: str) -> None:
    """Force components of a potential against the reference, as a density of points."""
    x, y = (np.concatenate([frame.forces.ravel() for frame in frames]) for frames in (reference, predicted))
    both = ~np.isnan(x + y)  # NaN is a label that is absent
    x, y = x[both], y[both]
    limit = 1.05 * float(np.abs(np.concatenate([x, y])).max(initial=0.0)) or 1.0
    ax.hexbin(x, y, gridsize=70, bins="log", mincnt=1, extent=(-limit, limit, -limit, limit), cmap="viridis")
    ax.plot([-limit, limit], [-limit, limit], color="0.3", lw=0.8)
    rmse = f"{1e3 * float(np.sqrt(np.mean((x - y) ** 2))):.0f} meV/Å" if x.size else "no forces"
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=f"{title}\n{rmse}")


def rdf(
    ax: Axes, teacher: Estimate, students: Mapping[str, Estimate], pair: tuple[str, str], *, bonds: float = 0.0
) -> None:
    """Radial distribution functions with bands of ± 2 standard errors; the teacher's in black.

    The axis ends a little above the tallest peak beyond the bonds, whose own peaks are far taller.

    Args:
        ax: axes to draw into.
        teacher: what the students should have.
        students: by name.
        pair: symbols of the elements.
        bonds: Å; distances below are covalent bonds.
    """
    assert teacher.axis is not None
    r, value, error = teacher.axis, teacher.value, teacher.error
    ax.fill_between(r, value - 2 * error, value + 2 * error, color="0.75", lw=0, label="teacher ± 2σ")
    ax.plot(r, value, color="black", lw=1.6)
    for name, estimate in students.items():
        strategy, _, labels = name.partition(".")
        color, line = strategy_color(strategy), LABEL_LINES.get(labels, ":")
        value, error = estimate.value, estimate.error
        ax.plot(r, value, color=color, ls=line, lw=1.1, label=readable(name))
        ax.fill_between(r, value - 2 * error, value + 2 * error, color=color, alpha=0.18, lw=0)
    tallest = 1.25 * float(teacher.value[r > bonds].max())
    ax.set(xlabel="r / Å", ylabel=f"g(r), {pair[0]}–{pair[1]}", xlim=(0.8, float(r[-1])), ylim=(0, tallest))


def scatter_of_students(
    ax: Axes, measured: Mapping[str, Mapping[str, Any]], x: Sequence[str], y: Sequence[str], xlabel: str, ylabel: str
) -> None:
    """One number of every student against another, both with standard errors; students without them are left out.

    Args:
        ax: axes to draw into.
        measured: numbers by name of the student.
        x: keys that lead to the `{value, error}` on the x axis.
        y: likewise on the y axis.
        xlabel: of the x axis.
        ylabel: of the y axis.
    """
    for name, numbers in measured.items():
        horizontal, vertical = _dig(numbers, x), _dig(numbers, y)
        if horizontal is None or vertical is None or horizontal["value"] is None or vertical["value"] is None:
            continue
        strategy, _, labels = name.partition(".")
        ax.errorbar(
            horizontal["value"],
            vertical["value"],
            xerr=horizontal["error"],
            yerr=vertical["error"],
            fmt=LABEL_MARKERS.get(labels, "D"),
            color=strategy_color(strategy),
            mfc="white" if labels == "energy" else None,
            capsize=2,
            label=readable(name),
        )
    ax.set(xlabel=xlabel, ylabel=ylabel)


def calibration_curve(ax: Axes, found: Calibration, label: str = "") -> None:
    """Coverage of intervals against their level, with bands of two standard errors; the diagonal is what is wanted."""
    if not ax.lines:
        ax.plot([0, 1], [0, 1], color="0.3", lw=0.8)
    (line,) = ax.plot(found.levels, found.coverage, marker="o", ms=3, label=label or f"{found.number} estimates")
    low, high = (np.clip(found.coverage + sign * 2 * found.coverage_error, 0, 1) for sign in (-1, 1))
    ax.fill_between(found.levels, low, high, color=line.get_color(), alpha=0.18, lw=0)
    ax.set(xlabel="level of the interval", ylabel="truths inside", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")


def predicted_against_found(ax: Axes, found: Calibration, unit: str, label: str = "") -> None:
    """Root mean square deviations by predicted error, on logarithmic axes; the diagonal is what is wanted."""
    ax.errorbar(found.predicted, found.found, 2 * found.found_error, fmt="o", capsize=2, label=label or None)
    _diagonal(ax, found.predicted, found.found)
    ax.set(xlabel=f"predicted error / {unit}", ylabel=f"found error / {unit}")


def certificates(ax: Axes, predicted: Mapping[str, Sequence[tuple[float, ForceErrorCertificate]]]) -> None:
    """Found force errors against predicted ones with their intervals, meV/Å; the diagonal is what is wanted.

    Args:
        ax: axes to draw into.
        predicted: for each series by name, the found error (eV/Å) and the certificate.
    """
    for marker, (name, pairs) in zip("osD^v", predicted.items(), strict=False):
        middle = np.array([1e3 * each.predicted for _, each in pairs])
        ends = np.array([[1e3 * (e.predicted - e.low), 1e3 * (e.high - e.predicted)] for _, e in pairs]).T
        found = np.array([1e3 * value for value, _ in pairs])
        ax.errorbar(middle, found, xerr=ends, fmt=marker, ms=4, lw=0.7, alpha=0.7, label=name)
        _diagonal(ax, middle, found)
    ax.set(xlabel="predicted force error / meV Å$^{-1}$", ylabel="found force error / meV Å$^{-1}$")


def _diagonal(ax: Axes, *values: np.ndarray) -> None:
    """Equal logarithmic axes that hold some points, and the line where both coordinates agree."""
    positive = np.concatenate([each[each > 0] for each in values])
    low, high = 0.7 * positive.min(), 1.4 * positive.max()
    before = [line for line in ax.lines if line.get_gid() == "diagonal"]
    if before:
        low, high = min(low, ax.get_xlim()[0]), max(high, ax.get_xlim()[1])
        before[0].remove()
    ax.plot([low, high], [low, high], color="0.3", lw=0.8, gid="diagonal")
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _dig(numbers: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any] | None:
    for key in path:
        if key not in numbers:
            return None
        numbers = numbers[key]
    return numbers
