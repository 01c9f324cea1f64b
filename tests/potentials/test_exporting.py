"""An exported potential, run by a process that cannot import this package, says what the potential says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from lowering import accelerators_student
from typer.testing import CliRunner

from jaxmlip.cli import app
from jaxmlip.potentials.ase import Calculator
from jaxmlip.potentials.ase_potential import from_ase
from jaxmlip.potentials.exporting import export_potential, with_form
from jaxmlip.potentials.files import load, save
from jaxmlip.potentials.potential import Potential
from jaxmlip.systems.ice import ice_ih

ELSEWHERE = """
import json, sys
import numpy as np
sys.modules["jaxmlip"] = None  # importing it would fail
sys.path.insert(0, sys.argv[1])
from load import load
potential, results = load(sys.argv[1]), []
for one in json.load(open(sys.argv[2])):
    energy, forces, stress = potential(one["numbers"], one["positions"], one["cell"], one["pbc"])
    results.append([energy, forces.tolist(), None if stress is None else stress.tolist()])
print(json.dumps(results))
"""


def structures(numbers: tuple[int, int]) -> list[Atoms]:
    """A molecule, a crystal far from the origin in a skewed cell, one narrower than the cutoff, and a slab."""
    water = molecule("H2O")
    ice = ice_ih(molecules=16, seed=0)
    ice.positions += ice.cell.array[0] * 7 - ice.cell.array[2] * 3 + 0.3
    narrow = bulk("Cu", a=3.6)
    slab = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    for atoms, seed in ((water, 0), (ice, 1), (narrow, 2), (slab, 3)):
        atoms.rattle(0.05, seed=seed)
        if 29 in atoms.numbers:
            atoms.numbers[:] = numbers[1]
    return [water, ice, narrow, slab]


def run_elsewhere(folder: Path, cases: list[Atoms], tmp_path: Path) -> list[Any]:
    given = [
        {
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.array.tolist(),
            "pbc": atoms.pbc.tolist(),
        }
        for atoms in cases
    ]
    (tmp_path / "cases.json").write_text(json.dumps(given))
    command = [sys.executable, "-c", ELSEWHERE, str(folder), str(tmp_path / "cases.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(potential: Potential, folder: Path, tmp_path: Path) -> None:
    cases = structures((1, 8))
    for atoms, (energy, forces, stress) in zip(cases, run_elsewhere(folder, cases, tmp_path), strict=True):
        atoms.calc = Calculator(potential)
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=2e-6 * len(atoms) + 1e-7 * abs(energy))
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=3e-5)
        if atoms.pbc.all():
            np.testing.assert_allclose(stress, atoms.get_stress(voigt=False), atol=1e-6)
        else:
            assert stress is None


def test_says_the_same_elsewhere(tmp_path: Path) -> None:
    """A sum of two networks, with references of its own, by the command line."""
    one, other = (accelerators_student(seed).replace(form="cpu") for seed in (0, 1))
    references = np.zeros(119)
    references[[1, 8]] = -13.6, -2044.0
    total = one.with_references(references) + other
    save(total, tmp_path / "sum.jaxmlip")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "sum.jaxmlip"), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    check(total, tmp_path / "out", tmp_path)
    again = CliRunner().invoke(app, ["export", str(tmp_path / "sum.jaxmlip"), str(tmp_path / "out")])
    assert again.exit_code == 1
    assert "is there already" in again.output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chgnet:gga", "student"])
def test_large_networks(name: str, tmp_path: Path) -> None:
    """CHGNet, whose inner lists have a size of their own, and a student as simulations use it."""
    file = Path(__file__).parents[1] / "simulation" / "data" / "ice_student.jaxmlip"
    potential = load(name if ":" in name else str(file))
    export_potential(potential, tmp_path / "out")
    check(potential, tmp_path / "out", tmp_path)


def test_form_of_all_terms() -> None:
    one, other = accelerators_student(0), accelerators_student(1).replace(form="cpu")
    total: Any = with_form(one + other, "whole")
    assert [term.form for term in total.terms] == ["whole", "whole"]


def test_refuses_what_is_no_program(tmp_path: Path) -> None:
    from ase.calculators.emt import EMT

    with pytest.raises(ValueError, match="An ASE calculator is no program of jax"):
        export_potential(from_ase(EMT()), tmp_path / "out")
    assert not (tmp_path / "out").exists()
