"""Verdicts on runs whose differences are known."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from ase.data import atomic_masses

from jaxmlip.observables.structure import RDF
from jaxmlip.potentials.errors import ErrorReport, compare
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.systems.dataset import Frame
from jaxmlip.validation.verdict import Tolerances, comparable, verdict

ATOMS, FRAMES, REPLICAS = 16, 400, 8
NUMBERS = np.array([11] * 8 + [17] * 8)
LATTICE = 5.6


def crystal(seed: int, *, width: float = 0.15, energy: float = 0.0, size: float = LATTICE, **changes) -> Run:
    """Einstein crystal of NaCl, whose frames are independent, in a cell whose size fluctuates."""
    rng = np.random.default_rng(seed)
    sites = np.array([[x, y, z] for x in range(4) for y in range(2) for z in range(2)]) / [4, 2, 2]
    order = np.argsort((np.array([[x, y, z] for x in range(4) for y in range(2) for z in range(2)]).sum(1)) % 2)
    sizes = size + 0.02 * rng.normal(size=(REPLICAS, FRAMES, 1, 1))
    cells = sizes * np.diag([2.0, 1.0, 1.0])
    positions = sites[order] @ cells + width * rng.normal(size=(REPLICAS, FRAMES, ATOMS, 3))
    run = Run(
        numbers=NUMBERS,
        positions=positions.astype(np.float32),
        cells=cells,
        pbc=np.ones(3, bool),
        masses=np.repeat(atomic_masses[NUMBERS][None], REPLICAS, axis=0),
        potential_energy=ATOMS * (energy - 3.0) + 0.05 * rng.normal(size=(REPLICAS, FRAMES)),
        temperature=rng.normal(300.0, 20.0, size=(REPLICAS, FRAMES)),
        time_fs=10.0 * np.arange(1, FRAMES + 1),
        timestep_fs=1.0,
        outcomes=(Outcome.COMPLETED,) * REPLICAS,
        lengths=np.full(REPLICAS, FRAMES),
        wall_s=1.0,
        ns_per_day=1.0,
        time_constants_ps={"thermostat": 0.02},
    )
    return dataclasses.replace(run, **changes)


def force_errors(share: float) -> ErrorReport:
    """Forces that are off by a share of their RMS."""
    frame = Frame(crystal(0)[0], 0.0, np.random.default_rng(0).normal(size=(ATOMS, 3)))
    return compare([frame], [dataclasses.replace(frame, forces=(1.0 + share) * frame.forces)])


@pytest.fixture(scope="module")
def teacher() -> Run:
    return crystal(1)


WIDE = Tolerances(rdf_A=0.3)
NaCl = RDF("Na", "Cl")


def test_equals_are_trusted(teacher: Run) -> None:
    judged = verdict(crystal(2), teacher, force_errors(0.05), tolerances=WIDE)
    assert judged.level == "trusted", judged
    assert judged.reason == "structure, density and energy agree within 2 σ or the tolerances, and so do forces"
    names = [check.name for check in judged.checks]
    assert names == ["g_NaNa", "g_NaCl", "g_ClCl", "density", "potential energy", "temperature"]
    assert all(check.answer == "pass" and abs(check.sigma) < 3 for check in judged.checks)
    table = str(judged).splitlines()
    assert len(table) == 8
    assert "g/cm³" in table[5]
    assert "meV/atom" in table[6]


@pytest.mark.parametrize(
    ("changes", "level", "name", "sentence"),
    [
        ({"width": 0.3}, "wrong structure", None, "RDF error of g_"),
        ({"energy": 0.01}, "wrong energy", "potential energy", "potential energy is off by +"),
        ({"size": LATTICE * 1.005}, "wrong density", "density", "mean density is off by -0.0"),
    ],
)
def test_what_is_wrong_is_named(teacher: Run, changes: dict, level: str, name: str | None, sentence: str) -> None:
    judged = verdict(crystal(3, **changes), teacher, force_errors(0.05), pairs=[("Na", "Cl")], tolerances=WIDE)
    assert judged.level == level, judged
    assert sentence in judged.reason
    failed = [check for check in judged.checks if check.answer == "fail"]
    assert all(abs(check.sigma) > 2 and check.excess > check.tolerance for check in failed)
    if name:
        assert [check.name for check in failed] == [name]


def test_energies_are_per_what_is_asked_for(teacher: Run) -> None:
    judged = verdict(crystal(3, energy=0.01), teacher, None, pairs=[("Na", "Cl")], per=("ion pair", 8), tolerances=WIDE)
    difference = judged.checks[-2].difference
    assert difference.unit == "meV/ion pair"
    assert float(difference) == pytest.approx(20.0, abs=1.0)


def test_forces_decide_at_last(teacher: Run) -> None:
    student, options = crystal(2), {"pairs": [("Na", "Cl")], "tolerances": WIDE}
    wrong = verdict(student, teacher, force_errors(0.3), **options)
    assert wrong.level == "right for the wrong reasons"
    assert "off by 30 % of their RMS" in wrong.reason
    assert verdict(student, teacher, None, **options).level == "undecided"


def test_unstable_students(teacher: Run) -> None:
    outcomes = (Outcome.EXPLODED,) + (Outcome.COMPLETED,) * (REPLICAS - 1)
    lengths = np.array([7] + [FRAMES] * (REPLICAS - 1))
    judged = verdict(crystal(2, outcomes=outcomes, lengths=lengths), teacher, None)
    assert (judged.level, judged.checks) == ("unstable", ())
    assert "replica 0 failed after 7 frames: an atom or the cell" in judged.reason
    hot = crystal(2)
    hot.temperature[3, 50] = 1000.0
    judged = verdict(hot, teacher, None, pairs=[("Na", "Cl")])
    assert judged.level == "unstable"
    assert "replica 3 is hotter than" in judged.reason
    with pytest.raises(ValueError, match="Replica 0 of the teacher's run failed"):
        verdict(teacher, crystal(2, outcomes=outcomes, lengths=lengths), None)
    with pytest.raises(ValueError, match="of different atoms"):
        verdict(teacher, dataclasses.replace(teacher, numbers=NUMBERS[::-1]), None)


def test_runs_too_short_for_equilibrium(teacher: Run) -> None:
    """They show differences, by the spread of the replicas, but never that there are none."""
    slow: dict[str, Any] = {"time_constants_ps": {"thermostat": 10.0}}
    short = dataclasses.replace(teacher, **slow)
    same = verdict(crystal(2, **slow), short, force_errors(0.05), pairs=[("Na", "Cl")], tolerances=WIDE)
    assert same.level == "undecided"
    assert "shorter than its thermostat" in same.reason
    off = verdict(crystal(2, energy=0.02, **slow), short, None, pairs=[("Na", "Cl")], tolerances=WIDE)
    assert off.level == "wrong energy"
    one, _ = comparable(crystal(2, **slow), short, NaCl)
    assert one.dof == REPLICAS - 1
    assert not one.status.has_error


def test_too_little_is_known() -> None:
    judged = verdict(
        crystal(2), crystal(1), force_errors(0.05), pairs=[("Na", "Cl")], tolerances=Tolerances(rdf_A=1e-3)
    )
    assert judged.level == "undecided"
    assert "RDF error of g_NaCl is known to ±" in judged.reason
