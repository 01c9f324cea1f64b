"""Students held against each other: which strategy is best with forces, and whether larger clusters still help."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from jaxmlip.study.clusters_to_bulk.significance import Number, difference, p_above, p_below, times_more
from jaxmlip.study.plots import readable

QUANTITIES = ("forces", "structure", "energy", "density")

MARGIN = 0.1
"""Share of the force error by which larger clusters have to lower it to be of help."""

HOPELESS = 100.0
"""Times as many samples: beyond, two students are as good as equal."""


def best_with_forces(summaries: Sequence[dict[str, Any]], level: float) -> dict[str, Any]:
    """Whether multi-fidelity transfer has smaller errors than every other strategy, with forces, in everything.

    Errors of forces and energies are those on the teacher's frames, of structure and density those of simulations.
    Without at least two seeds of a strategy that depends on them, what chance has done is not known, and nothing is
    told. Variants of it, with titles that begin with its name, are no rivals. Data-efficient means better at every
    number of clusters, of which there must be two at least.
    """
    rows = [row for summary in summaries for row in _rivals(summary)]
    if not rows:
        said = "Nothing is there to compare: no study has multi_fidelity and another strategy with forces."
        needs = "strategies: multi_fidelity and others; labels: energy_forces"
        return {"answer": "cannot tell", "sentence": said, "needs": needs, "evidence": []}
    alpha = 1.0 - level
    of_quantity: dict[str, str] = {}
    for quantity in QUANTITIES:
        mine = [row for row in rows if row["quantity"] == quantity]
        better = [row["p_better"] is not None and row["p_better"] <= alpha for row in mine]
        worse = [row["p_worse"] is not None and row["p_worse"] <= alpha / len(rows) for row in mine]
        of_quantity[quantity] = "no" if any(worse) else "yes" if all(better) else "cannot tell"
    numbers = sorted({row["clusters"] for row in rows})
    answers = set(of_quantity.values())
    answer = "no" if "no" in answers else "yes" if answers == {"yes"} and len(numbers) > 1 else "cannot tell"
    words = {"yes": "more accurate than all others in", "no": "beaten in", "cannot tell": "not told apart in"}
    parts = {word: [name for name, each in of_quantity.items() if each == key] for key, word in words.items()}
    said = "; ".join(f"{word} {', '.join(names)}" for word, names in parts.items() if names)
    where = f"{', '.join(map(str, numbers))} clusters"
    return {
        "answer": answer,
        "sentence": f"With forces and {where}, multi-fidelity transfer is {said}.",
        "needs": _needs(rows, numbers, alpha) if answer == "cannot tell" else None,
        "evidence": [{key: value for key, value in row.items() if key != "difference"} for row in rows],
    }


def _rivals(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Multi-fidelity transfer against each other strategy of one study, in every quantity."""
    with_forces = {
        strategy: one["energy_forces"] for strategy, one in summary["students"].items() if "energy_forces" in one
    }
    mine = with_forces.get("multi_fidelity")
    rows = []
    for rival, other in with_forces.items() if mine else ():
        if rival.startswith("multi_fidelity"):
            continue
        assert mine is not None
        for quantity in QUANTITIES:
            numbers = _quantity(mine, quantity), _quantity(other, quantity)
            known = all(
                _has_seeds(summary, name, one) for name, one in zip(("multi_fidelity", rival), numbers, strict=True)
            )
            gap = difference(*numbers) if known else None
            row = {"run": summary["name"], "clusters": summary["clusters"]["number"], "quantity": quantity}
            row |= {"rival": readable(f"{rival}.energy_forces"), "difference": gap}
            row |= {"mine": numbers[0] and numbers[0]["value"], "other": numbers[1] and numbers[1]["value"]}
            row |= {"p_better": p_above(gap, 0.0), "p_worse": p_below(gap, 0.0), "seeds_known": known}
            rows.append(row)
    return rows


def _quantity(measured: dict[str, Any], quantity: str) -> Number | None:
    """The error that stands for a quantity, without its sign."""
    if quantity == "forces":
        return measured["force_rmse_meV_A"]
    if quantity == "energy":
        return measured["energy_rmse_meV_molecule"]
    if quantity == "structure":
        return measured.get("rdf_error_A", {}).get("mean")
    runs = [measured, *measured.get("ensembles", {}).values()]
    density = next((run["density_deviation_percent"] for run in runs if "density_deviation_percent" in run), None)
    return density and density | {"value": None if density["value"] is None else abs(density["value"])}


def _has_seeds(summary: dict[str, Any], strategy: str, number: Number | None) -> bool:
    """Whether a number has the spread over seeds in its error, or does not depend on them."""
    fixed = strategy in summary["seeds"]["without"] and not summary["seeds"]["own_foundations"]
    return number is not None and (fixed or number["seeds"] > 1)


