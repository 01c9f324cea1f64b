"""What a set of frames is, and what is odd about it."""

import numpy as np
from ase import Atoms
from ase.build import bulk

from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.inspection import Inspection
from jaxmlip.units import GPA


def inspected(*frames: Frame) -> Inspection:
    inspection = Inspection()
    for frame in frames:
        inspection.add(frame)
    return inspection


def crystal(seed: int, **labels) -> Frame:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=seed)
    return Frame(atoms, **({"energy": -4.0, "forces": np.full((4, 3), 0.5)} | labels))


def test_facts() -> None:
    stress = np.diag([-1.0, -2.0, -3.0]) * GPA
    molecule = Frame(Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]), np.nan, np.full((2, 3), np.nan), info={"kind": "gas"})
    facts = inspected(crystal(0, stress=stress), crystal(1, energy=-8.0), molecule).facts()
    assert (facts["frames"], facts["atoms"], facts["atoms of a frame"]) == (3, 10, [2, 4])
    assert facts["elements"] == {"Cu": 8, "H": 2}
    assert facts["most frequent"] == {"Cu4": 2, "H2": 1}
    assert facts["periodicity"] == {"fully periodic": 2, "not periodic": 1}
    assert facts["kinds of frames"] == {"": 2, "gas": 1}
    assert facts["labels"]["energy"] == {"frames": 2, "range_eV_atom": [-2.0, -1.0]}
    assert facts["labels"]["forces"]["frames"] == 2
    np.testing.assert_allclose(facts["labels"]["forces"]["rms_eV_A"], 0.5)
    assert facts["labels"]["stress"]["frames"] == 1
    np.testing.assert_allclose(facts["labels"]["stress"]["pressure_GPa"], [2.0, 2.0])


def test_nothing_is_odd_about_sound_frames() -> None:
    assert inspected(crystal(0), crystal(1, energy=-4.1)).odd() == []
    assert inspected().facts()["labels"]["energy"]["range_eV_atom"] is None


def test_what_is_odd_is_named_with_its_frame() -> None:
    lost = crystal(2, energy=np.nan, forces=np.full((4, 3), np.nan))
    again = crystal(0)
    other = crystal(0, energy=-4.5)
    long = crystal(3, forces=np.full((4, 3), 200.0))
    kbar = crystal(4, stress=np.eye(3) * 50.0)
    close = crystal(5)
    close.atoms.positions[1] = close.atoms.positions[0] + 0.3
    told = "\n".join(inspected(crystal(0), lost, again, other, long, kbar, close).odd())
    assert "1 of 7 frames have no energy, the first of them frame 1." in told
    assert "6 of 7 frames have no stress, the first of them frame 0." in told
    assert "1 of 7 frames are there twice, as frame 2, which is frame 0." in told
    assert "frames 0 and 3 differ by 125 meV/atom" in told
    assert "longest force is 346 eV/Å, in frame 4" in told
    assert "GPa in frame 5" in told
    assert "kBar" in told
    assert "1 of 7 frames have close atoms; frame 6: Atoms 0 (Cu) and 1 (Cu)" in told
    assert len(told.splitlines()) == 8
