"""What a run would do: its stages, what is done already, about how long the rest takes. Nothing is made or written."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmlip.describing import count
from jaxmlip.study.work import COMPILING_S, MEASURED, Work
from jaxmlip.study.workspace import Piece, Stage, Workspace, stage_key


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """A stage as a plan knows it.

    Attributes:
        name: of its folder.
        key: digest of its inputs.
        done: whether it is there, made from the same inputs.
        after: names of the stages that it reads.
        work: what there is to do, or was; None where the study does not say.
        wall_s: how long it took, if it is done.
    """

    name: str
    key: str
    done: bool
    after: tuple[str, ...]
    work: Work | None = None
    wall_s: float = 0.0


class Planner(Workspace):
    """Goes through the stages of a study, in the order of its code, without making any; writes nothing."""

    def __init__(self, folder: Path, *, sizes: bool = True) -> None:
        """Look at a folder, which need not be there; with sizes, ask stages what they have to do."""
        self.sizes = sizes
        self.folder = folder
        self.report = lambda line: None
        self.stages: dict[str, Stage] = {}
        self.planned: dict[str, PlannedStage] = {}

    @contextlib.contextmanager
    def claimed(self, part: str, *, wait: bool) -> Iterator[bool]:
        """Nothing is held by who makes nothing."""
        yield True

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
        """The finished stage, or one that is still to be made."""
        key = stage_key(name, inputs)
        made = self.finished(name, inputs)
        stage = made or Stage(self.folder / "stages" / name, key, 0.0, planned=True)
        before = {read.folder.name: None for read in (*_stages_in(inputs), *after)}
        if made is None:
            before |= {piece.name: None for piece in pieces}
            for piece in pieces:
                self.stage(piece.name, piece.inputs, piece.build, work=piece.work)
        todo = work() if work is not None and self.sizes else None
        self.planned[name] = PlannedStage(name, key, made is not None, tuple(before), todo, stage.wall_s)
        self.stages[name] = stage
        return stage


def _stages_in(value: Any) -> Iterator[Stage]:
    """The stages in inputs, however deep."""
    if isinstance(value, Stage):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _stages_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _stages_in(each)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would do; as text, what `jaxmlip run --dry-run` prints.

    Attributes:
        study: its name.
        folder: of the run.
        stages: in the order in which they are made, each after those that it reads; None if the study does not say.
        workers: processes that share them.
    """

    study: str
    folder: Path
    stages: tuple[PlannedStage, ...] | None
    workers: int = 1

    @property
    def left(self) -> list[PlannedStage]:
        """The stages that are still to be made."""
        return [stage for stage in self.stages or () if not stage.done]

    def rates(self) -> dict[tuple[str, str], float]:
        """Seconds per atom of what has been done in the folder, by kind of work and model."""
        spent: dict[tuple[str, str], list[float]] = {}
        for stage in self.stages or ():
            work = stage.work
            if stage.done and work is not None and work.cost is not None and work.atoms:
                total = spent.setdefault(work.rate, [0.0, 0.0])
                total[0] += stage.wall_s
                total[1] += work.atoms
        return {rate: seconds / atoms for rate, (seconds, atoms) in spent.items()}

    def seconds(self) -> dict[str, float]:
        """About how long each stage that is left takes, s; NaN where nothing is known of it."""
        rates, compiled, found = self.rates(), set(), {}
        for stage in self.left:
            work = stage.work
            if work is None or work.atoms is None:
                found[stage.name] = math.nan
                continue
            own = rates.get(work.rate)
            per_atom = work.seconds_per_atom() if own is None else own
            found[stage.name] = math.nan if per_atom is None else per_atom * work.atoms
            if own is None and (work.kind, work.rate) not in compiled:
                compiled.add((work.kind, work.rate))
                found[stage.name] += COMPILING_S.get(work.kind, 0.0)
        return found

    def seconds_together(self) -> float:
        """About how long the workers take for what is known, s: no less than the longest chain of stages."""
        each = {name: 0.0 if math.isnan(value) else value for name, value in self.seconds().items()}
        ends: dict[str, float] = {}
        for stage in self.left:
            ends[stage.name] = each[stage.name] + max((ends.get(name, 0.0) for name in stage.after), default=0.0)
        return max(sum(each.values()) / self.workers, max(ends.values(), default=0.0))

    def __str__(self) -> str:
        """A line for each stage or several alike, then what it comes to."""
        nothing = "Nothing was computed, written or downloaded."
        if self.stages is None:
            return (
                f"{self.study} in {self.folder}: the configuration can be used; which stages it has, this study does "
                f"not say before it runs. {nothing}"
            )
        done = len(self.stages) - len(self.left)
        head = f"{self.study} in {self.folder}: {count(len(self.stages), 'stage')}, {done} done. {nothing}"
        seconds = self.seconds()
        alike: dict[Any, list[PlannedStage]] = {}
        for stage in self.stages:
            alike.setdefault(_likeness(stage), []).append(stage)
        rows = [_row(stages, seconds) for stages in alike.values()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows]
        lines = [f"{line}  {row[3]}".rstrip() for line, row in zip(table, rows, strict=True)]
        return "\n".join([head, "", *lines, "", *self._sums(seconds)])

    def _sums(self, seconds: Mapping[str, float]) -> list[str]:
        """What is left in all, and where the numbers come from."""
        if not self.left:
            return ["All stages are done: a run would print its results."]
        kinds = [stage.work.kind for stage in self.left if stage.work is not None]
        named = {"labels": "set of labels", "training": "training", "simulation": "simulation"}
        parts = [_several(kinds.count(kind), what) for kind, what in named.items() if kind in kinds]
        unknown = sum(math.isnan(value) for value in seconds.values())
        known = self.seconds_together()
        alone = f"{_duration(known)}" + ("" if self.workers == 1 else f" with {self.workers} workers")
        lines = [f"To do: {', '.join(parts) or _several(len(self.left), 'stage')}."]
        if unknown == len(seconds):
            lines.append("How long that takes is not known: neither sizes nor throughputs of these stages are.")
        else:
            lines.append(f"Estimated time: {alone}{_without(unknown)}. An estimate, good to a factor of three or so:")
            lines.append(f"throughputs are {self._origin()}. Trainings are taken at full length.")
        memory = max((stage.work.memory_gib for stage in self.left if stage.work is not None), default=0.0)
        if memory:
            lines.append(f"Estimated memory: {memory:.1f} GiB for each process, as measured on a CPU.")
        return lines

    def _origin(self) -> str:
        here = {stage.work.rate for stage in self.left if stage.work is not None and stage.work.cost is not None}
        found = here & self.rates().keys()
        if found and found == here:
            return "those of the stages that are done here"
        others = f"those of {MEASURED}, whatever this machine is"
        return f"those of the stages that are done here where there are such, else {others}" if found else others


