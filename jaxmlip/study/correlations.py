"""Which errors of students tell those of their simulations, over all studies in a folder."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxmlip.study.plots import LABEL_MARKERS, readable, strategy_color
from jaxmlip.validation.correlation import Correlation, correlation

STUDY = "clusters_to_bulk"
"""Kind of study whose summaries have both errors and observables."""

PREDICTORS = ("force_rmse_meV_A", "energy_rmse_meV_atom", "energy_std_meV_atom")
"""Errors on test frames, by their names in summaries; the last without its mean."""

VARIED = ("name", "seed", "seeds", "strategies", "labels")
"""Keys of a configuration that do not belong to its setting."""

DEVIATION = "_deviation"
"""In the names of differences that have a sign."""


@dataclasses.dataclass(frozen=True)
class StudentErrors:
    """The errors of one student of one study.

    Attributes:
        source: the summary.
        strategy: it was made by.
        labels: it was made with.
        number: clusters cut for the study, training and validation; None where no configuration says so.
        seed: of the study.
        setting: all else that the configuration says, and the teachers.
        errors: on test frames and of observables, by name; absolute values.
        draw: which of the students of one study that differ in their seeds.
    """

    source: Path
    strategy: str
    labels: str
    number: int | None
    seed: int
    setting: str
    errors: dict[str, float]
    draw: int = 0

    @property
    def cluster(self) -> tuple[Any, ...]:
        """What students have in common that differ in their seed alone."""
        return self.strategy, self.labels, self.number, self.setting


def read_students(folder: Path | str) -> list[StudentErrors]:
    """All lifted students of the studies in a folder, however deep, by their `summary.json`; a study twice counts once.

    Raises:
        FileNotFoundError: if there is no such folder, or no summary of a study of clusters and bulk in it.
        ValueError: if a summary is damaged.
    """
    students: list[StudentErrors] = []
    for path, (summary, config) in read_summaries(folder).items():
        students += students_of(summary, config, path)
    if not students:
        raise FileNotFoundError(f"{folder} holds no summary.json of a study {STUDY} with students in it.")
    return students


def read_summaries(folder: Path | str) -> dict[Path, tuple[dict[str, Any], dict[str, Any] | None]]:
    """The summaries of the studies in a folder, with their configurations where they are known; see `read_students`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    found: dict[Path, tuple[dict[str, Any], dict[str, Any] | None]] = {}
    seen: set[str] = set()
    for path in sorted(folder.rglob("summary.json")):
        if "stages" in path.relative_to(folder).parts:  # where a study keeps what its own summary is copied from
            continue
        config = path.with_name("config.json")
        try:
            summary = json.loads(text := path.read_text())
            if isinstance(summary, dict) and summary.get("study") == STUDY and text not in seen:
                found[path] = summary, json.loads(config.read_text())["config"] if config.is_file() else None
                seen.add(text)
        except (KeyError, TypeError, ValueError) as error:  # of JSON and of its encoding, too
            raise ValueError(damaged(path, repr(error))) from None
    return found


def damaged(path: Path, what: str) -> str:
    """The sentence for a summary, or the configuration beside it, that cannot be used."""
    return f"{path} is damaged, or config.json beside it ({what}): run its study again, or move its folder away."


def correlate(
    students: Sequence[StudentErrors], *, level: float | int = 0.95
) -> dict[tuple[str, str], tuple[Correlation, int]]:
    """Correlations of each observable's error with the errors on test frames.

    Args:
        students: from `read_students`.
        level: of the intervals.

    Returns:
        By names of observable and predictor: the correlation, and how many students were left out because one of the
        two is not known (as where a simulation has failed).

    Raises:
        ValueError: if fewer than three students have any observable.
    """
    observables = sorted({name for student in students for name in student.errors} - set(PREDICTORS))
    found = {}
    for observable in observables:
        for predictor in PREDICTORS:
            kept = [each for each in students if observable in each.errors and predictor in each.errors]
            if len(kept) >= 3:
                x, y = (np.array([each.errors[name] for each in kept]) for name in (predictor, observable))
                one = correlation(x, y, clusters=[each.cluster for each in kept], level=level)
                found[observable, predictor] = one, len(students) - len(kept)
    if not found:
        raise ValueError(
            f"Of {len(students)} students fewer than 3 have the error of any observable: nothing can be correlated."
        )
    return found


