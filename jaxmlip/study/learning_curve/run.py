"""Learning curves on labels that are there: a foundation, lifted with N accurate labels by every strategy.

Every potential is a stage of its own whose key holds what it depends on and nothing else, so that a part of the grid
and the whole of it share their potentials in one folder.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from jaxmlip.files import to_json, write_json
from jaxmlip.study.learning_curve.config import LearningCurve
from jaxmlip.study.learning_curve.report import write_results
from jaxmlip.study.learning_curve.stages import FOUNDATION, Context, checked, go_through, grid_of, run_stages
from jaxmlip.study.registry import register_study
from jaxmlip.study.workers import share_stages
from jaxmlip.study.workspace import Stage, Workspace
from jaxmlip.versions import versions


def told(results: dict[str, Any], folder: Path) -> str:
    """What the command line says of finished runs."""
    del results
    files = f"{folder / 'results.json'}, {folder / 'learning_curves.png'} and {folder / 'potentials'}"
    return f"{(folder / 'table.md').read_text()}\nWrote {files}."


@register_study(LearningCurve, told=told, stages=go_through)
def run_learning_curve(config: LearningCurve, folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train the grid in a folder, or what is left of it, and return the content of its `results.json`.

    The folder then holds `potentials/<strategy>-<labels>-<N>-<seed>.jaxmlip`, `results.json`, `table.md`,
    `learning_curves.png`, `config.json` and `stages/`. The results cover every run in the folder that differs from the
    configuration's in strategy, labels, size and seed only. Several processes may work in one folder: each takes runs
    that no other is at work on, and ends when all are done.

    Raises:
        ConfigError: if a path names an environment variable that is not set, or there are fewer frames than a size.
        FileNotFoundError: if a file is missing.
    """
    workspace = Workspace(folder, report=print if progress else lambda line: None)
    study = checked(Context(config, workspace, progress))
    (folder / "potentials").mkdir(exist_ok=True)
    with workspace.claimed("results", wait=True):
        resolved = config.model_dump(mode="json")
        write_json(folder / "config.json", {"config": resolved, "seeds": config.seeds, "versions": versions()})
    share_stages(config, workspace)

    def publish(name: str, stage: Stage) -> None:
        shutil.copy(stage.folder / "potential.jaxmlip", folder / "potentials" / f"{name}.jaxmlip")
        with workspace.claimed("results", wait=True):
            write_results(folder, config, _records(study))

    clock = _Clock(study)
    run_stages(study, clock.announce, publish)
    return json.loads((folder / "results.json").read_text())


def _records(study: Context) -> list[dict[str, Any]]:
    """What the finished runs in the folder have given, those of other parts of the same grid included."""
    test = json.loads(to_json(study.config.test.identity()))
    strategies = {strategy.called: strategy.model_dump(mode="json") for strategy in study.config.strategies}
    records = []
    for tested in sorted((study.workspace.folder / "stages").glob("test-*")):
        folder = tested.with_name(tested.name.removeprefix("test-"))
        made, judged = (json.loads((one / "stage.json").read_text()) for one in (folder, tested))
        if judged["inputs"] != {"potential": made["key"], "test": test}:
            continue
        record = {"potential": f"potentials/{folder.name}.jaxmlip", "wall_s": made["wall_s"]}
        if folder.name == FOUNDATION:
            record |= {"strategy": FOUNDATION}
        else:
            inputs = made["inputs"]
            called = inputs["strategy"]["title"] or inputs["strategy"]["name"]
            if inputs["common"] != study.common or strategies.get(called, inputs["strategy"]) != inputs["strategy"]:
                continue
            record |= {"strategy": called, "settings": inputs["strategy"]}
            record |= {key: inputs[key] for key in ("labels", "size", "seed")}
            record |= json.loads((folder / "outcome.json").read_text())
        records.append(record | json.loads((tested / "errors.json").read_text()))
    return records


class _Clock:
    """Says before a run how many there are to come, and how long they will take."""

    def __init__(self, study: Context) -> None:
        self._study = study
        self._grid = grid_of(study.config)
        self._made: list[bool] = []
        self._started = 0.0

    def announce(self, number: int) -> None:
        """Before the run of this number."""
        if not self._made:  # the first: the foundation is there, on which the inputs of all depend
            finished = self._study.workspace.finished
            self._made = [finished(run.name, self._study.inputs(run)) is not None for run in self._grid]
            self._started = time.perf_counter()
        if self._made[number]:
            return
        left = len(self._grid) - number - sum(self._made[number:])
        done = len(self._grid) - sum(self._made) - left
        spent = time.perf_counter() - self._started
        estimate = f", about {spent / done * left / 60:.0f} min left" if done else ""
        self._study.workspace.report(f"run {number + 1} of {len(self._grid)}{estimate}")