def plan_of_stages(study: str, folder: Path, go_through: Callable[[Workspace], Any], workers: int = 1) -> Plan:
    """Plan a study whose code can be gone through without running it.

    Args:
        study: its name.
        folder: of the run.
        go_through: comes to each stage once, by the workspace that it is given.
        workers: processes that will share the stages.
    """
    planner = Planner(folder)
    go_through(planner)
    return Plan(study, folder, tuple(planner.planned.values()), workers)


def _likeness(stage: PlannedStage) -> Any:
    """Stages of one line: those that have as much to do of the same."""
    work = stage.work
    return (stage.name if work is None or work.kind in ("structures", "report") else (work.kind, work.sizes),)


def _row(alike: Sequence[PlannedStage], seconds: Mapping[str, float]) -> tuple[str, str, str, str]:
    """Names, what there is to do, how much of it is done, and the time that the rest takes."""
    work, done = alike[0].work, sum(stage.done for stage in alike)
    names = alike[0].name if len(alike) == 1 else f"{alike[0].name} and {len(alike) - 1} more"
    what = "" if work is None else f"{work.kind}: {work.sizes}" if work.sizes else work.kind
    state = {0: "to do", len(alike): "done"}.get(done, f"{done} of {len(alike)} done")
    left = [seconds[stage.name] for stage in alike if not stage.done]
    known = sum(left)
    times = "" if not left else "time not known" if math.isnan(known) else f"about {_duration(known)}" if known else ""
    return names, what, state, times


def _without(unknown: int) -> str:
    return f", without {_several(unknown, 'stage')} of which nothing is known before" if unknown else ""


def _several(number: int, what: str) -> str:
    """A number of things, plurals of `set of labels` included."""
    if what == "set of labels":
        return "1 set of labels" if number == 1 else f"{number} sets of labels"
    return count(number, what)


def _duration(seconds: float) -> str:
    """To two digits or so: "40 s", "12 min", "3.5 h", "4 days"."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{math.ceil(seconds)} s"
