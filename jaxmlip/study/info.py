"""What a file is: a potential, a trajectory, labelled frames, a configuration or a result, and what is odd about it."""

import dataclasses
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase.data import chemical_symbols

from jaxmlip.files import to_json
from jaxmlip.potentials.files import HEADER, read_header
from jaxmlip.potentials.upgrades import VERSION
from jaxmlip.progress import progress_bar
from jaxmlip.simulation.frames import TrajectoryFrames, is_trajectory, open_frames
from jaxmlip.simulation.h5md import RunStatus, opened, read_fixed, read_frames_number, read_series, read_status
from jaxmlip.simulation.trajectory import Outcome
from jaxmlip.study.config import load_config
from jaxmlip.study.registry import study_of
from jaxmlip.study.section import Section
from jaxmlip.systems.checks import close_contact
from jaxmlip.systems.dataset import Frame, iterate_frames
from jaxmlip.systems.inspection import Inspection, Range
from jaxmlip.systems.mptrj import is_mptrj, iterate_mptrj
from jaxmlip.systems.store import FrameStore

FRAMES_AT_ONCE = 4096
"""Of a trajectory's series, which are read piece by piece."""

NAMED = 3
"""Of frames that cannot be used, so many are named."""


@dataclasses.dataclass(frozen=True)
class Info:
    """What a file is.

    Attributes:
        path: of the file.
        kind: in words.
        facts: plain data by name; names carry the unit.
        odd: what may be a mistake, a sentence each.
    """

    path: str
    kind: str
    facts: dict[str, Any]
    odd: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Lines of names and values, and what is odd below."""
        lines = [f"{self.path}: {self.kind}", *_lines(self.facts)]
        return "\n".join([*lines, *(f"Odd: {sentence}" for sentence in self.odd)])


def info(
    path: str | Path,
    *,
    energy_key: str | None = "energy",
    forces_key: str | None = "forces",
    stress_key: str | None = "stress",
    progress: bool = False,
) -> Info:
    """What a file is: sizes, elements, labels with their ranges, provenance, and what is odd about it.

    Files of frames are read to the end, one frame after the other.

    Args:
        path: a `.jaxmlip` file, a trajectory or store (`.h5`), a file of structures that ASE reads, JSON of the MPtrj
            layout, a configuration (`.yaml`), a JSON file or the folder of a run.
        energy_key: name of the energy of a file of frames; see `read_frames`.
        forces_key: likewise.
        stress_key: likewise.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or of no kind that is known.
    """
    path = Path(path)
    keys = {"energy_key": energy_key, "forces_key": forces_key, "stress_key": stress_key}
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix == ".jaxmlip" or _is_potential(path):
        return _of_potential(path)
    if is_trajectory(path):
        return _of_trajectory(path)
    if h5py.is_hdf5(path):
        return _of_store(path, keys, progress)
    if path.suffix in (".yaml", ".yml"):
        return _of_config(path)
    if path.name.endswith((".json", ".json.gz")):
        if is_mptrj(path):
            return _of_mptrj(path, progress)
        said = _json(path)
        if said is not None:
            return _of_json(path, said)
    lacking: list[str] = []
    frames = iterate_frames(path, **keys, allow_close=True, lacking=lacking)
    return _of_frames(path, "structures", frames, progress, lacking)


def _of_frames(path: Path, kind: str, frames: Iterable[Frame], progress: bool, said: Sequence[str] = ()) -> Info:
    """Of frames that are gone through; `said` may be filled on the way."""
    inspection = Inspection()
    for frame in progress_bar(frames, desc="reading", unit="frame", disable=not progress):
        inspection.add(frame)
    return Info(str(path), kind, inspection.facts(), [*said, *inspection.odd()])


def _of_mptrj(path: Path, progress: bool) -> Info:
    left_out: list[str] = []
    frames = iterate_mptrj(path, allow_close=True, left_out=left_out)
    found = _of_frames(path, "labelled frames in JSON of the MPtrj layout", frames, progress)
    if not left_out:
        return found
    said = f"{len(left_out)} more frames cannot be used, the first of them: {' '.join(left_out[:NAMED])}"
    return dataclasses.replace(found, odd=[said, *found.odd])


def _of_store(path: Path, keys: dict[str, Any], progress: bool) -> Info:
    store = FrameStore(path)
    frames = open_frames(path, **keys) if path.suffix == ".h5" else store
    found = _of_frames(path, "store of labelled frames", frames, progress)
    provenance = {"labels were called": store.keys, "versions": store.versions}
    return dataclasses.replace(found, facts=found.facts | provenance)


def _of_potential(path: Path) -> Info:
    """From the header: no array is used, and nothing is compiled."""
    header = read_header(path)
    parts = [_part(node) for node in _leaves(header["potential"])]
    known = sorted({z for part in parts for z in part.pop("known")})
    facts = {
        "version of the format": header["version"],
        "precision": header.get("dtype"),
        "elements": [chemical_symbols[z] for z in known],
        "potentials": parts,
        "references_eV": {k: v for node in _leaves(header["potential"]) for k, v in node["references"].items()},
        "provenance": _of_provenance(header.get("provenance", {})),
    }
    odd = []
    if header["version"] < VERSION:
        odd.append(f"The file is of version {header['version']} of the format, which is read; today's is {VERSION}.")
    for part in parts:
        seen = part.get("trained_on")
        if seen is not None and "stress" not in seen:
            odd.append(
                f"The {part['kind']} potential was trained on {' and '.join(seen) or 'nothing'}, never on stress: "
                "densities and relaxed cells may be wrong by several per cent."
            )
    return Info(str(path), "potential", facts, odd)


def _leaves(node: dict[str, Any]) -> list[dict[str, Any]]:
    """Terms of sums, and of sums in them; anything else as it is."""
    return [leaf for term in node["terms"] for leaf in _leaves(term)] if node["kind"] == "sum" else [node]


def _part(node: dict[str, Any]) -> dict[str, Any]:
    """One potential of a file."""
    static = dict(node["static"])
    known = static.pop("known", None)
    known = [chemical_symbols.index(symbol) for symbol in node["references"]] if known is None else known
    parameters = sum(
        int(np.prod(array["shape"])) for name, array in node["arrays"].items() if name.startswith("params")
    )
    plain = {key: value for key, value in static.items() if not isinstance(value, dict)}
    plain |= static.get("specification", {})
    for name in {"cutoff", "reach", "shortest"} & plain.keys():
        plain[f"{name}_A"] = plain.pop(name)
    return {"kind": node["kind"], "known": known, "parameters": parameters} | plain


def _of_provenance(said: dict[str, Any]) -> dict[str, Any]:
    """What made a file, with the main entries of a whole configuration."""
    config = said.get("config")
    if not isinstance(config, dict):
        return said
    main = ("study", "name", "data", "labels", "replay", "strategy", "foundation", "teacher")
    return said | {"config": {key: config[key] for key in main if key in config}}


def _of_trajectory(path: Path) -> Info:
    """Its series are read in pieces, and of positions the last of each replica."""
    with opened(path) as file:
        fixed, status, frames = read_fixed(file), read_status(file), read_frames_number(file)
        ranges = _ranges(file, frames, status.lengths)
    run = fixed.identity.get("run", {})
    atoms = len(fixed.numbers)
    symbols = [chemical_symbols[z] for z in fixed.numbers]
    facts = {
        "replicas": len(status.lengths),
        "frames": int(np.sum(status.lengths)),
        "frames of a replica": [int(np.min(status.lengths)), int(np.max(status.lengths))],
        "atoms": atoms,
        "elements": {symbol: symbols.count(symbol) for symbol in dict.fromkeys(symbols)},
        "time_ps": frames * fixed.timestep_fs * run.get("steps between frames", 0) / 1000 or None,
        "timestep_fs": fixed.timestep_fs,
        "potential_energy_eV_atom": _scaled(ranges["potential_energy"], 1 / atoms),
        "temperature_K": ranges["temperature"].both(),
        "volume_A3_atom": _scaled(ranges["cells"], 1 / atoms) if fixed.pbc.all() else None,
        "observed": fixed.observed,
        "outcomes": {name: list(status.outcomes).count(name) for name in dict.fromkeys(status.outcomes)},
        "ns_per_day": status.ns_per_day,
        "provenance": {"run": run, **{name: fixed.identity.get(name) or {} for name in ("versions", "tables")}},
    }
    return Info(str(path), "trajectory", facts, _odd_replicas(path, status))


def _odd_replicas(path: Path, status: RunStatus) -> list[str]:
    """Replicas that failed, and those whose last frame has close atoms."""
    odd = [
        f"Replica {n} did not run to its end: {Outcome[name].value if name in Outcome.__members__ else name}."
        for n, name in enumerate(status.outcomes)
        if name != "COMPLETED"
    ]
    lengths = np.asarray(status.lengths)
    if not lengths.sum():
        return [*odd, "There are no frames yet."]
    view = TrajectoryFrames(path)
    for last in np.cumsum(lengths)[lengths > 0] - 1:
        frame = view[int(last)]
        found = close_contact(frame.atoms)
        odd += [f"Replica {frame.info['replica']}, its last frame: {found}"] if found else []
    return odd


def _ranges(file: h5py.File, frames: int, lengths: np.ndarray) -> dict[str, Range]:
    """Of energies, temperatures and, in place of cells, volumes; before failures only."""
    ranges = {"potential_energy": Range(), "temperature": Range(), "cells": Range()}
    for start in range(0, frames, FRAMES_AT_ONCE):
        for name, found in ranges.items():
            values = read_series(file, name, slice(start, min(start + FRAMES_AT_ONCE, frames)))
            if values is not None:
                values = np.abs(np.linalg.det(values)) if name == "cells" else values
                for replica, length in zip(values, lengths, strict=True):
                    _add_all(found, replica[: max(0, int(length) - start)])
    return ranges


def _add_all(found: Range, values: np.ndarray) -> None:
    values = values[np.isfinite(values)]
    if values.size:
        found.add(float(values.min()))
        found.add(float(values.max()))


def _scaled(found: Range, factor: float) -> list[float | int] | None:
    both = found.both()
    return None if both is None else [each * factor for each in both]


def _of_config(path: Path) -> Info:
    """A configuration that can be run, and the files that it names."""
    config = load_config(path)
    command = study_of(config).command
    data = config.model_dump(mode="json")
    odd = [f"There is no {key} {given}." for key, given in _files_of(data) if not _there(given)]
    return Info(str(path), f"configuration, for `jaxmlip {command}`", _set_by(config, data), odd)


def _set_by(config: Section, data: dict[str, Any]) -> dict[str, Any]:
    """Study, name and seed, and whatever is not as by default."""
    always = {key: data[key] for key in ("study", "name", "seed") if key in data}
    return always | {key: data[key] for key in sorted(config.model_fields_set) if key not in always}


def _files_of(data: Any, key: str = "") -> list[tuple[str, str]]:
    """Files that a configuration names, by key: paths, and potentials that are no names."""
    if isinstance(data, dict):
        return [each for name, value in data.items() for each in _files_of(value, f"{key}.{name}" if key else name)]
    if isinstance(data, list):
        return [each for place, value in enumerate(data) for each in _files_of(value, f"{key}.{place}")]
    last = key.rpartition(".")[2]
    file = isinstance(data, str) and (last == "path" or data.endswith(".jaxmlip"))
    return [(key, data)] if file else []


def _there(given: str) -> bool:
    """Whether a file is there; one whose path has an environment variable may be elsewhere."""
    return "$" in given or Path(given).exists()


def _of_folder(path: Path) -> Info:
    """The folder of a run: what was run, and which of its stages are finished; of a training or of a validation."""
    if (path / "verdict.json").is_file():
        found = _of_json(path / "verdict.json", _json(path / "verdict.json") or {})
        return dataclasses.replace(found, path=str(path), kind="folder of a validation")
    record, below = path / "config.json", path / "stages"
    stages = sorted(below.glob("**/stage.json"))
    potentials = [str(each.relative_to(path)) for each in sorted(path.rglob("*.jaxmlip"))]
    if not (record.is_file() or stages or potentials):
        raise ValueError(f"{path} is a folder, but not that of a run: it has no config.json, stages or potentials.")
    said = (_json(record) if record.is_file() else None) or {}
    if not record.is_file() and "potential.jaxmlip" in potentials:  # of `jaxmlip train`
        said = _of_provenance(read_header(path / "potential.jaxmlip").get("provenance", {}))
    config = said.get("config", {})
    errors = _json(path / "errors.json") or {} if (path / "errors.json").is_file() else {}
    errors = {key: value for key, value in errors.items() if "_rmse_" in key and value is not None}
    unfinished = [each.name.removeprefix(".").removesuffix(".partial") for each in below.rglob(".*.partial")]
    facts = {
        "study": config.get("study"),
        "name": config.get("name"),
        "seed": said.get("seed"),
        "stages_s": {str(each.parent.relative_to(below)): (_json(each) or {}).get("wall_s") for each in stages},
        "potentials": potentials,
        "trained": {} if record.is_file() else {key: config[key] for key in TRAINED if config.get(key)},
        "errors of frames held out": errors,
        "versions": said.get("versions", {}),
    }
    odd = [f"The stage {name} is not finished; the same command goes on with it." for name in sorted(unfinished)]
    return Info(str(path), "folder of a run", facts, odd)


TRAINED = ("data", "labels", "replay", "foundation", "strategy")
"""What is said of a training."""


RESULTS = {
    "verdict of a validation": {"verdict", "observables", "settings"},
    "record of a run's configuration": {"config", "versions"},
    "record of a stage": {"key", "inputs", "versions"},
}
"""JSON files of ours, by what they have."""


def _of_json(path: Path, said: dict[str, Any]) -> Info:
    """One of our results."""
    kind = next((name for name, keys in RESULTS.items() if keys <= said.keys()), None)
    if kind is None:
        raise ValueError(f"{path} is a JSON file of no kind that jaxmlip writes; its keys are {', '.join(said)}.")
    shown = {key: value for key, value in said.items() if key not in ("observables", "inputs")}
    if "observables" in said:
        shown["observables"] = {name: each["verdict"] for name, each in said["observables"].items()}
    return Info(str(path), kind, shown, [])


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if it is a database of ASE.

    Raises:
        ValueError: if it is no JSON, or no object.
    """
    try:
        said = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is no readable JSON ({error}).") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return None if {"ids", "nextid"} <= said.keys() else said


def _is_potential(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return HEADER in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def _lines(facts: dict[str, Any], indent: int = 1) -> list[str]:
    """Names and values, tables below their names; what is empty is left out."""
    lines, pad = [], "  " * indent
    for name, value in facts.items():
        if value is None or (isinstance(value, dict | list | tuple) and not value):
            continue
        if isinstance(value, dict) and any(isinstance(each, dict | list) for each in value.values()):
            lines += [f"{pad}{name}", *_lines(value, indent + 1)]
        elif isinstance(value, list) and isinstance(value[0], dict):
            for place, each in enumerate(value):
                lines += [f"{pad}{name} {place}", *_lines(each, indent + 1)]
        else:
            lines.append(f"{pad}{name}: {_word(value)}")
    return lines


def _word(value: Any) -> str:
    """A value in a line: ranges with "to", numbers with as many digits as are worth it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_word(each)}" for name, each in value.items() if each is not None)
    if isinstance(value, list):
        if len(value) == 2 and all(isinstance(each, int | float) for each in value):
            return _word(value[0]) if value[0] == value[1] else f"{_word(value[0])} to {_word(value[1])}"
        return " ".join(map(_word, value))
    return value if isinstance(value, str) else to_json(value, indent=None)
