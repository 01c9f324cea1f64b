"""The report of clusters to bulk: one HTML file that explains itself; its words are in `report.html.jinja`."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxmlip.figures import figure, picture
from jaxmlip.files import write_text
from jaxmlip.study import plots
from jaxmlip.study.clusters_to_bulk.config import ClustersToBulk
from jaxmlip.study.clusters_to_bulk.stages import FOUNDATION, Results
from jaxmlip.study.clusters_to_bulk.summary import PAIRS, RDF_RANGE, Analysis
from jaxmlip.study.pages import aligned, template_of, value_and_error
from jaxmlip.versions import versions

COVALENT = 1.3
"""Å; distances below are covalent bonds of water."""

VERDICT_CLASS = {"trusted": "trusted"} | dict.fromkeys(
    ("right for the wrong reasons", "wrong energy", "undecided"), "doubt"
)

COLUMNS = [
    ("force RMSE", "meV/Å", ("force_rmse_meV_A",), 0),
    ("energy RMSE", "meV/atom", ("energy_rmse_meV_atom",), 2),
    ("RDF error", "OO / Å", ("rdf_error_A", "OO"), 3),
    ("RDF error", "OH / Å", ("rdf_error_A", "OH"), 3),
    ("RDF error", "HH / Å", ("rdf_error_A", "HH"), 3),
    ("⟨U⟩ − teacher", "meV/molecule", ("potential_energy_deviation_meV_molecule",), 1),
    ("T", "K", ("temperature_K",), 0),
]


def write_report(path: Path, config: ClustersToBulk, analysis: Analysis, results: Results) -> None:
    """Write `report.html`; it needs no other file."""
    history = json.loads((results.students[FOUNDATION].folder / "history.json").read_text())
    by_level: dict[str, list[str]] = {}
    for name, measured in named_students(analysis.summary).items():
        by_level.setdefault(measured["verdict"]["level"], []).append(plots.readable(name))
    page = template_of("clusters_to_bulk").render(
        config=config,
        summary=analysis.summary,
        trusted=by_level.pop("trusted", []),
        others=by_level,
        columns=[{"title": title, "unit": unit} for title, unit, _, _ in COLUMNS],
        rows=_rows(analysis.summary),
        rdf_range=RDF_RANGE,
        labels=[_labels_in_words(labels) for labels in config.labels],
        figures=_figures(config, analysis, history),
        versions=versions(),
    )
    write_text(path, page)


def summary_table(summary: dict[str, Any]) -> str:
    """The main numbers as text for a terminal."""
    rows = [["student", "force RMSE meV/Å", "energy RMSE meV/atom", "RDF error OO Å", "verdict"]]
    for name, measured in named_students(summary).items():
        numbers = [value_and_error(_dig(measured, keys), digits) for _, _, keys, digits in COLUMNS[:3]]
        rows.append([plots.readable(name), *numbers, measured["verdict"]["level"]])
    return aligned(rows)


def named_students(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Lifted students of a summary by `<strategy>.<labels>`."""
    students = summary["students"].items()
    return {f"{strategy}.{labels}": one for strategy, by_labels in students for labels, one in by_labels.items()}


