"""Errors by fidelity and type of frame, and the files and services they are written to while a training runs."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Int

from jaxmlip.files import to_json, write_text
from jaxmlip.systems.batches import Sample
from jaxmlip.training.objective import TermSums
from jaxmlip.training.problem import Record
from jaxmlip.units import GPA

Log: TypeAlias = Literal["none", "tensorboard", "wandb"]

UNITS = {
    "energy": ("energy_rmse_meV_atom", 1e3),
    "forces": ("force_rmse_meV_A", 1e3),
    "stress": ("stress_rmse_GPa", 1 / GPA),
    "magmoms": ("magmom_rmse_muB", 1.0),
}
"""What a term's error is called, and its factor from the term's own unit."""

COLUMNS = (
    "epoch",
    "step",
    "wall_s",
    "learning_rate",
    "set",
    "fidelity",
    "type",
    "loss",
    *(n for n, _ in UNITS.values()),
)
"""Of metrics.csv: for each validated epoch a row of each set, fidelity and type, and one of each whole set ("all")."""


OF_ALL = "all"
"""Under which a tally keeps quantities that are not of single samples."""


class KindsOfSamples(Sequence):
    """Samples that remember of what kind those were that have been asked for.

    Making a sample may be slow, so its kind is noted when it is loaded for a batch.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self._names: list[str] = []
        self.of = np.full(len(samples), -1, np.int32)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: Any) -> Any:
        sample = self._samples[number]
        if sample.kind not in self._names:
            self._names.append(sample.kind)
        self.of[number] = self._names.index(sample.kind)
        return sample

    def name(self, sample: int) -> str:
        """Kind of a sample; empty if it has none, or was loaded by another process."""
        return self._names[self.of[sample]] if self.of[sample] >= 0 else ""


class Tally:
    """Sums over samples by fidelity (head) and type, in float64; means are taken last, so batching does not matter.

    Quantities of an objective that are not of single samples are summed over all batches.
    """

    def __init__(self, cells: dict[str, dict[str, list[float]]] | None = None) -> None:
        """Start at nothing, or with what `to_json` gave."""
        self._cells: dict[tuple[int, str], dict[str, list[float]]] = {}
        self._of_all: dict[str, list[float]] = {}
        for key, cell in (cells or {}).items():
            head, _, kind = key.partition(" ")
            if key == OF_ALL:
                self._of_all = cell
            else:
                self._cells[int(head), kind] = cell

    def add(
        self,
        sums: dict[str, TermSums],
        index: Int[np.ndarray, " graphs"],
        head: Int[np.ndarray, " graphs"],
        kinds: KindsOfSamples,
    ) -> None:
        """Add a batch: the sums of its graphs, which samples they are (−1: padding), and their heads."""
        for term in [name for name, parts in sums.items() if np.ndim(parts.loss) == 0]:
            _add(self._of_all, term, sums[term])
        sums = {name: parts for name, parts in sums.items() if np.ndim(parts.loss)}
        for graph, (sample, fidelity) in enumerate(zip(index.tolist(), head.tolist(), strict=True)):
            if sample < 0:
                continue
            cell = self._cells.setdefault((fidelity, kinds.name(sample)), {})
            for term, parts in sums.items():
                _add(cell, term, [part[graph] for part in parts])

    def sums(self, group: tuple[int, str] | None = None) -> dict[str, TermSums]:
        """Each term's sums over a fidelity and type, or all."""
        chosen = [cell for key, cell in sorted(self._cells.items()) if group in (None, key)]
        terms = list(dict.fromkeys(term for cell in chosen for term in cell))
        found = {
            term: TermSums(*(sum(parts) for parts in zip(*(cell[term] for cell in chosen), strict=True)))
            for term in terms
        }
        return found | {term: TermSums(*parts) for term, parts in self._of_all.items() if group is None}

    def groups(self) -> list[tuple[int, str]]:
        """Fidelities and types there are."""
        return sorted(self._cells)

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        """As plain data."""
        cells = {f"{head} {kind}": cell for (head, kind), cell in self._cells.items()}
        return cells | ({OF_ALL: self._of_all} if self._of_all else {})


def _add(cell: dict[str, list[float]], term: str, parts: Iterable[Any]) -> None:
    known = cell.setdefault(term, [0.0, 0.0, 0.0])
    for place, part in enumerate(parts):
        known[place] += float(part)


def rmse(sums: dict[str, TermSums], term: str) -> float:
    """√ of the mean squared error of a term, in meV/atom, meV/Å, GPa or μB; NaN without labels."""
    found = sums.get(term)
    if found is None or not found.count:
        return math.nan
    return float(np.sqrt(found.squared / found.count)) * UNITS[term][1]


