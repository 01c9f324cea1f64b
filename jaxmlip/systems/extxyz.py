"""Extended XYZ beyond what ASE makes of it: six components of stress, deuterium, every digit, every word.

Files are read by ASE's reader, which takes a parser of the second line; what is written here, it reads back.
"""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from ase.data import atomic_masses, atomic_numbers
from ase.io.extxyz import key_val_str_to_dict
from ase.spacegroup import Spacegroup
from ase.stress import voigt_6_to_full_3x3_stress

ISOTOPES = {"D": 2.01410178, "T": 3.01604928}
"""Isotopes of hydrogen that have a symbol, and their masses in amu (AME2020)."""

SYMBOLS = "chemical_symbols_as_written"
"""Column in which symbols pass through ASE's reader, which knows no D."""

MATRICES = ("stress", "virial")
"""Keys under which ASE's reader takes nine numbers or fails."""

PASSED = "as_written_"

_KEYS_OF_MATRICES = re.compile(
    r"""(\\.|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\{(?:\\.|[^}\\])*\}|\[(?:\\.|[^]\\])*\])"""  # quoted: left alone
    rf"""|(?<!\S)({"|".join(MATRICES)})(?=[\s=]|$)"""
)

_PLAIN = re.compile(r"[\w.+\-/:]+")
"""Keys and values that need no quotes."""

RESERVED = ("Lattice", "Properties", "pbc")


def read_extxyz(path: Path) -> Iterator[Atoms]:
    """The structures of a file as ASE reads them; D and T are hydrogen with its mass.

    Raises:
        ValueError: for a symbol that no element has.
        Exception: whatever ASE's reader raises.
    """
    frames = ase.io.iread(path, ":", format="extxyz", properties_parser=_second_line, do_not_split_by_at_sign=True)
    for number, atoms in enumerate(frames):
        symbols = atoms.arrays.pop(SYMBOLS, None)
        if symbols is not None:
            _set_elements(atoms, symbols, number)
        yield atoms


def _set_elements(atoms: Atoms, symbols: np.ndarray, number: int) -> None:
    names = [str(symbol).capitalize() for symbol in symbols]
    if not atoms.numbers.any():  # else the file has a column of atomic numbers as well
        known = atomic_numbers | dict.fromkeys(ISOTOPES, 1) | {str(z): z for z in range(len(atomic_masses))}
        unknown = [place for place, name in enumerate(names) if name not in known]
        if unknown:
            raise ValueError(f"frame {number}, atom {unknown[0]}: {symbols[unknown[0]]!r} is no element")
        atoms.numbers = [known[name] for name in names]
    heavy = [place for place, name in enumerate(names) if name in ISOTOPES and atoms.numbers[place] == 1]
    if heavy and not atoms.has("masses"):
        masses = atoms.get_masses()
        masses[heavy] = [ISOTOPES[names[place]] for place in heavy]
        atoms.set_array("masses", masses, float, ())


def _second_line(line: str) -> dict[str, Any]:
    """What ASE's parser makes of the second line, with stresses of 6 numbers, and symbols in a column of their own."""
    renamed = _KEYS_OF_MATRICES.sub(lambda found: found[1] or PASSED + found[2], line)
    said = key_val_str_to_dict(renamed)
    for key in MATRICES:
        value = said.pop(PASSED + key, True)
        if value is not True:  # a bare word, as in any comment
            matrix = np.asarray(value)
            if matrix.dtype.kind not in "fi":
                raise ValueError(f"{key!r} is not numeric ({value!r})")
            said[key] = _matrix(matrix)
    columns = said.get("Properties", "species:S:1:pos:R:3")
    if isinstance(columns, str):
        fields = columns.split(":")
        fields[::3] = [SYMBOLS if name in ("species", "symbols") else name for name in fields[::3]]
        said["Properties"] = ":".join(fields)
    return said


def _matrix(value: np.ndarray) -> np.ndarray:
    """A 3 × 3 matrix from 9 numbers, column by column as ASE has it, or from 6; anything else as it is."""
    if value.shape == (9,):
        return value.reshape(3, 3, order="F")
    if value.shape == (6,):
        return voigt_6_to_full_3x3_stress(value)
    return value


