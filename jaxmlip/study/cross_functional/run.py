"""The study across functionals from its configuration to its report."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from jaxmlip.files import write_json
from jaxmlip.study.cross_functional.config import CrossFunctional
from jaxmlip.study.cross_functional.data import prepare
from jaxmlip.study.cross_functional.report import summary_table, write_report
from jaxmlip.study.cross_functional.stages import Context, go_through, run_cases
from jaxmlip.study.cross_functional.summary import analyse
from jaxmlip.study.registry import register_study
from jaxmlip.study.workers import share_stages
from jaxmlip.study.workspace import Workspace
from jaxmlip.versions import versions


def told(summary: dict[str, Any], folder: Path) -> str:
    """What the command line says of a finished study."""
    return f"{summary_table(summary)}\nWrote {folder / 'report.html'} and {folder / 'summary.json'}."


@register_study(CrossFunctional, told=told, stages=go_through)
def run_cross_functional(config: CrossFunctional, folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Run the study in a folder, or what is left of it, and return the content of its `summary.json`.

    The folder then holds `config.json` (resolved, with versions and seed), `summary.json`, `report.html` and `stages/`
    with structures, labels, potentials and errors. Several processes may work in one folder: each takes trainings that
    no other is at work on, and ends when all are done.

    Raises:
        ConfigError: if the configuration asks for what cannot be done; before the stage that cannot.
        FileNotFoundError: if a file of labels is missing.
        ValueError: for structures or files that cannot be used.
    """
    workspace = Workspace(folder, report=print if progress else lambda line: None)
    resolved = config.model_dump(mode="json")
    with workspace.claimed("results", wait=True):
        write_json(folder / "config.json", {"config": resolved, "seed": config.seed, "versions": versions()})
    share_stages(config, workspace)
    data = prepare(config, workspace)
    tests = run_cases(Context(config, workspace, data, progress))

    def report(made: Path) -> None:
        start = time.perf_counter()
        analysis = analyse(config, data, tests)
        spent = {name: stage.wall_s for name, stage in workspace.stages.items()}
        spent["report"] = time.perf_counter() - start
        analysis.summary.update(wall_s=sum(spent.values()), stages_s=spent)
        write_json(made / "summary.json", analysis.summary)
        write_report(made / "report.html", config, analysis)

    with workspace.claimed("results", wait=True):
        inputs = {"tests": {case.name: stage for case, stage in tests.items()}, "config": resolved}
        finished = workspace.stage("report", inputs, report)
        for file in ("summary.json", "report.html"):
            shutil.copy(finished.folder / file, folder / file)
    return json.loads((folder / "summary.json").read_text())
