"""Simulations of a potential in training, whose frames are the terms of its loss until too few of them are left."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ase import Atoms

from jaxmlip.digests import digest
from jaxmlip.files import written_whole
from jaxmlip.observables.frame import FrameState
from jaxmlip.observables.observable import Observable, References
from jaxmlip.potentials.potential import Potential, reference_energy
from jaxmlip.potentials.trainable import Trainable
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.simulate import simulate
from jaxmlip.simulation.trajectory import Run, load_run
from jaxmlip.systems.capacity import Capacity
from jaxmlip.systems.cell_lists import Bins
from jaxmlip.systems.checks import ALLOW_CLOSE
from jaxmlip.systems.device_lists import ImageSearch
from jaxmlip.training.objective import Term, TermSource
from jaxmlip.units import KB
from jaxmlip.validation.averages import frame_states, observe, room_for
from jaxmlip.validation.observable_terms import ObservableErrors, Target, atomic_energies_of
from jaxmlip.validation.weights import GROUPS

MARGIN = 0.95
"""Cells that move are taken to become as narrow as this share of the first simulation's, so that what is compiled stays
the same."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class OwnSimulations(TermSource):
    """Replicas of the potential that is trained, simulated anew when its frames cease to be typical of it.

    They start from `start`, later ones from the last frames of those before. `checked` says what makes no sense before
    anything runs.

    Attributes:
        start: structure.
        ensemble: at one temperature, and one pressure if its cell moves.
        temperature_K: of the ensemble.
        targets: of the averages.
        time_ps, replicas, timestep_fs, sample_every_fs: of each simulation, see `simulate`.
        discard: share of the frames, the first of each replica, that is left out.
        reuse: fraction of effective frames that must be left.
        seed: of the first simulation less 1; each later one adds 1.
        head: readout that is simulated.
    """

    start: Atoms
    ensemble: Ensemble
    temperature_K: float
    targets: tuple[Target, ...]
    time_ps: float | int = 1.0
    replicas: int = 4
    timestep_fs: float | int = 0.5
    sample_every_fs: float | int = 20.0
    discard: float | int = 0.2
    reuse: float | int = 0.5
    seed: int = 0
    head: int = 0

    def __repr__(self) -> str:
        """All that decides the frames and the loss; structure and targets by their digests."""
        start = self.start
        structure = digest(start.positions, start.cell.array, start.numbers, start.pbc, start.get_masses())
        targets = digest(*(getattr(each, field.name) for each in self.targets for field in dataclasses.fields(Target)))
        others = [f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self)[4:]]
        return f"OwnSimulations({structure[:12]}, {self.ensemble}, {targets[:12]}, {', '.join(others)})"

    def outdated(self, terms: tuple[Term, ...], potential: Potential) -> bool:
        """Whether less than `reuse` of the effective frames is left."""
        (term,) = terms
        assert isinstance(term, ObservableErrors)
        return term.fraction_left(potential) < self.reuse

    def renewed(
        self, terms: tuple[Term, ...], potential: Potential, number: int, folder: Path | None, *, progress: bool
    ) -> tuple[Term, ...]:
        """Errors of the averages of fresh replicas.

        Raises:
            RuntimeError: if no replica runs to the end.
        """
        before = terms[0].frames if terms and isinstance(terms[0], ObservableErrors) else None
        run = self._simulated(self._starts(before), potential, number, folder, progress)
        if not run.completed.any():
            raise RuntimeError(
                f"Simulation {number} of the potential in training fails in every replica (of the first "
                f"{run.outcomes[0].value}), so that there are no averages; start from a stabler potential, or lower "
                "the learning rate or the weights of the observables."
            )
        frames = self._with_room(self._sampled(run), potential, before)
        if folder is not None:
            _keep(_state_file(folder, number), potential, frames)
        return (self._term(run, frames, potential),)

    def restored(self, potential: Potential, number: int, folder: Path) -> tuple[Term, ...]:
        """The same from the files of the simulation.

        Raises:
            FileNotFoundError: if one of them is missing.
        """
        for path in (_run_file(folder, number), _state_file(folder, number)):
            if not path.is_file():
                raise FileNotFoundError(
                    f"There is no {path}, with which the training would go on; put it back, or delete "
                    f"{folder.parent} to start anew."
                )
        run = load_run(_run_file(folder, number))
        reference, room = _kept(_state_file(folder, number), potential)
        return (self._term(run, self._sampled(run).replace(**room), reference),)

    def _starts(self, before: FrameState | None) -> list[Atoms]:
        """Of all replicas; where some of those before have failed, others are begun with twice."""
        starts = [self.start.copy() for _ in range(self.replicas)]
        for replica, atoms in enumerate(starts if before is not None else []):
            assert before is not None
            last = replica % len(before.positions), -1
            if self.ensemble.moves_cell:
                atoms.set_cell(np.asarray(before.cell[last], np.float64))
            atoms.set_positions(np.asarray(before.positions[last], np.float64), apply_constraint=False)
            atoms.info[ALLOW_CLOSE] = True  # atoms are where the dynamics has brought them
        return starts

    def _simulated(
        self, starts: list[Atoms], potential: Potential, number: int, folder: Path | None, progress: bool
    ) -> Run:
        options: dict[str, Any] = {
            "time_ps": self.time_ps,
            "timestep_fs": self.timestep_fs,
            "sample_every_fs": self.sample_every_fs,
            "seed": self.seed + number,
            "on_failure": "mark",
            "keep_velocities": True,
            "progress": progress,
        }
        deployed = potential.select_head(self.head) if isinstance(potential, Trainable) else potential
        if folder is None:
            return simulate(deployed, starts, self.ensemble, **options)  # pyright: ignore[reportReturnType]
        folder.mkdir(parents=True, exist_ok=True)
        simulate(deployed, starts, self.ensemble, to=_run_file(folder, number), **options)
        return load_run(_run_file(folder, number))

    def _first(self, run: Run) -> int:
        return min(int(self.discard * run.n_frames), run.n_frames - 1)

    def _sampled(self, run: Run) -> FrameState:
        return jax.tree.map(np.asarray, frame_states(run, self._first(run)))

    def _with_room(self, frames: FrameState, potential: Potential, before: FrameState | None) -> FrameState:
        """Frames with lists for the potential, as large as those before if these suffice."""
        heights = np.array(frames.heights)
        if self.ensemble.moves_cell:
            heights = MARGIN * heights if before is None else np.minimum(heights, before.heights)
        # Rounded as `cell_range` does; one that has shrunk again gets the margin again.
        if before is not None and (heights < np.array(before.heights)).any():
            heights = MARGIN * heights
        capacity = None if before is None else before.capacity
        frames = frames.replace(heights=tuple(heights.tolist()), capacity=capacity)
        return frames.replace(capacity=room_for(frames, (potential.cutoff, potential.inner_cutoff)))

    def _term(self, run: Run, frames: FrameState, reference: Potential) -> ObservableErrors:
        """Of frames that the reference has sampled."""
        first, values, targets, errors = self._first(run), [], [], []
        sums = References(np.array([reference_energy(reference, run.numbers)]), None, np.array([len(run.numbers)]))
        for target in self.targets:
            shift, own = 0.0, target.observable.depends_on_potential
            if own:  # what the device says is relative to the references
                nothing = np.zeros((1, *target.value.shape))
                shift = target.observable.completed(nothing, sums)[0]
            recorded = target.observable.recorded_in(run) is not None
            seen = observe(run, target.observable, first, reference if own and not recorded else None)
            values.append(None if own else seen.astype(frames.positions.dtype))
            errors.append(np.float32(math.hypot(target.error, _error(target.observable, seen))))
            targets.append(np.asarray(target.value - shift, frames.positions.dtype))
        return ObservableErrors(
            frames=frames,
            reference=np.asarray(_reference_energies(reference, self.head, frames)),
            values=tuple(values),
            targets=tuple(targets),
            errors=tuple(errors),
            numbers=tuple(np.float32(target.weight) for target in self.targets),
            kT=np.float32(KB * self.temperature_K),
            least=np.float32(self.reuse),
            observables=tuple(target.observable for target in self.targets),
            head=self.head,
        )


