"""Commands that move atoms: simulations, relaxations, and whether they can be trusted."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli.options import (
    CloseOption,
    PotentialOption,
    chosen_tables,
    mistakes_in_one_sentence,
    sigterm_like_ctrl_c,
)

app = typer.Typer()

EnsembleOption = Annotated[
    str, typer.Option(help="nve, nvt (Langevin), nvt-nose-hoover, nvt-csvr, npt (cell rescaling) or npt-nose-hoover")
]
PressureOption = Annotated[float, typer.Option("--pressure_GPa", help="of npt and npt-nose-hoover, GPa")]
CellOption = Annotated[str, typer.Option(help="how npt moves the cell: isotropic, orthorhombic or flexible")]
TimestepOption = Annotated[float, typer.Option("--timestep_fs", help="fs")]
SampleOption = Annotated[float, typer.Option("--sample_every_fs", help="time between stored frames, fs")]
ReplicasOption = Annotated[int, typer.Option(help="independent replicas, run as one program")]
SeedOption = Annotated[int, typer.Option(help="of velocities and noise")]
StartArgument = Annotated[
    Path, typer.Argument(help="starting structure, the last of a trajectory (.h5) or of any file that ASE reads")
]
TablesOption = Annotated[
    str, typer.Option(help="auto: tables for radial networks where they pay (see tabulate); on or off")
]
ObservablesOption = Annotated[
    str | None,
    typer.Option(help="separated by commas, such as rdf:O-O,potential_energy,density; by default these"),
]
RunOption = Annotated[
    Path | None, typer.Option(help="a run of the potential's by `jaxmlip md`, in place of simulating it")
]
TeacherRunOption = Annotated[Path | None, typer.Option("--teacher-run", help="a run of the teacher's, if there is")]
TeacherDynamicsOption = Annotated[
    bool, typer.Option("--allow-teacher-md", help="simulate the teacher where nothing cheaper tells")
]
NoBridgeOption = Annotated[bool, typer.Option("--no-bridge", help="no simulations between the two potentials")]
ToleranceOption = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE, a difference that does no harm, in the observable's unit")
]


@app.command()
def md(
    structure: StartArgument,
    potential: PotentialOption,
    temperature_k: Annotated[float, typer.Option("--temperature_K", help="K; nve: of the velocities at the start")],
    time_ps: Annotated[float, typer.Option("--time_ps", help="length of each replica, ps")],
    out: Annotated[Path, typer.Option(help="HDF5 file to write (H5MD layout)")],
    ensemble: EnsembleOption = "nvt",
    pressure_gpa: PressureOption = 0.0,
    cell: CellOption = "isotropic",
    timestep_fs: TimestepOption = 0.5,
    friction_per_ps: Annotated[float, typer.Option("--friction_per_ps", help="of nvt and npt, 1/ps")] = 5.0,
    sample_every_fs: SampleOption = 10.0,
    replicas: ReplicasOption = 1,
    seed: SeedOption = 0,
    tables: TablesOption = "auto",
    allow_close: CloseOption = False,
) -> None:
    """Simulate a structure at constant energy, at constant temperature, or at constant temperature and pressure.

    Frames are appended to the file as they come. The same line again goes on where a run was stopped; with a longer
    time it goes on from its end. Of several processes (JAX_COORDINATOR_ADDRESS and so on) each takes a share of the
    replicas to a file of its own.
    """
    with mistakes_in_one_sentence(), sigterm_like_ctrl_c():
        from jaxmlip.potentials.files import load_potential
        from jaxmlip.processes import join_processes
        from jaxmlip.simulation.frames import last_structure
        from jaxmlip.simulation.named_ensembles import ensemble_of
        from jaxmlip.simulation.simulate import simulate

        chosen = ensemble_of(ensemble, temperature_k, pressure_gpa, cell, friction_per_ps)
        with_tables = chosen_tables(tables)
        join_processes()
        model = load_potential(potential)
        start = last_structure(structure, allow_close=allow_close)
        result = simulate(
            model,
            start,
            chosen,
            to=out,
            time_ps=time_ps,
            timestep_fs=timestep_fs,
            sample_every_fs=sample_every_fs,
            replicas=replicas,
            seed=seed,
            on_failure="mark",
            tables=with_tables,
        )
        since = f", {result.resumed} of them from before" if result.resumed else ""
        typer.echo(
            f"{result.path} has {result.frames} frames of {len(result.outcomes)} replicas{since}; "
            f"{result.ns_per_day:.3g} ns/day in total."
        )
        failed = {n: each.value for n, each in enumerate(result.outcomes) if each.name != "COMPLETED"}
        for replica, reason in failed.items():
            typer.echo(f"Replica {replica} failed: {reason}.", err=True)
        if len(failed) == len(result.outcomes):
            raise RuntimeError("No replica ran to the end.")


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="trajectory of jaxmlip md (.h5), or a potential by file or name")],
    out: Annotated[Path, typer.Argument(help="extended XYZ file of the frames; folder of the potential's program")],
    every: Annotated[int, typer.Option(help="of a trajectory: write every n-th frame of a replica only")] = 1,
) -> None:
    """Write a trajectory as extended XYZ, or a potential as a program that runs with jax and numpy alone."""
    with mistakes_in_one_sentence():
        if Path(source).suffix == ".h5":
            from jaxmlip.simulation.trajectory import export_extxyz

            typer.echo(f"Wrote {export_extxyz(Path(source), out, every=every)} frames to {out}.")
            return
        from jaxmlip.potentials.exporting import export_potential
        from jaxmlip.potentials.files import load

        export_potential(load(source), out)
        typer.echo(f"Wrote {out}; {out / 'load.py'} says how to use it.")


@app.command()
def ipi(
    structure: Annotated[Path, typer.Argument(help="structure with the server's atoms in their order")],
    potential: PotentialOption,
    unix: Annotated[str | None, typer.Option(help="name of the Unix socket: <address> of i-PI's ffsocket")] = None,
    host: Annotated[str, typer.Option(help="of a server in mode inet")] = "localhost",
    port: Annotated[int, typer.Option(help="of a server in mode inet")] = 31415,
    allow_close: CloseOption = False,
) -> None:
    """Give forces to i-PI, or another server of its protocol, until it ends: path integrals, replica exchange …"""
    with mistakes_in_one_sentence():
        from jaxmlip.potentials.files import load
        from jaxmlip.potentials.socket_client import answer_socket
        from jaxmlip.simulation.frames import last_structure

        model = load(potential)
        atoms = last_structure(structure, allow_close=allow_close)
        typer.echo(f"Answered {answer_socket(atoms, model, unix=unix, host=host, port=port)} times.")


@app.command()
def relax(
    structure: Annotated[Path, typer.Argument(help="structure to relax, in any format that ASE reads")],
    potential: PotentialOption,
    out: Annotated[Path, typer.Option(help="file to write, in a format that ASE tells from its name")],
    forces_ev_a: Annotated[float, typer.Option("--forces_eV_A", help="longest force that may remain, eV/Å")] = 0.01,
    cell: Annotated[bool, typer.Option("--cell", help="relax the cell as well")] = False,
    stress_gpa: Annotated[float, typer.Option("--stress_GPa", help="with --cell: stress that may remain, GPa")] = 0.05,
    pressure_gpa: Annotated[float, typer.Option("--pressure_GPa", help="with --cell: external pressure, GPa")] = 0.0,
    steps: Annotated[int, typer.Option(help="steps after which to give up")] = 1000,
    allow_close: CloseOption = False,
) -> None:
    """Relax the positions of a structure, and its cell if asked, by FIRE; exit status 1 if it does not converge."""
    with mistakes_in_one_sentence():
        from jaxmlip.potentials.files import load_potential
        from jaxmlip.simulation.frames import last_structure
        from jaxmlip.simulation.relaxation import relax as relax_structure
        from jaxmlip.systems.dataset import Frame, check_writable, write_structure

        check_writable(out)
        model = load_potential(potential)
        start = last_structure(structure, allow_close=allow_close)
        limit = stress_gpa if cell else None
        shown = sys.stderr.isatty()
        relaxed = relax_structure(
            model, start, forces_ev_a, limit, pressure_GPa=pressure_gpa, steps=steps, progress=shown
        )
        frame = Frame(relaxed.atoms, relaxed.energy, relaxed.forces, info=relaxed.atoms.info)
        write_structure(out, frame if relaxed.stress is None else dataclasses.replace(frame, stress=relaxed.stress))
        typer.echo(f"Wrote {out}: {relaxed.summary()}")
        if not relaxed.converged:
            raise RuntimeError(f"{structure} did not relax: {relaxed.outcome.value}; raise --steps, or look at {out}.")


@app.command()
def validate(
    structure: StartArgument,
    potential: PotentialOption,
    against: Annotated[str, typer.Option(help="the teacher, named as the potential is")],
    temperature_k: Annotated[float, typer.Option("--temperature_K", help="K")],
    out: Annotated[Path, typer.Option(help="folder for verdict.json, report.html and the trajectories")],
    time_ps: Annotated[float, typer.Option("--time_ps", help="length of each replica, ps")] = 1.0,
    ensemble: EnsembleOption = "nvt",
    pressure_gpa: PressureOption = 0.0,
    cell: CellOption = "isotropic",
    replicas: ReplicasOption = 4,
    observables: ObservablesOption = None,
    run: RunOption = None,
    teacher_run: TeacherRunOption = None,
    allow_teacher_md: TeacherDynamicsOption = False,
    no_bridge: NoBridgeOption = False,
    tolerance: ToleranceOption = None,
    timestep_fs: TimestepOption = 0.5,
    sample_every_fs: SampleOption = 10.0,
    friction_per_ps: Annotated[float, typer.Option("--friction_per_ps", help="of nvt and npt, 1/ps")] = 50.0,
    seed: SeedOption = 0,
    allow_close: CloseOption = False,
    quiet: Annotated[bool, typer.Option(help="print the verdict only")] = False,
) -> None:
    """Say whether a potential's simulations can be trusted: its averages against its teacher's, one by one.

    The teacher's averages come the cheapest way that can be trusted: by reweighting the potential's own frames, by
    simulations between the two, by linear response, or, if that is allowed, by simulating the teacher. Where none can,
    the answer is that it cannot be told, with what it would take. The same line again goes on where it was stopped.
    """
    with mistakes_in_one_sentence(), sigterm_like_ctrl_c():
        from jaxmlip.potentials.files import load
        from jaxmlip.simulation.frames import last_structure
        from jaxmlip.simulation.named_ensembles import ensemble_of
        from jaxmlip.simulation.trajectory import load_run
        from jaxmlip.validation.page import write_validation
        from jaxmlip.validation.task import Sampling, named_values
        from jaxmlip.validation.validate import validate as validate_potential

        chosen = ensemble_of(ensemble, temperature_k, pressure_gpa, cell, friction_per_ps, pressure_time_ps=0.1)
        names = None if observables is None else [name.strip() for name in observables.split(",") if name.strip()]
        sampling = Sampling(time_ps, replicas, timestep_fs, sample_every_fs, seed, not no_bridge, allow_teacher_md)
        given, others = (None if each is None else load_run(each) for each in (run, teacher_run))
        found = validate_potential(
            last_structure(structure, allow_close=allow_close) if given is None else given,
            load(potential),
            load(against),
            chosen,
            observables=names,
            sampling=sampling,
            teacher_run=others,
            tolerances=named_values(tolerance or []),
            to=out,
            progress=not quiet,
        )
        said = {"structure": structure, "potential": potential, "against": against, "run": run, "seed": seed}
        time_ps, replicas = (time_ps, replicas) if given is None else (given.time_fs[-1] / 1e3, given.n_replicas)
        write_validation(out, found, said | {"ensemble": str(chosen), "time_ps": time_ps, "replicas": replicas})
        typer.echo(found)
        typer.echo(f"Wrote {out / 'verdict.json'} and {out / 'report.html'}.")