class Metrics:
    """Writes metrics.csv and metrics.jsonl of one model into a folder, and to TensorBoard or wandb if asked."""

    def __init__(self, folder: Path, log: Log, last_epoch: int) -> None:
        """Go on after an epoch: what files say of later ones, written by a run that was killed, is removed.

        Args:
            folder: made if need be.
            log: service besides the files.
            last_epoch: the last validated epoch of the checkpoint the training starts from; −1 for a new one.

        Raises:
            ImportError: if the service's package is not installed.
        """
        self._folder = folder
        self._service = _service(log, folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines, rows = [], []
        if (folder / "metrics.jsonl").exists():
            for line in (folder / "metrics.jsonl").read_text().splitlines():
                try:
                    if json.loads(line)["epoch"] <= last_epoch:
                        lines.append(line)
                except ValueError:  # the kill hit while the line was written
                    continue
        if (folder / "metrics.csv").exists():
            with (folder / "metrics.csv").open(newline="") as file:
                header, *written = [*csv.reader(file)] or [[]]
            # Columns that came since the run began are empty in its first rows.
            whole = [dict(zip(header, row, strict=True)) for row in written if len(row) == len(header)]
            rows = [[row.get(column, "") for column in COLUMNS] for row in whole]
            rows = [row for row in rows if row[0].isdecimal() and int(row[0]) <= last_epoch]
        write_text(folder / "metrics.jsonl", "".join(line + "\n" for line in lines))
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([COLUMNS, *rows])
        write_text(folder / "metrics.csv", table.getvalue())

    def write(self, record: Record, step: int, tallies: dict[str, Tally]) -> None:
        """Append what is known of a validated epoch.

        Args:
            record: see `Trained.history`.
            step: optimiser steps taken.
            tallies: of the sets `training` (errors on the batches as they came) and `validation`.
        """
        head = {"epoch": record["epoch"], "step": step}
        head |= {"wall_s": round(record["wall_s"], 3), "learning_rate": record["learning_rate"]}
        rows = []
        for name, tally in tallies.items():
            for group in [None, *tally.groups()] if tally.groups() else []:
                sums = tally.sums(group)
                row = head | {"set": name, "fidelity": "all", "type": "all", "loss": math.nan}
                if group is None:
                    row["loss"] = record["train_loss" if name == "training" else "validation_loss"]
                else:
                    row |= {"fidelity": group[0], "type": group[1]}
                rows.append(row | {column: rmse(sums, term) for term, (column, _) in UNITS.items()})
        with (self._folder / "metrics.csv").open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([_cell(row[column]) for column in COLUMNS] for row in rows)
        errors = [{column: row[column] for column in COLUMNS[4:]} for row in rows]
        with (self._folder / "metrics.jsonl").open("a") as file:
            file.write(to_json(dict(record) | {"step": step, "errors": errors}, indent=None) + "\n")
        if self._service is not None:
            self._service.write(step, head["learning_rate"], errors)

    def close(self) -> None:
        """Hand the last numbers to the service."""
        if self._service is not None:
            self._service.close()


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ImportError(_missing("tensorboard", "tensorboardX")) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, learning_rate: float, errors: list[dict]) -> None:
        self._writer.add_scalar("learning_rate", learning_rate, step)
        for name, value in _scalars(errors).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ImportError(_missing("wandb", "wandb")) from None
        self._run = wandb.init(project="jaxmlip", name=folder.name, dir=str(folder))

    def write(self, step: int, learning_rate: float, errors: list[dict]) -> None:
        self._run.log({"learning_rate": learning_rate} | _scalars(errors), step=step)

    def close(self) -> None:
        self._run.finish()


def _service(log: Log, folder: Path) -> _TensorBoard | _Wandb | None:
    if log == "none":
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return _TensorBoard(folder) if log == "tensorboard" else _Wandb(folder)


def _missing(log: str, package: str) -> str:
    return f"log is {log}, but {package} is not installed: install jaxmlip[{log}], or set log to none."


def _scalars(errors: list[dict]) -> dict[str, float]:
    """Numbers by name: set/fidelity/type/error."""
    found = {}
    for row in errors:
        group = row["set"] if row["type"] == "all" else f"{row['set']}/{row['fidelity']}/{row['type'] or 'untyped'}"
        found |= {f"{group}/{name}": row[name] for name in COLUMNS[7:] if not math.isnan(row[name])}
    return found


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.9g}"
    return value
