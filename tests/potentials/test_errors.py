"""Errors in closed form, and standard errors that match the spread over many synthetic data sets."""

import json
import re

import numpy as np
import pytest
from ase import Atoms

from jaxmlip.potentials.errors import as_table, compare
from jaxmlip.systems.dataset import Frame
from jaxmlip.units import GPA

CELL = np.eye(3) * 5.0


def frame(atoms: int, energy: float = 0.0, forces=None, stress=None) -> Frame:
    structure = Atoms(f"H{atoms}", np.arange(3 * atoms).reshape(atoms, 3), cell=CELL, pbc=True)
    return Frame(
        structure,
        float(energy),
        np.zeros((atoms, 3)) if forces is None else np.array(forces, float),
        np.full((3, 3), np.nan) if stress is None else np.array(stress, float),
    )


def test_closed_form():
    """Energies off by +3, −1 and +1 meV/atom; one force component of 15 off by 6 meV/Å and one by −8."""
    sizes = (1, 2, 2)
    reference = [frame(n, -100.0 * n) for n in sizes]
    shifted = [np.zeros((n, 3)) for n in sizes]
    shifted[1][0, 2], shifted[2][1, 0] = 0.006, -0.008
    predicted = [
        frame(n, -100.0 * n + 1e-3 * n * e, f) for n, e, f in zip(sizes, (3.0, -1.0, 1.0), shifted, strict=True)
    ]
    report = compare(reference, predicted)
    assert (report.frames, report.atoms, report.energy_frames, report.force_components) == (3, 5, 3, 15)
    assert report.energy_rmse_meV_atom == pytest.approx(np.sqrt(11 / 3))
    assert report.energy_max_meV_atom == pytest.approx(3.0)
    assert report.energy_mean_meV_atom == pytest.approx(1.0)
    assert report.energy_std_meV_atom == pytest.approx(np.sqrt(8 / 3))
    assert report.energy_mean_meV_atom_error == pytest.approx(np.sqrt(8 / 2 / 3))
    assert report.force_rmse_meV_A == pytest.approx(np.sqrt((36 + 64) / 15))
    assert report.force_max_meV_A == pytest.approx(8.0)
    assert report.energy_rmse_meV_atom**2 == pytest.approx(
        report.energy_mean_meV_atom**2 + report.energy_std_meV_atom**2
    )
    # Mean squared force 20/3 over all components; by frame 0, 36/6 and 64/6, weighted by 3, 6 and 6 components.
    residuals = np.array([0 - 3 * 20 / 3, 36 - 6 * 20 / 3, 64 - 6 * 20 / 3]) / 5
    error_of_square = np.sqrt((residuals**2).sum() / (3 * 2))
    assert report.force_rmse_meV_A_error == pytest.approx(error_of_square / (2 * np.sqrt(20 / 3)))


def test_stress_in_GPa_over_six_components():
    reference = [frame(1, stress=np.zeros((3, 3))), frame(1, stress=np.zeros((3, 3))), frame(1)]
    shear = np.zeros((3, 3))
    shear[0, 1] = shear[1, 0] = 0.3 * GPA
    tension = np.diag([0.6, 0.0, 0.0]) * GPA
    predicted = [frame(1, stress=shear), frame(1, stress=tension), frame(1, stress=np.ones((3, 3)))]
    report = compare(reference, predicted)
    assert report.stress_frames == 2
    assert report.stress_rmse_GPa == pytest.approx(np.sqrt((0.09 + 0.36) / 12))
    assert report.stress_max_GPa == pytest.approx(0.6)
    assert "stress_rmse_GPa" in report.to_json()


def test_json_holds_the_promised_keys():
    report = compare([frame(2), frame(3)], [frame(2, 0.1), frame(3, 0.1)]).to_json()
    promised = {
        *("frames", "atoms", "energy_rmse_meV_atom", "energy_max_meV_atom", "energy_mean_meV_atom"),
        *("energy_std_meV_atom", "force_rmse_meV_A", "force_max_meV_A"),
    }
    assert promised <= report.keys()
    assert all(type(report[key]) in (int, float) for key in promised)
    assert not any(key.startswith("stress_rmse") or key.startswith("stress_max") for key in report)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_absent_labels_are_left_out():
    gap = np.zeros((2, 3))
    gap[1] = np.nan
    reference = [frame(2, np.nan, gap), frame(2, 1.0), frame(2, 2.0, np.full((2, 3), np.nan))]
    wrong = np.full((2, 3), 0.002)
    predicted = [frame(2, 99.0, wrong), frame(2, 1.0, wrong), frame(2, 2.002, wrong)]
    report = compare(reference, predicted)
    assert (report.frames, report.energy_frames, report.force_components) == (3, 2, 9)
    assert report.energy_rmse_meV_atom == pytest.approx(np.sqrt(1 / 2))
    assert report.force_rmse_meV_A == pytest.approx(2.0)
    without = [frame(2, np.nan), frame(2, np.nan), frame(2, np.nan)]
    nothing = compare(reference, without)
    assert nothing.energy_frames == 0
    assert nothing.to_json()["energy_rmse_meV_atom"] is None
    assert nothing.measured("energy_rmse_meV_atom") == {"value": None, "error": None}


