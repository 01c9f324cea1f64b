"""Clusters to bulk from its configuration to its report."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from jaxmlip.files import write_json
from jaxmlip.study.clusters_to_bulk.config import ClustersToBulk
from jaxmlip.study.clusters_to_bulk.report import summary_table, write_report
from jaxmlip.study.clusters_to_bulk.stages import run_stages
from jaxmlip.study.clusters_to_bulk.summary import analyse
from jaxmlip.study.registry import register_study
from jaxmlip.study.workers import share_stages
from jaxmlip.study.workspace import Workspace
from jaxmlip.versions import versions


def told(summary: dict[str, Any], folder: Path) -> str:
    """What the command line says of a finished study."""
    return f"{summary_table(summary)}\nWrote {folder / 'report.html'} and {folder / 'summary.json'}."


def _stages(config: ClustersToBulk, workspace: Workspace) -> None:
    """For plans and workers: all but the report."""
    run_stages(config, workspace, progress=False)


@register_study(ClustersToBulk, told=told, stages=_stages)
def run_study(config: ClustersToBulk, folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Run a study in a folder, or what is left of it, and return the content of its `summary.json`.

    The folder then holds `config.json` (resolved, with versions and seed), `summary.json`, `report.html` and
    `stages/` with structures, labels, potentials and trajectories.

    Raises:
        ConfigError: if the configuration asks for what cannot be done; before the stage that cannot.
        RuntimeError: if another run is at work in the folder.
    """
    workspace = Workspace(folder, report=print if progress else lambda line: None)
    with workspace.locked():
        resolved = config.model_dump(mode="json")
        write_json(folder / "config.json", {"config": resolved, "seed": config.seed, "versions": versions()})
        share_stages(config, workspace)
        results = run_stages(config, workspace, progress=progress)

        def report(made: Path) -> None:
            start = time.perf_counter()
            analysis = analyse(config, results)
            spent = {name: stage.wall_s for name, stage in workspace.stages.items()}
            spent["report"] = time.perf_counter() - start
            analysis.summary.update(wall_s=sum(spent.values()), stages_s=spent)
            write_json(made / "summary.json", analysis.summary)
            write_report(made / "report.html", config, analysis, results)

        inputs = {"students": results.students, "runs": results.runs, "test": results.test, "config": resolved}
        finished = workspace.stage("report", inputs, report)
        for file in ("summary.json", "report.html"):
            shutil.copy(finished.folder / file, folder / file)
    return json.loads((folder / "summary.json").read_text())
