"""The answers of clusters to bulk, from summaries that are made up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from jaxmlip.study.clusters_to_bulk.answers import hidden_by_energies, told_by_errors, with_answers
from jaxmlip.study.clusters_to_bulk.comparing import best_with_forces, larger_clusters
from jaxmlip.study.clusters_to_bulk.over_seeds import over_seeds
from jaxmlip.study.clusters_to_bulk.significance import difference, p_above, p_below, times_more
from jaxmlip.study.correlations import students_of

TRUSTED = {"level": "trusted", "reason": "all agrees"}


def number(value: float | None, error: float | None = 0.0, **more: Any) -> dict[str, Any]:
    return {"value": value, "error": error, "dof": 14.0, "common_error": error, "seeds": 3, **more}


def student(forces: float, energy: float = 3.0, rdf: float = 0.3, density: float | None = 0.5) -> dict[str, Any]:
    """Errors in meV/Å, meV per molecule, Å and %, each known to 5 %."""
    energies = {"energy_rmse_meV_molecule": number(energy, 0.05 * energy)}
    energies["energy_rmse_meV_atom"] = number(energy / 3, 0.05 * energy / 3)
    pairs = {pair: number(rdf, 0.05 * rdf, noise_floor=0.1) for pair in ("OO", "OH", "HH", "mean")}
    measured = {"force_rmse_meV_A": number(forces, 0.05 * forces), **energies, "rdf_error_A": pairs, "stable": True}
    measured["potential_energy_deviation_meV_molecule"] = number(energy, 0.05 * energy)
    if density is not None:
        measured["ensembles"] = {
            "NPT": {"stable": True, "density_deviation_percent": number(-density, 0.05 * density), "verdict": TRUSTED}
        }
    return measured | {"verdict": TRUSTED}


def summary(students: dict[str, Any], clusters: int = 100, radius: float = 4.0, **more: Any) -> dict[str, Any]:
    return {
        "name": f"n{clusters}",
        "seed": 0,
        "teachers": {},
        "setting": "ice",
        "clusters": {"number": clusters, "radius_A": radius},
        "seeds": {"students": 3, "own_foundations": False, "without": ["pair_difference"]},
        "tolerances": {"energy_meV_molecule": 10.0, "rdf_A": 0.1, "density": 0.01, "force": 0.1, "level": 0.95},
        "test": {"frames": 15, "force_rms_meV_A": 666.0},
        "students": students,
        **more,
    }


def with_forces(mine: dict[str, Any], **rivals: dict[str, Any]) -> dict[str, Any]:
    return {name: {"energy_forces": one} for name, one in {"multi_fidelity": mine, **rivals}.items()}


def test_tests_are_students() -> None:
    one, other = np.random.default_rng(0).standard_normal((2, 8))
    numbers = [
        {"value": float(each.mean()), "error": float(each.std(ddof=1) / np.sqrt(8)), "dof": 7.0}
        for each in (one, other)
    ]
    expected: Any = stats.ttest_ind(other, one, equal_var=False, alternative="greater")
    assert p_above(difference(*numbers), 0.0) == pytest.approx(expected.pvalue)
    alone: Any = stats.ttest_1samp(one, 0.3, alternative="less")
    assert p_below(numbers[0], 0.3) == pytest.approx(alone.pvalue)
    assert p_below(number(1.0, None), 2.0) is None
    assert difference(number(1.0), number(None)) is None
    gap = {"value": 1.0, "error": 1.0, "dof": None}
    assert times_more(gap, 0.05) == pytest.approx(stats.norm.isf(0.05) ** 2)


def test_errors_over_seeds() -> None:
    """The spread over seeds and what they share, with the degrees of freedom of both."""
    one = over_seeds([{"force": number(value, 0.5), **verdict_of("trusted")} for value in (1.0, 2.0, 3.0)])
    assert one["force"]["value"] == 2.0
    assert one["force"]["error"] == pytest.approx(np.sqrt(1 / 3 + 0.25))
    assert one["force"]["dof"] == pytest.approx((1 / 3 + 0.25) ** 2 / ((1 / 3) ** 2 / 2 + 0.25**2 / 14))
    assert [each["force"]["value"] for each in one["by_seed"]] == [1.0, 2.0, 3.0]
    alone = over_seeds([{"force": number(1.0, 0.5)}])
    assert alone["force"]["error"] == 0.5
    assert "by_seed" not in alone


def test_a_seed_that_failed() -> None:
    sound = {"stable": True, "outcome": "sound", "rdf": {"OO": number(0.2, 0.1)}, **verdict_of("trusted")}
    failed = {"stable": False, "outcome": "exploded", **verdict_of("unstable")}
    one = over_seeds([sound, failed, sound])
    assert not one["stable"]
    assert one["outcome"] == "exploded"
    assert one["rdf"]["OO"]["seeds"] == 2
    assert one["verdict"] == {"level": "unstable", "reason": "because (1 of 3 seeds)"}


def verdict_of(level: str) -> dict[str, Any]:
    return {"verdict": {"level": level, "reason": "because"}}


def test_intervals_over_seeds_hold() -> None:
    """95 of 100 intervals hold the truth: students scatter by 1, frames that they share by 0.7."""
    random = np.random.default_rng(0)
    inside = []
    for _ in range(600):
        shared = 0.7 * random.standard_normal()
        values = shared + random.standard_normal(3)
        one = over_seeds([{"x": number(float(each), 0.7, dof=None)} for each in values])["x"]
        inside.append(abs(one["value"]) < stats.t.ppf(0.975, one["dof"]) * one["error"])
    assert np.mean(inside) == pytest.approx(0.95, abs=0.025)


def test_the_best_with_forces() -> None:
    """Yes needs every quantity, every rival and two numbers of clusters; one rival that is better is enough for no."""
    best = with_forces(student(60), direct=student(200, 30, 0.9, 3.0), differential=student(90, 6, 0.5, 1.0))
    both = [summary(best, 100), summary(best, 200)]
    found = best_with_forces(both, 0.95)
    assert found["answer"] == "yes"
    assert found["needs"] is None
    one = best_with_forces(both[:1], 0.95)
    assert one["answer"] == "cannot tell"
    assert one["needs"] == "another number of clusters, for data efficiency (give several runs to jaxmlip report)"
    beaten = with_forces(student(60), direct=student(200, 30, 0.9, 3.0), pair_difference=student(90, 1, 0.5, 1.0))
    no = best_with_forces([summary(beaten)], 0.95)
    assert no["answer"] == "no"
    assert "beaten in energy" in no["sentence"]


def test_what_chance_does_must_be_known() -> None:
    """With one seed nothing is told, however small the errors over frames; without a density neither."""
    best = with_forces(student(60), direct=student(200, 30, 0.9, 3.0))
    for one in best.values():
        for measured in one["energy_forces"].values():
            if isinstance(measured, dict) and "seeds" in measured:
                measured["seeds"] = 1
    found = best_with_forces([summary(best)], 0.95)
    assert found["answer"] == "cannot tell"
    assert "seeds: 3" in found["needs"]
    fluid = with_forces(student(60, density=None), direct=student(200, 30, 0.9, None))
    assert "an NPT among the ensembles" in best_with_forces([summary(fluid), summary(fluid, 200)], 0.95)["needs"]
    close = with_forces(student(60), direct=student(62, 30, 0.9, 3.0))
    assert "for forces about 14 times as many seeds" in best_with_forces([summary(close)], 0.95)["needs"]
    assert best_with_forces([summary({})], 0.95)["answer"] == "cannot tell"


def test_equal_students_are_not_told_apart() -> None:
    """Of students that are equal in all, neither answer is given in more than 5 of 100 cases."""
    random = np.random.default_rng(1)

    def drawn() -> dict[str, Any]:
        return student(*(size * (1 + 0.05 * random.standard_normal()) for size in (60, 3, 0.3, 0.5)))

    answers = []
    for _ in range(80):
        studies = [summary(with_forces(drawn(), direct=drawn(), differential=drawn()), n) for n in (100, 200)]
        answers.append(best_with_forces(studies, 0.95)["answer"])
    assert answers.count("yes") <= 4
    assert answers.count("no") < 0.05 * 80 + 3 * np.sqrt(80 * 0.05 * 0.95)


def test_energies_that_hide_forces() -> None:
    """Forces of 279 of 666 meV/Å are wrong where 67 are allowed; structure shows it, energy does not."""
    bad = {"multi_fidelity": {"energy": student(279, 3.5, 0.5)}, "direct": {"energy": student(30, 3.5)}}
    found = hidden_by_energies([summary(bad)], 0.95)
    assert found["answer"] == "yes"
    assert "1 of them have good energies and wrong forces (multi-fidelity (E only))" in found["sentence"]
    assert found["evidence"][0]["shown_by"] == ["RDF O–O", "RDF O–H", "RDF H–H"]
    good = {"multi_fidelity": {"energy": student(30, 3.5)}, "direct": {"energy": student(279, 60)}}
    assert hidden_by_energies([summary(good)], 0.95)["answer"] == "no"
    close = {"multi_fidelity": {"energy": student(67, 3.5)}}
    unknown = hidden_by_energies([summary(close)], 0.95)
    assert unknown["answer"] == "cannot tell"
    assert "multi-fidelity (E only) are too close" in unknown["needs"]
    unstable = {"direct": {"energy": student(700, 3.5) | {"stable": False}}}
    assert hidden_by_energies([summary(unstable)], 0.95)["answer"] == "no"
    assert hidden_by_energies([summary({})], 0.95)["needs"] == "labels: energy"


def many(follow: bool, number: int = 12) -> list:
    """Students whose structure and density follow their errors, or nothing."""
    random = np.random.default_rng(2)
    forces, energies = random.uniform(20, 300, number), random.uniform(1, 30, number)
    structure, density = (forces / 300, energies / 10) if follow else (random.uniform(0, 1, (2, number)))
    made = {
        f"s{i}": {"energy": student(*map(float, (forces[i], energies[i], structure[i] + 0.01, density[i] + 0.01)))}
        for i in range(number)
    }
    return students_of(summary(made), None, Path("made"))


def test_what_follows_what() -> None:
    found = told_by_errors(many(follow=True), 0.95)
    assert found["answer"] == "yes"
    assert "Structure follows the force error (r = 1.00 [1.00, 1.00]" in found["sentence"]
    assert [part["observable"] for part in found["evidence"]][-1] == "density_deviation_percent (NPT)"
    unknown = told_by_errors(many(follow=False), 0.95)
    assert unknown["evidence"][0]["answer"] != "yes"
    assert unknown["answer"] != "yes"
    assert told_by_errors(many(follow=False, number=40), 0.95)["answer"] == "no"
    few = told_by_errors(many(follow=True, number=2), 0.95)
    assert few["answer"] == "cannot tell"
    assert few["evidence"][0]["needs"] == "more students whose runs are sound"


def grid(of_radius: dict[float, float]) -> list[dict[str, Any]]:
    """Studies that differ in the radius alone; three students whose force errors scale with a factor."""
    scatter = {"direct": 0.99, "differential": 1.0, "multi_fidelity": 1.02}
    return [
        summary(
            {name: {"energy": student(100 * factor * by ** (radius - 4))} for name, by in scatter.items()}, 100, radius
        )
        for radius, factor in of_radius.items()
    ]


def test_larger_clusters() -> None:
    found = larger_clusters(grid({4.0: 1.0, 5.0: 0.6, 6.0: 0.6}), 0.95)
    assert found["answer"] == "yes"
    assert "Beyond 5 Å, larger clusters lower the force error by less than 10 %" in found["sentence"]
    assert larger_clusters(grid({4.0: 1.0, 5.0: 0.6, 6.0: 0.36}), 0.95)["answer"] == "no"
    assert larger_clusters(grid({4.0: 1.0, 5.0: 0.6, 6.0: 0.54}), 0.95)["answer"] == "cannot tell"
    one = larger_clusters(grid({4.0: 1.0}), 0.95)
    assert one["needs"] == "runs that differ in clusters.radius, given to jaxmlip report together"
    other = grid({4.0: 1.0, 5.0: 0.6})
    other[1]["setting"] = "water"
    assert larger_clusters(other, 0.95)["evidence"][0]["students"] == 0


def test_every_question_is_answered() -> None:
    one = summary(with_forces(student(60), direct=student(200)))
    found = with_answers(one, students_of(one, None, Path("made")))
    assert len(found["answers"]) == 4
    assert all(each["level"] == 0.95 and each["sentence"].endswith(".") for each in found["answers"].values())
    assert found["correlations"] == []
