"""The command `aspire-mom`. Each of its commands is imported when it is asked for, so
that `--help` answers at once."""

from __future__ import annotations

import click

from aspire_mom.cli.console import LazyGroup

# Module that defines the command, and one line of help.
COMMANDS = {
    "demo": ("demo", "Simulate noisy images, make a model, compare with the truth."),
    "simulate": ("volumes", "Simulate noisy particle images of a volume."),
    "moments": ("moments", "Average moments of particles, a STAR or .cs file."),
    "inspect": ("moments", "Report signal and noise of moments on each Fourier ring."),
    "reconstruct": ("reconstruct", "Find a volume and a density of views by moments."),
    "refine": ("refine", "Refine a reconstruction against the particles."),
    "initial-model": ("refine", "Make a model of particles: moments to refinement."),
    "report": ("report", "Write a page on results, to look at in a browser."),
    "evaluate": ("volumes", "Compare a volume with a reference."),
    "train": ("train", "Train an encoder that starts reconstructions."),
    "mra": ("mra", "Multireference alignment: signals shifted at random, under noise."),
}


@click.group(
    cls=LazyGroup,
    modules=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(package_name="aspire-mom")
@click.pass_context
def main(ctx: click.Context) -> None:
    """
    Ab initio cryo-EM volumes from image moments.

    Averages first and second moments over all images, without estimating any
    orientation, and finds a volume and a density of viewing directions that have these
    moments.

    \b
    See it work, in a few minutes:
        aspire-mom demo --out demo
    From images to a model, all at once:
        aspire-mom initial-model particles.star -o model
    Step by step, and how good it is where the truth is known:
        aspire-mom moments particles.star -o moments.npz
        aspire-mom inspect moments.npz
        aspire-mom reconstruct moments.npz -o result
        aspire-mom refine result particles.star -o refined
        aspire-mom evaluate refined/volume.mrc truth.mrc
    A page on any of these results, which the commands write too:
        aspire-mom report refined
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
