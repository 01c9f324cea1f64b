"""Extended XYZ as other programs write it: six components of stress, isotopes by symbol, comments."""

from pathlib import Path

import numpy as np
import pytest

from jaxmlip.systems.dataset import read_frames

BODY = "O 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"
CELL = 'Lattice="8 0 0 0 8 0 0 0 8" Properties=species:S:1:pos:R:3 energy=-14.2 '
SIX = [0.001, 0.002, 0.003, 0.0006, 0.0005, 0.0004]
FULL = [[0.001, 0.0004, 0.0005], [0.0004, 0.002, 0.0006], [0.0005, 0.0006, 0.003]]


def read(tmp_path: Path, second_line: str, body: str = BODY, **keys):
    (tmp_path / "a.xyz").write_text(f"3\n{second_line}\n{body}")
    (frame,) = read_frames(tmp_path / "a.xyz", **keys)
    return frame


@pytest.mark.parametrize("name", ["stress", "REF_stress"])
@pytest.mark.parametrize("style", ['{}="{}"', "{} = [{}]", "{}={{{}}}", '{}="_JSON [{}]"'])
def test_stress_of_six_and_nine_numbers(tmp_path: Path, name: str, style: str) -> None:
    separator = ", " if "JSON" in style else " "
    for numbers in (SIX, np.ravel(FULL)):
        written = style.format(name, separator.join(f"{value:g}" for value in numbers))
        frame = read(tmp_path, CELL + written, stress_key=name)
        np.testing.assert_array_equal(frame.stress, FULL)
        assert name not in frame.atoms.info
        without = read(tmp_path, CELL + written, stress_key=None)
        assert np.isnan(without.stress).all(), "a label that is not asked for does no harm"


def test_stress_of_another_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.xyz, frame 0: 'stress' has shape \(5,\) instead of"):
        read(tmp_path, CELL + 'stress="1 2 3 4 5"')
    with pytest.raises(ValueError, match=r"a\.xyz cannot be read as .*: 'stress' is not numeric .'low'"):
        read(tmp_path, CELL + "stress=low")


def test_words_of_a_comment_are_words(tmp_path: Path) -> None:
    frame = read(tmp_path, "slab under stress of 1 GPa", energy_key=None, forces_key=None)
    assert np.isnan(frame.stress).all()
    frame = read(tmp_path, CELL + "note=\"the stress = 5 here\" virial='1 2 3 4 5 6'")
    assert frame.info["note"] == "the stress = 5 here"
    np.testing.assert_array_equal(frame.atoms.info["virial"], [[1, 6, 5], [6, 2, 4], [5, 4, 3]])


def test_deuterium_is_hydrogen_of_its_mass(tmp_path: Path) -> None:
    body = BODY.replace("H", "D", 1).replace("H", "t", 1)
    frame = read(tmp_path, CELL, body)
    assert frame.atoms.numbers.tolist() == [8, 1, 1]
    assert frame.atoms.get_masses().tolist() == [15.999, 2.01410178, 3.01604928]
    rows = [f"{row} 2.5" for row in body.splitlines()]
    frame = read(tmp_path, CELL.replace("pos:R:3", "pos:R:3:masses:R:1"), "\n".join(rows) + "\n")
    assert frame.atoms.get_masses().tolist() == [2.5, 2.5, 2.5], "a column of masses has the last word"
    assert not read(tmp_path, CELL).atoms.has("masses")


def test_elements(tmp_path: Path) -> None:
    assert read(tmp_path, CELL, BODY.replace("O", "8")).atoms.numbers.tolist() == [8, 1, 1]
    by_number = BODY.replace("O", "8").replace("H", "1")
    assert read(tmp_path, CELL.replace("species:S", "Z:I"), by_number).atoms.numbers.tolist() == [8, 1, 1]
    with pytest.raises(ValueError, match=r"a\.xyz cannot be read as .*: frame 0, atom 0: 'OW' is no element"):
        read(tmp_path, CELL, BODY.replace("O", "OW"))
