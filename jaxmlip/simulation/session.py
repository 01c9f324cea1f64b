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

from jaxmlip.observables.observable import References
from jaxmlip.potentials.blocks import form_of_this_machine
from jaxmlip.potentials.potential import Potential, reference_energy, stack, without_stress
from jaxmlip.processes import writes_files
from jaxmlip.progress import Bar, progress_bar
from jaxmlip.simulation.driver import Driver
from jaxmlip.simulation.dynamics import Dynamics, Ensemble
from jaxmlip.simulation.engine import SHARED
from jaxmlip.simulation.h5md import MEAN, prefixed
from jaxmlip.simulation.observing import completed, make_observation, references_of
from jaxmlip.simulation.options import Options, Plan, checked
from jaxmlip.simulation.recording import ReplicaFrames, Sampler, endings, ns_per_day, stacked
from jaxmlip.simulation.safety import bonds_to_watch, no_bonds
from jaxmlip.simulation.schedules import longest_ramp_ps
from jaxmlip.simulation.shown import BAR, Shown
from jaxmlip.simulation.starts import ReplicaStarts
from jaxmlip.simulation.step import Layout
from jaxmlip.simulation.trajectory import Run, Tables


@dataclasses.dataclass(frozen=True)
class Session:
    """A simulation that was checked and set up.

    Attributes:
        driver: at the start.
        starts: one structure for each replica.
        plan: how many frames, and how many steps between them and between observations.
        sampler: of the driver.
        references: what energies are relative to that are observed; None if nothing is to be observed.
        first: index of the first replica, where other processes simulate those before.
        fixed: see `Run.fixed`.
        numbers: [atoms], of the replica that has the most.
        tables: see `Run.tables`.
    """

    driver: Driver
    starts: list[Atoms]
    numbers: np.ndarray
    plan: Plan
    sampler: Sampler
    references: References | None
    first: int
    fixed: np.ndarray | None
    tables: Tables | None = None

    @property
    def observed_units(self) -> dict[str, str]:
        """Units of what is observed, by name."""
        observation = self.driver.observation
        return {} if observation is None else {each.name: each.unit for each in observation.observables}

    def at_start(self) -> ReplicaFrames:
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
        if len(samples) < self.plan.frames:  # all replicas have failed
            lost = {name: np.full_like(values, np.nan) for name, values in self.at_start().items()}
            samples += [lost] * (self.plan.frames - len(samples))
        outcomes, lengths, simulated_fs = endings(self.driver, self.plan.frames, self.plan.every)
        series = stacked(samples)
        observed = {name: series.pop(MEAN + name) for name in self.observed_units}
        return Run(
            numbers=self.numbers,
            pbc=np.asarray(self.starts[0].pbc, bool),
            masses=self.driver.starts.masses,
            time_fs=(1.0 + np.arange(self.plan.frames)) * self.plan.every * self.driver.timestep_fs,
            timestep_fs=self.driver.timestep_fs,
            outcomes=tuple(outcomes),
            lengths=lengths,
            wall_s=time.perf_counter() - began,
            ns_per_day=ns_per_day(simulated_fs, moving_s),
            observed=observed,
            observed_units=self.observed_units,
            fixed=self.fixed,
            time_constants_ps=self.sampler.time_constants_ps,
            tables=self.tables,
            **({"cells": np.stack([atoms.cell.array for atoms in self.starts])} | series),  # type: ignore[arg-type]
        )

    def _sample(self, step: int) -> ReplicaFrames:
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
            total=self.plan.frames * self.plan.every,
            unit_scale=self.driver.timestep_fs / 1000,
            disable=not progress or not writes_files(),
            bar_format=BAR,
            compiles=True,
        )

    def samples(self, first: int, bar: Bar) -> Iterator[tuple[ReplicaFrames, float]]:
        """The frames from `first` on, each with the seconds it took, until all replicas have failed."""
        scale, moving_s = self.driver.timestep_fs / 1000, 0.0
        shown = Shown(self.starts, self.driver.dynamics.conserves)
        bar.resume(first * self.plan.every)
        for frame in range(first, self.plan.frames):
            if self.driver.all_failed:
                break
            step = (frame + 1) * self.plan.every
            seconds = self.driver.advance(step)
            sample = self._sample(step)
            self.driver.bring_back()
            moving_s += seconds
            speed = ns_per_day((step - first * self.plan.every) * self.driver.timestep_fs, moving_s)
            bar.set_postfix_str(shown.text(sample, step * scale, speed), refresh=False)
            bar.update(self.plan.every)
            yield sample, seconds


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
    plan = checked(potentials, structure, ensemble, options, alike)
    everywhere, fixed = plan.starts, plan.fixed
    if ensemble.moves_cell and (said := next(filter(None, map(without_stress, potentials)), None)):
        warnings.warn(said, stacklevel=3)

    chosen = share(len(everywhere)) if share else slice(len(everywhere))
    first, number = chosen.start or 0, len(potentials)
    starts = everywhere[chosen] * number
    dynamics = jax.tree.map(lambda each: jnp.tile(each[chosen], number), ensemble.dynamics(len(everywhere)))
    replicas = ReplicaStarts.of(
        starts,
        bonds_to_watch(starts) if options.watch_bonds else no_bonds(len(starts)),
        fixed=fixed[chosen] * number,
        # Replicas of equal index in different models have equal random numbers.
        indices=np.tile((np.arange(len(everywhere)) if indices is None else indices)[chosen], number),
        atoms=len(everywhere[0]),
    )
    driver = _driver(potentials, replicas, dynamics, options, plan.any_fixed)
    of_models = np.repeat(np.arange(number), len(starts) // number)
    references = [reference_energy(potentials[n], atoms.numbers) for n, atoms in zip(of_models, starts, strict=True)]
    constants = ensemble.time_constants_ps
    if ramp := longest_ramp_ps(dynamics):
        constants = constants | {"ramp": ramp}
    sampler = Sampler(driver, np.array(references), constants, velocities=options.keep_velocities)
    observed = _observed(sampler, starts, ensemble, plan, options)
    numbers = np.asarray(everywhere[0].numbers, np.int64)
    held = replicas.fixed if plan.any_fixed else None  # of all replicas, lest processes differ
    return Session(driver, starts, numbers, plan, sampler, observed, first, held)


def _observed(
    sampler: Sampler, starts: list[Atoms], ensemble: Ensemble, plan: Plan, options: Options
) -> References | None:
    """Have the driver look at what was asked for; gives what observed energies are relative to, None without any."""
    if plan.stride is None:
        return None
    driver, of_replicas = sampler.driver, [atoms.numbers for atoms in starts]
    observables = [each.bound_to(starts[0]) for each in options.observables]
    what = observables, options.against, ensemble, of_replicas
    driver.observe(make_observation(*what, driver.starts.masses, sampler.degrees, plan.stride, driver.heights))
    return references_of(sampler.references, options.against, of_replicas)


def _driver(
    potentials: list[Potential], replicas: ReplicaStarts, dynamics: Dynamics, options: Options, any_fixed: bool
) -> Driver:
    """Of one or many potentials, each with the same number of replicas."""
    number, several = len(potentials), len(potentials) > 1
    return Driver(
        _as_stack(potentials) if several else potentials[0],
        replicas,
        dynamics,
        timestep_fs=options.timestep_fs,
        skin=options.skin,
        seed=options.seed,
        stop_at_failure=options.on_failure == "raise",
        layout=Layout(
            models=several,
            mesh=_mesh(options.devices, number if several else len(replicas.sizes), several),
            side_by_side=form_of_this_machine() == "accelerator",
            resting=any_fixed or bool((replicas.sizes < replicas.atoms).any()),
        ),
    )


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
