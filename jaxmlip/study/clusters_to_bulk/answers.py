"""The questions of the study (those of arXiv:2509.16601), each with a test, an answer and a sentence.

An answer is "yes" or "no" where a test at the stated level says so, else "cannot tell", with what it would take. A
"yes" to several parts needs each of them at that level (an intersection–union test, whose level is that of its parts:
Berger, Technometrics 24, 295 (1982)); where one part of several suffices, levels are divided by their number
(Bonferroni).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy import stats

from jaxmlip.study.clusters_to_bulk.comparing import best_with_forces, larger_clusters
from jaxmlip.study.clusters_to_bulk.significance import p_above, p_below
from jaxmlip.study.correlations import StudentErrors, correlate
from jaxmlip.study.plots import readable
from jaxmlip.validation.correlation import FEWEST, Correlation, correlation

WEAK = 0.5
"""Correlation below which one error explains less than a quarter of the variance of the other."""

FOLLOWS = (
    ("structure", "rdf_error_A mean", "force_rmse_meV_A", "force error"),
    ("energy", "potential_energy_deviation_meV_molecule", "energy_rmse_meV_atom", "energy error"),
    ("density", "density_deviation_percent", "energy_rmse_meV_atom", "energy error"),
)
"""What is said to follow what: in words, the observable's error, the error on test frames, and that in words."""

QUESTIONS = {
    "multi_fidelity_best": "With forces, is multi-fidelity transfer the most accurate and data-efficient, for forces, "
    "structure, energy and density?",
    "energies_hide_wrong_forces": "Without forces, are runs stable and energies good while forces are wrong?",
    "errors_tell_observables": "Does structure follow force error, and energy and density follow energy error?",
    "larger_clusters_stop_helping": "Does a larger cluster stop helping, and from where?",
}
"""By their keys in `answers` of a summary."""


