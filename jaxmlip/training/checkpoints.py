"""Checkpoints: a training that is killed at any time goes on where its last one was made."""

import contextlib
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmlip.digests import digest
from jaxmlip.processes import writes_files
from jaxmlip.systems.batches import Sample
from jaxmlip.training.parallel import on_host
from jaxmlip.training.problem import HARMLESS_SETTINGS, TrainingProblem, TrainingSettings

KEPT = 2
"""Checkpoints in the folder: the last, and one to fall back to."""

LOOKED_AT = 256
"""Samples that a fingerprint looks at where they are made when asked: making all may take hours."""


class Checkpoints:
    """The checkpoints of one training in a folder; each is whole or not there (orbax writes beside and renames).

    Only the process that writes files writes; all others read, so a run of several processes needs a folder that all
    of them see.
    """

    def __init__(self, folder: Path, fingerprint: str, minutes: float) -> None:
        """Use a folder.

        Args:
            folder: made if need be.
            fingerprint: of problems and settings; a checkpoint with another is refused.
            minutes: time between checkpoints.
        """
        import orbax.checkpoint as ocp  # takes a second, which trainings without a folder need not wait

        self._orbax = ocp
        self.folder = folder
        self.fingerprint = fingerprint
        self.minutes = minutes
        self._last = time.monotonic()
        me = jax.process_index()
        folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_names=("arrays", "notes"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT,
                create=False,
                enable_async_checkpointing=False,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
                ),
            ),
        )

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return writes_files() and time.monotonic() - self._last >= 60 * self.minutes

    def save(self, number: int, arrays: Any, notes: dict) -> None:
        """Write a checkpoint.

        Args:
            number: greater than those of all before.
            arrays: pytree.
            notes: plain data.
        """
        if not writes_files():
            return
        leaves = {f"{place:05d}": leaf for place, leaf in enumerate(jax.tree.leaves(on_host(arrays)))}
        notes = {"fingerprint": self.fingerprint, "digest": digest(*leaves.values()), "training": notes}
        save = self._orbax.args
        self._manager.save(
            number, args=save.Composite(arrays=save.StandardSave(leaves), notes=save.JsonSave(notes)), force=True
        )
        self._last = time.monotonic()

    def latest(self, like: Any) -> tuple[Any, dict] | None:
        """The last checkpoint that can be read, or None if there is none at all.

        Args:
            like: the pytree as it is to be.

        Returns:
            Arrays (numpy) and notes.

        Raises:
            ValueError: if the folder is another training's, or none of its checkpoints can be read.
        """
        number, found = self._newest(like)
        if jax.process_count() > 1:  # nobody goes on before all have read, and all go on from the same place
            numbers = np.asarray(multihost_utils.process_allgather(np.int32(number)))
            if (numbers != number).any():
                raise ValueError(f"The processes see different checkpoints in {self.folder}; give a folder they share.")
        for damaged in [step for step in self._manager.all_steps() if step > number] if writes_files() else []:
            self._manager.delete(damaged)  # another will be made in its place
        return found

    def _newest(self, like: Any) -> tuple[int, tuple[Any, dict] | None]:
        """What `latest` returns, and its number; −1 if there is none."""
        leaves, structure = jax.tree.flatten(on_host(like))
        numbers = sorted(self._manager.all_steps(), reverse=True)
        for number in numbers:
            try:
                read = self._orbax.args
                notes = self._manager.restore(number, args=read.Composite(notes=read.JsonRestore()))["notes"]
                if notes["fingerprint"] != self.fingerprint:
                    raise _Foreign
                template = {f"{place:05d}": leaf for place, leaf in enumerate(leaves)}
                restored = self._manager.restore(number, args=read.Composite(arrays=read.StandardRestore(template)))
                found = [np.asarray(restored["arrays"][name]) for name in template]
                if digest(*found) != notes["digest"]:
                    raise ValueError("its numbers are not those that were written")
                return number, (jax.tree.unflatten(structure, found), notes["training"])
            except _Foreign:
                raise ValueError(
                    f"{self.folder} holds checkpoints of a training with other data, settings or initial parameters; "
                    "give another folder, or delete this one to start anew."
                ) from None
            except Exception as error:  # a damaged file may raise anything
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                warnings.warn(f"The checkpoint {self.folder / str(number)} is damaged ({reason}).", stacklevel=2)
        if numbers:
            raise ValueError(f"No checkpoint in {self.folder} can be read; delete the folder to start anew.")
        return -1, None

    def close(self) -> None:
        """Free what orbax holds."""
        self._manager.close()


class Interruption:
    """SIGTERM and SIGINT while a training runs: noted, so that it can save before they do what they always do.

    A second signal does so at once. Of several processes all end after the same step if one of them gets SIGTERM, which
    jax takes note of.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._asked = 0

    def asked(self) -> bool:
        """Whether to save and end now; several processes must ask equally often, and get the same answer."""
        if jax.process_count() > 1:
            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self.signal = signal.SIGTERM
        return self.signal is not None

    @contextlib.contextmanager
    def noted(self) -> Iterator["Interruption"]:
        """Within, signals are noted. Only Python's main thread may ask for that; in others nothing is done."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *([signal.SIGTERM] if jax.process_count() == 1 else [])):
                self._before[number] = signal.signal(number, self._note)
        try:
            yield self
        finally:
            self._restore()

    def follow(self) -> None:
        """Let the signal do what it would have done: by default, end the process or raise KeyboardInterrupt."""
        assert self.signal is not None
        self._restore()
        if jax.process_count() > 1 and self.signal == signal.SIGTERM:
            multihost_utils.sync_global_devices("saved")  # one writes, and the others would take it with them
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(self.signal)

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def fingerprint(problems: Sequence[TrainingProblem], settings: Sequence[TrainingSettings]) -> str:
    """Digest of what decides the result of a training: initial potentials, samples, loss, settings."""
    parts: list[Any] = []
    known: dict[int, str] = {}  # models often share their samples
    for problem, mine in zip(problems, settings, strict=True):
        leaves, structure = jax.tree.flatten((problem.potential, problem.rates))
        parts += [re.sub(r" at 0x[0-9a-f]+", "", str(structure)), problem.terms, problem.selection, problem.l2_sp]
        if problem.objective:
            leaves, structure = jax.tree.flatten(problem.objective)
            parts += [str(structure), *map(np.asarray, leaves)]
        if problem.source is not None:
            parts.append(repr(problem.source))
        parts += [mine.model_dump_json(exclude=set(HARMLESS_SETTINGS)), *map(np.asarray, leaves)]
        for samples in (problem.train, problem.validation):
            if id(samples) not in known:
                known[id(samples)] = _of_samples(samples)
            parts.append(known[id(samples)])
    return digest(*parts)


def _of_samples(samples: Sequence[Sample]) -> str:
    numbers = range(len(samples))
    if not isinstance(samples, list):
        numbers = np.unique(np.linspace(0, len(samples) - 1, LOOKED_AT).astype(int)).tolist()
    parts: list[Any] = [len(samples)]
    for sample in (samples[number] for number in numbers):
        graph = sample.graph
        parts += [graph.positions, graph.species, graph.cell, sample.forces, sample.stress]
        parts += [sample.energy, sample.head, sample.weight]
        parts += [] if sample.magmoms is None else [sample.magmoms]
    return digest(*parts)


class _Foreign(Exception):
    """A checkpoint of another training."""
