"""Structures that come in: what no crystal and no molecule is, is refused by name."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii

from jaxmlip.systems.checks import check_input, close_contact
from jaxmlip.systems.dataset import read_frames, write_frames
from jaxmlip.systems.ice import ice_ih

CIF = """data_x
_cell_length_a {a}
_cell_length_b {a}
_cell_length_c {a}
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F m -3 m'
_symmetry_Int_Tables_number 225
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
"""


def test_bonds_of_all_sorts_pass() -> None:
    shortest = [molecule(name) for name in ("H2", "N2", "CO", "OH", "HF", "F2", "LiH", "C2H2", "NaCl")]
    crystals = [bulk("Cu"), bulk("C"), bulk("Cs", "bcc", a=4.5), bulk("Na", "bcc", a=2.6), ice_ih(16, seed=0)]
    for atoms in (*shortest, *crystals, Atoms("Xe")):
        check_input(atoms)


@pytest.mark.parametrize("distance", [0.005, 0.02, 0.3])
def test_doubled_sites(distance: float) -> None:
    crystal = bulk("NaCl", "rocksalt", a=5.65, cubic=True)
    doubled = crystal + Atoms("Na", [crystal.positions[0] - [distance, 0, 0]])
    doubled.wrap()  # the copy is on the other side of the cell
    with pytest.raises(ValueError, match=rf"Atoms 0 \(Na\) and 8 \(Na\) .* are {distance:g} Å apart, closer than any"):
        check_input(doubled)
    check_input(doubled, allow_close=True)
    doubled.info["allow_close"] = True
    check_input(doubled)


def test_the_floor_is_half_of_the_covalent_radii() -> None:
    floor = 0.5 * (covalent_radii[8] + covalent_radii[1])
    assert close_contact(Atoms("OH", [[0, 0, 0], [0, 0, floor + 1e-3]])) is None
    said = close_contact(Atoms("OH", [[0, 0, 0], [0, 0, floor - 1e-3]]))
    assert said is not None
    assert "Atoms 0 (O) and 1 (H) are 0.484 Å apart" in said


def test_an_image_is_an_atom_too() -> None:
    thin = Atoms("Ar", cell=[0.8, 5, 5], pbc=True)
    with pytest.raises(ValueError, match=r"Atoms 0 \(Ar\) and 0 \(Ar\) \(a periodic image\) are 0\.8 Å apart"):
        check_input(thin)
    thin.pbc = False
    check_input(thin)


def test_a_virtual_site_is_no_tungsten(tmp_path: Path) -> None:
    """TIP4P water as GROMACS writes it: ASE reads MW as tungsten."""
    (tmp_path / "water.gro").write_text(
        "TIP4P\n    4\n    1SOL     OW    1   0.100   0.100   0.100\n    1SOL    HW1    2   0.176   0.159   0.100\n"
        "    1SOL    HW2    3   0.024   0.159   0.100\n    1SOL     MW    4   0.100   0.115   0.100\n   2.0 2.0 2.0\n"
    )
    with pytest.raises(ValueError, match=r"water\.gro, frame 0: Atoms 0 \(O\) and 3 \(W\) are 0\.15 Å apart"):
        read_frames(tmp_path / "water.gro", energy_key=None, forces_key=None)
    (frame,) = read_frames(tmp_path / "water.gro", energy_key=None, forces_key=None, allow_close=True)
    assert frame.atoms.info["allow_close"] is True
    write_frames(tmp_path / "a.xyz", [frame])
    (back,) = read_frames(tmp_path / "a.xyz", energy_key=None, forces_key=None)
    assert back.info["allow_close"], "who has allowed it once has said so in the file"


def test_partial_occupancy(tmp_path: Path) -> None:
    path = tmp_path / "x.cif"

    def refused(sites: str) -> str:
        path.write_text(CIF.format(a=5.6) + sites)
        with pytest.raises(ValueError, match=r"x\.cif, frame 0: Site") as caught:
            read_frames(path, energy_key=None, forces_key=None)
        return str(caught.value).partition("frame 0: ")[2].partition(". An")[0]

    assert refused("Na1 Na 0 0 0 0.6\nK1 K 0 0 0 0.4\nCl1 Cl 0.5 0.5 0.5 1.0\n") == (
        "Site 0 (atom 0) is occupied in part: Na 0.6, K 0.4"
    )
    assert refused("Na1 Na 0 0 0 1.0\nCl1 Cl 0.5 0.5 0.5 0.95\n") == "Site 1 (atom 4) is occupied in part: Cl 0.95"
    path.write_text(CIF.format(a=5.6) + "Na1 Na 0 0 0 1.0\nCl1 Cl 0.5 0.5 0.5 .\n")
    (frame,) = read_frames(path, energy_key=None, forces_key=None)
    assert frame.atoms.symbols.get_chemical_formula() == "Cl4Na4"


def test_deuterium_of_a_cif_is_heavy(tmp_path: Path) -> None:
    (tmp_path / "lid.cif").write_text(CIF.format(a=4.1) + "Li1 Li 0 0 0 1.0\nD1 D 0.5 0.5 0.5 1.0\n")
    (frame,) = read_frames(tmp_path / "lid.cif", energy_key=None, forces_key=None)
    assert frame.atoms.numbers.tolist() == [3] * 4 + [1] * 4
    assert frame.atoms.get_masses()[4:] == pytest.approx(2.014, abs=1e-3)
    write_frames(tmp_path / "lid.xyz", [frame])
    (back,) = read_frames(tmp_path / "lid.xyz", energy_key=None, forces_key=None)
    np.testing.assert_array_equal(back.atoms.get_masses(), frame.atoms.get_masses())
    assert back.atoms.info["spacegroup"] == "F m -3 m"


def test_alternatives_of_a_pdb_file() -> None:
    water = molecule("H2O")
    water.set_array("occupancy", np.array([1.0, 1.0, 0.5]))
    with pytest.raises(ValueError, match=r"Atom 2 \(H\) has an occupancy of 0\.5"):
        check_input(water)
    water.arrays["occupancy"][:] = 0.0
    check_input(water)


def test_masses_and_momenta() -> None:
    water = molecule("H2O")
    water.set_array("mass", np.array([15.9994, 1.00794, 1.00794]))
    check_input(water)
    water.arrays["mass"][1] = 2.014
    with pytest.raises(ValueError, match=r"column 'mass' gives atom 1 \(H\) the mass 2\.014, .* the name 'masses'"):
        check_input(water)
    water.set_masses([15.999, 2.014, 2.014])  # type: ignore[arg-type]
    check_input(water)
    water.arrays["masses"][2] = 0.0
    with pytest.raises(ValueError, match=r"mass of atom 2 \(H\) is 0; it must be positive"):
        check_input(water)
    water = molecule("H2O")
    water.set_momenta(np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="momenta of OH2 are not finite"):
        check_input(water)
