"""Commands that put finished studies together."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli.options import mistakes_in_one_sentence

app = typer.Typer()


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="folders of studies clusters_to_bulk, or of many of them")],
    out: Annotated[Path, typer.Option(help="folder to write report.html and comparison.json to")] = Path("runs/report"),
) -> None:
    """Put studies together: the correlations over all their students, and what they answer."""
    with mistakes_in_one_sentence():
        import matplotlib as mpl

        mpl.use("Agg")
        from jaxmlip.study.clusters_to_bulk.comparison import compare_studies

        found = compare_studies(runs, out)
        for answer in found["answers"].values():
            typer.echo(f"{answer['question']}\n  {answer['answer']}: {answer['sentence']}")
            if answer["needs"]:
                typer.echo(f"  To tell: {answer['needs']}.")
        typer.echo(f"Wrote {out / 'report.html'} and {out / 'comparison.json'}.")
