"""The report of clusters to bulk: one HTML file that explains itself; its words are in `report.html.jinja`."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxmlip.figures import figure, picture
from jaxmlip.files import write_text
from jaxmlip.study import plots
from jaxmlip.study.clusters_to_bulk.config import ClustersToBulk
from jaxmlip.study.clusters_to_bulk.crystal import crystal_of, longest_bond, pairs_of
from jaxmlip.study.clusters_to_bulk.stages import FOUNDATION, Results
from jaxmlip.study.clusters_to_bulk.summary import RDF_RANGE, Analysis
from jaxmlip.study.pages import aligned, template_of, value_and_error
from jaxmlip.versions import versions

VERDICT_CLASS = {"trusted": "trusted"} | dict.fromkeys(
    ("right for the wrong reasons", "wrong energy", "undecided"), "doubt"
)

Column = tuple[str, str, tuple[str, ...], int]
"""Title, unit, keys of a number in what was measured of a student, digits."""

COLUMNS: list[Column] = [
    ("force RMSE", "meV/Å", ("force_rmse_meV_A",), 0),
    ("energy RMSE", "meV/atom", ("energy_rmse_meV_atom",), 2),
]
"""On the test frames."""

OF_RUN: list[Column] = [
    ("⟨U⟩ − teacher", "meV/molecule", ("potential_energy_deviation_meV_molecule",), 1),
    ("T", "K", ("temperature_K",), 0),
]
"""Of the simulation in the first ensemble, after the structure."""


def write_report(path: Path, config: ClustersToBulk, analysis: Analysis, results: Results) -> None:
    """Write `report.html`; it needs no other file."""
    history = json.loads((results.students[FOUNDATION][0].folder / "history.json").read_text())
    summary = analysis.summary
    by_level: dict[str, list[str]] = {}
    for name, measured in named_students(summary).items():
        by_level.setdefault(measured["verdict"]["level"], []).append(plots.readable(name))
    columns = columns_of(summary)
    page = template_of("clusters_to_bulk").render(
        config=config,
        crystal=crystal_of(config.system).name,
        summary=summary,
        seeds=_seeds_in_words(config),
        first_seed=" Of the first seed." if config.seeds > 1 else "",
        trusted=by_level.pop("trusted", []),
        others=by_level,
        classes=VERDICT_CLASS,
        columns=[{"title": title, "unit": unit} for title, unit, _, _ in columns],
        rows=_rows(summary, columns),
        rdf_range=RDF_RANGE,
        labels=[
            _labels_in_words(labels)
            for labels in config.labels
            if any(name.endswith(f".{labels}") for name in named_students(summary))
        ],
        figures=_figures(config, analysis, history),
        origins=_origins(summary),
        versions=versions(),
    )
    write_text(path, page)


def columns_of(summary: dict[str, Any]) -> list[Column]:
    """Columns of the table: those that there always are, and of further ensembles structure, energy and density."""
    columns = [*COLUMNS, *_of_structure(summary), *OF_RUN]
    for number, ensemble in enumerate(summary["ensembles"]):
        place = ("ensembles", ensemble) if number else ()
        if number:
            columns.append((f"RDF error, {ensemble}", "mean / Å", (*place, "rdf_error_A", "mean"), 3))
            energy = (*place, "potential_energy_deviation_meV_molecule")
            columns.append((f"⟨U⟩ − teacher, {ensemble}", "meV/molecule", energy, 1))
        if ensemble.startswith("NPT"):
            columns.append((f"density, {ensemble}", "g/cm³", (*place, "density_g_cm3"), 4))
            columns.append((f"density − teacher, {ensemble}", "%", (*place, "density_deviation_percent"), 2))
    return columns


def _of_structure(summary: dict[str, Any]) -> list[Column]:
    """Columns of the pairs of elements."""
    pairs = [pair for pair in summary["teacher"]["rdf_error_A"] if pair != "mean"]
    return [("RDF error", f"{pair} / Å", ("rdf_error_A", pair), 3) for pair in pairs]


def summary_table(summary: dict[str, Any]) -> str:
    """The main numbers as text for a terminal."""
    columns = [*COLUMNS, _of_structure(summary)[0]]
    rows = [["student", *(f"{title} {unit.replace(' / ', ' ')}" for title, unit, _, _ in columns), "verdict"]]
    for name, measured in named_students(summary).items():
        numbers = [value_and_error(dig(measured, keys), digits) for _, _, keys, digits in columns]
        rows.append([plots.readable(name), *numbers, measured["verdict"]["level"]])
    return aligned(rows)


def named_students(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Lifted students of a summary by `<strategy>.<labels>`."""
    students = summary["students"].items()
    return {f"{strategy}.{labels}": one for strategy, by_labels in students for labels, one in by_labels.items()}


def _rows(summary: dict[str, Any], columns: list[Column]) -> list[dict[str, Any]]:
    """The lines of the table: teachers and foundation for reference, then the students."""
    potentials = [("low teacher", summary["low_teacher"], True), ("teacher (sampling noise)", summary["teacher"], True)]
    potentials += [("foundation, not lifted", summary[FOUNDATION], True)]
    potentials += [(plots.readable(name), measured, False) for name, measured in named_students(summary).items()]
    rows = []
    for name, measured, reference in potentials:
        is_teacher = measured is summary["teacher"]
        numbers = [dig(measured, keys) for _, _, keys, _ in columns]
        if is_teacher:  # its errors are zero by definition; what matters is how well its own run is known
            numbers = [_noise(number) for number in numbers]
        texts = [value_and_error(number, column[3]) for number, column in zip(numbers, columns, strict=True)]
        cells = [
            {"text": text, "value": "" if number is None or number["value"] is None else number["value"]}
            for text, number in zip(texts, numbers, strict=True)
        ]
        judged = {} if is_teacher else measured.get("verdict", {})
        level = judged.get("level", "")
        row = {"name": name, "reference": reference, "cells": cells, "class": VERDICT_CLASS.get(level, "wrong")}
        rows.append(row | {"level": level, "reason": judged.get("reason", "")})
    return rows