def _needs(rows: Sequence[dict[str, Any]], numbers: Sequence[int], alpha: float) -> str:
    """What it would take to tell."""
    needs = []
    if any(not row["seeds_known"] for row in rows if row["mine"] is not None and row["other"] is not None):
        needs.append("three seeds or more (seeds: 3)")
    missing = {row["quantity"] for row in rows if row["mine"] is None or row["other"] is None}
    if "density" in missing:
        needs.append("an NPT among the ensembles, for the density")
    if missing - {"density"}:
        needs.append(f"sound simulations ({', '.join(sorted(missing - {'density'}))})")
    measured = [row for row in rows if row["mine"] is not None and row["other"] is not None and row["seeds_known"]]
    unknown = sorted({row["quantity"] for row in measured if row["difference"] is None})
    if unknown:
        needs.append(f"longer runs ({', '.join(unknown)}: no error can be given yet)")
    factors = {}
    for row in rows:
        if row["difference"] is not None and min(row["p_better"], row["p_worse"]) > alpha:
            factor = times_more(row["difference"], alpha)
            factors[row["quantity"]] = max(factor, factors.get(row["quantity"], 0.0))
    for quantity, factor in factors.items():
        if factor > HOPELESS:
            needs.append(f"for {quantity} nothing short of {HOPELESS:g} times as many seeds and frames: equals")
        else:
            needs.append(f"for {quantity} about {math.ceil(factor)} times as many seeds and frames")
    if len(numbers) < 2:
        needs.append("another number of clusters, for data efficiency (give several runs to jaxmlip report)")
    return "; ".join(needs)


def larger_clusters(summaries: Sequence[dict[str, Any]], level: float) -> dict[str, Any]:
    """Whether force errors cease to fall with the radius of the clusters, all else being equal.

    For every step from one radius to the next, ln(error ratio) of all students that both have (strategy, labels and
    number of clusters) is held against 0.9, a tenth less, by Student's t over the students. Clusters stop helping from
    the first radius after which every step is shown to lower the error by less than that.
    """
    arms: dict[tuple, dict[float, float]] = defaultdict(dict)
    for summary in summaries:
        for strategy, by_labels in summary["students"].items():
            for labels, one in by_labels.items():
                key = summary["setting"], summary["seed"], summary["clusters"]["number"], strategy, labels
                arms[key][summary["clusters"]["radius_A"]] = one["force_rmse_meV_A"]["value"]
    radii = sorted({radius for arm in arms.values() for radius in arm})
    steps = [_step(arms.values(), radii[i], radii[i + 1]) for i in range(len(radii) - 1)]
    if not steps:
        said = f"All students were lifted with clusters of {radii[0]:g} Å." if radii else "There are no students."
        needs = "runs that differ in clusters.radius, given to jaxmlip report together"
        return {"answer": "cannot tell", "sentence": said, "needs": needs, "evidence": []}
    alpha = 1.0 - level
    stops = [step["p_help_less"] is not None and step["p_help_less"] <= alpha for step in steps]
    last = steps[-1]
    words = "; ".join(
        f"from {step['from_A']:g} to {step['to_A']:g} Å the force error changes by {step['change_percent']:+.0f} %"
        for step in steps
        if step["change_percent"] is not None
    )
    if stops[-1]:
        first = next(i for i in range(len(steps)) if all(stops[i:]))
        said = f"Beyond {steps[first]['from_A']:g} Å, larger clusters lower the force error by less than 10 %: {words}."
        return {"answer": "yes", "sentence": said, "needs": None, "evidence": steps}
    if last["p_help_more"] is not None and last["p_help_more"] <= alpha:
        said = f"Clusters up to {last['to_A']:g} Å, the largest tried, still lower the force error by a tenth: {words}."
        return {"answer": "no", "sentence": said, "needs": None, "evidence": steps}
    few = last["students"] < 3
    needs = "at least three students with both radii" if few else "more strategies, numbers of clusters or seeds"
    said = f"Whether larger clusters still help is not told: {words or 'no student has two radii'}."
    return {"answer": "cannot tell", "sentence": said, "needs": needs, "evidence": steps}


def _step(arms: Any, small: float, large: float) -> dict[str, Any]:
    """What a step in radius does to the force errors of students that have both."""
    ratios = np.array([math.log(arm[large] / arm[small]) for arm in arms if small in arm and large in arm])
    step: dict[str, Any] = {"from_A": small, "to_A": large, "students": len(ratios)}
    step |= dict.fromkeys(("change_percent", "p_help_less", "p_help_more"))
    if len(ratios):
        step["change_percent"] = 100.0 * float(np.expm1(ratios.mean()))
    if len(ratios) > 2:
        error = float(ratios.std(ddof=1)) / math.sqrt(len(ratios))
        t = (ratios.mean() - math.log1p(-MARGIN)) / max(error, 1e-12)
        step["p_help_less"] = float(stats.t.sf(t, len(ratios) - 1))
        step["p_help_more"] = float(stats.t.cdf(t, len(ratios) - 1))
    return step