def _rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the table: teachers and foundation for reference, then the students."""
    potentials = [("low teacher", summary["low_teacher"], True), ("teacher (sampling noise)", summary["teacher"], True)]
    potentials += [("foundation, not lifted", summary[FOUNDATION], True)]
    potentials += [(plots.readable(name), measured, False) for name, measured in named_students(summary).items()]
    rows = []
    for name, measured, reference in potentials:
        is_teacher = measured is summary["teacher"]
        numbers = [_dig(measured, keys) for _, _, keys, _ in COLUMNS]
        if is_teacher:  # its errors are zero by definition; what matters is how well its own run is known
            numbers = [_noise(number) for number in numbers]
        cells = [value_and_error(number, column[3]) for number, column in zip(numbers, COLUMNS, strict=True)]
        judged = {} if is_teacher else measured.get("verdict", {})
        level = judged.get("level", "")
        row = {"name": name, "reference": reference, "cells": cells, "class": VERDICT_CLASS.get(level, "wrong")}
        rows.append(row | {"level": level, "reason": judged.get("reason", "")})
    return rows


def _figures(config: ClustersToBulk, analysis: Analysis, history: list[dict]) -> dict[str, dict[str, Any]]:
    """The figures by their names in the template."""
    students = named_students(analysis.summary)
    shown = {labels: [name for name in students if name.endswith(f".{labels}")] for labels in config.labels}
    curve, axes = figure(1, 1, 6.5, 3.2)
    plots.learning_curve(axes[0, 0], history)
    return {
        "forces": picture(_forces(analysis, shown)),
        "structure": picture(_structure(analysis, shown)),
        "relations": picture(_relations(analysis, students)),
        "distillation": picture(curve),
    }


def _forces(analysis: Analysis, shown: dict[str, list[str]]) -> Figure:
    """Forces of every student against the teacher's."""
    drawn, axes = figure(len(shown), max(map(len, shown.values())), 10.5, 2.9 * len(shown))
    for row, names in zip(axes, shown.values(), strict=True):
        for ax, name in zip(row, names, strict=True):
            plots.force_parity(ax, analysis.test, analysis.potentials[name].predicted, plots.readable(name))
    drawn.supxlabel("force component of the teacher / eV Å$^{-1}$")
    drawn.supylabel("of the student / eV Å$^{-1}$")
    return drawn


def _structure(analysis: Analysis, shown: dict[str, list[str]]) -> Figure:
    """Radial distribution functions of all pairs."""
    drawn, axes = figure(len(shown), len(PAIRS), 10.5, 2.9 * len(shown))
    teacher = analysis.potentials["teacher"].rdf
    for row, names in zip(axes, shown.values(), strict=True):
        for ax, pair in zip(row, PAIRS, strict=True):
            runs = {name: analysis.potentials[name].rdf[pair] for name in names if analysis.potentials[name].rdf}
            plots.rdf(ax, teacher[pair], runs, pair, bonds=COVALENT)
        row[0].legend(fontsize=6.5)
    return drawn


def _relations(analysis: Analysis, students: dict[str, dict[str, Any]]) -> Figure:
    """Structure against forces, and energies of runs against energies of frames."""
    measured = {FOUNDATION: analysis.summary[FOUNDATION], **students}
    drawn, axes = figure(1, 2, 10.5, 3.9)
    plots.scatter_of_students(
        axes[0, 0],
        measured,
        ("force_rmse_meV_A",),
        ("rdf_error_A", "OO"),
        "force RMSE / meV Å$^{-1}$",
        "RDF error, O–O / Å",
    )
    floor = analysis.summary["teacher"]["rdf_error_A"]["OO"]
    axes[0, 0].axhspan(0, floor["noise_floor"], color="0.9", label="sampling noise")
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].legend(fontsize=7)
    plots.scatter_of_students(
        axes[0, 1],
        measured,
        ("energy_mean_meV_molecule",),
        ("potential_energy_deviation_meV_molecule",),
        "mean energy error on the teacher's frames / meV per molecule",
        "⟨U⟩ of the run − teacher / meV per molecule",
    )
    axes[0, 1].axline((0, 0), slope=1, color="0.6", lw=0.8)
    return drawn


def _labels_in_words(labels: str) -> str:
    return "lifted with energies and forces" if labels == "energy_forces" else "lifted with energies only"


def _dig(numbers: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any] | None:
    for key in keys:
        if key not in numbers:
            return None
        numbers = numbers[key]
    return numbers


def _noise(number: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the teacher's row shows: the noise floor of a distance, the plain number of an observable, else nothing."""
    if number is None or number["value"] == 0.0:
        return None if number is None or "noise_floor" not in number else {"value": number["noise_floor"]}
    return number
