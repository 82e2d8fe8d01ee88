"""`aspire-mom train`: encoders that start inversions, from the command line."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click
from tqdm import tqdm

from aspire_mom.cli.console import Command, Positive, check_device, device_option
from aspire_mom.cli.outputs import check_name, check_outputs
from aspire_mom.files import staged
from aspire_mom.networks.problems import Training
from aspire_mom.networks.start_encoder import StartEncoder
from aspire_mom.networks.training import train as train_encoder
from aspire_mom.networks.weights import save_weights
from aspire_mom.training import TrainingStatus


@click.command(cls=Command)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write (.npz).",
)
@click.option(
    "--steps", type=click.IntRange(1), default=Training.n_steps, show_default=True
)
@click.option(
    "--batch-size",
    type=click.IntRange(8),
    default=Training.batch_size,
    show_default=True,
    help="Problems in a step, a multiple of 8.",
)
@click.option(
    "--learning-rate",
    type=Positive(),
    default=Training.learning_rate,
    show_default=True,
    help="Of Adam, at its highest.",
)
@click.option(
    "--gaussians",
    type=click.IntRange(1),
    default=12,
    show_default=True,
    help="Gaussians in the volumes that are found.",
)
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True)
@device_option
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
def train(
    out: Path,
    steps: int,
    batch_size: int,
    learning_rate: float,
    gaussians: int,
    seed: int,
    device: str,
    overwrite: bool,
) -> None:
    """
    Train an encoder that finds a volume and a density of views from moments at once.

    It learns on random Gaussian mixtures and protein-like chains, drawn as it goes.
    Progress is kept in a file beside the weights whose name ends in .checkpoint: the
    same command goes on where a stopped one was.

    \b
    Example:
        aspire-mom train --steps 500 -o weights.npz
    """
    check_name(out, ".npz")
    check_outputs([out], overwrite)
    training = Training(
        n_steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        validate_every=min(Training.validate_every, steps),
        seed=seed,
    )
    encoder = StartEncoder(gaussians, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_name(out.name + ".checkpoint")
    with tqdm(total=steps, desc="training", disable=not sys.stderr.isatty()) as bar:

        def show(status: TrainingStatus) -> None:
            bar.update(status.step - bar.n)
            bar.set_postfix({k: f"{v:.3f}" for k, v in status.errors.items()})

        best = train_encoder(
            encoder,
            training,
            device=check_device(device),
            checkpoint=checkpoint,
            status=show,
        )
    with staged(out.parent) as folder:
        command = " ".join(["aspire-mom", *sys.argv[1:]])
        how = {"command": command, "loss": best, "training": asdict(training)}
        save_weights(encoder, folder / out.name, how)
    checkpoint.unlink()
    click.echo(f"{out}, validation loss {best:.4f}")
