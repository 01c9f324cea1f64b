"""The folder of a run: stages cached by what went into them, written whole or not at all."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock

from jaxmlip.files import plain, write_json
from jaxmlip.study.work import Work
from jaxmlip.versions import versions

RESUMABLE = "training"
"""Subfolder of a stage in which a killed build leaves what the next goes on from."""

KEY = "key"
"""File of an unfinished stage that says from which inputs it is made."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        folder: where its files are.
        key: digest of its inputs, those of the stages before it included.
        wall_s: how long it took when it was made, s.
        planned: whether it is still to be made: its folder holds nothing of use. Stages are so where a study is gone
            through without running it.
    """

    folder: Path
    key: str
    wall_s: float
    planned: bool = False


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a stage that is a stage of its own, so that several processes can share it; see `Workspace.stage`."""

    name: str
    inputs: dict[str, Any]
    build: Callable[[Path], None]
    work: Callable[[], Work] | None = None


class Workspace:
    """Runs stages, each in a folder of its own below `stages/`.

    A stage whose folder was made from the same inputs is not run again. A stage is built in a temporary folder that is
    renamed when complete: a killed run leaves finished stages and nothing half written. Only what a build has put into
    the subfolder `RESUMABLE` is there for the next one with the same inputs. While one process builds a stage, others
    that come to it wait.

    A study whose code reads files of its stages in builds alone can be gone through without running it: that is how it
    is planned, and how each of many processes finds the one stage that it is to make (see `jaxmlip.study.plan`).
    """

    def __init__(self, folder: Path, report: Callable[[str], None] = print):
        """Use (and make) a folder; `report` receives one line per stage."""
        self.folder = folder
        self.report = report
        self.stages: dict[str, Stage] = {}
        (folder / "stages").mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            RuntimeError: if another process holds it.
        """
        with self.claimed("all", wait=False) as mine:
            if not mine:
                raise RuntimeError(f"Another run is at work in {self.folder}; wait for it, or give another --out.")
            yield

    @contextlib.contextmanager
    def claimed(self, part: str, *, wait: bool) -> Iterator[bool]:
        """Hold one part of the folder for this process, which then shares the folder with others.

        Args:
            part: a stage, or what else has a name.
            wait: until a process that holds the part lets go of it, or ends.

        Yields:
            Whether the part is held; always if `wait`.
        """
        locks = self.folder / ".locks"
        locks.mkdir(exist_ok=True)
        try:
            held = filelock.FileLock(locks / part).acquire(blocking=wait)
        except filelock.Timeout:
            yield False
            return
        with held:
            yield True

    def dealt(self, parts: Sequence[str]) -> Iterator[int]:
        """Numbers of parts, each held while it is worked on; those that another process is at work on come last.

        When they have all been gone through, every part is finished, by this process or another.
        """
        done = set()
        for wait in (False, True):
            for number, part in enumerate(parts):
                if number not in done:
                    with self.claimed(part, wait=wait) as mine:
                        if mine:
                            yield number
                            done.add(number)

    def stage(
        self,
        name: str,
        inputs: dict[str, Any],
        build: Callable[[Path], None],
        *,
        after: Sequence[Stage] = (),
        pieces: Sequence[Piece] = (),
        work: Callable[[], Work] | None = None,
    ) -> Stage:
        """Return the stage `name`, building it into a folder unless the same inputs have made it before.

        Args:
            name: folder below `stages/`.
            inputs: plain data and earlier stages that determine the result.
            build: writes the stage's files into the folder it is given.
            after: stages that `build` reads and `inputs` has no more than a digest of.
            pieces: stages that `build` reads, of no use to others; they are made before it, if it is made.
            work: says what there is to do, for plans.
        """
        del after, work  # which are for who goes through the study without running it
        finished = self.finished(name, inputs)
        if finished is None:
            for piece in pieces:
                self.stage(piece.name, piece.inputs, piece.build)
            with self.claimed(f"{name}.stage", wait=True):
                finished = self.finished(name, inputs)  # by another process meanwhile
                if finished is None:
                    self.stages[name] = self._built(name, inputs, build)
                    return self.stages[name]
        self.report(f"{name}: kept from an earlier run")
        self.stages[name] = finished
        return finished

    def _built(self, name: str, inputs: dict[str, Any], build: Callable[[Path], None]) -> Stage:
        """Build a stage into its folder."""
        folder, key = self.folder / "stages" / name, stage_key(name, inputs)
        self.report(f"{name} ...")
        partial = folder.with_name(f".{name}.partial")
        _clear(partial, key)
        start = time.perf_counter()
        build(partial)
        wall_s = time.perf_counter() - start
        made = {"key": key, "wall_s": wall_s, "inputs": inputs, "versions": versions()}
        write_json(partial / "stage.json", made, default=_plain)
        (partial / KEY).unlink()
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        self.report(f"{name}: {wall_s:.1f} s")
        return Stage(folder, key, wall_s)

    def finished(self, name: str, inputs: dict[str, Any]) -> Stage | None:
        """The stage `name`, if the same inputs have made it before."""
        folder, key = self.folder / "stages" / name, stage_key(name, inputs)
        record = folder / "stage.json"
        if record.exists() and (made := json.loads(record.read_text()))["key"] == key:
            return Stage(folder, key, made["wall_s"])
        return None


def stage_key(name: str, inputs: dict[str, Any]) -> str:
    """Digest of what decides a stage, by which it is known again."""
    return content_digest({"stage": name, "inputs": inputs, "jaxmlip": version("jaxmlip")})


def _clear(partial: Path, key: str) -> None:
    """An empty folder for a build, but for what an earlier one with the same inputs has left to go on from."""
    same = (partial / KEY).exists() and (partial / KEY).read_text() == key
    for path in partial.iterdir() if partial.exists() else []:
        if not (same and path.name == RESUMABLE):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    partial.mkdir(parents=True, exist_ok=True)
    (partial / KEY).write_text(key)


def seed_for(seed: int, purpose: str) -> int:
    """An independent 32-bit seed for each purpose, from the one seed of a study."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:4], "little")


def content_digest(content: Any) -> str:
    """SHA-256 of plain data, models and stages."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """What JSON writes for our own types: a stage stands for its key, a model for its fields."""
    return value.key if isinstance(value, Stage) else plain(value)
