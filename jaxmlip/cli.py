"""The command line. Imports stand inside the commands, so that `--help` answers at once."""

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

POTENTIAL_HELP = "chgnet:gga, chgnet:r2scan, ase:package.module:factory, or the path of a .jaxmlip file"
PotentialOption = Annotated[str, typer.Option("--potential", help=POTENTIAL_HELP)]
IndexOption = Annotated[str, typer.Option(help="frames to read, as an ASE slice")]
OverridesArgument = Annotated[list[str] | None, typer.Argument(help="overrides, e.g. seed=1 system.molecules=96")]


@app.callback()
def main() -> None:
    """Train interatomic potentials on cheap data, lift them, and know whether their simulations can be trusted."""


@contextmanager
def _mistakes_in_one_sentence() -> Iterator[None]:
    """Turn errors that a user can mend into one sentence on stderr and exit status 1; warnings are sentences too."""
    try:
        with warnings.catch_warnings():
            showwarning = warnings.showwarning

            def in_one_sentence(message: Warning | str, category: type[Warning], *where: Any) -> None:
                if category is UserWarning:
                    typer.secho(f"Warning: {message}", fg="yellow", err=True)
                else:
                    showwarning(message, category, *where)

            warnings.showwarning = in_one_sentence
            yield
    except (ValueError, OSError, ImportError, RuntimeError, NotImplementedError) as error:
        if type(error).__module__.partition(".")[0] in ("jax", "jaxlib"):  # an error of the program, not of its use
            raise
        typer.secho(f"Error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.secho("Interrupted; what was finished is kept, and the same command goes on from there.", err=True)
        raise typer.Exit(130) from None


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
        from jaxmlip.study.config import ClustersToBulk, ConfigError, LearningCurve, load_config
        from jaxmlip.study.learning_curve import run_learning_curve
        from jaxmlip.study.report import summary_table
        from jaxmlip.study.run import run_study

        checked = load_config(config, overrides)
        if not isinstance(checked, ClustersToBulk | LearningCurve):
            raise ConfigError(f"{config} trains one potential; use `jaxmlip train {config}`.")
        folder = out or Path("runs") / checked.name
        if isinstance(checked, LearningCurve):
            run_learning_curve(checked, folder, progress=not quiet)
            typer.echo((folder / "table.md").read_text())
            typer.echo(
                f"Wrote {folder / 'results.json'}, {folder / 'learning_curves.png'} and {folder / 'potentials'}."
            )
            return
        summary = run_study(checked, folder, progress=not quiet)
        typer.echo(summary_table(summary))
        typer.echo(f"Wrote {folder / 'report.html'} and {folder / 'summary.json'}.")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration (see `jaxmlip config template train`)")],
    overrides: OverridesArgument = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; runs/<name> by default")] = None,
    quiet: Annotated[bool, typer.Option(help="no progress")] = False,
) -> None:
    """Train one potential by one strategy from files of labelled frames."""
    with _mistakes_in_one_sentence():
        from jaxmlip.study.config import ConfigError, TrainOne, load_config
        from jaxmlip.study.train_one import run_train_one
        from jaxmlip.study.workspace import to_json

        checked = load_config(config, overrides)
        if not isinstance(checked, TrainOne):
            raise ConfigError(f"{config} is a whole study; use `jaxmlip run {config}`.")
        folder = out or Path("runs") / checked.name
        result = run_train_one(checked, folder, progress=not quiet)
        typer.echo(to_json(result))
        typer.echo(f"Wrote {folder / 'potential.jaxmlip'}.")


@app.command()
def label(
    structures: Annotated[Path, typer.Argument(help="structures: a store (.h5), or any format that ASE reads")],
    potential: PotentialOption,
    out: Annotated[Path, typer.Option(help="extxyz file to write")],
    index: IndexOption = ":",
    stress: Annotated[bool, typer.Option("--stress", help="label the stress as well")] = False,
) -> None:
    """Label structures with energies and forces of a potential."""
    with _mistakes_in_one_sentence():
        from jaxmlip.potentials.evaluation import label as label_frames
        from jaxmlip.potentials.files import load
        from jaxmlip.systems.dataset import write_frames
        from jaxmlip.systems.store import open_frames

        teacher = load(potential)
        frames = open_frames(structures, energy_key=None, forces_key=None, index=index)
        labelled = label_frames([frame.atoms for frame in frames], teacher, stress=stress, progress=sys.stderr.isatty())
        write_frames(out, labelled)
        typer.echo(f"Wrote {len(labelled)} frames to {out}.")


