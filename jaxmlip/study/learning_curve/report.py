"""What a learning curve has shown: results.json, a table and a figure."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

from jaxmlip.figures import figure
from jaxmlip.files import to_json, write_bytes, write_json, write_text
from jaxmlip.study.learning_curve.config import LearningCurve
from jaxmlip.study.plots import STRATEGY_COLORS, strategy_color
from jaxmlip.versions import versions

FORCES, PER_ATOM, PER_UNIT, MEAN = "force_rmse_meV_A", "energy_std_meV_atom", "energy_std_meV_", "energy_mean_meV_"
"""Errors of a run: of forces, of energies per atom (mean removed), the same per formula unit, and their mean.

The names of the last two end in the unit, a formula or "atom"."""

LABELS_IN_WORDS = {"energy_forces": "energies and forces", "energy": "energies only"}

MARKERS = "osD^vPX*"


def write_results(folder: Path, config: LearningCurve, records: Sequence[dict[str, Any]]) -> None:
    """Write `results.json`, `table.md` and `learning_curves.png`, unless they say the same already.

    Args:
        folder: of the study.
        config: of the study; its grid need not be that of the records.
        records: one for each run, with strategy, labels, size, seed, wall_s and each of `measures` as value and error
            over frames; the foundation's has no labels, size and seed.
    """
    arms = summarise(records)
    content = {"config": config.model_dump(mode="json"), "versions": versions(), "arms": arms, "runs": [*records]}
    path = folder / "results.json"
    written, mean = ("table.md", "learning_curves.png"), measures(arms)[-1]
    same = path.exists() and json.loads(path.read_text()) == json.loads(to_json(content))
    if same and all((folder / name).exists() for name in written):
        return
    write_text(folder / "table.md", table(arms))
    drawn, axes = figure(2, 2, 9.0, 6.6)
    for column, labels in enumerate(LABELS_IN_WORDS):
        draw(axes[0, column], arms, labels, FORCES)
        draw(axes[1, column], arms, labels, mean)
        axes[0, column].set_title(f"trained on {LABELS_IN_WORDS[labels]} of N structures")
    for row in axes.tolist():
        _share_scale(row)
    handles = {text: line for ax in axes.flat for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    if handles:
        drawn.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False)
    buffer = io.BytesIO()
    drawn.savefig(buffer, dpi=160, format="png")
    plt.close(drawn)
    write_bytes(folder / "learning_curves.png", buffer.getvalue())
    write_json(path, content)


def summarise(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds of each arm.

    Returns:
        For each strategy, labels and size: `seeds`, `wall_s` (sum), and for each measure `value` (mean over seeds),
        `error_seeds` (standard error of that mean; None for one seed) and `error_frames` (mean of the runs' standard
        errors over the test frames, which are the same for all seeds). `diverged` counts runs that were stopped, and
        `unconverged` those whose held-out loss still fell when their steps were over (of those with `patience`).
    """
    arms: dict[tuple, list[dict[str, Any]]] = {}
    for record in records:
        arms.setdefault((record.get("labels"), record.get("size"), record["strategy"]), []).append(record)
    order = {"energy_forces": 1, "energy": 2}
    summary = []
    for (labels, size, strategy), runs in sorted(
        arms.items(), key=lambda arm: (order.get(arm[0][0], 0), arm[0][1] or 0, *_rank(arm[0][2]))
    ):
        arm: dict[str, Any] = {"strategy": strategy, "labels": labels, "size": size, "seeds": len(runs)}
        arm |= {
            "wall_s": sum(run["wall_s"] for run in runs),
            "diverged": sum(bool(run.get("diverged")) for run in runs),
            "unconverged": sum(run.get("converged") is False and not run.get("diverged") for run in runs),
        }
        for measure in measures(runs):
            values = np.array([_float(run[measure]["value"]) for run in runs])
            over_seeds = float(values.std(ddof=1) / math.sqrt(len(runs))) if len(runs) > 1 else None
            over_frames = float(np.mean([_float(run[measure]["error"]) for run in runs]))
            arm[measure] = {"value": float(values.mean()), "error_seeds": over_seeds, "error_frames": over_frames}
        summary.append(arm)
    return summary


def measures(records: Sequence[dict[str, Any]]) -> list[str]:
    """The errors that records have, in the order of the table; that of the mean energy comes last."""
    names = {name for record in records for name in record}
    means = sorted(name for name in names if name.startswith(MEAN)) or [f"{MEAN}atom"]
    per_unit = sorted(name for name in names if name.startswith(PER_UNIT) and name != PER_ATOM)
    return [FORCES, PER_ATOM, *per_unit, *means]


