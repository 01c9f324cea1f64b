"""Several studies of clusters and bulk together: correlations over all their students, and what they answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from pydantic import ValidationError

from jaxmlip.figures import figure, picture
from jaxmlip.files import finite, write_json, write_text
from jaxmlip.study import correlations
from jaxmlip.study.clusters_to_bulk.answers import FOLLOWS, with_answers
from jaxmlip.study.clusters_to_bulk.report import VERDICT_CLASS, columns_of, dig, named_students
from jaxmlip.study.clusters_to_bulk.summary_file import FORMAT, ComparisonFile, SummaryFile
from jaxmlip.study.correlations import STUDY, StudentErrors, students_of
from jaxmlip.study.pages import template_of, value_and_error
from jaxmlip.study.plots import readable
from jaxmlip.versions import versions


def compare_studies(runs: Sequence[str | Path], folder: str | Path) -> dict[str, Any]:
    """Write `comparison.json` and `report.html` of several studies, and return the content of the former.

    Args:
        runs: folders of finished studies, or folders in which there are some.
        folder: to write to; made if need be.

    Raises:
        FileNotFoundError: if a folder is not there or holds no summary of such a study.
        ValueError: if a summary is damaged, or of an earlier version.
    """
    summaries = _summaries(runs)
    students: list[StudentErrors] = []
    for path, (summary, config) in summaries.items():
        students += students_of(summary, config, path)
    first, *others = [summary for summary, _ in summaries.values()]
    answered = with_answers(first, students, others)
    content = finite(
        {
            "studies": [str(path) for path in summaries],
            "students": len(students),
            "correlations": answered["correlations"],
            "answers": answered["answers"],
            "versions": versions(),
        }
    )
    ComparisonFile.model_validate(content)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", content)
    write_text(folder / "report.html", _page(content, {path: each for path, (each, _) in summaries.items()}, students))
    return content


def _summaries(runs: Sequence[str | Path]) -> dict[Path, tuple[dict[str, Any], dict[str, Any]]]:
    """Summaries with their configurations, by file, each once."""
    found: dict[Path, tuple[dict[str, Any], dict[str, Any]]] = {}
    for run in runs:
        here = correlations.read_summaries(run)
        if not here:
            raise FileNotFoundError(f"{run} holds no summary.json of a study {STUDY}; run one, or give another folder.")
        for path, (summary, config) in here.items():
            if summary.get("format") != FORMAT:
                raise ValueError(
                    f"{path} is of another version of this package (format {summary.get('format', 1)}, not {FORMAT}); "
                    "the same `jaxmlip run` again writes it anew from what is kept."
                )
            if config is None:
                raise ValueError(f"{path} has no config.json beside it; run its study again, or copy it there.")
            try:
                SummaryFile.model_validate(summary)
            except ValidationError as error:
                first = error.errors()[0]
                what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
                raise ValueError(correlations.damaged(path, what)) from None
            if summary not in [each for each, _ in found.values()]:
                found[path] = summary, config
    return found


def _page(content: dict[str, Any], summaries: dict[Path, dict[str, Any]], students: list[StudentErrors]) -> str:
    """The page; it needs no other file."""
    columns = list({column: None for summary in summaries.values() for column in columns_of(summary)})
    drawn = _drawn(students)
    return template_of("clusters_to_bulk", "comparison").render(
        config={"name": f"{len(summaries)} studies"},
        content=content,
        level=next(iter(content["answers"].values()))["level"],
        summaries=summaries,
        figure=None if drawn is None else picture(drawn),
        columns=[{"title": title, "unit": unit} for title, unit, _, _ in columns],
        rows=[row for summary in summaries.values() for row in _rows(summary, columns)],
        versions=versions(),
    )


def _rows(summary: dict[str, Any], columns: list) -> list[dict[str, Any]]:
    """A line for each student of a study."""
    rows = []
    for name, measured in named_students(summary).items():
        numbers = [dig(measured, keys) for _, _, keys, _ in columns]
        verdict = measured["verdict"]
        rows.append(
            {
                "study": summary["name"],
                "clusters": summary["clusters"]["number"],
                "radius": summary["clusters"]["radius_A"],
                "name": readable(name),
                "cells": [
                    {
                        "text": value_and_error(number, column[3]),
                        "value": "" if number is None or number["value"] is None else number["value"],
                    }
                    for number, column in zip(numbers, columns, strict=True)
                ],
                "class": VERDICT_CLASS.get(verdict["level"], "wrong"),
                "level": verdict["level"],
            }
        )
    return rows


def _drawn(students: list[StudentErrors]) -> Figure | None:
    """Structure against force error, and energy and density against energy error, of all students."""
    shown = []
    for _, observable, predictor, _ in FOLLOWS:
        names = {name for one in students for name in one.errors if name.split(" (")[0] == observable}
        for name in sorted(names):
            if sum(name in one.errors and predictor in one.errors for one in students) > 2:
                shown.append((name, predictor))
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    drawn, axes = figure(rows, columns, 3.9 * columns, 3.6 * rows)
    for ax, (name, predictor) in zip(axes.ravel(), shown, strict=False):
        correlations.draw(ax, students, name, predictor)
    for ax in axes.ravel()[len(shown) :]:
        ax.set_axis_off()
    axes[0, 0].legend(fontsize=6)
    return drawn
