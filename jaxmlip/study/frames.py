"""Files of labelled frames, as configurations name them."""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic

from jaxmlip.simulation.frames import open_frames
from jaxmlip.study.section import ConfigError, Section
from jaxmlip.systems.dataset import Frame
from jaxmlip.systems.label_keys import DEFAULT


class FileData(Section):
    """Labelled frames in a file."""

    path: Path = pydantic.Field(description="extxyz file, ASE database or store (.h5)")
    energy_key: str | None = pydantic.Field(
        default="energy", description="name of the energy, eV; null: none, for a training on forces (energy_weight: 0)"
    )
    forces_key: str | None = pydantic.Field(default="forces", description="name of the forces, eV/Å; null: none")
    stress_key: str | None = pydantic.Field(
        default="stress",
        description="name of the stress, eV/Å³, positive under tension; stress: where it is there, another name: must "
        "be there, null: none",
    )
    index: str = pydantic.Field(default=":", description="frames to read, as an ASE slice")

    def file(self) -> Path:
        """The path with environment variables (`${NAME}`) replaced.

        Raises:
            ConfigError: if one of them is not set.
        """
        return expanded(self.path)

    def frames(self, *, forces_needed: bool = True) -> Sequence[Frame]:
        """The frames; for what it raises see `open_frames`, and `file`.

        Args:
            forces_needed: whether it is a mistake if there are no forces; with labels energy they are for errors only.
        """
        keys: dict[str, Any] = {
            "energy_key": self.energy_key,
            "forces_key": self.forces_key,
            "stress_key": self.stress_key,
        }
        try:
            return open_frames(self.file(), **keys, index=self.index)
        except ValueError:
            if forces_needed or self.forces_key != DEFAULT["forces"]:
                raise
            keys["forces_key"] = None
            return open_frames(self.file(), **keys, index=self.index)

    def identity(self) -> dict[str, Any]:
        """What decides the labels, wherever the file lies: its content, keys and index.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        return {**self.model_dump(exclude={"path"}), "sha256": digest(self.file())}


def expanded(path: Path) -> Path:
    """A path with environment variables (`${NAME}`) replaced.

    Raises:
        ConfigError: if one of them is not set.
    """
    found = os.path.expandvars(path)
    if "$" in str(found):
        raise ConfigError(f"The path {path} names an environment variable that is not set; export it first.")
    return Path(found)


def digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    state = path.stat()
    return _digest(path.absolute(), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, modified: int) -> str:
    """Of a file in this state, read once: workers ask for it before every stage, and files may be large."""
    del size, modified
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