def draw(ax: Axes, students: Sequence[StudentErrors], observable: str, predictor: str) -> None:
    """One observable's error against an error on test frames: a point for each student, with the coefficients.

    Args:
        ax: axes to draw into.
        students: from `read_students`.
        observable: name of an error of an observable.
        predictor: name of an error on test frames.

    Raises:
        ValueError: if fewer than three students have both.
    """
    kept = [each for each in students if observable in each.errors and predictor in each.errors]
    x, y = (np.array([each.errors[name] for each in kept]) for name in (predictor, observable))
    found = correlation(x, y, clusters=[each.cluster for each in kept])
    for strategy, labels in dict.fromkeys((each.strategy, each.labels) for each in kept):
        mine = np.array([(each.strategy, each.labels) == (strategy, labels) for each in kept])
        marker, color = LABEL_MARKERS.get(labels, "^"), strategy_color(strategy)
        ax.scatter(x[mine], y[mine], s=22, marker=marker, color=color, label=readable(f"{strategy}.{labels}"))
    (low, high), (down, up) = found.pearson_interval, found.spearman_interval
    title = f"r = {found.pearson:.2f} [{low:.2f}, {high:.2f}], ρ = {found.spearman:.2f} [{down:.2f}, {up:.2f}]"
    if np.isnan(low):
        title = f"r = {found.pearson:.2f}, ρ = {found.spearman:.2f} (too few students for intervals)"
    ax.set(xlabel=_axis(predictor), ylabel=_axis(observable))
    ax.set_title(title, fontsize="small")


def students_of(summary: dict[str, Any], config: dict[str, Any] | None, source: Path) -> list[StudentErrors]:
    """The lifted students of one summary, each seed's on its own.

    Args:
        summary: content of `summary.json`.
        config: the resolved configuration, as plain data, if it is known.
        source: the summary's file, by which it is called.

    Raises:
        ValueError: if the summary or the configuration is damaged.
    """
    try:
        return _students(summary, config, source)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(damaged(source, repr(error))) from None


def _students(summary: dict[str, Any], config: dict[str, Any] | None, source: Path) -> list[StudentErrors]:
    number = None
    setting = json.dumps(summary["teachers"], sort_keys=True)
    if config is not None:
        number = config["clusters"]["number"]
        setting = json.dumps({key: value for key, value in config.items() if key not in VARIED}, sort_keys=True)
    return [
        StudentErrors(source, strategy, labels, number, summary["seed"], setting, _errors(one), draw)
        for strategy, by_labels in summary["students"].items()
        for labels, measured in by_labels.items()
        for draw, one in enumerate(measured.get("by_seed", [measured]))
    ]


def _errors(measured: dict[str, Any]) -> dict[str, float]:
    """All that is an error, by name; of ensembles but the first, their names are behind it."""
    values = {name: measured[name] for name in PREDICTORS if name in measured} | _observed(measured)
    for ensemble, observed in measured.get("ensembles", {}).items():
        values |= {f"{name} ({ensemble})": number for name, number in _observed(observed).items()}
    numbers = {name: number["value"] for name, number in values.items()}
    return {name: abs(float(value)) for name, value in numbers.items() if value is not None and np.isfinite(value)}


def _observed(measured: dict[str, Any]) -> dict[str, Any]:
    """The errors of observables of one simulation, by name."""
    found = {f"rdf_error_A {pair}": number for pair, number in measured.get("rdf_error_A", {}).items()}
    return found | {name: number for name, number in measured.items() if DEVIATION in name}


def _axis(name: str) -> str:
    """A name of a summary as a reader would say it."""
    units = {
        "_meV_A": " / meV Å$^{-1}$",
        "_meV_atom": " / meV atom$^{-1}$",
        "_meV_molecule": " / meV molecule$^{-1}$",
        "_percent": " / %",
        "_A": " / Å",
    }
    quantity, _, pair = name.partition(" ")
    for ending, unit in units.items():
        if quantity.endswith(ending):
            words = quantity.removesuffix(ending).replace("_", " ").replace("rmse", "RMSE").replace("rdf", "RDF")
            return f"{words}{f' {pair}' if pair else ''}{unit}"
    return name
