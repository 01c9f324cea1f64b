"""What it means if a label is not where it was looked for."""

from pathlib import Path

import numpy as np
import pytest

from jaxmlip.systems.dataset import iterate_frames, read_frames

WATER = "O 0 0 0.119 {0}\nH 0 0.763 -0.477 {0}\nH 0 -0.763 -0.477 {0}\n"


def frame(words: str = "", forces: str = "") -> str:
    columns = f":{forces}:R:3" if forces else ""
    body = WATER.format("0.1 0.2 0.3" if forces else "")
    return f"3\nProperties=species:S:1:pos:R:3{columns} pbc=F {words}\n{body}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.xyz"


def present(path: Path, **keys) -> list[str]:
    """Which labels each frame has, as initials."""
    streamed = [*iterate_frames(path, **keys)]
    frames = read_frames(path, **keys)
    assert [one.energy for one in frames] == pytest.approx([one.energy for one in streamed], nan_ok=True)
    labels = [{"e": one.energy, "f": one.forces, "s": one.stress} for one in frames]
    return ["".join(name for name, value in one.items() if not np.isnan(value).any()) for one in labels]


def test_what_some_frames_lack_is_nan(path: Path) -> None:
    stress = 'stress="1 2 3 4 5 6"'
    path.write_text(
        frame("energy=-1", "forces") + frame("energy=-1 config_type=IsolatedAtom") + frame(stress, "forces")
    )
    assert present(path) == ["ef", "e", "fs"]
    assert present(path, energy_key=None) == ["f", "", "fs"]
    assert present(path, energy_key=None, forces_key=None, stress_key=None) == ["", "", ""]


def test_energies_or_forces_alone_need_no_word(path: Path) -> None:
    path.write_text(frame("energy=-1") * 2)
    assert present(path) == ["e", "e"]
    path.write_text(frame("", "forces") * 2)
    assert present(path) == ["f", "f"]
    path.write_text(frame("REF_energy=-1", "REF_forces") + frame())
    assert present(path, energy_key="REF_energy", forces_key="REF_forces") == ["ef", ""]


@pytest.mark.parametrize("read", [read_frames, lambda *args, **keys: [*iterate_frames(*args, **keys)]])
def test_what_no_frame_has_is_a_mistake(path: Path, read) -> None:
    def said(**keys: str | None) -> str:
        with pytest.raises(ValueError, match=r"a\.xyz, frame 0 has") as caught:
            read(path, **keys)
        return str(caught.value).partition("frame 0 ")[2]

    path.write_text(frame("REF_energy=-1", "REF_forces") * 2)
    there = "nor has any other; the keys that are there: REF_energy, REF_forces"
    assert said() == (
        f"has neither 'energy' nor 'forces', {there}. Give their names as energy_key (--energy-key) and forces_key "
        "(--forces-key)."
    )
    assert said(energy_key="REF_energy") == (
        f"has no 'forces', {there}. Is it one of them? Give its name as forces_key (--forces-key), or none to do "
        "without."
    )
    assert said(forces_key="REF_forces").startswith(f"has no 'energy', {there}. Is it one of them?")
    assert said(energy_key="REF_energy", forces_key="REF_forces", stress_key="REF_stress") == (
        f"has no 'REF_stress', {there}."
    )
    assert said(energy_key=None).startswith("has no 'forces'")
    path.write_text(frame("energy=-1"))
    assert said(energy_key=None) == (
        "has no 'forces'; the keys that are there: energy. Give their names as forces_key (--forces-key)."
    )
