"""Molecular dynamics of many replicas at once, on any potential or many."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms

from jaxmlip.digests import digest
from jaxmlip.potentials.potential import Potential, fingerprint
from jaxmlip.simulation.ensembles import Ensemble
from jaxmlip.simulation.h5md import prefixed
from jaxmlip.simulation.observing import PerFrame
from jaxmlip.simulation.processes import own_file, own_share, run_in_processes
from jaxmlip.simulation.recording import Recorded, Recorder, check_file
from jaxmlip.simulation.schedules import Number
from jaxmlip.simulation.session import Options, Session, make_session
from jaxmlip.simulation.trajectory import Outcome, Run


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
    devices: int | None = None,
) -> Run:
    """Molecular dynamics of replicas that differ in their random numbers, and in their start if several are given.

    Velocities start from the Maxwell–Boltzmann distribution at the ensemble's temperature. Arithmetic is in single
    precision (double under `jax.enable_x64`); energies are completed with the elemental references in double.

    Args:
        potential: any Potential. Runs of potentials with equal pytree structure share compiled code.
        structure: the start of all replicas, or one start for each: equal atoms in equal order, any cells. Masses are
            those of the Atoms: hydrogen may be deuterium. Atoms held by ASE's `FixAtoms` stay where they are, other
            atoms in other replicas if need be, and count as no degrees of freedom.
        ensemble: for example `NVT(temperature_K=250)` or `NPT(temperature_K=250, pressure_GPa=0)`. Its temperature and
            pressure may be sequences, a value for each replica, and ramps (`Ramp`).
        time_ps: length of the run in ps; this or `steps`. Frames are whole: what is left after the last is not
            simulated, and a warning says so.
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
        devices: number of devices that share the replicas, one by default. Of several processes (`jax.distributed`)
            each simulates its share of the replicas on devices of its own, and all return the whole run.

    Raises:
        ValueError: for elements the potential does not know, damaged or unequal structures, settings that make no
            sense, constraints other than `FixAtoms`, and atoms held in a cell that moves.
        SimulationError: if a replica fails and `on_failure` is "raise".
    """
    options = Options(
        time_ps=time_ps,
        steps=steps,
        timestep_fs=timestep_fs,
        replicas=replicas,
        seed=seed,
        sample_every_fs=sample_every_fs,
        skin=skin,
        on_failure=on_failure,
        watch_bonds=watch_bonds,
        observables=observables,
        against=against,
        observe_every_fs=observe_every_fs,
        devices=devices,
    )
    return run_in_processes(lambda share: make_session([potential], structure, ensemble, options, share).run(progress))


def simulate_models(
    potentials: Sequence[Potential],
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
    on_failure: Literal["raise", "mark"] = "mark",
    watch_bonds: bool = True,
    observables: Sequence[PerFrame] = (),
    against: Potential | None = None,
    observe_every_fs: Number | None = None,
    devices: int | None = None,
) -> list[Run]:
    """The runs that `simulate` gives for each of several potentials, by one compiled program for all of them.

    All models' replicas start alike, with the same random numbers as if simulated alone. On a GPU the models are
    computed side by side, on a CPU one after another.

    Args:
        potentials: of equal structure, such as students of one architecture.
        structure: see `simulate`, as for all that follow.
        ensemble: and its numbers.
        time_ps: length in ps; this or `steps`.
        steps: length in steps.
        timestep_fs: fs.
        replicas: of each model, by default as many as structures.
        seed: of velocities and noise.
        sample_every_fs: time between frames.
        skin: Å, of neighbour lists.
        progress: show a progress bar.
        on_failure: "mark", or "raise" to end all if one replica of one model fails.
        watch_bonds: whether broken bonds are failures.
        observables: what to average on the way.
        against: a second potential to compare all models with on the way.
        observe_every_fs: time between observations.
        devices: number of devices that share the models.

    Raises:
        ValueError: as `simulate`, and if the potentials differ in more than their numbers.
        SimulationError: see `simulate`.
    """
    options = Options(
        time_ps=time_ps,
        steps=steps,
        timestep_fs=timestep_fs,
        replicas=replicas,
        seed=seed,
        sample_every_fs=sample_every_fs,
        skin=skin,
        on_failure=on_failure,
        watch_bonds=watch_bonds,
        observables=observables,
        against=against,
        observe_every_fs=observe_every_fs,
        devices=devices,
    )
    run = make_session(list(potentials), structure, ensemble, options).run(progress)
    each = run.n_replicas // len(potentials)
    return [run.part(slice(model * each, (model + 1) * each)) for model in range(len(potentials))]


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
    devices: int | None = None,
) -> Recorded:
    """The simulation of `simulate`, whose frames go to a file instead of memory; `load_run` reads it.

    Frames are appended as they come, some seconds' worth at a time. A run that was stopped, be it by a kill, goes on
    from its file to the same trajectory, bit for bit on the same machine with the same versions; one that has ended
    goes on if it is to be longer. What is in the file must have been made with the same arguments, but for the length,
    `skin`, `progress` and `on_failure`.

    Several processes (`jax.distributed`) share the replicas, and each writes a file of its own: for run.h5, run.0.h5,
    run.1.h5 and so on. `load_run` joins them. They do not wait for each other, and a failure ends its own process only.

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
        devices: number of devices that share the replicas.

    Raises:
        ValueError: as `simulate`, and if the file is another run's, longer than asked for, damaged, or being written by
            another process.
        OSError: if the disk is full; what was written before is kept.
        SimulationError: see `simulate`; what came before the failure is in the file.
    """
    path = own_file(Path(path))
    options = Options(
        time_ps=time_ps,
        steps=steps,
        timestep_fs=timestep_fs,
        replicas=replicas,
        seed=seed,
        sample_every_fs=sample_every_fs,
        skin=skin,
        on_failure=on_failure,
        watch_bonds=watch_bonds,
        observables=observables,
        against=against,
        observe_every_fs=observe_every_fs,
        devices=devices,
    )
    session = make_session([potential], structure, ensemble, options, own_share)
    identity, units = _identity(session, potential, ensemble, options), prefixed(session.observed_units)
    check_file(path, session.starts, session.every, session.frames, identity)
    with session.bar(progress) as bar:
        first = session.at_start()
        bar.compiled()
        here = path, session.sampler, session.starts, session.every
        with Recorder(*here, identity, first, units, session.fixed) as recorder:
            for sample, seconds in session.samples(recorder.resumed, bar):
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


def _identity(session: Session, potential: Potential, ensemble: Ensemble, options: Options) -> dict:
    """What must be equal for a run to be the same, by the names that messages call it; see `recording`."""
    starts, against = session.starts, options.against
    return {
        "potential": fingerprint(potential),
        "structure": digest(*(x for atoms in starts for x in (atoms.positions, atoms.cell, atoms.numbers, atoms.pbc))),
        "masses": digest(*(atoms.get_masses() for atoms in starts)),
        "constraints": _described(session.fixed),
        "ensemble": str(ensemble),
        "timestep_fs": float(options.timestep_fs),
        "steps between frames": session.every,
        "replicas": len(starts),
        "first replica": session.first,
        "seed": int(options.seed),
        "watch_bonds": options.watch_bonds,
        "precision": str(session.driver.walkers.energy.dtype),
        "observables": [str(observable) for observable in options.observables],
        "against": None if against is None else fingerprint(against),
        "steps between observations": session.stride if session.observer else None,
    }


def _described(fixed: np.ndarray | None) -> str | None:
    """The atoms that are held, told from others."""
    return None if fixed is None else f"FixAtoms of {fixed.sum(1).tolist()} atoms ({digest(fixed)[:8]})"
