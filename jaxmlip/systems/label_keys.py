"""Under which names the labels of a file are found, and what it means if they are not."""

from pathlib import Path
from typing import Any

import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress
from jaxtyping import Float

from jaxmlip.types import HostMatrix

DEFAULT = {"energy": "energy", "forces": "forces", "stress": "stress"}
"""Names that labels have if nobody says otherwise."""


class LabelKeys:
    """The names of the labels that are wanted of a file's frames, and which of them have turned up.

    The rule, for every file and command:

    * A name of None: the label is not read, it is NaN.
    * A label that some frames have and others lack is NaN where it is lacking.
    * A name that no frame has is a mistake. The default names, `energy`, `forces` and `stress`, mean "where it is
      there", so that files with energies alone or forces alone need no word. But energy and forces may not both be
      missing, nor one of them where the file has something called like it under another name: labels that were there
      would be lost without a word.

    Attributes:
        names: name of each label, or None.
    """

    def __init__(self, path: Path, energy: str | None, forces: str | None, stress: str | None) -> None:
        """Nothing has been read yet."""
        self.path = path
        self.names = {"energy": energy, "forces": forces, "stress": stress}
        self._found: set[str] = set()
        self._there: set[str] = set()
        self._alike: dict[str, set[str]] = {"energy": set(), "forces": set()}
        self._first: int | None = None
        self._frames = 0

    def read(
        self, said: dict[str, Any], n_atoms: int, number: int
    ) -> tuple[float, Float[np.ndarray, "atoms 3"], HostMatrix]:
        """Energy, forces and stress of a frame; NaN for what it does not have.

        Args:
            said: all that the file says of the frame, by key.
            n_atoms: its number of atoms.
            number: of the frame in the file.

        Raises:
            ValueError: if a label is not numeric, has a wrong shape, or is infinite.
        """
        self._first = number if self._first is None else self._first
        self._frames += 1
        self._there |= said.keys()
        for key, value in said.items():
            self._note_alike(key, value, n_atoms)
        energy = self._label("energy", said, [()], number)
        forces = self._label("forces", said, [(n_atoms, 3)], number)
        stress = self._label("stress", said, [(3, 3), (6,), (9,)], number)
        stress = voigt_6_to_full_3x3_stress(stress) if stress.shape == (6,) else stress.reshape(3, 3)
        return float(energy), forces, 0.5 * (stress + stress.T)

    def check(self) -> None:
        """Say what is missing, once all frames have been read.

        Raises:
            ValueError: naming file, key and the keys that are there.
        """
        missing = {kind: key for kind, key in self.names.items() if key is not None and kind not in self._found}
        explicit = [key for kind, key in missing.items() if key != DEFAULT[kind]]
        if explicit:
            raise ValueError(f"{self._nobody_has([explicit[0]])}.")
        wanted = [kind for kind in ("energy", "forces") if self.names[kind] is not None]
        lost = [kind for kind in wanted if kind in missing]
        if lost and lost == wanted:
            options = " and ".join(f"{kind}_key (--{kind}-key)" for kind in lost)
            raise ValueError(f"{self._nobody_has([missing[kind] for kind in lost])}. Give their names as {options}.")
        for kind in lost:
            if self._alike[kind]:
                raise ValueError(
                    f"{self._nobody_has([missing[kind]])}. Is it one of them? Give its name as {kind}_key "
                    f"(--{kind}-key), or none to do without."
                )

    def _nobody_has(self, keys: list[str]) -> str:
        there = ", ".join(sorted(self._there)) or "none"
        wanted = f"no {keys[0]!r}" if len(keys) == 1 else "neither " + " nor ".join(map(repr, keys))
        others = ", nor has any other" if self._frames > 1 else ""
        return f"{self.path}, frame {self._first} has {wanted}{others}; the keys that are there: {there}"

    def _note_alike(self, key: str, value: Any, n_atoms: int) -> None:
        """Remember keys that may be the energy or the forces under another name."""
        name = key.lower()
        if "force" in name and np.shape(value) == (n_atoms, 3):
            self._alike["forces"].add(key)
        elif "energy" in name and isinstance(value, int | float | np.number) and not isinstance(value, bool):
            self._alike["energy"].add(key)

    def _label(self, kind: str, said: dict[str, Any], shapes: list[tuple[int, ...]], number: int) -> np.ndarray:
        key = self.names[kind]
        if key is None or said.get(key) is None:
            return np.full(shapes[0], np.nan)
        where = f"{self.path}, frame {number}"
        try:
            value = np.asarray(said[key], np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {key!r} is not numeric ({said[key]!r}).") from error
        if value.shape not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise ValueError(f"{where}: {key!r} has shape {value.shape} instead of {wanted}.")
        if np.isinf(value).any():
            raise ValueError(f"{where}: {key!r} is infinite; write NaN for a label that is absent.")
        self._found.add(kind)
        return value
