"""Correlations over the studies in a folder."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from jaxmlip.study.correlations import correlate, draw, read_students

STRATEGIES = ("direct", "differential", "single_fidelity", "multi_fidelity")


def measured(force: float, rdf: float | None) -> dict[str, Any]:
    """What a summary says of a student, as `clusters_to_bulk` writes it."""
    number = {"value": force, "error": 1.0, "frames": 15}
    errors: dict[str, Any] = dict.fromkeys(("force_rmse_meV_A", "energy_rmse_meV_atom"), number)
    errors |= {"energy_std_meV_atom": {"value": 0.1 * force, "error": 0.1, "frames": 15}, "stable": rdf is not None}
    if rdf is not None:
        errors |= {
            "rdf_error_A": {"OO": {"value": rdf, "error": 0.1, "noise_floor": 0.1}},
            "potential_energy_deviation_meV_molecule": {"value": -10.0 * rdf, "error": None, "status": "OK"},
            "temperature_K": {"value": 250.0, "error": 1.0},
        }
    return errors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two studies of two seeds each, of four strategies with one kind of labels; one simulation failed."""
    for number in (100, 200):
        for seed in (0, 1):
            place = tmp_path / f"n{number}" / f"seed{seed}"
            (place / "stages" / "report").mkdir(parents=True)
            forces = [1000.0 * (1 + index) / number + seed for index in range(4)]
            students = {name: {"energy": measured(f, 0.01 * f)} for name, f in zip(STRATEGIES, forces, strict=True)}
            if number == 200 and seed == 1:
                students["direct"]["energy"] = measured(forces[0], None)
            summary = {"study": "clusters_to_bulk", "name": "x", "seed": seed, "teachers": {}, "students": students}
            config = {"config": {"name": "x", "seed": seed, "clusters": {"number": number}, "strategies": []}}
            for file in ("summary.json", "stages/report/summary.json"):
                (place / file).write_text(json.dumps(summary))
            (place / "config.json").write_text(json.dumps(config))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "summary.json").write_text(json.dumps([{"strategy": "direct"}]))
    return tmp_path


def test_students_of_all_studies(folder: Path) -> None:
    """Each once; students that differ in their seed alone share a cluster."""
    students = read_students(folder)
    assert len(students) == 16
    assert len({each.cluster for each in students}) == 8
    assert {each.number for each in students} == {100, 200}
    assert students[0].errors["potential_energy_deviation_meV_molecule"] > 0
    assert "temperature_K" not in students[0].errors

    found = correlate(students)
    assert set(found) == {
        (observable, predictor)
        for observable in ("rdf_error_A OO", "potential_energy_deviation_meV_molecule")
        for predictor in ("force_rmse_meV_A", "energy_rmse_meV_atom", "energy_std_meV_atom")
    }
    one, left_out = found["rdf_error_A OO", "force_rmse_meV_A"]
    assert left_out == 1
    assert one.students == 15
    assert one.clusters == 8
    assert one.pearson == pytest.approx(1.0)


def test_the_figure(folder: Path) -> None:
    """A point for each student that has both errors, and the coefficients with their intervals."""
    figure, ax = plt.subplots()
    try:
        draw(ax, read_students(folder), "rdf_error_A OO", "force_rmse_meV_A")
        assert sum(len(np.asarray(each.get_offsets())) for each in ax.collections) == 15
        assert ax.get_xlabel() == "force RMSE / meV Å$^{-1}$"
        assert ax.get_ylabel() == "RDF error OO / Å"
        assert "r = 1.00 [1.00, 1.00]" in ax.get_title()
    finally:
        plt.close(figure)


def test_what_is_not_there(tmp_path: Path) -> None:
    """Named, with what to do."""
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_students(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no summary\.json"):
        read_students(tmp_path)
    (tmp_path / "summary.json").write_text('{"study": "clusters_to_bulk"}')
    with pytest.raises(ValueError, match=r"summary\.json is damaged"):
        read_students(tmp_path)
