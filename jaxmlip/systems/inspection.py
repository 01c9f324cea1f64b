"""What a set of frames is: sizes, elements, labels and their ranges, and what is odd about it; frame by frame."""

import hashlib
import math
from collections import Counter
from typing import Any

import numpy as np

from jaxmlip.systems.checks import ALLOW_CLOSE, close_contact
from jaxmlip.systems.dataset import Frame, frame_kind
from jaxmlip.systems.label_units import UnitCheck
from jaxmlip.units import GPA

SAME = 1e-5
"""Å; positions that differ by less may be those of one structure."""

SAME_ENERGY = 1e-3
"""eV/atom; labels of one structure that differ by more are of different levels of theory."""

LONG_FORCE = 100.0
"""eV/Å; training sets of dynamics and relaxations have a tenth of it."""

HIGH_PRESSURE = 500.0
"""GPa; more than that is in the middle of planets, or a stress in kBar."""

FORMULAS = 5
"""Compositions that are listed."""


class Range:
    """The least and the largest of numbers that come one after the other; NaN are passed over."""

    def __init__(self) -> None:
        """No number yet."""
        self.number, self.least, self.largest = 0, math.inf, -math.inf

    def add(self, value: float | int) -> None:
        """Take a number."""
        if math.isfinite(value):
            self.number += 1
            self.least, self.largest = min(self.least, value), max(self.largest, value)

    def both(self) -> list[float | int] | None:
        """[least, largest], None if there was no number."""
        return [self.least, self.largest] if self.number else None


class Inspection:
    """A set of frames, seen one by one as `iterate_frames` and stores give them, with close atoms allowed.

    Some hundred bytes are held for each frame.
    """

    def __init__(self) -> None:
        """No frame yet."""
        self.frames = 0
        self._sizes, self._volume = Range(), Range()
        self._energy, self._force, self._pressure = Range(), Range(), Range()
        self._with = Counter({"energy": 0, "forces": 0, "stress": 0})
        self._first_without: dict[str, int] = {}
        self._elements: Counter[str] = Counter()
        self._formulas: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._periodic: Counter[int] = Counter()
        self._seen: dict[bytes, tuple[int, float]] = {}
        self._same, self._unlike = [], []
        self._close: list[tuple[int, str]] = []
        self._squares, self._components, self._longest = 0.0, 0, -1
        self._pressed = -1
        self._units = UnitCheck()

    def add(self, frame: Frame, *, checked: bool = False) -> None:
        """Take a frame; `checked` says that its atoms are known not to be too close."""
        atoms, number = frame.atoms, self.frames
        self.frames += 1
        counts = dict(atoms.symbols.formula.count())
        self._sizes.add(len(atoms))
        self._elements.update(counts)
        self._formulas[atoms.get_chemical_formula()] += 1
        self._kinds[frame_kind(frame)] += 1
        self._periodic[int(atoms.pbc.sum())] += 1
        if atoms.pbc.all():
            self._volume.add(atoms.get_volume() / len(atoms))
        self._labels(frame, number)
        self._repeated(frame, number)
        if not checked or atoms.info.get(ALLOW_CLOSE):
            found = close_contact(atoms)
            if found:
                self._close.append((number, found))
        self._units.add(frame, counts)

    def facts(self) -> dict[str, Any]:
        """Plain data: numbers, units in the names, ranges as [least, largest]."""
        rms = math.sqrt(self._squares / self._components) if self._components else None
        frames = {"fully periodic": self._periodic[3], "not periodic": self._periodic[0]}
        frames["periodic in some directions"] = self.frames - sum(frames.values())
        return {
            "frames": self.frames,
            "atoms": sum(self._elements.values()),
            "atoms of a frame": self._sizes.both(),
            "elements": dict(sorted(self._elements.items(), key=lambda item: (-item[1], item[0]))),
            "compositions": len(self._formulas),
            "most frequent": dict(self._formulas.most_common(FORMULAS)),
            "kinds of frames": dict(self._kinds) if set(self._kinds) != {""} else {},
            "periodicity": {name: number for name, number in frames.items() if number},
            "volume_A3_atom": self._volume.both(),
            "labels": {
                "energy": {"frames": self._with["energy"], "range_eV_atom": self._energy.both()},
                "forces": {"frames": self._with["forces"], "longest_eV_A": self._force.both(), "rms_eV_A": rms},
                "stress": {"frames": self._with["stress"], "pressure_GPa": self._pressure.both()},
            },
        }

    def odd(self) -> list[str]:
        """What may be a mistake, a sentence each."""
        said = []
        for label in ("energy", "forces", "stress"):
            there = self._with[label]
            if 0 < there < self.frames:
                said.append(
                    f"{self.frames - there} of {self.frames} frames have no {label}, the first of them frame "
                    f"{self._first_without[label]}."
                )
        if self._same:
            first, again = self._same[0]
            said.append(
                f"{len(self._same)} of {self.frames} frames are there twice, as frame {again}, which is frame {first}."
            )
        if self._unlike:
            first, again, difference = self._unlike[0]
            said.append(
                f"{len(self._unlike)} frames are of the structure of an earlier one with another energy: frames "
                f"{first} and {again} differ by {1000 * difference:.3g} meV/atom."
            )
        if self._close:
            number, sentence = self._close[0]
            said.append(f"{len(self._close)} of {self.frames} frames have close atoms; frame {number}: {sentence}")
        said += self._units.said()
        if self._force.largest > LONG_FORCE:
            said.append(
                f"The longest force is {self._force.largest:.3g} eV/Å, in frame {self._longest}: a calculation that "
                "did not converge, atoms that are too close, or another unit."
            )
        largest = max(abs(each) for each in self._pressure.both() or [0.0])
        if largest > HIGH_PRESSURE:
            said.append(
                f"The pressure is {largest:.3g} GPa in frame {self._pressed}: stresses are expected in eV/Å³, "
                f"{1 / (0.1 * GPA):.0f} times less than in kBar."
            )
        return said

    def _labels(self, frame: Frame, number: int) -> None:
        there = {
            "energy": math.isfinite(frame.energy),
            "forces": bool(np.isfinite(frame.forces).any()),
            "stress": bool(np.isfinite(frame.stress).all()),
        }
        for label, has in there.items():
            self._with[label] += has
            if not has:
                self._first_without.setdefault(label, number)
        self._energy.add(frame.energy / len(frame.atoms))
        if there["forces"]:
            forces = np.nan_to_num(frame.forces)
            longest = float(np.linalg.norm(forces, axis=1).max())
            if longest > self._force.largest:
                self._longest = number
            self._force.add(longest)
            self._squares += float((forces**2).sum())
            self._components += int(np.isfinite(frame.forces).sum())
        if there["stress"]:
            pressure = -float(np.trace(frame.stress)) / 3 / GPA
            if abs(pressure) > max(abs(each) for each in self._pressure.both() or [0.0]):
                self._pressed = number
            self._pressure.add(pressure)

    def _repeated(self, frame: Frame, number: int) -> None:
        atoms = frame.atoms
        grid = np.round(np.concatenate([atoms.positions, atoms.cell.array]) / SAME) + 0.0  # no negative zero
        content = atoms.numbers.tobytes() + atoms.pbc.tobytes() + grid.tobytes()
        key = hashlib.blake2b(content, digest_size=16).digest()
        if key not in self._seen:
            self._seen[key] = number, frame.energy
            return
        first, energy = self._seen[key]
        difference = abs(frame.energy - energy) / len(atoms)
        if difference > SAME_ENERGY:
            self._unlike.append((first, number, difference))
        else:
            self._same.append((first, number))