def _error(observable: Observable, values: np.ndarray) -> float:
    """Standard error of the average of values [replicas, frames, ...], root mean square over its components.

    From replicas, cut into pieces if they are few: what is slower than these is not seen.
    """
    pieces = -(-GROUPS // len(values))
    length = values.shape[1] // pieces
    if length == 0:
        return 0.0
    groups = values[:, -pieces * length :].reshape(-1, 1, length, *values.shape[2:])
    averages = np.stack([np.asarray(observable.mean(group)) for group in groups])
    return float(np.sqrt(np.mean(averages.var(axis=0, ddof=1)) / len(averages)))


@functools.partial(jax.jit, static_argnums=1)
def _reference_energies(potential: Potential, head: int, frames: FrameState) -> Any:
    return atomic_energies_of(potential, head, frames)


def _run_file(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.h5"


def _state_file(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.npz"


def _keep(path: Path, potential: Potential, frames: FrameState) -> None:
    """Write what is not in the file of the run: the parameters that have sampled it, and the room for lists."""
    assert frames.capacity is not None
    room = {"heights": list(frames.heights), "capacity": dataclasses.asdict(frames.capacity)}
    leaves: dict[str, Any] = {
        f"{place:05d}": np.asarray(leaf) for place, leaf in enumerate(jax.tree.leaves(potential.params))
    }
    with written_whole(path) as draft, draft.open("wb") as file:
        np.savez(file, room=json.dumps(room), **leaves)


def _kept(path: Path, like: Potential) -> tuple[Potential, dict[str, Any]]:
    """What `_keep` wrote: the potential that has sampled, and what of a FrameState is static."""
    leaves, structure = jax.tree.flatten(like.params)
    with np.load(path) as file:
        room = json.loads(str(file["room"]))
        params = jax.tree.unflatten(structure, [file[f"{place:05d}"] for place in range(len(leaves))])
    sizes = room["capacity"]
    sizes["search"] = ImageSearch(*map(tuple, sizes["search"]))
    if sizes["bins"] is not None:
        number, most = sizes["bins"]
        sizes["bins"] = Bins(tuple(number), most)
    sizes["elements"] = tuple(sizes.get("elements", (0, 0)))  # earlier versions did not say
    return like.with_params(params), {"heights": tuple(room["heights"]), "capacity": Capacity(**sizes)}