def test_perfect_and_single_frames():
    exact = compare([frame(2, 1.0), frame(2, 2.0)], [frame(2, 1.0), frame(2, 2.0)])
    assert exact.measured("force_rmse_meV_A") == {"value": 0.0, "error": 0.0}
    assert exact.measured("energy_std_meV_atom") == {"value": 0.0, "error": 0.0}
    single = compare([frame(2, 1.0)], [frame(2, 1.5)])
    assert single.measured("energy_rmse_meV_atom") == {"value": 250.0, "error": None}
    assert single.measured("force_max_meV_A") == {"value": 0.0, "error": None}
    with pytest.raises(ValueError, match=r"no 'rmse' in an error report; there are frames, atoms, .*force_rmse_meV_A"):
        single.measured("rmse")


def test_standard_errors_match_the_spread():
    """300 data sets of 60 frames of 2 to 12 atoms; force errors are correlated within a frame, as real ones are."""
    rng = np.random.default_rng(2)
    names = ("energy_rmse_meV_atom", "energy_mean_meV_atom", "energy_std_meV_atom", "force_rmse_meV_A")
    sizes = np.tile([2, 5, 12], 20)
    reference = [frame(int(n)) for n in sizes]
    values, errors = [], []
    for _ in range(300):
        predicted = []
        for one, n in zip(reference, sizes, strict=True):
            level = rng.gamma(4.0, 0.005)
            energy = n * rng.normal(0.004, 0.003)
            predicted.append(Frame(one.atoms, energy, rng.normal(0, level, (int(n), 3))))
        report = compare(reference, predicted)
        values.append([getattr(report, name) for name in names])
        errors.append([getattr(report, f"{name}_error") for name in names])
    spread, stated = np.std(values, axis=0, ddof=1), np.sqrt(np.mean(np.square(errors), axis=0))
    # The spread itself is known to 4 %; a root mean square of a skewed distribution is biased by a few per cent more.
    np.testing.assert_allclose(stated / spread, 1.0, atol=0.12)


def test_frames_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="2 reference frames, but 1 predicted"):
        compare([frame(1), frame(1)], [frame(1)])
    with pytest.raises(ValueError, match="no frames to compare"):
        compare([], [])
    with pytest.raises(ValueError, match="Frame 1 is H2 in the reference, but H3 in the prediction"):
        compare([frame(1), frame(2)], [frame(1), frame(3)])
    moved = frame(2)
    moved.atoms.positions[1] += 0.1
    with pytest.raises(ValueError, match=r"Frame 0 \(H2\): an atom is 0.1 Å elsewhere"):
        compare([frame(2)], [moved])
    with pytest.raises(ValueError, match=r"Frame 0 \(H2\): the energy of the prediction is infinite"):
        compare([frame(2)], [frame(2, np.inf)])


def test_a_dash_stands_for_what_is_undefined():
    """One frame has no standard error, and a frame without forces no force error."""
    absent = np.full((2, 3), np.nan)
    table = as_table(compare([frame(2, -1.0, absent)], [frame(2, -1.004)]))
    lines = dict(line.split() for line in table.splitlines())
    assert float(lines["energy_rmse_meV_atom"]) == pytest.approx(2.0)
    assert [lines[name] for name in ("force_rmse_meV_A", "force_max_meV_A")] == ["–", "–"]
    nothing = as_table(compare([frame(2, np.nan, absent)], [frame(2, np.nan, absent)]))
    assert dict(line.split() for line in nothing.splitlines())["energy_rmse_meV_atom"] == "–"
    two = compare([frame(2, -1.0), frame(2, -1.0)], [frame(2, -1.004), frame(2, -1.006)])
    values = dict(line.split(maxsplit=1) for line in as_table(two).splitlines())
    assert values["energy_mean_meV_atom"] == "-2.50 ± 0.50"
    assert values["frames"] == "2"
    assert not [name for name in values if name.endswith("_error")]


def test_reports_are_read_by_people() -> None:
    """A line for each label that there is, with as many digits as its error allows."""
    numbers = np.array([8, 1, 1])
    atoms = Atoms(numbers, positions=np.diag([0.0, 1.0, 2.0]))
    frames = [Frame(atoms, energy, np.full((3, 3), 0.1 * energy)) for energy in (1.0, 2.0)]
    moved = [Frame(atoms, frame.energy + 0.003 * n, frame.forces + 0.01 * n) for n, frame in enumerate(frames, start=1)]
    lines = str(compare(frames, moved)).splitlines()
    assert lines[0] == "2 frames, 6 atoms"
    assert re.fullmatch(r"energy: RMSE 1\.58 ± 0\.\d\d meV/atom, mean error 1\.50 ± 0\.50 meV/atom", lines[1])
    assert re.fullmatch(r"forces: RMSE 15\.8 ± \d\.\d meV/Å, of forces of 158 meV/Å \(RMS\)", lines[2])
    assert len(lines) == 3