def _origins(summary: dict[str, Any]) -> dict[str, list[str]]:
    """For each potential the stages that its numbers come from."""
    spent = summary["stages_s"]

    def said(made: dict[str, str]) -> str:
        return f"{made['stage']} ({made['key'][:12]}; {spent[made['stage']]:.0f} s)"

    found = {}
    for name, each in summary["provenance"].items():
        if name != "test":
            stages = [one for seed in each for one in (seed["potential"], *seed["runs"].values()) if one]
            found[plots.readable(name)] = [said(one) for one in stages]
    return found


def _figures(config: ClustersToBulk, analysis: Analysis, history: list[dict]) -> dict[str, dict[str, Any]]:
    """The figures by their names in the template."""
    students = named_students(analysis.summary)
    shown = {labels: [name for name in students if name.endswith(f".{labels}")] for labels in config.labels}
    shown = {labels: names for labels, names in shown.items() if names}
    curve, axes = figure(1, 1, 6.5, 3.2)
    plots.learning_curve(axes[0, 0], history)
    return {
        "forces": picture(_forces(analysis, shown)),
        "structure": picture(_structure(analysis, shown)),
        "relations": picture(_relations(analysis, students)) | {"density": "NPT" in str(analysis.summary["ensembles"])},
        "distillation": picture(curve),
    }


def _forces(analysis: Analysis, shown: dict[str, list[str]]) -> Figure:
    """Forces of every student against the teacher's."""
    drawn, axes = figure(len(shown), max(map(len, shown.values())), 10.5, 3.3 * len(shown))
    for row, names in zip(axes, shown.values(), strict=True):
        for ax in row[len(names) :]:
            ax.set_axis_off()
        for ax, name in zip(row, names, strict=False):
            plots.force_parity(ax, analysis.test, analysis.potentials[name].predicted, plots.readable(name))
    drawn.supxlabel("force component of the teacher / eV Å$^{-1}$")
    drawn.supylabel("of the student / eV Å$^{-1}$")
    return drawn


def _structure(analysis: Analysis, shown: dict[str, list[str]]) -> Figure:
    """Radial distribution functions of all pairs."""
    pairs, teacher = pairs_of(analysis.test[0].atoms), analysis.potentials["teacher"].rdf
    drawn, axes = figure(len(shown), len(pairs), max(10.5, 3.5 * len(pairs)), 2.9 * len(shown))
    for row, names in zip(axes, shown.values(), strict=True):
        for ax, (pair, elements) in zip(row, pairs.items(), strict=True):
            runs = {name: analysis.potentials[name].rdf[pair] for name in names if analysis.potentials[name].rdf}
            plots.rdf(ax, teacher[pair], runs, elements, bonds=longest_bond(elements))
        row[0].legend(fontsize=6.5)
    return drawn


def _relations(analysis: Analysis, students: dict[str, dict[str, Any]]) -> Figure:
    """Structure against forces, energies of runs against energies of frames, and densities where there are any."""
    summary = analysis.summary
    measured = {FOUNDATION: summary[FOUNDATION], **students}
    density = [keys for _, _, keys, _ in columns_of(summary) if keys[-1] == "density_deviation_percent"]
    drawn, axes = figure(1, 2 + bool(density), 11.0, 3.9)
    plots.scatter_of_students(
        axes[0, 0],
        measured,
        ("force_rmse_meV_A",),
        ("rdf_error_A", "mean"),
        "force RMSE / meV Å$^{-1}$",
        "RDF error, mean of pairs / Å",
    )
    floor = summary["teacher"]["rdf_error_A"]["mean"]
    axes[0, 0].axhspan(0, floor["noise_floor"], color="0.9", label="sampling noise")
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].legend(fontsize=6 if density else 7)
    plots.scatter_of_students(
        axes[0, 1],
        measured,
        ("energy_mean_meV_molecule",),
        ("potential_energy_deviation_meV_molecule",),
        "mean energy error on frames / meV molecule$^{-1}$",
        "⟨U⟩ of the run − teacher / meV molecule$^{-1}$",
    )
    axes[0, 1].axline((0, 0), slope=1, color="0.6", lw=0.8)
    if density:
        of_run = "density of the run − teacher / %"
        error = "energy RMSE on frames / meV atom$^{-1}$"
        plots.scatter_of_students(axes[0, 2], students, ("energy_rmse_meV_atom",), density[0], error, of_run)
        axes[0, 2].axhline(0, color="0.6", lw=0.8)
    return drawn


def _seeds_in_words(config: ClustersToBulk) -> str:
    """How many students there are of each kind, and what the errors hold of that."""
    if config.seeds == 1:
        return "One student was trained of each kind: errors do not hold what chance does in training."
    foundations = "from foundations of their own" if config.own_foundations else "from one foundation"
    return f"Numbers are means over {config.seeds} students {foundations}, and errors have their spread in them."


def _labels_in_words(labels: str) -> str:
    return "lifted with energies and forces" if labels == "energy_forces" else "lifted with energies only"


def dig(numbers: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any] | None:
    """A number by the keys that lead to it, or None."""
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
