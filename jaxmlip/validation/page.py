"""What a validation leaves in its folder: `verdict.json` for machines and `report.html` for people."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmlip.figures import figure, picture
from jaxmlip.files import finite, to_json, write_json, write_text
from jaxmlip.validation.comparison import Comparison, Validation
from jaxmlip.validation.verdict_file import VerdictFile
from jaxmlip.versions import versions

AXES = {"rdf": "r / Å", "adf": "angle / degree"}
"""What functions are of, by the first word of their name."""

COLUMNS = 3
"""Figures of functions beside each other."""

CLASSES = {"pass": "passed", "cannot tell": "doubt", "fail": "wrong"}


def write_validation(folder: str | Path, found: Validation, settings: Mapping[str, Any]) -> None:
    """Write both files, each whole or not at all.

    Args:
        folder: that is there.
        found: what was found.
        settings: what was asked for, by name: shown on the page and kept in the file.
    """
    folder = Path(folder)
    asked = {name: None if value is None else str(value) for name, value in settings.items()}
    content = finite(found.to_json() | {"settings": asked, "versions": versions()})
    VerdictFile.model_validate(content)
    write_json(folder / "verdict.json", content)
    write_text(folder / "report.html", page(found, asked))


def page(found: Validation, settings: Mapping[str, Any]) -> str:
    """The page; it needs no other file."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxmlip.validation", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    functions = {name: each for name, each in found.observables.items() if _is_function(each)}
    return templates.get_template("report.html.jinja").render(
        found=found,
        rows=[
            {"name": name, "class": CLASSES[each.answer], **_cells(each)} for name, each in found.observables.items()
        ],
        answer_class=CLASSES[found.answer],
        functions=picture(_drawn(functions)) if functions else None,
        numbers=picture(_bars(found.observables)) if _bars_of(found.observables) else None,
        settings=to_json(finite(dict(settings))),
        versions=versions(),
    )


def _is_function(each: Comparison) -> bool:
    return each.student is not None and each.student.axis is not None


def _cells(each: Comparison) -> dict[str, Any]:
    """A line of the table, in words."""
    unit = each.difference.unit if each.difference is not None else ""
    return {
        "student": _said(each.student),
        "teacher": _said(each.teacher),
        "method": each.method or "–",
        "difference": _said(each.difference),
        "sigma": f"{each.sigma:+.1f}" if math.isfinite(each.sigma) else "–",
        "tolerance": f"{each.tolerance:.3g} {unit}" if math.isfinite(each.tolerance) else "–",
        "answer": each.answer,
        "class": CLASSES[each.answer],
        "reason": each.reason,
    }


def _said(estimate: Any) -> str:
    """Value ± error, or what stands for a function or for nothing."""
    if estimate is None:
        return "–"
    if estimate.value.ndim:
        return "figure" if estimate.axis is not None else ", ".join(f"{value:.4g}" for value in estimate.value.ravel())
    return estimate.plain()


def _drawn(functions: Mapping[str, Comparison]) -> Figure:
    """Functions of student and teacher, with bands of ± 2 standard errors."""
    columns = min(COLUMNS, len(functions))
    rows = -(-len(functions) // columns)
    drawn, axes = figure(rows, columns, 3.5 * columns, 2.9 * rows)
    for ax, (name, each) in zip(axes.ravel(), functions.items(), strict=False):
        if each.teacher is not None:
            _curve(ax, each.teacher, "black", f"teacher ({each.method})")
        _curve(ax, each.student, "#0072B2", "student")
        ax.set_title(f"{name.split(':r_max')[0]}: {each.answer}")
        ax.set(xlabel=AXES.get(name.partition(":")[0], ""), ylim=(0, _top(each)))
    axes[0, 0].legend(fontsize=7)
    for ax in axes.ravel()[len(functions) :]:
        ax.set_axis_off()
    return drawn


def _curve(ax: Axes, estimate: Any, color: str, label: str) -> None:
    """One function with its band."""
    ax.plot(estimate.axis, estimate.value, color=color, lw=1.4, label=label)
    low, high = estimate.value - 2 * estimate.error, estimate.value + 2 * estimate.error
    ax.fill_between(estimate.axis, low, high, color=color, alpha=0.2, lw=0)


def _top(each: Comparison) -> float:
    """End of the axis: above the tallest peak but one that is far taller than the rest, as that of a bond is."""
    values = sorted(each.student.value[1:-1][  # type: ignore[union-attr]
        (each.student.value[1:-1] >= each.student.value[:-2]) & (each.student.value[1:-1] >= each.student.value[2:])  # type: ignore[union-attr]
    ])  # fmt: skip
    if len(values) > 1 and values[-1] > 3 * values[-2] > 0:
        return 1.6 * float(values[-2])
    return 1.1 * float(each.student.value.max()) or 1.0  # type: ignore[union-attr]


def _bars_of(observables: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """Those whose difference has an error and a tolerance."""
    return {
        name: each
        for name, each in observables.items()
        if each.difference is not None and math.isfinite(float(each.difference.error)) and each.tolerance > 0
    }


def _bars(observables: Mapping[str, Comparison]) -> Figure:
    """Differences in units of their tolerances."""
    shown = _bars_of(observables)
    drawn, axes = figure(1, 1, 7.5, 0.9 + 0.35 * len(shown))
    ax = axes[0, 0]
    colors = {"pass": "#009E73", "cannot tell": "#E69F00", "fail": "#B00020"}
    for n, each in enumerate(shown.values()):
        assert each.difference is not None
        floor = 0.0 if each.difference.noise_floor is None else float(each.difference.noise_floor)
        value, error = float(each.difference) - floor, float(each.difference.error)
        ax.errorbar(
            value / each.tolerance,
            n,
            xerr=2 * error / each.tolerance,
            fmt="o",
            ms=4,
            capsize=3,
            color=colors[each.answer],
        )
    ax.axvspan(-1, 1, color="0.9", zorder=0)
    ax.set(
        yticks=range(len(shown)), yticklabels=[name.split(":r_max")[0] for name in shown], ylim=(len(shown) - 0.5, -0.5)
    )
    ax.set_xlabel("(student − teacher) / tolerance, ± 2 σ; grey: harmless")
    return drawn
