"""The studies by their names: for each a configuration, what runs it, and what the command line says of its result."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from jaxmlip.registry import Registry
from jaxmlip.study.plan import Plan, plan_of_stages
from jaxmlip.study.section import Section
from jaxmlip.study.workspace import Workspace

Runner = TypeVar("Runner", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Study:
    """A study as the command line knows it.

    Attributes:
        config: class of its configuration; the default of its field `study` is its name, and `name` that of a run.
        run: runs it, or what is left of it, `run(config, folder, progress=…)`, and returns its result.
        told: what is said of a result, `told(result, folder)`, in lines.
        command: of the command line that runs it.
        stages: goes through its stages, `stages(config, workspace)`, reading files of stages in builds alone; None if
            it is one piece, which can be neither planned in advance nor shared by workers.
        planned: what it would do, `planned(config, folder)`, for a study without such stages that can say so.
    """

    config: type[Section]
    run: Callable[..., Any]
    told: Callable[[Any, Path], str]
    command: Literal["run", "train"] = "run"
    stages: Callable[[Any, Workspace], Any] | None = None
    planned: Callable[[Any, Path], Plan] | None = None

    @property
    def name(self) -> str:
        """As configurations spell it."""
        return self.config.model_fields["study"].default

    def plan(self, config: Any, folder: Path) -> Plan:
        """What a run in a folder would do; nothing is made or written.

        Raises:
            ValueError: where a run would be refused before its first stage, as `run` does; likewise
                FileNotFoundError, and what else it raises.
        """
        if self.planned is not None:
            return self.planned(config, folder)
        stages, workers = self.stages, getattr(config, "workers", None)
        if stages is None:
            return Plan(self.name, folder, None)
        number = 1 if workers is None else workers.known_number
        return plan_of_stages(self.name, folder, lambda workspace: stages(config, workspace), number)


STUDIES: Registry[Study] = Registry(
    "study",
    "jaxmlip.studies",
    {
        "clusters_to_bulk": "jaxmlip.study.clusters_to_bulk.run",
        "cross_functional": "jaxmlip.study.cross_functional.run",
        "learning_curve": "jaxmlip.study.learning_curve.run",
        "train": "jaxmlip.study.train_one",
    },
)
"""Studies by name; those of other packages by an entry point of the group `jaxmlip.studies`."""


def register_study(
    config: type[Section],
    *,
    told: Callable[[Any, Path], str],
    command: Literal["run", "train"] = "run",
    stages: Callable[[Any, Workspace], Any] | None = None,
    planned: Callable[[Any, Path], Plan] | None = None,
) -> Callable[[Runner], Runner]:
    """Decorator of the function that runs a study, by which configurations and the command line know it.

        @register_study(Melting, told=lambda result, folder: f"It melts at {result:.0f} K.")
        def run_melting(config: Melting, folder: Path, *, progress: bool = True) -> float:
            ...

    Args:
        config: a `Section` with fields `study: Literal["melting"] = "melting"` and `name`.
        told: what the command line says of a result.
        command: that runs it.
        stages: see `Study`.
        planned: likewise.

    Raises:
        ValueError: if the configuration does not name the study and its runs, or the name is another's.
    """
    fields = config.model_fields
    if not {"study", "name"} <= fields.keys() or not isinstance(fields["study"].default, str):
        raise ValueError(
            f"{config.__name__} needs a field study: Literal['its_name'] = 'its_name', and a field name for its runs."
        )

    def registered(run: Runner) -> Runner:
        STUDIES.register(fields["study"].default, Study(config, run, told, command, stages, planned), config)
        return run

    return registered


def study_of(config: Section) -> Study:
    """The study that a checked configuration is of."""
    return STUDIES[type(config).model_fields["study"].default]
