"""Molecular dynamics of many replicas at once, on any potential: the host's side."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from ase import Atoms

from jaxmlip.potentials.potential import Potential, check_species
from jaxmlip.progress import progress_bar
from jaxmlip.simulation.driver import Driver
from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.h5md import MEAN, prefixed
from jaxmlip.simulation.observing import Observer, PerFrame
from jaxmlip.simulation.recording import Recorded, Recorder, Sample, Sampler, digest, endings, ns_per_day, stacked
from jaxmlip.simulation.safety import bonds_to_watch, no_bonds
from jaxmlip.simulation.schedules import Number
from jaxmlip.simulation.trajectory import Outcome, Run
from jaxmlip.systems.graph import check_structure, periodic_cell
from jaxmlip.units import G_PER_CM3


def simulate(
    potential: Potential,
    structure: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    *,
    time_ps: Number | None = None,
    steps: int | None = None,
    timestep_fs: Number = 0.5,
    replicas: int | None = None,
    seed: int = 0,
    sample_every_fs: Number = 10.0,
    skin: Number = 0.5,
    progress: bool = True,
    on_failure: Literal["raise", "mark"] = "raise",
    watch_bonds: bool = True,
    observables: Sequence[PerFrame] = (),
    against: Potential | None = None,
    observe_every_fs: Number | None = None,
) -> Run:
    """Molecular dynamics of replicas that differ in their random numbers, and in their start if several are given.

    Velocities start from the Maxwell–Boltzmann distribution at the ensemble's temperature. Arithmetic is in single
    precision (double under `jax.enable_x64`); energies are completed with the elemental references in double.

    Args:
        potential: any Potential. Runs of potentials with equal pytree structure share compiled code.
        structure: the start of all replicas, or one start for each: equal atoms in equal order, any cells. Masses are
            those of the Atoms: hydrogen may be deuterium.
        ensemble: for example `NVT(temperature_K=250)` or `NPT(temperature_K=250, pressure_GPa=0)`. Its temperature and
            pressure may be sequences, a value for each replica, and ramps (`Ramp`).
        time_ps: length of the run in ps; this or `steps`.
        steps: length of the run in steps.
        timestep_fs: fs.
        replicas: number of replicas; by default as many as structures.
        seed: a non-negative integer; the same seed gives the same trajectories on the same machine.
        sample_every_fs: time between frames, rounded to steps; the start is not a frame.
        skin: Å, by how much neighbour lists reach beyond the cutoff. It affects speed alone, and not the potential's:
            neighbours beyond the cutoff are sorted out before it is called.
        progress: show a progress bar.
        on_failure: "raise" ends the run when a replica fails; "mark" lets the others go on and says so in
            `Run.outcomes`.
        watch_bonds: whether a bond of hydrogen (to B, C, N, O, F, Si, P, S, Cl, Br or I) that becomes twice as long as
            it was at the start is a failure; False where protons are meant to travel.
        observables: what to average on the way, such as `RDF("O", "O")`: `Run.observed` has the means over the time
            since the frame before, so that frames may be rare. Observed with them, as always where anything is: energy,
            temperature and, if the cell moves, density and pressure.
        against: a second potential, the teacher of a student for example, whose energies and forces are compared with
            the run's in what is observed: "squared force error" and "energy difference" in `Run.observed`.
        observe_every_fs: time between observations, rounded to a whole fraction of the time between frames; by default
            every frame.

    Raises:
        ValueError: for elements the potential does not know, damaged or unequal structures, and settings that make no
            sense.
        SimulationError: if a replica fails and `on_failure` is "raise".
    """
    began = time.perf_counter()
    session = _session(
        potential, structure, ensemble, time_ps, steps, timestep_fs, replicas, seed, sample_every_fs, skin,
        on_failure, watch_bonds, observables, against, observe_every_fs,
    )  # fmt: skip
    session.driver.prepare()
    samples, moving_s = [], 0.0
    for sample, seconds in session.samples(0, progress):
        samples.append(sample)
        moving_s += seconds
    lost = jax.tree.map(lambda values: np.full_like(values, np.nan), samples[-1])
    samples += [lost] * (session.frames - len(samples))  # all replicas have failed
    outcomes, lengths, simulated_fs = endings(session.driver, session.frames, session.every)
    starts = session.starts
    series = stacked(samples)
    observed = {name: series.pop(MEAN + name) for name in session.observed_units}
    return Run(
        numbers=np.asarray(starts[0].numbers, np.int64),
        pbc=np.asarray(starts[0].pbc, bool),
        masses=np.stack([atoms.get_masses() for atoms in starts]),
        time_fs=(1.0 + np.arange(session.frames)) * session.every * timestep_fs,
        timestep_fs=float(timestep_fs),
        outcomes=tuple(outcomes),
        lengths=lengths,
        wall_s=time.perf_counter() - began,
        ns_per_day=ns_per_day(simulated_fs, moving_s),
        observed=observed,
        observed_units=session.observed_units,
        **({"cells": np.stack([periodic_cell(atoms) for atoms in starts])} | series),  # type: ignore[arg-type]
    )


def simulate_to_file(
    path: str | Path,
    potential: Potential,
    structure: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    *,
    time_ps: Number | None = None,
    steps: int | None = None,
    timestep_fs: Number = 0.5,
    replicas: int | None = None,
    seed: int = 0,
    sample_every_fs: Number = 10.0,
    skin: Number = 0.5,
    progress: bool = True,
    on_failure: Literal["raise", "mark"] = "raise",
    watch_bonds: bool = True,
    observables: Sequence[PerFrame] = (),
    against: Potential | None = None,
    observe_every_fs: Number | None = None,
) -> Recorded:
    """The simulation of `simulate`, whose frames go to a file instead of memory; `load_run` reads it.

    Frames are appended as they come, some seconds' worth at a time. A run that was stopped, be it by a kill, goes on
    from its file to the same trajectory, bit for bit on the same machine with the same versions; one that has ended
    goes on if it is to be longer. What is in the file must have been made with the same arguments, but for the length,
    `skin`, `progress` and `on_failure`.

    Args:
        path: H5MD file, see `h5md`; a new one, or the same run's.
        potential: see `simulate`, as for all that follow.
        structure: the start.
        ensemble: and its numbers.
        time_ps: length in ps, with what is there; this or `steps`.
        steps: length in steps.
        timestep_fs: fs.
        replicas: by default as many as structures.
        seed: of velocities and noise.
        sample_every_fs: time between frames.
        skin: Å, of neighbour lists.
        progress: show a progress bar.
        on_failure: "raise" or "mark".
        watch_bonds: whether broken bonds are failures.
        observables: what to average on the way.
        against: a second potential to compare with on the way.
        observe_every_fs: time between observations.

    Raises:
        ValueError: as `simulate`, and if the file is another run's, damaged, or being written by another process.
        OSError: if the disk is full; what was written before is kept.
        SimulationError: see `simulate`; what came before the failure is in the file.
    """
    path = Path(path)
    session = _session(
        potential, structure, ensemble, time_ps, steps, timestep_fs, replicas, seed, sample_every_fs, skin,
        on_failure, watch_bonds, observables, against, observe_every_fs,
    )  # fmt: skip
    starts = session.starts
    identity = {
        "potential": digest(*jax.tree.leaves(potential)),
        "structure": digest(*(x for atoms in starts for x in (atoms.positions, atoms.cell, atoms.numbers, atoms.pbc))),
        "masses": digest(*(atoms.get_masses() for atoms in starts)),
        "ensemble": str(ensemble),
        "timestep_fs": float(timestep_fs),
        "steps between frames": session.every,
        "replicas": len(starts),
        "seed": int(seed),
        "watch_bonds": watch_bonds,
        "precision": str(session.driver.walkers.energy.dtype),
        "observables": [str(observable) for observable in observables],
        "against": None if against is None else digest(*jax.tree.leaves(against)),
        "steps between observations": session.stride if session.observer else None,
    }
    session.driver.prepare()
    first, units = session.looked_at(0), prefixed(session.observed_units)
    with Recorder(path, session.sampler, starts, session.every, identity, first, units) as recorder:
        for sample, seconds in session.samples(recorder.resumed, progress):
            recorder.record(sample, seconds)
        status = recorder.finish(max(session.frames, recorder.resumed))
    return Recorded(
        path=path,
        frames=recorder.file.frames,
        resumed=recorder.resumed,
        outcomes=tuple(Outcome[name] for name in status.outcomes),
        wall_s=status.wall_s,
        ns_per_day=status.ns_per_day,
    )


_BAR = "{l_bar}{bar}| {n:.3f}/{total:.3f} ps [{elapsed}<{remaining}{postfix}]"


@dataclasses.dataclass(frozen=True)
class _Session:
    """A simulation that was checked and set up.

    Attributes:
        driver: at the start.
        starts: one structure for each replica.
        frames: how many there are to be.
        every: steps between them.
        stride: steps between observations.
        sampler: of the driver.
        observer: of the driver, if anything is to be observed.
    """

    driver: Driver
    starts: list[Atoms]
    frames: int
    every: int
    stride: int
    sampler: Sampler
    observer: Observer | None

    @property
    def observed_units(self) -> dict[str, str]:
        """Units of what is observed, by name."""
        return self.observer.units if self.observer else {}

    def looked_at(self, step: int) -> Sample:
        """A sample of the present state, with what is observed in it alone."""
        if self.observer:
            self.observer.look()
        return self._sample(step)

    def _sample(self, step: int) -> Sample:
        sample = self.sampler.sample(step)
        return sample | prefixed(self.sampler.sound(self.observer.means())) if self.observer else sample

    def samples(self, first: int, progress: bool) -> Iterator[tuple[Sample, float]]:
        """The frames from `first` on, each with the seconds it took, until all replicas have failed."""
        scale, moving_s = self.driver.timestep_fs / 1000, 0.0
        shown = _Shown(self.starts, self.sampler.kind.conserves)
        options = {"unit_scale": scale, "disable": not progress, "bar_format": _BAR}
        with progress_bar(total=self.frames * self.every, initial=first * self.every, **options) as bar:
            for frame in range(first, self.frames):
                if self.driver.all_failed:
                    break
                seconds = 0.0
                for step in range(frame * self.every + self.stride, (frame + 1) * self.every + 1, self.stride):
                    seconds += self.driver.advance(step)
                    if self.observer:
                        self.observer.look()
                step = (frame + 1) * self.every
                sample = self._sample(step)
                moving_s += seconds
                speed = ns_per_day((step - first * self.every) * self.driver.timestep_fs, moving_s)
                bar.set_postfix_str(shown.text(sample, step * scale, speed), refresh=False)
                bar.update(self.every)
                yield sample, seconds


class _Shown:
    """What the progress bar tells of a run."""

    def __init__(self, starts: list[Atoms], conserves: bool) -> None:
        self._replicas, self._atoms = len(starts), len(starts[0])
        self._mass = float(starts[0].get_masses().sum()) if starts[0].pbc.all() else None
        self._conserves = conserves
        self._first: tuple[float, np.ndarray] | None = None

    def text(self, sample: Sample, time_ps: float, speed: float) -> str:
        """Means over the replicas that are sound; the drift is since the first frame that was shown."""
        each = f" ({speed:.3g} each)" if self._replicas > 1 else ""
        parts = [f"{speed * self._replicas:.3g} ns/day{each}", f"{_mean(sample['temperature']):.0f} K"]
        if self._conserves:
            self._first = self._first or (time_ps, sample["conserved"])
            since, energy = self._first
            drift = _mean(sample["conserved"] - energy) / (self._atoms * max(time_ps - since, 1e-9))
            parts.append(f"drift {1000 * drift:.2g} meV/atom/ps")
        if self._mass is not None and "cells" in sample:
            density = self._mass / (G_PER_CM3 * np.abs(np.linalg.det(sample["cells"])))
            parts.append(f"{_mean(density):.3f} g/cm³")
        return ", ".join(parts)


def _mean(values: np.ndarray) -> float:
    sound = values[np.isfinite(values)]
    return float(sound.mean()) if sound.size else float("nan")


def _session(
    potential: Potential,
    structure: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    time_ps: Number | None,
    steps: int | None,
    timestep_fs: Number,
    replicas: int | None,
    seed: int,
    sample_every_fs: Number,
    skin: Number,
    on_failure: str,
    watch_bonds: bool,
    observables: Sequence[PerFrame],
    against: Potential | None,
    observe_every_fs: Number | None,
) -> _Session:
    """Check what `simulate` was given, and set it up."""
    starts = _checked_starts(potential, structure, replicas)
    total, every = _checked_steps(time_ps, steps, timestep_fs, sample_every_fs)
    if not 0 < skin < 10:
        raise ValueError(f"The skin must lie between 0 and 10 Å, not {skin!r}.")
    if seed != int(seed) or seed < 0:
        raise ValueError(f"A seed is a non-negative integer, not {seed!r}.")
    if on_failure not in ("raise", "mark"):
        raise ValueError(f'on_failure is "raise" or "mark", not {on_failure!r}.')

    if ensemble.moves_cell and not starts[0].pbc.all():
        raise ValueError(
            f"{type(ensemble).__name__} needs a cell that is periodic in all three directions, not pbc "
            f"{starts[0].pbc.tolist()}; put the atoms into a cell, or keep the volume constant."
        )
    driver = Driver(
        potential,
        starts,
        type(ensemble),
        ensemble.schedules(len(starts)),
        masses=np.stack([atoms.get_masses() for atoms in starts]),
        bonds=bonds_to_watch(starts) if watch_bonds else no_bonds(len(starts)),
        timestep_fs=timestep_fs,
        skin=skin,
        seed=seed,
        stop_at_failure=on_failure == "raise",
    )
    sampler, observer, stride = Sampler(driver, starts), None, every
    if observables or against is not None or observe_every_fs is not None:
        stride = _checked_stride(every, timestep_fs, observe_every_fs)
        observer = Observer(sampler, observables, against, starts[0].numbers)
    return _Session(driver, starts, total // every, every, stride, sampler, observer)


def _checked_stride(every: int, timestep_fs: Number, observe_every_fs: Number | None) -> int:
    """Steps between observations: of the whole fractions of `every`, the nearest to what was asked for."""
    if observe_every_fs is None:
        return every
    if not 0 < observe_every_fs <= every * timestep_fs * 1.001:
        raise ValueError(
            f"observe_every_fs must be positive and at most the {every * timestep_fs:g} fs between frames, not "
            f"{observe_every_fs!r}."
        )
    wanted = observe_every_fs / timestep_fs
    return min((n for n in range(1, every + 1) if every % n == 0), key=lambda n: abs(n - wanted))


def _checked_starts(potential: Potential, structure: Atoms | Sequence[Atoms], replicas: int | None) -> list[Atoms]:
    """One sound start per replica; ValueError says what is wrong."""
    if isinstance(structure, Atoms):
        count = 1 if replicas is None else replicas
        if count < 1:
            raise ValueError(f"A simulation needs at least one replica, not {count}.")
        starts = [structure] * count
    else:
        starts = list(structure)
        if not starts:
            raise ValueError("No structure was given to start from.")
        if replicas is not None and replicas != len(starts):
            raise ValueError(f"{replicas} replicas were asked for, but {len(starts)} structures were given.")
    for index, atoms in enumerate(starts if starts[0] is not starts[-1] else starts[:1]):
        check_structure(atoms)
        if not np.array_equal(atoms.numbers, starts[0].numbers) or not np.array_equal(atoms.pbc, starts[0].pbc):
            raise ValueError(
                f"Structure {index} ({atoms.symbols}, pbc {atoms.pbc.tolist()}) differs from structure 0 "
                f"({starts[0].symbols}, pbc {starts[0].pbc.tolist()}): replicas need the same atoms in the same order "
                "and the same periodic directions; sort the atoms, or run them one after another."
            )
    check_species(potential, starts[0].numbers)
    return starts


def _checked_steps(
    time_ps: Number | None, steps: int | None, timestep_fs: Number, sample_every_fs: Number
) -> tuple[int, int]:
    """Number of steps of the run and between samples."""
    if not 0 < timestep_fs <= 100:
        raise ValueError(
            f"The timestep must lie between 0 and 100 fs, not {timestep_fs!r}; with hydrogen, 0.5 fs is usual."
        )
    if (time_ps is None) == (steps is None):
        raise ValueError("Give the length of the run either as time_ps or as steps.")
    length = round(1000 * time_ps / timestep_fs) if time_ps is not None and np.isfinite(time_ps) else steps
    if length is None or length < 1 or length != int(length) or length >= 2**31:
        raise ValueError(f"The run needs a whole positive number of steps below 2³¹, not {length or time_ps!r}.")
    if not sample_every_fs > 0 or not np.isfinite(sample_every_fs):
        raise ValueError(f"sample_every_fs must be positive, not {sample_every_fs!r}.")
    every = max(1, round(sample_every_fs / timestep_fs))
    if every > length:
        raise ValueError(
            f"The run of {length * timestep_fs:g} fs ends before its first frame at {every * timestep_fs:g} fs; "
            "make it longer, or sample_every_fs shorter."
        )
    return int(length), every
