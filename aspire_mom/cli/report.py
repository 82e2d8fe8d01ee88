"""`aspire-mom report`: a page on the results in a folder."""

from __future__ import annotations

from pathlib import Path

import click

import aspire_mom
from aspire_mom.cli import console
from aspire_mom.cli.volumes import read_volume


@click.command(cls=console.Command)
@click.argument("result", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    type=console.INPUT,
    help="MRC file of a map to compare the model with, of the same box; a finer one is"
    " downsampled.",
)
def report(result: Path, reference: Path | None) -> None:
    """
    Write a page on RESULT, a folder that initial-model, refine, reconstruct or demo
    wrote: report.html, which needs no other file and no network, and its pictures
    (.png), over those of an earlier report.

    \b
    Examples:
        aspire-mom report model
        aspire-mom report model --reference map.mrc
    """
    other = None if reference is None else read_volume(reference)
    click.echo(aspire_mom.report.write_report(result, other))