def in_words(measure: str, *, axis: bool = False) -> str:
    """An error as a table, or an axis, calls it."""
    if measure == FORCES:
        return "force RMSE / meV Å$^{-1}$" if axis else "force RMSE meV/Å"
    if measure.startswith(MEAN):
        unit = measure.removeprefix(MEAN)
        return f"|mean energy error| / meV per {unit}" if axis else f"mean energy error meV/{unit}"
    return "energy RMSE, mean removed, meV/atom" if measure == PER_ATOM else f"the same, meV/{measure[len(PER_UNIT) :]}"


def table(arms: Sequence[dict[str, Any]]) -> str:
    """The arms as a table in Markdown."""
    columns = measures(arms)
    header = ["labels", "N", "strategy", "seeds", *map(in_words, columns), "time s"]
    rows = [header, ["---"] * len(header)]
    for arm in arms:
        labels = LABELS_IN_WORDS.get(arm["labels"], "none")
        rows.append([labels, str(arm["size"] or ""), arm["strategy"].replace("_", "-"), str(arm["seeds"])])
        rows[-1] += [_cell(arm[measure]) if measure in arm else "–" for measure in columns] + [f"{arm['wall_s']:.0f}"]
        if not arm["labels"]:
            rows[-1][-2] = "–"  # references of another level of theory
        if said := [f"{arm[what]} {what}" for what in ("diverged", "unconverged") if arm[what]]:
            rows[-1][3] += f" ({', '.join(said)})"
    lines = [f"| {' | '.join(row)} |" for row in rows]
    note = (
        "Mean over seeds ± its standard error (left out for one seed), in parentheses the standard error over the test "
        "frames. Time: sum over the seeds."
    )
    return "\n".join([*lines, "", note, ""])


def draw(ax: Axes, arms: Sequence[dict[str, Any]], labels: str, measure: str) -> None:
    """|value| of a measure against N on logarithmic axes, one line per strategy; the foundation's forces as a level.

    Bars are one standard error over the seeds; for a single seed, over the test frames.
    """
    strategies = list(dict.fromkeys(arm["strategy"] for arm in arms if arm["labels"]))
    sizes = sorted({arm["size"] for arm in arms if arm["labels"]})
    for number, strategy in enumerate(strategies):
        mine = [arm for arm in arms if arm["strategy"] == strategy and arm["labels"] == labels]
        if not mine:
            continue
        values = [abs(arm[measure]["value"]) for arm in mine]
        errors = [arm[measure]["error_frames" if arm["seeds"] == 1 else "error_seeds"] for arm in mine]
        ax.errorbar(
            [arm["size"] for arm in mine],
            values,
            yerr=[[min(e, 0.9 * v) for e, v in zip(errors, values, strict=True)], errors],
            color=strategy_color(strategy),
            marker=MARKERS[number % len(MARKERS)],
            ms=5,
            lw=1.3,
            capsize=2,
            label=strategy.replace("_", "-"),
        )
    for arm in arms:
        if arm["labels"] is None and measure == FORCES:
            ax.axhline(arm[measure]["value"], color="0.55", ls=":", label="foundation, not lifted")
    ax.set(xlabel="training structures N", ylabel=in_words(measure, axis=True), xscale="log", yscale="log")
    if sizes:
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(0.8 * sizes[0], 1.25 * sizes[-1])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())


def _share_scale(row: Sequence[Axes]) -> None:
    """One range of y for the axes of a row that have something in them."""
    drawn = [ax for ax in row if ax.has_data()]
    if drawn:
        low, high = (pick(ax.get_ylim()[end] for ax in drawn) for end, pick in ((0, min), (1, max)))
        for ax in row:
            ax.set_ylim(low, high)


def _rank(strategy: str) -> tuple[int, str]:
    known = [*STRATEGY_COLORS]
    return (known.index(strategy) if strategy in known else len(known)), strategy


def _cell(measured: dict[str, Any]) -> str:
    value, seeds, frames = measured["value"], measured["error_seeds"], measured["error_frames"]
    if math.isnan(value):
        return "–"
    over_seeds = "" if seeds is None else f" ± {seeds if seeds > 1e-9 * abs(value) else 0.0:.2g}"  # not rounding
    return f"{value:.1f}{over_seeds} ({'–' if math.isnan(frames) else format(frames, '.2g')})"


def _float(value: float | None) -> float:
    return math.nan if value is None else value