@app.command()
def evaluate(
    file: Annotated[Path, typer.Argument(help="labelled frames: extxyz, ASE database or store (.h5)")],
    potential: PotentialOption,
    energy_key: Annotated[str, typer.Option(help="name of the energy label, eV")] = "energy",
    forces_key: Annotated[str, typer.Option(help="name of the force label, eV/Å")] = "forces",
    stress_key: Annotated[str | None, typer.Option(help="name of the stress label, eV/Å³")] = None,
    index: IndexOption = ":",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Hold a potential against reference labels."""
    with _mistakes_in_one_sentence():
        from jaxmlip.potentials.evaluation import label as label_frames
        from jaxmlip.potentials.files import load
        from jaxmlip.potentials.potential import Potential, without_stress
        from jaxmlip.study.workspace import to_json
        from jaxmlip.systems.store import open_frames
        from jaxmlip.training.weighting import has_stress
        from jaxmlip.validation.errors import compare

        model = load(potential)
        reference = open_frames(file, energy_key=energy_key, forces_key=forces_key, stress_key=stress_key, index=index)
        predicted = label_frames([frame.atoms for frame in reference], model, stress=stress_key is not None)
        if isinstance(model, Potential) and any(map(has_stress, reference)) and (said := without_stress(model)):
            warnings.warn(said, stacklevel=1)
        report = compare(reference, predicted).to_json()
        typer.echo(to_json(report, indent=None) if as_json else _two_columns(report))


@app.command()
def md(
    structure: Annotated[Path, typer.Argument(help="starting structure, in any format that ASE reads")],
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
        from jaxmlip.simulation.replicas import simulate_to_file
        from jaxmlip.systems.store import open_frames

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
        start = open_frames(structure, energy_key=None, forces_key=None, index="-1")[0].atoms
        result = simulate_to_file(
            out,
            model,
            start,
            chosen,
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
) -> None:
    """Relax the positions of a structure, and its cell if asked, by FIRE; exit status 1 if it does not converge."""
    with _mistakes_in_one_sentence():
        from ase.io import write

        from jaxmlip.potentials.files import load_potential
        from jaxmlip.simulation.relaxation import relax as relax_structure
        from jaxmlip.systems.store import open_frames

        model = load_potential(potential)
        start = open_frames(structure, energy_key=None, forces_key=None, index="-1")[0].atoms
        limit = stress_gpa if cell else None
        relaxed = relax_structure(model, start, forces_ev_a, limit, pressure_GPa=pressure_gpa, steps=steps)
        write(out, relaxed.atoms)
        typer.echo(f"Wrote {out}: {relaxed.summary()}")
        if not relaxed.converged:
            raise RuntimeError(f"{structure} did not relax: {relaxed.outcome.value}; raise --steps, or look at {out}.")


@app.command("convert-data")
def convert_data(
    source: Annotated[Path, typer.Argument(help="extxyz, ASE database, or JSON of the MPtrj layout (.json, .json.gz)")],
    out: Annotated[Path, typer.Argument(help=".h5 file to write, which is read frame by frame")],
    energy_key: Annotated[
        str | None, typer.Option(help="name of the energy label; energy, or uncorrected_total_energy of MPtrj")
    ] = None,
    forces_key: Annotated[str, typer.Option(help="name of the force label; not for MPtrj")] = "forces",
    stress_key: Annotated[str | None, typer.Option(help="name of the stress label; not for MPtrj")] = None,
    quiet: Annotated[bool, typer.Option(help="no progress")] = False,
) -> None:
    """Turn labelled frames into a store, for sets larger than memory; one frame after the other is in memory."""
    with _mistakes_in_one_sentence():
        from jaxmlip.progress import progress_bar
        from jaxmlip.systems.dataset import iterate_frames
        from jaxmlip.systems.mptrj import is_mptrj, iterate_mptrj
        from jaxmlip.systems.store import write_store

        if out.suffix != ".h5":
            raise ValueError(f"The name of a store ends in .h5, and {out} does not.")
        if ".json" in source.suffixes and is_mptrj(source):
            keys = {"energy": energy_key or "uncorrected_total_energy", "forces": "force", "stress": "stress"}
            frames = iterate_mptrj(source, energy_key=keys["energy"])
        else:
            keys = {"energy": energy_key or "energy", "forces": forces_key}
            keys |= {"stress": stress_key} if stress_key else {}
            frames = iterate_frames(source, energy_key=keys["energy"], forces_key=forces_key, stress_key=stress_key)
        shown = iter(progress_bar(frames, desc="converting", unit="frame", disable=quiet))
        number = write_store(out, shown, keys=keys)
        typer.echo(f"Wrote {number} frames to {out}.")


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
        from jaxmlip.potentials.equivariant import EquivariantPotential
        from jaxmlip.potentials.files import load, save
        from jaxmlip.potentials.tabulation import tabulate as with_tables

        original = load(str(potential))
        if not isinstance(original, EquivariantPotential):
            raise ValueError(
                f"{potential} holds a {type(original).__name__}, and only an equivariant potential has tables."
            )
        tables = with_tables(original, tolerance)
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


def _two_columns(report: dict) -> str:
    width = max(map(len, report))
    return "\n".join(f"{key:<{width}}  {value:.6g}" for key, value in report.items())
