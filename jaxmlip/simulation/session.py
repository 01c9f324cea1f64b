"""A simulation that was checked and set up, and the loop that takes it from frame to frame."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jax.sharding import Mesh

from jaxmlip.observables.observable import Observable, References
from jaxmlip.potentials.checks import check_concrete, check_one
from jaxmlip.potentials.potential import Potential, check_species, reference_energy, stack, without_stress
from jaxmlip.processes import writes_files
from jaxmlip.progress import Bar, progress_bar
from jaxmlip.simulation.driver import Driver
from jaxmlip.simulation.engine import SHARED
from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.h5md import MEAN, prefixed
from jaxmlip.simulation.observing import completed, make_observation, references_of
from jaxmlip.simulation.recording import Sample, Sampler, endings, ns_per_day, stacked
from jaxmlip.simulation.safety import bonds_to_watch, no_bonds
from jaxmlip.simulation.schedules import Number, longest_ramp_ps
from jaxmlip.simulation.step import Layout
from jaxmlip.simulation.trajectory import Run
from jaxmlip.systems.constraints import fixed_atoms
from jaxmlip.systems.graph import check_structure
from jaxmlip.units import G_PER_CM3


@dataclasses.dataclass(frozen=True)
class Options:
    """How to simulate; see `simulate`, whose defaults these are."""

    time_ps: Number | None = None
    steps: int | None = None
    timestep_fs: Number = 0.5
    replicas: int | None = None
    seed: int = 0
    sample_every_fs: Number = 10.0
    skin: Number = 0.5
    on_failure: str = "raise"
    watch_bonds: bool = True
    observables: Sequence[Observable] = ()
    against: Potential | None = None
    observe_every_fs: Number | None = None
    keep_velocities: bool = False
    devices: int | None = None


_BAR = "{l_bar}{bar}| {n:.3f}/{total:.3f} ps [{elapsed}<{remaining}{postfix}]"


@dataclasses.dataclass(frozen=True)
class Session:
    """A simulation that was checked and set up.

    Attributes:
        driver: at the start.
        starts: one structure for each replica.
        frames: how many there are to be.
        every: steps between them.
        stride: steps between observations.
        sampler: of the driver.
        references: what energies are relative to that are observed; None if nothing is to be observed.
        first: index of the first replica, where other processes simulate those before.
        fixed: see `Run.fixed`.
        numbers: [atoms], of the replica that has the most.
    """

    driver: Driver
    starts: list[Atoms]
    numbers: np.ndarray
    frames: int
    every: int
    stride: int
    sampler: Sampler
    references: References | None
    first: int
    fixed: np.ndarray | None

    @property
    def observed_units(self) -> dict[str, str]:
        """Units of what is observed, by name."""
        observation = self.driver.observation
        return {} if observation is None else {each.name: each.unit for each in observation.observables}

    def at_start(self) -> Sample:
        """Compute the forces at the start; what a frame there would hold, though nothing has been observed yet."""
        self.driver.prepare()
        return self._sample(0)

    def run(self, progress: bool) -> Run:
        """Simulate from the start to the end, in memory."""
        began = time.perf_counter()
        samples, moving_s = [], 0.0
        with self.bar(progress) as bar:
            self.driver.prepare()
            bar.compiled()
            for sample, seconds in self.samples(0, bar):
                samples.append(sample)
                moving_s += seconds
        if len(samples) < self.frames:  # all replicas have failed
            lost = {name: np.full_like(values, np.nan) for name, values in self.at_start().items()}
            samples += [lost] * (self.frames - len(samples))
        outcomes, lengths, simulated_fs = endings(self.driver, self.frames, self.every)
        series = stacked(samples)
        observed = {name: series.pop(MEAN + name) for name in self.observed_units}
        return Run(
            numbers=self.numbers,
            pbc=np.asarray(self.starts[0].pbc, bool),
            masses=self.driver.masses,
            time_fs=(1.0 + np.arange(self.frames)) * self.every * self.driver.timestep_fs,
            timestep_fs=self.driver.timestep_fs,
            outcomes=tuple(outcomes),
            lengths=lengths,
            wall_s=time.perf_counter() - began,
            ns_per_day=ns_per_day(simulated_fs, moving_s),
            observed=observed,
            observed_units=self.observed_units,
            fixed=self.fixed,
            time_constants_ps=self.sampler.time_constants_ps,
            **({"cells": np.stack([atoms.cell.array for atoms in self.starts])} | series),  # type: ignore[arg-type]
        )

    def _sample(self, step: int) -> Sample:
        sample, observation, means = self.sampler.sample(step), self.driver.observation, self.driver.means
        if observation is None or means is None or self.references is None:
            return sample
        seen = completed(means, observation.observables, self.references)
        self.driver.forget()
        if observation.other is not None and (complaint := observation.other.complaint()):
            warnings.warn(f"What a run is compared with has failed. {complaint}", stacklevel=2)
        return sample | prefixed(self.sampler.sound(seen))

    def bar(self, progress: bool) -> Bar:
        """A bar of the run, to be opened before anything is compiled."""
        return progress_bar(
            total=self.frames * self.every,
            unit_scale=self.driver.timestep_fs / 1000,
            disable=not progress or not writes_files(),
            bar_format=_BAR,
            compiles=True,
        )

    def samples(self, first: int, bar: Bar) -> Iterator[tuple[Sample, float]]:
        """The frames from `first` on, each with the seconds it took, until all replicas have failed."""
        scale, moving_s = self.driver.timestep_fs / 1000, 0.0
        shown = _Shown(self.starts, self.sampler.kind.conserves)
        bar.resume(first * self.every)
        for frame in range(first, self.frames):
            if self.driver.all_failed:
                break
            step = (frame + 1) * self.every
            seconds = self.driver.advance(step)
            sample = self._sample(step)
            self.driver.bring_back()
            moving_s += seconds
            speed = ns_per_day((step - first * self.every) * self.driver.timestep_fs, moving_s)
            bar.set_postfix_str(shown.text(sample, step * scale, speed), refresh=False)
            bar.update(self.every)
            yield sample, seconds


class _Shown:
    """What the progress bar tells of a run."""

    def __init__(self, starts: list[Atoms], conserves: bool) -> None:
        self._replicas, self._atoms = len(starts), np.array([len(atoms) for atoms in starts])
        self._mass = np.array([atoms.get_masses().sum() for atoms in starts]) if starts[0].pbc.all() else None
        self._conserves = conserves
        self._first: tuple[float, np.ndarray] | None = None

    def text(self, sample: Sample, time_ps: float, speed: float) -> str:
        """Means over the replicas that are sound; the drift is since the first frame that was shown."""
        each = f" ({speed:.3g} each)" if self._replicas > 1 else ""
        parts = [f"{speed * self._replicas:.3g} ns/day{each}", f"{_mean(sample['temperature']):.0f} K"]
        if self._conserves:
            self._first = self._first or (time_ps, sample["conserved"])
            since, energy = self._first
            drift = _mean((sample["conserved"] - energy) / self._atoms) / max(time_ps - since, 1e-9)
            parts.append(f"drift {1000 * drift:.2g} meV/atom/ps")
        if self._mass is not None and "cells" in sample:
            density = self._mass / (G_PER_CM3 * np.abs(np.linalg.det(sample["cells"])))
            parts.append(f"{_mean(density):.3f} g/cm³")
        return ", ".join(parts)


def _mean(values: np.ndarray) -> float:
    sound = values[np.isfinite(values)]
    return float(sound.mean()) if sound.size else float("nan")


def make_session(
    potentials: list[Potential],
    structure: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    options: Options,
    share: Callable[[int], slice] | None = None,
    *,
    alike: bool = True,
    indices: np.ndarray | None = None,
) -> Session:
    """Check what `simulate` was given, and set it up; of several potentials, each with the same replicas.

    Args:
        potentials: one or many.
        structure: see `simulate`.
        ensemble: see `simulate`.
        options: see `simulate`.
        share: which of so many replicas to simulate here; all by default.
        alike: whether replicas must have the same atoms. If not, the first has the most, and frames of those with fewer
            end in padding.
        indices: of the replicas, which with the seed decide their random numbers; by default they are counted.

    Raises:
        ValueError: see `simulate`.

    Warns:
        UserWarning: if the cell moves by a potential that was trained, but never on stress.
    """
    if not potentials:
        raise ValueError("There are no potentials to simulate.")
    check_concrete((potentials, vars(ensemble), vars(options)), "simulate")
    for potential in potentials:
        check_one(potential, "simulate", "give a list of potentials")
    if options.against is not None:
        check_one(options.against, "against")
    everywhere = _checked_starts(potentials[0], structure, options.replicas, alike)
    total, every = _checked_steps(options.time_ps, options.steps, options.timestep_fs, options.sample_every_fs)
    if not 0 < options.skin < 10:
        raise ValueError(f"The skin must lie between 0 and 10 Å, not {options.skin!r}.")
    if options.seed != int(options.seed) or not 0 <= options.seed < 2**63:
        raise ValueError(f"A seed is a non-negative integer below 2⁶³, not {options.seed!r}.")
    if options.on_failure not in ("raise", "mark"):
        raise ValueError(f'on_failure is "raise" or "mark", not {options.on_failure!r}.')
    if ensemble.moves_cell and not everywhere[0].pbc.all():
        raise ValueError(
            f"{type(ensemble).__name__} needs a cell that is periodic in all three directions, not pbc "
            f"{everywhere[0].pbc.tolist()}; put the atoms into a cell, or keep the volume constant."
        )
    _check_asked(potentials[0], everywhere, ensemble, options)

    fixed = _checked_fixed(everywhere, ensemble)
    if ensemble.moves_cell and (said := next(filter(None, map(without_stress, potentials)), None)):
        warnings.warn(said, stacklevel=3)

    chosen = share(len(everywhere)) if share else slice(len(everywhere))
    first, number = chosen.start or 0, len(potentials)
    starts = everywhere[chosen] * number
    schedules = jax.tree.map(lambda each: jnp.tile(each[chosen], number), ensemble.schedules(len(everywhere)))
    driver = Driver(
        _as_stack(potentials) if number > 1 else potentials[0],
        starts,
        type(ensemble),
        schedules,
        masses=[atoms.get_masses() for atoms in starts],
        fixed=fixed[chosen] * number,
        bonds=bonds_to_watch(starts) if options.watch_bonds else no_bonds(len(starts)),
        timestep_fs=options.timestep_fs,
        skin=options.skin,
        seed=options.seed,
        stop_at_failure=options.on_failure == "raise",
        layout=Layout(
            models=number > 1,
            mesh=_mesh(options.devices, number if number > 1 else len(starts), number > 1),
            resting=any(map(np.any, fixed)) or any(len(atoms) < len(everywhere[0]) for atoms in starts),
        ),
        # Replicas of equal index in different models have equal random numbers.
        indices=np.tile((np.arange(len(everywhere)) if indices is None else indices)[chosen], number),
        atoms=len(everywhere[0]),
    )
    of_models = np.repeat(np.arange(number), len(starts) // number)
    references = [reference_energy(potentials[n], atoms.numbers) for n, atoms in zip(of_models, starts, strict=True)]
    constants = ensemble.time_constants_ps
    if ramp := longest_ramp_ps(schedules):
        constants = constants | {"ramp": ramp}
    sampler = Sampler(driver, np.array(references), constants, velocities=options.keep_velocities)
    observed, stride = None, every
    if options.observables or options.against is not None or options.observe_every_fs is not None:
        stride = _checked_stride(every, options.timestep_fs, options.observe_every_fs)
        of_replicas = [atoms.numbers for atoms in starts]
        what = options.observables, options.against, type(ensemble), of_replicas
        driver.observe(make_observation(*what, driver.masses, sampler.degrees, stride, driver.heights))
        observed = references_of(sampler.references, options.against, of_replicas)
    numbers = np.asarray(everywhere[0].numbers, np.int64)
    held = driver.fixed if any(map(np.any, fixed)) else None  # of all replicas, lest processes differ
    return Session(driver, starts, numbers, total // every, every, stride, sampler, observed, first, held)


def _check_asked(potential: Potential, starts: list[Atoms], ensemble: Ensemble, options: Options) -> None:
    """Whether the potentials can say of the starts what they will be asked for; ValueError if not."""
    stress = ensemble.moves_cell or any(each.needs_stress for each in options.observables)
    for atoms in {id(atoms): atoms for atoms in starts}.values():
        potential.check(atoms, stress=stress)
        if options.against is not None:
            options.against.check(atoms)


def _as_stack(potentials: list[Potential]) -> Potential:
    """Potentials as one; ValueError if they differ in more than their numbers."""
    first = jax.tree.structure(potentials[0])
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(potentials[0])]
    for number, potential in enumerate(potentials):
        leaves, structure = jax.tree.flatten(potential)
        if structure != first or [np.shape(leaf) for leaf in leaves] != shapes:
            raise ValueError(
                f"Potentials 0 and {number} cannot be simulated by one program: their kind, architecture or elements "
                "differ; simulate them one after another."
            )
    return stack(potentials)


def _mesh(devices: int | None, parts: int, models: bool) -> Mesh | None:
    """The devices that share replicas or models, if there are to be several."""
    if devices is None or devices == 1:
        return None
    there = jax.local_devices()
    if not 1 <= devices <= len(there):
        raise ValueError(f"devices is {devices}, but there are {len(there)} devices.")
    if parts % devices:
        what = "models" if models else "replicas"
        raise ValueError(f"{parts} {what} cannot be shared evenly by {devices} devices; change one of the numbers.")
    return Mesh(np.array(there[:devices]), (SHARED,))


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


def _checked_starts(
    potential: Potential, structure: Atoms | Sequence[Atoms], replicas: int | None, alike: bool
) -> list[Atoms]:
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
    different: dict[int, tuple[int, Atoms]] = {}
    for index, atoms in enumerate(starts):
        different.setdefault(id(atoms), (index, atoms))
    for index, atoms in different.values():
        check_structure(atoms)
        check_species(potential, atoms.numbers)
        same_atoms = np.array_equal(atoms.numbers, starts[0].numbers) or not alike
        if not same_atoms or not np.array_equal(atoms.pbc, starts[0].pbc):
            raise ValueError(
                f"Structure {index} ({atoms.symbols}, pbc {atoms.pbc.tolist()}) differs from structure 0 "
                f"({starts[0].symbols}, pbc {starts[0].pbc.tolist()}): replicas need the same atoms in the same order "
                "and the same periodic directions; sort the atoms."
            )
    return starts


def _checked_fixed(starts: list[Atoms], ensemble: Ensemble) -> list[np.ndarray]:
    """Which atoms of each replica are held; ValueError if they cannot be."""
    found = {id(atoms): fixed_atoms(atoms) for atoms in starts}
    fixed, kind = [found[id(atoms)] for atoms in starts], type(ensemble).__name__
    for index, mask in enumerate(fixed):
        if mask.all():
            raise ValueError(f"All atoms of structure {index} ({starts[index].symbols}) are fixed: nothing can move.")
        if mask.any() and ensemble.moves_cell:
            raise ValueError(
                f"{starts[index].symbols} has fixed atoms, and {kind} would move them with the cell: keep the volume "
                "constant, or remove the constraint from the file or by atoms.set_constraint()."
            )
    mobile = {int((~mask).sum()) for mask in fixed}
    if any(map(np.any, fixed)) and len(mobile) > 1 and not ensemble.pads:
        raise ValueError(
            f"{kind} needs the same number of atoms that move in all replicas, not {sorted(mobile)}: use another "
            "thermostat, or simulate them one after another."
        )
    return fixed


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
    frames, rest = divmod(int(length), every)
    if rest:
        warnings.warn(
            f"{length * timestep_fs / 1000:g} ps is not a whole number of the {every * timestep_fs:g} fs between "
            f"frames: {frames * every * timestep_fs / 1000:g} ps are simulated, {frames} frames.",
            stacklevel=4,
        )
    return int(length), every
