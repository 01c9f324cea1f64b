"""The command line. Imports stand inside the commands, so that `--help` answers at once."""

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import dynamics, reports
from jaxmlip.cli.options import (
    CloseOption,
    DryRunOption,
    EnergyKey,
    ForcesKey,
    IndexOption,
    OverridesArgument,
    PotentialOption,
    StressKey,
    mistakes_in_one_sentence,
    results_alone_on_stdout,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
config_app = typer.Typer(no_args_is_help=True, help="Print a configuration to start from, or its JSON schema.")
app.add_typer(config_app, name="config")
app.add_typer(dynamics.app)
app.add_typer(reports.app)

SHOWN = 3
"""Of frames that are left out, so many are named."""


@app.callback()
def main(
    modules: Annotated[
        list[str] | None,
        typer.Option("--import", help="a module of your own that registers strategies, studies or potentials"),
    ] = None,
) -> None:
    """Train interatomic potentials on cheap data, lift them, and know whether their simulations can be trusted."""
    results_alone_on_stdout()
    with mistakes_in_one_sentence():
        if modules:
            sys.path.insert(0, str(Path.cwd()))  # as for `python -m`
            from jaxmlip.registry import import_members

            import_members(modules)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML configuration of a study")],
    overrides: OverridesArgument = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; runs/<name> by default")] = None,
    quiet: Annotated[bool, typer.Option(help="print the results only")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run a study to its report; run again to go on where it was, or to see a finished one."""
    with mistakes_in_one_sentence():
        _run_study("run", config, overrides, out, quiet=quiet, dry_run=dry_run)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration (see `jaxmlip config template train`)")],
    overrides: OverridesArgument = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; runs/<name> by default")] = None,
    quiet: Annotated[bool, typer.Option(help="no progress")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train one potential by one strategy from files of labelled frames."""
    with mistakes_in_one_sentence():
        _run_study("train", config, overrides, out, quiet=quiet, dry_run=dry_run)


def _run_study(
    command: str, path: Path, overrides: list[str] | None, out: Path | None, *, quiet: bool, dry_run: bool
) -> None:
    """Run what a configuration is of, and say what came of it; or say what would be done."""
    from jaxmlip.study.config import load_config
    from jaxmlip.study.registry import study_of
    from jaxmlip.study.section import ConfigError

    config = load_config(path, overrides)
    study = study_of(config)
    if study.command != command:
        raise ConfigError(f"{path} is a configuration for another command; use `jaxmlip {study.command} {path}`.")
    folder = out or Path("runs") / getattr(config, "name")  # noqa: B009 (register_study has seen to it)
    if dry_run:
        typer.echo(str(study.plan(config, folder)))
        return
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
    with mistakes_in_one_sentence():
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
    with mistakes_in_one_sentence():
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
        shown = {"progress": sys.stderr.isatty(), "allow_close": allow_close}
        report = compare(reference, label_frames(structures, model, stress=stress, **shown))
        typer.echo(to_json(report.to_json(), indent=None) if as_json else as_table(report))


@app.command()
def info(
    file: Annotated[
        Path, typer.Argument(help="potential, trajectory, store, structures, configuration, or folder of a run")
    ],
    energy_key: EnergyKey = "energy",
    forces_key: ForcesKey = "forces",
    stress_key: StressKey = "stress",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Say what a file is, what made it, and what is odd about it: units, missing labels, close or repeated atoms."""
    with mistakes_in_one_sentence():
        from jaxmlip.files import to_json
        from jaxmlip.study.info import info as info_of

        names = {"energy_key": energy_key, "forces_key": forces_key, "stress_key": stress_key}
        shown = {name: _or_none(key) for name, key in names.items()}
        found = info_of(file, **shown, progress=sys.stderr.isatty())
        typer.echo(to_json(found.to_json(), indent=None) if as_json else str(found))


@app.command()
def plot(
    run: Annotated[Path, typer.Argument(help="trajectory of jaxmlip md (.h5)")],
    out: Annotated[Path | None, typer.Option(help="picture to write; by default beside the run, as .png")] = None,
    equilibration_ps: Annotated[
        float | None, typer.Option("--equilibration-ps", help="what averages discard, ps; found by default")
    ] = None,
) -> None:
    """Draw a run: temperature, energy and density in time with what averages discard, and the RDFs."""
    with mistakes_in_one_sentence():
        import matplotlib as mpl

        mpl.use("Agg")
        from jaxmlip.simulation.trajectory import load_run
        from jaxmlip.study.plot_run import plot_run

        path = out or run.with_suffix(".png")
        drawn = plot_run(load_run(run), equilibration="auto" if equilibration_ps is None else equilibration_ps)
        drawn.savefig(path, dpi=150)
        typer.echo(f"Wrote {path}.")


@app.command()
def cite(
    path: Annotated[Path, typer.Argument(help="potential, trajectory, or folder of a run")],
) -> None:
    """Print the works that a potential, a trajectory or a run rests on, as BibTeX."""
    with mistakes_in_one_sentence():
        from jaxmlip.study.citing import bibtex, references

        typer.echo(bibtex(references(path)))


@app.command("convert-data")
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="extxyz, ASE database, trajectory, or JSON of the MPtrj or MatPES layout (.json, .jsonl, or .gz)"
        ),
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

    Bad entries of the MPtrj and MatPES layouts are left out, counted and named; any other bad frame ends it.
    """
    with mistakes_in_one_sentence():
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
    with mistakes_in_one_sentence():
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
    with mistakes_in_one_sentence():
        from jaxmlip.potentials.files import load, save
        from jaxmlip.potentials.tabulation import tabulate as with_tables

        tables = with_tables(load(str(potential)), tolerance)
        save(tables, out, provenance={"tabulated from": potential.name, "tolerance": tolerance})
        of_layers = [tables.params[f"interaction_{i}"]["table"].shape for i in range(tables.specification.layers)]
        said = ", ".join(f"{functions} functions of {knots} intervals" for knots, _, functions in of_layers)
        typer.echo(f"Wrote {out}: {said} for each layer in turn.")


KINDS = "clusters_to_bulk, cross_functional, learning_curve or train"


@config_app.command("template")
def config_template(
    kind: Annotated[
        str, typer.Argument(help="clusters_to_bulk, cross_functional, learning_curve or train")
    ] = "clusters_to_bulk",
) -> None:
    """Print a whole configuration with the meaning of every key."""
    with mistakes_in_one_sentence():
        from jaxmlip.study.config import template

        typer.echo(template(kind), nl=False)


@config_app.command("schema")
def config_schema(
    kind: Annotated[
        str, typer.Argument(help="clusters_to_bulk, cross_functional, learning_curve or train")
    ] = "clusters_to_bulk",
) -> None:
    """Print the JSON schema of a configuration, for editors."""
    with mistakes_in_one_sentence():
        from jaxmlip.study.config import schema

        typer.echo(json.dumps(schema(kind), indent=1))


def _or_none(key: str) -> str | None:
    """The name of a label, or None where the user writes none."""
    return None if key.lower() == "none" else key
