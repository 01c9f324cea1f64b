"""Molecular dynamics of many replicas at once, of many structures, on any potential or many: the one front door."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from ase import Atoms

from jaxmlip.digests import digest
from jaxmlip.observables.observable import Observable
from jaxmlip.potentials.potential import Potential, fingerprint
from jaxmlip.simulation.buckets import simulate_each, unlike
from jaxmlip.simulation.dynamics import Ensemble
from jaxmlip.simulation.h5md import prefixed
from jaxmlip.simulation.options import Options
from jaxmlip.simulation.processes import own_file, own_share, run_in_processes
from jaxmlip.simulation.recording import Recorded, Recorder, check_file
from jaxmlip.simulation.schedules import Number
from jaxmlip.simulation.session import Session, make_session
from jaxmlip.simulation.tables import Choice, tolerance_of_file, with_tables
from jaxmlip.simulation.trajectory import Outcome, Run


@overload
def simulate(potential: Potential, structure: Atoms, ensemble: Ensemble, *, to: None = None, **options: Any) -> Run: ...
@overload
def simulate(
    potential: Potential | Sequence[Potential],
    structure: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    *,
    to: None = None,
    **options: Any,
) -> Any: ...
@overload
def simulate(
    potential: Potential, structure: Atoms | Sequence[Atoms], ensemble: Ensemble, *, to: str | Path, **options: Any
) -> Recorded: ...
def simulate(  # pyright: ignore[reportInconsistentOverload]
    potential: Potential | Sequence[Potential],
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
    on_failure: Literal["raise", "mark"] | None = None,
    watch_bonds: bool = True,
    observables: Sequence[Observable] = (),
    against: Potential | None = None,
    observe_every_fs: Number | None = None,
    keep_velocities: bool = False,
    devices: int | None = None,
    tables: Literal["auto"] | bool = "auto",
    to: str | Path | None = None,
) -> Run | list[Run] | list[list[Run]] | Recorded:
    """Molecular dynamics of replicas that differ in their random numbers, and in their start if several are given.

    Velocities start from the Maxwell–Boltzmann distribution at the ensemble's temperature. Arithmetic is in single
    precision (double under `jax.enable_x64`); energies are completed with the elemental references in double.

    What comes back follows from what is given:

    * one potential, and a structure or several with the same atoms: one `Run` of all replicas;
    * structures with different atoms: a list with a run for each. Those of similar size, and with the same periodic
      directions, are replicas of one program, in which smaller ones are padded with atoms that take no part. Where a
      Nosé–Hoover chain is part of the ensemble, sizes must be equal for that;
    * several potentials of one architecture: a list with what each would give, by one program for all. On a GPU they
      are computed side by side, on a CPU one after another. All models' replicas start alike, with the same random
      numbers as if simulated alone. (With structures of different atoms the potentials take turns.)
    * `to`: frames go to a file, and what there is to say of it is returned.

    Args:
        potential: any Potential, or several of equal structure, such as students of one architecture. Runs of
            potentials with equal pytree structure share compiled code.
        structure: the start of all replicas; or one start for each, equal atoms in equal order, any cells; or starts
            with different atoms. Masses are those of the Atoms: hydrogen may be deuterium. Atoms held by ASE's
            `FixAtoms` stay where they are, other atoms in other replicas if need be, and count as no degrees of
            freedom.
        ensemble: for example `NVT(temperature_K=250)` or `NPT(temperature_K=250, pressure_GPa=0)`. Its temperature and
            pressure may be sequences, a value for each replica, and ramps (`Ramp`); for structures with different
            atoms, one value for all.
        time_ps: length of the run in ps; this or `steps`. Frames are whole: what is left after the last is not
            simulated, and a warning says so.
        steps: length of the run in steps.
        timestep_fs: fs.
        replicas: number of replicas of each potential; by default as many as structures. Of each structure where their
            atoms differ: replicas are then counted through all structures.
        seed: a non-negative integer; the same seed gives the same trajectories on the same machine.
        sample_every_fs: time between frames, rounded to steps; the start is not a frame.
        skin: Å, by how much neighbour lists reach beyond the cutoff. It affects speed alone, and not the potential's:
            neighbours beyond the cutoff are sorted out before it is called.
        progress: show a progress bar.
        on_failure: "raise" ends the run when a replica fails; "mark" lets the others go on and says so in
            `Run.outcomes`. By default "raise", and "mark" for several potentials.
        watch_bonds: whether a bond of hydrogen (to B, C, N, O, F, Si, P, S, Cl, Br or I) that becomes twice as long as
            it was at the start is a failure; False where protons are meant to travel.
        observables: what to average on the way, such as `RDF("O", "O")`: `Run.observed` has the means over the time
            since the frame before, so that frames may be rare. Observed with them, as always where anything is: energy,
            temperature and, if the cell moves, density and pressure.
        against: a second potential, the teacher of a student for example, whose energies and forces are compared with
            the run's in what is observed: "squared force error" and "energy difference" in `Run.observed`.
        observe_every_fs: time between observations, rounded to a whole fraction of the time between frames; by default
            every frame.
        keep_velocities: whether frames have velocities, `Run.velocities`.
        devices: number of devices that share the replicas, or the models, one by default. Of several processes
            (`jax.distributed`) each simulates its share of the replicas on devices of its own, and all return the whole
            run.
        tables: whether tables stand for the radial networks of an equivariant potential, or of those in a sum (see
            `tabulate`). By default they do on a CPU, in single precision, for one potential, where the run is so long
            that they pay, and the forces at the start differ by less than 0.1 meV/Å (RMS of components); `Run.tables`
            and the file say so. True: also in short runs, on accelerators and in double precision. A file goes on as
            it was begun.
        to: H5MD file for the frames, see `h5md`; a new one, or the same run's; `load_run` reads it. Frames are appended
            as they come, some seconds' worth at a time. A run that was stopped, be it by a kill, goes on from its file
            to the same trajectory, bit for bit on the same machine with the same versions; one that has ended goes on
            if it is to be longer. What is in the file must have been made with the same arguments, but for the length,
            `skin`, `progress` and `on_failure`. Several processes share the replicas, and each writes a
            file of its own: for run.h5, run.0.h5, run.1.h5 and so on. They do not wait for each other, and a failure
            ends its own process only.

    Raises:
        ValueError: for elements a potential does not know, structures that `check_start` refuses, settings that make no
            sense, constraints other than `FixAtoms`, atoms held in a cell that moves, or potentials that differ in more
            than their numbers; and if the file is another run's, longer than asked for, damaged, or being written by
            another process.
        OSError: if the disk is full; what was written before is kept.
        SimulationError: if a replica fails and `on_failure` is "raise"; what came before is in the file.
    """
    several = not isinstance(potential, Potential)
    options = Options(
        time_ps=time_ps,
        steps=steps,
        timestep_fs=timestep_fs,
        replicas=replicas,
        seed=seed,
        sample_every_fs=sample_every_fs,
        skin=skin,
        on_failure=on_failure or ("mark" if several else "raise"),
        watch_bonds=watch_bonds,
        observables=observables,
        against=against,
        observe_every_fs=observe_every_fs,
        keep_velocities=keep_velocities,
        devices=devices,
        tables=tables,
    )
    potentials = list(potential) if several else [potential]
    starts = structure if isinstance(structure, Atoms) else list(structure)
    bucketed = isinstance(starts, list) and unlike(starts, ensemble)
    if to is not None:
        if several or bucketed:
            what = "potentials" if several else "structures with different atoms"
            raise ValueError(f"A file holds one run, and to= was given for several {what}: simulate one at a time.")
        return _to_file(own_file(Path(to)), potentials[0], starts, ensemble, options, progress)
    if isinstance(starts, list) and bucketed:
        each = [simulate_each(one, starts, ensemble, options, progress) for one in potentials]
        return each if several else each[0]
    if several:
        session = make_session(potentials, starts, ensemble, options)
        run = with_tables(session, potentials[0], options.tables).run(progress)
        n = run.n_replicas // len(potentials)
        return [run.part(slice(model * n, (model + 1) * n)) for model in range(len(potentials))]

    def run_share(share: Any) -> Run:
        session = make_session(potentials, starts, ensemble, options, share)
        return with_tables(session, potentials[0], options.tables).run(progress)

    return run_in_processes(run_share)


def _to_file(
    path: Path,
    potential: Potential,
    structure: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    options: Options,
    progress: bool,
) -> Recorded:
    """The simulation whose frames go to a file; see `simulate`."""
    session = make_session([potential], structure, ensemble, options, own_share)
    identity, units = _identity(session, potential, ensemble, options), prefixed(session.observed_units)
    begun, tolerance = tolerance_of_file(path)
    check_file(path, session.starts, session.plan.every, session.plan.frames, identity | {"tables": tolerance})
    session = _with_the_files_tables(session, potential, options.tables, path, begun, tolerance)
    identity["tables"] = session.tables and session.tables.tolerance
    with session.bar(progress) as bar:
        first = session.at_start()
        bar.compiled()
        here = path, session.sampler, session.starts, session.plan.every
        with Recorder(*here, identity, first, units, session.fixed, session.tables) as recorder:
            for sample, seconds in session.samples(recorder.resumed, bar):
                recorder.record(sample, seconds)
            status = recorder.finish(max(session.plan.frames, recorder.resumed))
    return Recorded(
        path=path,
        frames=recorder.file.frames,
        resumed=recorder.resumed,
        outcomes=tuple(Outcome[name] for name in status.outcomes),
        wall_s=status.wall_s,
        ns_per_day=status.ns_per_day,
    )


def _with_the_files_tables(
    session: Session, potential: Potential, choice: Choice, path: Path, begun: bool, tolerance: float | None
) -> Session:
    """A run goes on as it was begun: with tables of the same tolerance, or without.

    Raises:
        ValueError: if something else is asked for.
    """
    if begun and choice == "auto":
        choice = tolerance is not None
    if begun and choice != (tolerance is not None):
        how = "without" if tolerance is None else "with"
        raise ValueError(
            f"{path} holds another run: it was simulated {how} tables, and tables={choice} was given; leave that out, "
            "or choose another file."
        )
    return with_tables(session, potential, choice, tolerance)


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
        "steps between frames": session.plan.every,
        "replicas": len(starts),
        "first replica": session.first,
        "seed": int(options.seed),
        "watch_bonds": options.watch_bonds,
        "precision": str(session.driver.replicas.energy.dtype),
        "observables": [str(observable) for observable in options.observables],
        "velocities": options.keep_velocities or None,
        "against": None if against is None else fingerprint(against),
        "steps between observations": session.plan.stride,
    }


def _described(fixed: np.ndarray | None) -> str | None:
    """The atoms that are held, told from others."""
    return None if fixed is None else f"FixAtoms of {fixed.sum(1).tolist()} atoms ({digest(fixed)[:8]})"
