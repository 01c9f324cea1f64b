"""The report of a study: one HTML file that explains itself."""

import base64
import html
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from jaxmlip.study import plots
from jaxmlip.study.clusters_to_bulk import FOUNDATION, Results
from jaxmlip.study.config import ClustersToBulk
from jaxmlip.study.summary import PAIRS, RDF_RANGE, Analysis
from jaxmlip.study.workspace import write_text
from jaxmlip.versions import versions

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1160px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; font-size: 0.85em; white-space: nowrap; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3em 0.5em; text-align: right; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; } th:first-child, td:first-child, td:last-child, th:last-child { text-align: left; }
td:last-child { white-space: normal; } tr.reference { color: #666; } img { max-width: 100%; }
.trusted { color: #00734f; font-weight: 600; } .doubt { color: #a05000; font-weight: 600; }
.wrong { color: #b00020; font-weight: 600; } p.caption { color: #555; margin-top: 0.2em; }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto; font-size: 0.85em; }
"""

PIXELS_PER_INCH = 105
"""Of figures as the page shows them; they are drawn finer."""

VERDICT_CLASS = {"trusted": "trusted"} | dict.fromkeys(
    ("right for the wrong reasons", "wrong energy", "undecided"), "doubt"
)

COLUMNS = [
    ("force RMSE<br>meV/Å", ("force_rmse_meV_A",), 0),
    ("energy RMSE<br>meV/atom", ("energy_rmse_meV_atom",), 2),
    ("RDF error<br>OO / Å", ("rdf_error_A", "OO"), 3),
    ("RDF error<br>OH / Å", ("rdf_error_A", "OH"), 3),
    ("RDF error<br>HH / Å", ("rdf_error_A", "HH"), 3),
    ("⟨U⟩ − teacher<br>meV/molecule", ("potential_energy_deviation_meV_molecule",), 1),
    ("T<br>K", ("temperature_K",), 0),
]


def write_report(path: Path, config: ClustersToBulk, analysis: Analysis, results: Results) -> None:
    """Write `report.html`; it needs no other file."""
    history = json.loads((results.students[FOUNDATION].folder / "history.json").read_text())
    summary = analysis.summary
    body = "\n".join(
        [
            f"<h1>Clusters to bulk: {html.escape(config.name)}</h1>",
            f"<p>{_introduction(config, summary)}</p>",
            f"<h2>Which student can be trusted?</h2><p>{_answer(summary)}</p>",
            _table(summary),
            f"<p class=caption>{_table_caption(config, summary)}</p>",
            *_figures(config, analysis, history),
            "<h2>How this was made</h2>",
            f"<p>Seed {config.seed}; {summary['wall_s']:.0f} s of computing in all stages; "
            + ", ".join(f"{package} {number}" for package, number in versions().items())
            + ".</p>",
            f"<pre>{html.escape(json.dumps(config.model_dump(mode='json'), indent=1))}</pre>",
        ]
    )
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(config.name)}</title>'
    write_text(path, f"{page}<style>{STYLE}</style><body>{body}</body></html>\n")


def summary_table(summary: dict[str, Any]) -> str:
    """The main numbers as text for a terminal."""
    rows = [["student", "force RMSE meV/Å", "energy RMSE meV/atom", "RDF error OO Å", "verdict"]]
    for name, measured in named_students(summary).items():
        numbers = [_plain(_dig(measured, keys), digits) for _, keys, digits in COLUMNS[:3]]
        rows.append([plots.readable(name), *numbers, measured["verdict"]["level"]])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def named_students(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Lifted students of a summary by `<strategy>.<labels>`."""
    students = summary["students"].items()
    return {f"{strategy}.{labels}": one for strategy, by_labels in students for labels, one in by_labels.items()}


def _introduction(config: ClustersToBulk, summary: dict[str, Any]) -> str:
    teachers, system = config.teachers, config.system
    return (
        f"A student potential was distilled from <b>{html.escape(teachers.low)}</b> and lifted to "
        f"<b>{html.escape(teachers.high)}</b> with labels of {config.clusters.number} clusters only (all molecules "
        f"within {config.clusters.radius:g} Å of a central one). Each way of lifting is then judged in the bulk: ice "
        f"Ih of {system.molecules} molecules at {system.temperature_K:g} K, where the teacher can be simulated "
        "too. "
        f"Errors are measured on {summary['test']['frames']} frames of the teacher's own simulation, observables in "
        f"{config.dynamics.replicas} replicas of {config.dynamics.time_ps:g} ps for every potential."
    )


def _answer(summary: dict[str, Any]) -> str:
    by_level: dict[str, list[str]] = {}
    for name, measured in named_students(summary).items():
        by_level.setdefault(measured["verdict"]["level"], []).append(plots.readable(name))
    trusted = by_level.pop("trusted", [])
    sentences = [f"Trusted: <b>{', '.join(trusted)}</b>." if trusted else "<b>None</b> passes every test."]
    sentences += [f"{level.capitalize()}: {', '.join(names)}." for level, names in by_level.items()]
    return " ".join(sentences)


def _table(summary: dict[str, Any]) -> str:
    head = "".join(f"<th>{title}</th>" for title in ["potential", *(title for title, _, _ in COLUMNS), "verdict"])
    rows = [("low teacher", summary["low_teacher"], True), ("teacher (sampling noise)", summary["teacher"], True)]
    rows += [("foundation, not lifted", summary[FOUNDATION], True)]
    rows += [(plots.readable(name), measured, False) for name, measured in named_students(summary).items()]
    lines = []
    for name, measured, reference in rows:
        is_teacher = measured is summary["teacher"]
        numbers = [_dig(measured, keys) for _, keys, _ in COLUMNS]
        if is_teacher:  # its errors are zero by definition; what matters is how well its own run is known
            numbers = [_noise(number) for number in numbers]
        cells = "".join(f"<td>{_plain(number, c[2])}</td>" for number, c in zip(numbers, COLUMNS, strict=True))
        judged = "" if is_teacher else _verdict_cell(measured)
        lines.append(f"<tr{' class=reference' if reference else ''}><td>{name}</td>{cells}<td>{judged}</td></tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _verdict_cell(measured: dict[str, Any]) -> str:
    if "verdict" not in measured:
        return ""
    level, reason = measured["verdict"]["level"], measured["verdict"]["reason"]
    return f"<span class={VERDICT_CLASS.get(level, 'wrong')}>{level}</span>: {html.escape(reason)}"


def _table_caption(config: ClustersToBulk, summary: dict[str, Any]) -> str:
    return (
        f"Value ± one standard error. Errors of energy and forces: over {summary['test']['frames']} frames of the "
        f"teacher's simulation (RMS force {summary['test']['force_rms_meV_A']:.0f} meV/Å). RDF error: "
        f"∫|g − g<sub>teacher</sub>| dr up to {RDF_RANGE:g} Å; the teacher's row shows what sampling noise alone "
        "gives. ⟨U⟩: mean potential energy of the simulation. A student is trusted if structure and energy deviate by "
        f"less than {config.verdict.sigma:g} σ or by less than the tolerances ({config.verdict.rdf_tolerance_A:g} Å, "
        f"{config.verdict.energy_tolerance_meV_molecule:g} meV per molecule), and the force RMSE is below "
        f"{100 * config.verdict.force_tolerance:g} % of the RMS force."
    )


def _figures(config: ClustersToBulk, analysis: Analysis, history: list[dict]) -> Iterator[str]:
    """Sections with a figure and a caption each."""
    students = named_students(analysis.summary)
    shown = {labels: [name for name in students if name.endswith(f".{labels}")] for labels in config.labels}

    yield "<h2>Forces follow which student?</h2>"
    figure, axes = plots.figure(len(shown), max(map(len, shown.values())), 10.5, 2.9 * len(shown))
    for row, names in zip(axes, shown.values(), strict=True):
        for ax, name in zip(row, names, strict=True):
            plots.force_parity(ax, analysis.test, analysis.potentials[name].predicted, plots.readable(name))
    figure.supxlabel("force component of the teacher / eV Å$^{-1}$")
    figure.supylabel("of the student / eV Å$^{-1}$")
    yield _picture(
        figure, "Force components on the teacher's bulk frames; the colour counts points on a logarithmic scale."
    )

    yield "<h2>Structure</h2>"
    figure, axes = plots.figure(len(shown), len(PAIRS), 10.5, 2.9 * len(shown))
    teacher = analysis.potentials["teacher"].rdf
    for row, names in zip(axes, shown.values(), strict=True):
        for ax, pair in zip(row, PAIRS, strict=True):
            runs = {name: analysis.potentials[name].rdf[pair] for name in names if analysis.potentials[name].rdf}
            plots.rdf(ax, teacher[pair], runs, pair)
        row[0].legend(fontsize=6.5)
    yield _picture(
        figure,
        "Radial distribution functions in the students' own simulations against the teacher's (black), bands of ± 2 "
        "standard errors. Top to bottom: " + "; ".join(_labels_in_words(labels) for labels in shown) + ". "
        "The tall intramolecular O–H peak near 1 Å is cut off.",
    )

    yield "<h2>What predicts what</h2>"
    measured = {FOUNDATION: analysis.summary[FOUNDATION], **students}
    figure, axes = plots.figure(1, 2, 10.5, 3.9)
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
    yield _picture(
        figure,
        "Left: microscopic structure against force error; the grey band is what sampling noise alone gives. Right: "
        "mean potential energy of the simulations against the energy error at fixed structures; on the line, energy "
        "errors at the teacher's structures explain everything, and distance from it is the student's own choice of "
        "structures. Bars: one standard error.",
    )

    yield "<h2>Distillation</h2>"
    figure, axes = plots.figure(1, 1, 6.5, 3.2)
    plots.learning_curve(axes[0, 0], history)
    yield _picture(figure, "Errors of the foundation on held-out bulk frames and clusters labelled by the low teacher.")


def _labels_in_words(labels: str) -> str:
    return "lifted with energies and forces" if labels == "energy_forces" else "lifted with energies only"


def _picture(figure: Figure, caption: str) -> str:
    """A figure as an image inside the page, closed."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    plt.close(figure)
    encoded = base64.b64encode(png.getvalue()).decode()
    width = round(PIXELS_PER_INCH * figure.get_figwidth())  # so that letters are as large in every figure
    image = f'<img alt="{html.escape(caption)}" width={width} src="data:image/png;base64,{encoded}">'
    return f"{image}<p class=caption>{caption}</p>"


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


def _plain(number: dict[str, Any] | None, digits: int) -> str:
    """Value ± standard error, with so many digits or as many as show the error; or a dash."""
    if number is None or number["value"] is None:
        return "–"
    error = number.get("error")
    if error is None:
        return f"{number['value']:.{digits}f}"
    if 0 < error < math.inf:
        digits = max(digits, -math.floor(math.log10(error)))
    return f"{number['value']:.{digits}f} ± {error:.{digits}f}"
