"""The command line. Imports stand inside the commands, so that `--help` answers at once."""

import importlib
import json
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
config_app = typer.Typer(no_args_is_help=True, help="Print a configuration to start from, or its JSON schema.")
app.add_typer(config_app, name="config")

SHOWN = 3
"""Of frames that are left out, so many are named."""

POTENTIAL_HELP = "chgnet:gga, chgnet:r2scan, ase:package.module:factory, or the path of a .jaxmlip file"
PotentialOption = Annotated[str, typer.Option("--potential", help=POTENTIAL_HELP)]
IndexOption = Annotated[str, typer.Option(help="frames to read, as an ASE slice")]
CloseOption = Annotated[bool, typer.Option("--allow-close", help="take atoms that are closer than any bond")]
EnergyKey = Annotated[str, typer.Option(help="name of the energy label, eV; none to do without")]
ForcesKey = Annotated[str, typer.Option(help="name of the force label, eV/Å; none to do without")]
StressKey = Annotated[str, typer.Option(help="name of the stress label, eV/Å³; read where it is there, none: nowhere")]
OverridesArgument = Annotated[list[str] | None, typer.Argument(help="overrides, e.g. seed=1 system.molecules=96")]


@contextmanager
def _mistakes_in_one_sentence() -> Iterator[None]:
    """Turn the errors that a user can mend into one sentence on stderr and exit status 1, warnings into a sentence."""
    try:
        with warnings.catch_warnings():
            shown = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
                if category is UserWarning:
                    typer.secho(f"Warning: {message}", fg="yellow", err=True)
                else:
                    shown(message, category, *where, **more)

            warnings.showwarning = show
            yield
    except (ValueError, OSError, ImportError, RuntimeError, NotImplementedError) as error:
        if type(error).__module__.partition(".")[0] in ("jax", "jaxlib"):  # an error of the program, not of its use
            raise
        typer.secho(f"Error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.secho("Interrupted; what was finished is kept, and the same command goes on from there.", err=True)
        raise typer.Exit(130) from None


@app.callback()
def main(
    modules: Annotated[
        list[str] | None,
        typer.Option("--import", help="a module of your own that registers strategies, studies or potentials"),
    ] = None,
) -> None:
    """Train interatomic potentials on cheap data, lift them, and know whether their simulations can be trusted."""
    with _mistakes_in_one_sentence():
        for module in modules or []:
            sys.path.insert(0, str(Path.cwd()))  # as for `python -m`
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise ImportError(f"--import {module}: {error}.") from error
            finally:
                sys.path.pop(0)


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """End as at ^C when a scheduler asks for it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML configuration of a study")],
    overrides: OverridesArgument = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; runs/<name> by default")] = None,
    quiet: Annotated[bool, typer.Option(help="print the results only")] = False,
) -> None:
    """Run a study to its report; run again to go on where it was, or to see a finished one."""
    with _mistakes_in_one_sentence():
        _run_study("run", config, overrides, out, quiet)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration (see `jaxmlip config template train`)")],
    overrides: OverridesArgument = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; runs/<name> by default")] = None,
    quiet: Annotated[bool, typer.Option(help="no progress")] = False,
) -> None:
    """Train one potential by one strategy from files of labelled frames."""
    with _mistakes_in_one_sentence():
        _run_study("train", config, overrides, out, quiet)


def _run_study(command: str, path: Path, overrides: list[str] | None, out: Path | None, quiet: bool) -> None:
    """Run what a configuration is of, and say what came of it."""
    from jaxmlip.study.config import load_config
    from jaxmlip.study.registry import study_of
    from jaxmlip.study.section import ConfigError

    config = load_config(path, overrides)
    study = study_of(config)
    if study.command != command:
        raise ConfigError(f"{path} is a configuration for another command; use `jaxmlip {study.command} {path}`.")
    folder = out or Path("runs") / getattr(config, "name")  # noqa: B009 (register_study has seen to it)
    typer.echo(study.told(study.run(config, folder, progress=not quiet), folder))


@app.command()
def label(
    structures: Annotated[
        Path, typer.Argument(help="structures: a store or trajectory (.h5), or any format that ASE reads")
    ],
    potential: PotentialOption,
    out: Annotated[Path, typer.Option(help="extxyz file to write")],
    index: IndexOption = ":",
    stress: Annotated[bool, typer.Option("--stress", help="label the stress as well")] = False,
    allow_close: CloseOption = False,
) -> None:
    """Label structures with energies and forces of a potential; all else that their file says of them is kept."""
    with _mistakes_in_one_sentence():
        from jaxmlip.potentials.evaluation import label as label_frames
        from jaxmlip.potentials.files import load
        from jaxmlip.simulation.frames import open_frames
        from jaxmlip.systems.dataset import write_frames

        teacher = load(potential)
        unread = {"energy_key": None, "forces_key": None, "stress_key": None}
        frames = open_frames(structures, **unread, index=index, allow_close=allow_close)
        shown = {"progress": sys.stderr.isatty(), "allow_close": allow_close}
        labelled = label_frames([frame.atoms for frame in frames], teacher, stress=stress, **shown)
        write_frames(out, labelled)
        typer.echo(f"Wrote {len(labelled)} frames to {out}.")


@app.command()
def evaluate(
    file: Annotated[
        Path, typer.Argument(help="labelled frames: extxyz, ASE database, store or trajectory (.h5, its energies)")
    ],
    potential: PotentialOption,
    energy_key: EnergyKey = "energy",
    forces_key: ForcesKey = "forces",
    stress_key: StressKey = "stress",
    index: IndexOption = ":",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    allow_close: CloseOption = False,
) -> None:
    """Hold a potential against the reference labels that there are."""
    with _mistakes_in_one_sentence():
        from jaxmlip.files import to_json
        from jaxmlip.potentials.errors import as_table, compare
        from jaxmlip.potentials.evaluation import label as label_frames
        from jaxmlip.potentials.files import load
        from jaxmlip.potentials.potential import without_stress
        from jaxmlip.simulation.frames import open_frames
        from jaxmlip.systems.dataset import has_stress

        model = load(potential)
        names = {"energy_key": energy_key, "forces_key": forces_key, "stress_key": stress_key}
        names = {name: _or_none(key) for name, key in names.items()}
        reference = [*open_frames(file, **names, index=index, allow_close=allow_close)]
        structures, stress = [frame.atoms for frame in reference], any(map(has_stress, reference))
        if stress and (said := without_stress(model)):
            warnings.warn(said, stacklevel=1)
        report = compare(reference, label_frames(structures, model, stress=stress, allow_close=allow_close))
        typer.echo(to_json(report.to_json(), indent=None) if as_json else as_table(report))


@app.command()
def md(
    structure: Annotated[
        Path, typer.Argument(help="starting structure, the last of a trajectory (.h5) or of any file that ASE reads")
    ],
    potential: PotentialOption,
    temperature_k: Annotated[float, typer.Option("--temperature_K", help="K; nve: of the velocities at the start")],
    time_ps: Annotated[float, typer.Option("--time_ps", help="length of each replica, ps")],
    out: Annotated[Path, typer.Option(help="HDF5 file to write (H5MD layout)")],
    ensemble: Annotated[
        str,
        typer.Option(help="nve, nvt (Langevin), nvt-nose-hoover, nvt-csvr, npt (cell rescaling) or npt-nose-hoover"),
    ] = "nvt",
    pressure_gpa: Annotated[float, typer.Option("--pressure_GPa", help="of npt and npt-nose-hoover, GPa")] = 0.0,
    cell: Annotated[
        str, typer.Option(help="how npt moves the cell: isotropic, orthorhombic or flexible")
    ] = "isotropic",
    timestep_fs: Annotated[float, typer.Option("--timestep_fs", help="fs")] = 0.5,
    friction_per_ps: Annotated[float, typer.Option("--friction_per_ps", help="of nvt and npt, 1/ps")] = 5.0,
    sample_every_fs: Annotated[float, typer.Option("--sample_every_fs", help="time between stored frames, fs")] = 10.0,
    replicas: Annotated[int, typer.Option(help="independent replicas, run as one program")] = 1,
    seed: Annotated[int, typer.Option(help="of velocities and noise")] = 0,
    allow_close: CloseOption = False,
) -> None:
    """Simulate a structure at constant energy, at constant temperature, or at constant temperature and pressure.

    Frames are appended to the file as they come. The same line again goes on where a run was stopped; with a longer
    time it goes on from its end. Of several processes (JAX_COORDINATOR_ADDRESS and so on) each takes a share of the
    replicas to a file of its own.
    """
    with _mistakes_in_one_sentence(), _sigterm_like_ctrl_c():
        from jaxmlip.potentials.files import load_potential
        from jaxmlip.processes import join_processes
        from jaxmlip.simulation.barostats import NPT, NPTNoseHoover, check_cell_motion
        from jaxmlip.simulation.ensembles import NVE, NVT, NVTNoseHoover, NVTVelocityRescaling
        from jaxmlip.simulation.frames import last_structure
        from jaxmlip.simulation.simulate import simulate

        made = {
            "nve": lambda: NVE(temperature_k),
            "nvt": lambda: NVT(temperature_k, friction_per_ps=friction_per_ps),
            "nvt-nose-hoover": lambda: NVTNoseHoover(temperature_k),
            "nvt-csvr": lambda: NVTVelocityRescaling(temperature_k),
            "npt": lambda: NPT(temperature_k, pressure_gpa, check_cell_motion(cell), friction_per_ps=friction_per_ps),
            "npt-nose-hoover": lambda: NPTNoseHoover(temperature_k, pressure_gpa),
        }
        if ensemble not in made:
            raise ValueError(f"The ensemble is one of {', '.join(made)}, not {ensemble!r}.")
        chosen = made[ensemble]()
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
    trajectory: Annotated[Path, typer.Argument(help="file of jaxmlip md")],
    out: Annotated[Path, typer.Argument(help="extended XYZ file to write, replica by replica")],
    every: Annotated[int, typer.Option(help="write every n-th frame of a replica only")] = 1,
) -> None:
    """Write the frames of a trajectory as extended XYZ."""
    with _mistakes_in_one_sentence():
        from jaxmlip.simulation.trajectory import export_extxyz

        typer.echo(f"Wrote {export_extxyz(trajectory, out, every=every)} frames to {out}.")


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
    with _mistakes_in_one_sentence():
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
        labels = {} if relaxed.stress is None else {"stress": relaxed.stress}
        write_structure(out, Frame(relaxed.atoms, relaxed.energy, relaxed.forces, **labels, info=relaxed.atoms.info))
        typer.echo(f"Wrote {out}: {relaxed.summary()}")
        if not relaxed.converged:
            raise RuntimeError(f"{structure} did not relax: {relaxed.outcome.value}; raise --steps, or look at {out}.")


@app.command("convert-data")
def convert(
    source: Annotated[
        Path, typer.Argument(help="extxyz, ASE database, trajectory, or JSON of the MPtrj layout (.json, .json.gz)")
    ],
    out: Annotated[Path, typer.Argument(help=".h5 file to write, which is read frame by frame")],
    energy_key: Annotated[
        str | None,
        typer.Option(help="name of the energy label; energy, or uncorrected_total_energy of MPtrj; none to do without"),
    ] = None,
    forces_key: ForcesKey = "forces",
    stress_key: StressKey = "stress",
    quiet: Annotated[bool, typer.Option(help="no progress")] = False,
    allow_close: CloseOption = False,
) -> None:
    """Turn labelled frames into a store, for sets larger than memory; one frame after the other is in memory.

    Bad entries of the MPtrj layout are left out, counted and named; any other bad frame ends the conversion.
    """
    with _mistakes_in_one_sentence():
        from jaxmlip.study.convert import convert_data

        given = {"energy": energy_key or "energy", "forces": forces_key, "stress": stress_key}
        keys = {label: _or_none(key) for label, key in given.items() if key != label}
        number, left_out = convert_data(source, out, keys, allow_close=allow_close, progress=not quiet)
        typer.echo(f"Wrote {number} frames to {out}.")
        if left_out:
            typer.echo(f"Left out {len(left_out)} frames that cannot be used, the first of them:", err=True)
            typer.echo("\n".join(left_out[:SHOWN]), err=True)


@app.command("convert-mace")
def convert_mace(
    model: Annotated[Path, typer.Argument(help="model file of mace-torch, or what was extracted from it")],
    out: Annotated[Path, typer.Argument(help=".jaxmlip file to write")],
    head: Annotated[str | None, typer.Option(help="name of the head to take, of a model with several")] = None,
) -> None:
    """Turn a MACE model of mace-torch into a potential of this package, with the same energies and forces."""
    with _mistakes_in_one_sentence():
        from jaxmlip.potentials.files import save
        from jaxmlip.potentials.mace import from_mace
        from jaxmlip.potentials.mace_checkpoint import read_mace

        extracted = read_mace(model)
        potential = from_mace(extracted, head)
        origin = {"file": model.name, "class": extracted["class"], "mace-torch": extracted["version"], "head": head}
        save(potential, out, provenance={"converted from": origin})
        typer.echo(f"Wrote {out}: {len(potential.known)} elements, cutoff {potential.cutoff:g} Å.")


@app.command()
def tabulate(
    potential: Annotated[Path, typer.Argument(help=".jaxmlip file of an equivariant potential")],
    out: Annotated[Path, typer.Argument(help=".jaxmlip file to write")],
    tolerance: Annotated[
        float, typer.Option(help="largest error of a radial function, relative to the largest")
    ] = 1e-5,
) -> None:
    """Put a trained potential's radial functions into tables: a third faster, to a stated error."""
    with _mistakes_in_one_sentence():
        from jaxmlip.potentials.files import load, save
        from jaxmlip.potentials.tabulation import tabulate as with_tables

        tables = with_tables(load(str(potential)), tolerance)
        save(tables, out, provenance={"tabulated from": potential.name, "tolerance": tolerance})
        of_layers = [tables.params[f"interaction_{i}"]["table"].shape for i in range(tables.specification.layers)]
        said = ", ".join(f"{functions} functions of {knots} intervals" for knots, _, functions in of_layers)
        typer.echo(f"Wrote {out}: {said} for each layer in turn.")


@config_app.command("template")
def config_template(
    kind: Annotated[str, typer.Argument(help="clusters_to_bulk, learning_curve or train")] = "clusters_to_bulk",
) -> None:
    """Print a whole configuration with the meaning of every key."""
    with _mistakes_in_one_sentence():
        from jaxmlip.study.config import template

        typer.echo(template(kind), nl=False)


@config_app.command("schema")
def config_schema(
    kind: Annotated[str, typer.Argument(help="clusters_to_bulk, learning_curve or train")] = "clusters_to_bulk",
) -> None:
    """Print the JSON schema of a configuration, for editors."""
    with _mistakes_in_one_sentence():
        from jaxmlip.study.config import schema

        typer.echo(json.dumps(schema(kind), indent=1))


def _or_none(key: str) -> str | None:
    """The name of a label, or None where the user writes none."""
    return None if key.lower() == "none" else key
