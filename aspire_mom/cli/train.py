"""`aspire-mom train`: train an encoder that starts inversions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

import aspire_mom
from aspire_mom.cli import console

if TYPE_CHECKING:
    from torch import nn

    from aspire_mom.training import TrainingSettings, TrainingStatus


@click.command(cls=console.Command)
@console.out_option("File to write (.npz).", ".npz")
@click.option("--steps", "n_steps", type=console.COUNT, default=3000, help="Steps.")
@click.option(
    "--batch-size",
    type=console.COUNT,
    default=256,
    help="Problems in a step, a multiple of 8.",
)
@console.learning_rate_option(5e-4)
@click.option(
    "--gaussians",
    type=console.COUNT,
    default=12,
    help="Number of Gaussians in the volumes that the encoder predicts.",
)
@console.run_options
def train(out: Path, gaussians: int, device: str, overwrite: bool, **options) -> None:
    """
    Train an encoder that predicts a volume and a density of views from moments.

    Training problems, random Gaussian mixtures and protein-like chains, are drawn while
    it runs. Progress is kept beside OUT in OUT.checkpoint: the same command goes on
    where a stopped one was.

    \b
    Example:
        aspire-mom train --steps 500 -o encoder.npz
    """
    console.check_outputs([out], overwrite)
    networks = aspire_mom.networks
    training = networks.Training(**options)
    encoder = networks.StartEncoder(gaussians, seed=training.seed)
    save = networks.StartEncoder.save
    run_training(networks.train, save, encoder, training, out, device)


def run_training(
    train: Callable[..., float],
    save: Callable[..., None],
    network: nn.Module,
    training: TrainingSettings,
    out: Path,
    device: str,
) -> None:
    """Train a network with a progress bar and a checkpoint beside the output; save it
    with a record of the training."""
    number = aspire_mom.checks.checked_device(device)
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    hidden = not sys.stderr.isatty()
    with (
        console.resumable(checkpoint),
        tqdm(total=training.n_steps, desc="training", disable=hidden) as bar,
    ):

        def show(status: TrainingStatus) -> None:
            bar.update(status.step - bar.n)
            bar.set_postfix({k: f"{v:.4f}" for k, v in status.errors.items()})

        files = {"checkpoint": checkpoint, "status": show}
        best = train(network, training, device=number, **files)
    command = " ".join(["aspire-mom", *sys.argv[1:]])
    how = {"command": command, "loss": best, "training": asdict(training)}
    save(network, out, how, overwrite=True)
    checkpoint.unlink()
    click.echo(f"{out}, validation loss {best:.4f}")