def extxyz_text(atoms: Atoms, columns: dict[str, np.ndarray], said: dict[str, Any]) -> str:
    """One frame as text, with all digits of a double; ASE's own writer keeps 8 decimals.

    Args:
        atoms: the structure. Its further arrays become columns, masses where they are not the standard ones, and
            constraints that fix atoms a column `move_mask`; its calculator and `info` are left out.
        columns: [atoms, ...] by name, written first.
        said: words and numbers of the second line.
    """
    table = {"species": np.array([*atoms.symbols]), "pos": atoms.positions} | columns
    for name, values in atoms.arrays.items():
        standard = name == "masses" and np.array_equal(values, atomic_masses[atoms.numbers])
        if name not in ("numbers", "positions", *columns) and not standard:
            table[re.sub(r"[\s:]", "_", name)] = values
    move_mask = _move_mask(atoms)
    if not move_mask.all():
        table["move_mask"] = move_mask
    properties, cells = [], []
    for name, values in table.items():
        flat = values.reshape(len(atoms), -1)
        letter, texts = _column(flat)
        properties.append(f"{name}:{letter}:{flat.shape[1]}")
        cells.append(texts)
    header = {"Properties": ":".join(properties), "pbc": atoms.pbc}
    if atoms.cell.array.any():
        header = {"Lattice": atoms.cell.array.ravel()} | header
    header |= {key: value for key, value in said.items() if key not in RESERVED}
    words = (f"{_quoted(key)}={_quoted(_word(key, value))}" for key, value in header.items())
    rows = (" ".join(row) for row in zip(*cells, strict=True))
    return "\n".join([str(len(atoms)), " ".join(words), *rows]) + "\n"


def _column(values: np.ndarray) -> tuple[str, list[str]]:
    """The letter of a column's type, and its text for each atom."""
    formats = {"f": ("R", repr), "i": ("I", str), "u": ("I", str), "b": ("L", lambda x: "FT"[int(x)])}
    letter, text = formats.get(values.dtype.kind, ("S", lambda word: re.sub(r"\s+", "_", str(word)) or "_"))
    return letter, [" ".join(map(text, row)) for row in values.tolist()]


def _move_mask(atoms: Atoms) -> np.ndarray:
    """[atoms], or [atoms, 3] where single components are fixed: what may move, as ASE's reader wants it."""
    others = [each for each in atoms.constraints if not isinstance(each, FixAtoms | FixCartesian)]
    if others:
        warnings.warn(
            f"Extended XYZ cannot hold the constraint {type(others[0]).__name__}; it is left out.", stacklevel=4
        )
    free = np.ones((len(atoms), 3), bool)
    for each in atoms.constraints:
        if isinstance(each, FixAtoms):
            free[each.index] = False
        elif isinstance(each, FixCartesian):
            free[each.index] &= ~np.asarray(each.mask, bool)
    return free[:, 0] if (free.all(axis=1) | ~free.any(axis=1)).all() else free


def _word(key: str, value: Any) -> str:
    """A value such that ASE's parser gives it back: numbers and arrays plainly, what is more, as JSON."""
    if isinstance(value, Spacegroup):
        return value.symbol
    value = value.item() if isinstance(value, np.generic) else value
    array = np.asarray(value) if isinstance(value, np.ndarray) or key in MATRICES else None
    if array is not None and array.dtype.kind in "fib":
        if key in MATRICES:
            matrix = _matrix(array)
            return " ".join(map(_number, matrix.ravel(order="F").tolist()))
        if array.ndim == 1 and len(array) > 1:
            return " ".join(map(_number, array.tolist()))
    if isinstance(value, bool | int | float):
        return _number(value)
    if isinstance(value, str) and _survives(value):
        return value
    return "_JSON " + json.dumps(value, default=plain)


def _number(value: bool | int | float) -> str:
    return "FT"[value] if isinstance(value, bool) else repr(value)


def _survives(text: str) -> bool:
    """Whether a text is read back as itself, and not as a number, a truth value or nothing."""
    if not text.isprintable():
        return False
    read = key_val_str_to_dict(f"key={_quoted(text)}")["key"]
    return isinstance(read, str) and read == text


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def plain(value: Any) -> Any:
    """For JSON: numpy's numbers and arrays as plain ones, a space group by its symbol.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Spacegroup):
        return value.symbol
    raise TypeError(f"{value!r} is neither number, text, list nor table")