def with_answers(
    summary: dict[str, Any], students: Sequence[StudentErrors], others: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """A summary with correlations of its students' errors, and with the answers.

    Args:
        summary: of one study.
        students: of it, and of the others.
        others: summaries of further studies that are asked together with it.
    """
    summaries = [summary, *others]
    level = max(each["tolerances"]["level"] for each in summaries)
    found = {
        "multi_fidelity_best": best_with_forces(summaries, level),
        "energies_hide_wrong_forces": hidden_by_energies(summaries, level),
        "errors_tell_observables": told_by_errors(students, level),
        "larger_clusters_stop_helping": larger_clusters(summaries, level),
    }
    answers = {key: {"question": QUESTIONS[key], "level": level, **found[key]} for key in QUESTIONS}
    return summary | {"correlations": correlations(students, level), "answers": answers}


def correlations(students: Sequence[StudentErrors], level: float) -> list[dict[str, Any]]:
    """Correlations of all errors of observables with all errors on test frames, as plain data."""
    try:
        found = correlate(students, level=level)
    except ValueError:  # fewer than three students have an observable
        return []
    return [
        {"observable": observable, "predictor": predictor, **_plain(one), "left_out": left_out}
        for (observable, predictor), (one, left_out) in found.items()
    ]


def told_by_errors(students: Sequence[StudentErrors], level: float) -> dict[str, Any]:
    """Whether structure follows force error, and energy and density follow energy error.

    A part follows if the intervals of both coefficients (Pearson's and Spearman's) are above 0; it does not if both
    are below `WEAK`, at the level that is left for each part.
    """
    parts = []
    for what, name, predictor, words in FOLLOWS:
        # A density is that of one ensemble, the first by name that has one.
        names = {each for one in students for each in one.errors if each == name or each.startswith(f"{name} (")}
        parts.append(_follows(students, (what, min(names, default=name), predictor, words), level))
    answers = [part["answer"] for part in parts]
    answer = "no" if "no" in answers else "yes" if set(answers) == {"yes"} else "cannot tell"
    needs = [f"{part['what']}: {part['needs']}" for part in parts if part["needs"]]
    return {
        "answer": answer,
        "sentence": " ".join(part.pop("sentence") for part in parts),
        "needs": "; ".join(needs) or None,
        "evidence": parts,
    }


def _follows(students: Sequence[StudentErrors], part: tuple[str, str, str, str], level: float) -> dict[str, Any]:
    """One part of it."""
    what, name, predictor, words = part
    kept = [each for each in students if name in each.errors and predictor in each.errors]
    row: dict[str, Any] = {"what": what, "observable": name, "predictor": predictor, "needs": None}
    if len(kept) < 3:
        where = "an NPT among the ensembles" if what == "density" and not kept else "more students whose runs are sound"
        said = f"{what.capitalize()} and {words} are known of {len(kept)} students: it cannot be told."
        return row | {"answer": "cannot tell", "needs": where, "sentence": said}
    x, y = (np.array([each.errors[key] for each in kept]) for key in (predictor, name))
    clusters = [each.cluster for each in kept]
    one = correlation(x, y, clusters=clusters, level=level)
    strict = correlation(x, y, clusters=clusters, level=1.0 - (1.0 - level) / len(FOLLOWS))
    answer, needs = "cannot tell", None
    if one.pearson_interval[0] > 0 and one.spearman_interval[0] > 0:
        answer = "yes"
    elif strict.pearson_interval[1] < WEAK and strict.spearman_interval[1] < WEAK:
        answer = "no"
    else:
        needs = _enough(one, level)
    told = {"yes": "follows", "no": "does not follow", "cannot tell": "may or may not follow"}[answer]
    sentence = f"{what.capitalize()} {told} the {words} ({one})."
    return row | {"answer": answer, "needs": needs, "sentence": sentence, **_plain(one)}


def _enough(one: Correlation, level: float) -> str:
    """How many students would show a correlation that is what it seems (Fisher's transformation)."""
    weaker = min(one.pearson, one.spearman)
    if not weaker > 0.05:
        return "its coefficients are not both above 0, and nothing says that more students would make them so"
    z = float(stats.norm.isf(0.5 * (1.0 - level)))
    number = max(FEWEST, one.clusters + 1, int(np.ceil(3 + 1.06 * (z / np.arctanh(min(weaker, 0.99))) ** 2)))
    return f"about {number} students that differ in more than their seed, where there are {one.clusters}"


def hidden_by_energies(summaries: Sequence[dict[str, Any]], level: float) -> dict[str, Any]:
    """Whether there are students of energies alone whose runs are stable and energies good, but whose forces are wrong.

    Good: the RMSE of energies on the teacher's bulk frames is below the tolerance of the verdict. Wrong: the RMSE of
    forces is above the tolerance's share of their RMS.
    """
    rows = [_hidden(summary, name, one) for summary in summaries for name, one in _of_energies(summary)]
    if not rows:
        needs = "labels: energy"
        return _cannot("No student was lifted with energies alone.", needs) | {"evidence": []}
    alpha = 1.0 - level
    for row in rows:
        each = row["p_good_energy"], row["p_wrong_forces"]
        row["hidden"] = row["stable"] and all(p is not None and p <= alpha / len(rows) for p in each)
        against = row["p_bad_energy"], row["p_right_forces"]
        row["refuted"] = not row["stable"] or any(p is not None and p <= alpha for p in against)
    hidden = [row for row in rows if row["hidden"]]
    answer: Literal["yes", "no", "cannot tell"] = "cannot tell"
    if hidden:
        answer = "yes"
    elif all(row["refuted"] for row in rows):
        answer = "no"
    stable = sum(row["stable"] for row in rows)
    said = f"Of {len(rows)} students lifted with energies alone {stable} have stable runs, and {len(hidden)} of them "
    said += "have good energies and wrong forces"
    if hidden:
        said += f" ({', '.join(row['student'] for row in hidden)})"
        counts = {what: sum(what in row["shown_by"] for row in hidden) for row in hidden for what in row["shown_by"]}
        shown = ", ".join(f"{what} of {count}" for what, count in counts.items())
        said += f"; their runs show it by: {shown}" if shown else "; no observable of their runs shows it"
    needs = None
    if answer == "cannot tell":
        unknown = [row["student"] for row in rows if not row["refuted"]]
        needs = f"more test frames: energies or forces of {', '.join(unknown)} are too close to the tolerances"
    return {"answer": answer, "sentence": said + ".", "needs": needs, "evidence": rows}


def _of_energies(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Students of energies alone, by name."""
    students = summary["students"].items()
    return [(f"{strategy}.energy", one["energy"]) for strategy, one in students if "energy" in one]


def _hidden(summary: dict[str, Any], name: str, one: dict[str, Any]) -> dict[str, Any]:
    """What there is to say of one student of energies alone."""
    limits, energy, forces = summary["tolerances"], one["energy_rmse_meV_molecule"], one["force_rmse_meV_A"]
    most = limits["force"] * summary["test"]["force_rms_meV_A"]
    return {
        "run": summary["name"],
        "student": readable(name),
        "stable": one["stable"] and all(each["stable"] for each in one.get("ensembles", {}).values()),
        "p_good_energy": p_below(energy, limits["energy_meV_molecule"]),
        "p_bad_energy": p_above(energy, limits["energy_meV_molecule"]),
        "p_wrong_forces": p_above(forces, most),
        "p_right_forces": p_below(forces, most),
        "shown_by": _shown_by(one, limits),
    }


def _shown_by(one: dict[str, Any], limits: dict[str, float]) -> list[str]:
    """Observables of its runs that are off by more than the tolerances, each at the level."""
    found, alpha = [], 1.0 - limits["level"]
    for ensemble, run in {"": one, **one.get("ensembles", {})}.items():
        where = f" ({ensemble})" if ensemble else ""
        for pair, number in run.get("rdf_error_A", {}).items():
            p = p_above(number, number["noise_floor"] + limits["rdf_A"])
            if pair != "mean" and p is not None and p <= alpha:
                found.append(f"RDF {pair[0]}–{pair[1]}{where}")
        signed = {"energy": ("potential_energy_deviation_meV_molecule", limits["energy_meV_molecule"])}
        signed["density"] = "density_deviation_percent", 100.0 * limits["density"]
        for what, (key, limit) in signed.items():
            ends = p_above(run.get(key), limit), p_below(run.get(key), -limit)
            if any(p is not None and p <= 0.5 * alpha for p in ends):
                found.append(f"mean {what}{where}")
    return found


def _cannot(sentence: str, needs: str) -> dict[str, Any]:
    return {"answer": "cannot tell", "sentence": sentence, "needs": needs}


def _plain(one: Correlation) -> dict[str, Any]:
    """A correlation as plain data."""
    return dataclasses.asdict(one)
