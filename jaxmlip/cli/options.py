"""What commands share: their options, and how mistakes are told."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

STDOUT, STDERR = 1, 2
"""Descriptors of a process."""

POTENTIAL_HELP = "chgnet:gga, chgnet:r2scan, ase:package.module:factory, or the path of a .jaxmlip file"
PotentialOption = Annotated[str, typer.Option("--potential", help=POTENTIAL_HELP)]
IndexOption = Annotated[str, typer.Option(help="frames to read, as an ASE slice")]
CloseOption = Annotated[bool, typer.Option("--allow-close", help="take atoms that are closer than any bond")]
EnergyKey = Annotated[str, typer.Option(help="name of the energy label, eV; none to do without")]
ForcesKey = Annotated[str, typer.Option(help="name of the force label, eV/Å; none to do without")]
StressKey = Annotated[str, typer.Option(help="name of the stress label, eV/Å³; read where it is there, none: nowhere")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="print stages, sizes, estimated time and memory, and run nothing")
]
OverridesArgument = Annotated[list[str] | None, typer.Argument(help="overrides, e.g. seed=1 system.molecules=96")]


@contextmanager
def mistakes_in_one_sentence() -> Iterator[None]:
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


def results_alone_on_stdout() -> None:
    """From here on, what libraries write below Python goes to standard error, and standard output is for results.

    Programs behind calculators (tblite's tables of cycles) print a page for every structure, between which results
    could not be found, nor read by machines. Nothing is done where standard output is not the process's own, as in
    tests.
    """
    try:
        if sys.stdout.fileno() != STDOUT:
            return
        sys.stdout.flush()
        results = os.fdopen(os.dup(STDOUT), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
        os.dup2(STDERR, STDOUT)
        sys.stdout = results
    except (OSError, AttributeError):  # a stream is closed, or none of the system's
        return


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """End as at ^C when a scheduler asks for it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def chosen_tables(name: str) -> Any:
    """What `simulate` calls it; ValueError for other names."""
    choices = {"auto": "auto", "on": True, "off": False}
    if name not in choices:
        raise ValueError(f"--tables is auto, on or off, not {name}.")
    return choices[name]
