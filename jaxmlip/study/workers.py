"""Processes, here or on other machines, that share the stages of a study as a graph of Dask's.

A task is one stage. Its process goes through the study's code as the plan does, and makes the stage that is asked for,
holding its lock. So the folder says alone what is done: a worker that dies costs what its stage had not kept, another
worker goes on from there, and a task that is given out twice finds the stage finished.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic

from jaxmlip.registry import IMPORTED, import_members
from jaxmlip.study.plan import PlannedStage, Planner
from jaxmlip.study.registry import study_of
from jaxmlip.study.section import ConfigError, Section
from jaxmlip.study.work import Work
from jaxmlip.study.workspace import Piece, Stage, Workspace

QUEUES = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "oar": "OARCluster",
    "htcondor": "HTCondorCluster",
}
"""Queueing systems, and their classes in dask-jobqueue."""

SCHEDULERS = f"local, {', '.join(QUEUES)}, the address of a Dask scheduler (tcp://host:8786) or its file (.json)"

ANSWERS_WITHIN_S = 30
"""Seconds that a scheduler has to answer."""

SILENT_S = 10.0
"""Seconds without a worker, after which it is said that there is none."""

EXTRA = "install what it needs: uv sync --extra dask, or pip install 'jaxmlip[dask]'"


class Workers(Section):
    """Processes that share the stages of a study, by Dask; all must see the run's folder under the same path."""

    scheduler: str = pydantic.Field(default="local", description=SCHEDULERS)
    number: int = pydantic.Field(
        default=2, ge=1, description="processes on this machine, or jobs to queue; an address has its own"
    )
    options: dict[str, Any] = pydantic.Field(
        default={},
        description="arguments of dask-jobqueue's cluster: {queue: …, memory: 16GB, job_cpu: 8, walltime: …}",
    )
    structures_at_once: int = pydantic.Field(default=100, ge=1, description="structures that one task labels")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        """A number alone stands for so many local processes."""
        return {"number": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @pydantic.model_validator(mode="after")
    def _is_known(self) -> "Workers":
        if self.scheduler not in ("local", *QUEUES) and "://" not in self.scheduler:
            if not self.scheduler.endswith(".json"):
                raise ValueError(f"there is no scheduler {self.scheduler!r}; give {SCHEDULERS}")
            if not Path(self.scheduler).is_file():
                raise ValueError(f"there is no scheduler file {self.scheduler}; start dask scheduler --scheduler-file")
        if self.options and self.scheduler not in QUEUES:
            raise ValueError(f"options are those of queueing systems ({', '.join(QUEUES)}); leave them out")
        return self

    @property
    def known_number(self) -> int:
        """Of workers, where it is decided here; 1 for an address, which may have any."""
        return self.number if self.scheduler in ("local", *QUEUES) else 1

    @property
    def lacking(self) -> str:
        """What to say where there is no worker at all."""
        if self.scheduler == "local":
            return "No worker is there: its processes have not started, or have ended; waiting ..."
        if self.scheduler in QUEUES:
            return f"No worker is there: its {self.number} jobs wait in the queue, or have ended; waiting ..."
        by = "--scheduler-file " if self.scheduler.endswith(".json") else ""
        return (
            f"The scheduler {self.scheduler} has no workers. Start some where jaxmlip is installed and the folder of "
            f"the run is seen: dask worker {by}{self.scheduler} --nthreads 1; waiting ..."
        )


WORKERS: Any = pydantic.Field(
    default=None,
    exclude=True,  # what comes out does not depend on it
    description="processes that share the stages (a number, or scheduler and number); null: this one alone",
)
"""The field of that name in configurations of studies that can be shared."""


def share_stages(config: Any, workspace: Workspace) -> None:
    """Have all stages of a study that are left made by its workers, if the configuration has any.

    Args:
        config: of a registered study that has `stages`.
        workspace: of the run.

    Raises:
        ImportError: if Dask is not installed.
        ConfigError: if the workers cannot be had.
        RuntimeError: if a stage takes one worker after another with it.
        Exception: what a stage raises.
    """
    workers: Workers | None = config.workers
    if workers is None:
        return
    go_through = study_of(config).stages
    assert go_through is not None
    planner = Planner(workspace.folder, sizes=False)
    go_through(config, planner)
    left = [stage for stage in planner.planned.values() if not stage.done]
    if left:
        with connected(workers) as client:
            _run_graph(client, config, workspace, left)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run is, as its workers must know it.

    Attributes:
        folder: of the run, absolute.
        here: folder that relative paths of the configuration are meant from.
        modules: that register members.
        cores: of the machine, which local workers share; none for workers that have what they have.
    """

    folder: Path
    here: Path
    modules: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()


def make_stage(config: Any, place: Place, name: str, *read: Any) -> tuple[str, float, str]:
    """What a worker does: one stage of a study, unless it is there.

    Args:
        config: of the study.
        place: of the run.
        name: of the stage.
        read: results of the tasks that come before.

    Returns:
        The name, how long the stage took in s, and the machine that said so.

    Raises:
        ConfigError: if the worker does not see the folder.
        Exception: what the stage raises.
    """
    del read
    host = socket.gethostname()
    unseen = [str(each) for each in (place.folder, place.here) if not each.is_dir()]
    if unseen:
        raise ConfigError(
            f"A worker on {host} does not see {unseen[0]}: run from, and into (--out), folders that all machines share."
        )
    if place.cores:
        _keep_to(place.cores, config.workers.number)
    os.chdir(place.here)
    import_members(place.modules)
    only = _OneStage(place.folder, name)
    go_through = study_of(config).stages
    assert go_through is not None
    go_through(config, only)
    if only.made is None:
        raise RuntimeError(f"The study has no stage {name} here: are its workers of another version?")
    return name, only.made.wall_s, host


class _OneStage(Planner):
    """Goes through a study and makes one of its stages; the stages that it reads must have been made."""

    def __init__(self, folder: Path, wanted: str) -> None:
        super().__init__(folder, sizes=False)
        self.wanted = wanted
        self.made: Stage | None = None
        self._workspace = Workspace(folder, report=lambda line: None)

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
        """Make the stage if it is the one, else as a plan has it."""
        if name == self.wanted:
            self.made = self._workspace.stage(name, inputs, build, pieces=pieces)
        for piece in pieces:  # also of a stage that is done: Dask repeats tasks whose results went with a worker
            if piece.name == self.wanted:
                self.made = self._workspace.stage(piece.name, piece.inputs, piece.build)
        return super().stage(name, inputs, build, after=after)


@contextlib.contextmanager
def connected(workers: Workers) -> Iterator[Any]:
    """A client of Dask's with workers, which end with it where they were started for it.

    Raises:
        ImportError: if Dask is not installed.
        ConfigError: if a scheduler does not answer, or a queueing system refuses its options.
    """
    try:
        import distributed
    except ImportError:
        raise ImportError(f"workers needs Dask; {EXTRA}, or leave workers out.") from None
    with contextlib.ExitStack() as open_:
        try:
            if workers.scheduler in QUEUES:
                cluster = open_.enter_context(_queued(workers))
                client = open_.enter_context(distributed.Client(cluster))
            elif workers.scheduler == "local":
                cluster = open_.enter_context(_local(distributed, workers.number))
                client = open_.enter_context(distributed.Client(cluster))
            else:
                by = "scheduler_file" if workers.scheduler.endswith(".json") else "address"
                where: dict[str, Any] = {by: workers.scheduler}
                client = open_.enter_context(distributed.Client(**where, timeout=ANSWERS_WITHIN_S))
        except (OSError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"workers: {workers.scheduler} gives no workers: {str(error).rstrip('.')}.") from error
        yield client


def _local(distributed: Any, number: int) -> Any:
    """Processes of this machine, each of which makes one stage at a time."""
    return distributed.LocalCluster(
        n_workers=number,
        threads_per_worker=1,
        memory_limit=0,
        dashboard_address=None,
        host="127.0.0.1",
        silence_logs=logging.CRITICAL,
    )


def _keep_to(cores: Sequence[int], number: int) -> None:
    """Keep a local worker to its share of the cores: programs of XLA use all that their process may."""
    import distributed

    place = int(distributed.get_worker().name) % number
    mine = cores[place::number] or [cores[place % len(cores)]]
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), mine)


def _run_graph(client: Any, config: Any, workspace: Workspace, left: Sequence[PlannedStage]) -> None:
    """Hand out the stages, each after those that it reads, and wait for all."""
    import distributed

    local = config.workers.scheduler == "local" and hasattr(os, "sched_getaffinity")
    cores = tuple(sorted(os.sched_getaffinity(0))) if local else ()
    place, run = Place(workspace.folder.resolve(), Path.cwd(), tuple(IMPORTED), cores), uuid.uuid4().hex
    tasks: dict[str, Any] = {}
    for stage in left:
        read = [tasks[name] for name in stage.after if name in tasks]
        # Of this run alone: what another has seen finished may have been deleted since.
        key = f"{stage.name}-{run}"
        tasks[stage.name] = client.submit(make_stage, config, place, stage.name, *read, key=key)
    workspace.report(f"{len(tasks)} stages for {config.workers.scheduler} workers ...")
    try:
        with _watched(client, config.workers, workspace.report):
            for _, (name, wall_s, host) in distributed.as_completed([*tasks.values()], with_results=True):
                workspace.report(f"{name}: {wall_s:.1f} s on {host}")
    except distributed.KilledWorker as error:
        raise RuntimeError(
            f"{str(error.task).removesuffix(f'-{run}')} took one worker after another with it, by lack of memory most "
            "likely: give workers more, or fewer of them. What was finished is kept, and the same command goes on."
        ) from error
    finally:
        client.cancel([*tasks.values()])


@contextlib.contextmanager
def _watched(client: Any, workers: Workers, report: Callable[[str], None]) -> Iterator[None]:
    """Say so where there are no workers, once each time: Dask waits for them without a word and without end."""
    ended = threading.Event()

    def look() -> None:
        said = False
        while not ended.wait(SILENT_S):
            try:
                lacking = not client.scheduler_info()["workers"]
            except (OSError, RuntimeError, TimeoutError):  # the scheduler is gone: who waits for results says so
                return
            if lacking and not said and not ended.is_set():
                report(workers.lacking)
            said = lacking

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join(timeout=SILENT_S)


def _queued(workers: Workers) -> Any:
    """Jobs of a queueing system, each one process that makes one stage at a time."""
    try:
        import dask_jobqueue
    except ImportError:
        raise ImportError(f"workers.scheduler: {workers.scheduler} needs dask-jobqueue; {EXTRA}.") from None
    kind = getattr(dask_jobqueue, QUEUES[workers.scheduler])
    command = kind.job_cls.submit_command.split()[0]
    if shutil.which(command) is None:
        raise ValueError(f"there is no {command} on this machine; start the run where jobs are submitted")
    cluster = kind(**{"cores": 1, "processes": 1} | workers.options)
    cluster.scale(jobs=workers.number)
    return cluster
