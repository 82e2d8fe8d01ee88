"""`aspire-mom train`: train an encoder that starts inversions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click
from torch import nn
from tqdm import tqdm

from aspire_mom.checks import checked_device
from aspire_mom.cli import console
from aspire_mom.networks.problems import Training
from aspire_mom.networks.start_encoder import StartEncoder
from aspire_mom.networks.training import train as train_encoder
from aspire_mom.training import TrainingSettings, TrainingStatus


@click.command(cls=console.Command)
@console.out_option("File to write (.npz).", ".npz")
@click.option("--steps", type=console.COUNT, default=Training.n_steps)
@click.option(
    "--batch-size",
    type=click.IntRange(8),
    default=Training.batch_size,
    help="Problems in a step, a multiple of 8.",
)
@click.option(
    "--learning-rate",
    type=console.Positive(),
    default=Training.learning_rate,
    help="Peak learning rate of Adam (warm-up and cosine decay).",
)
@click.option(
    "--gaussians",
    type=console.COUNT,
    default=12,
    help="Number of Gaussians in the volumes that the encoder predicts.",
)
@console.seed_option
@console.device_option
@console.overwrite_option
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
    console.check_outputs([out], overwrite)
    training = Training(
        n_steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        validate_every=min(Training.validate_every, steps),
        seed=seed,
    )
    encoder = StartEncoder(gaussians, seed=seed)
    run_training(train_encoder, StartEncoder.save, encoder, training, out, device)


def run_training(
    train: Callable[..., float],
    save: Callable[..., None],
    network: nn.Module,
    training: TrainingSettings,
    out: Path,
    device: str,
) -> None:
    """
    Train a network with a progress bar and a checkpoint beside the output, and save it.

    :param train: Function that trains it, as in `aspire_mom.networks.training`.
    :param save: Function that writes it, from the network, a path and how it was made.
    :param network: The network.
    :param training: How to train it.
    :param out: File to write (.npz).
    :param device: torch device.
    """
    device = checked_device(device)
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    hidden = not sys.stderr.isatty()
    with tqdm(total=training.n_steps, desc="training", disable=hidden) as bar:

        def show(status: TrainingStatus) -> None:
            bar.update(status.step - bar.n)
            bar.set_postfix({k: f"{v:.4f}" for k, v in status.errors.items()})

        files = {"checkpoint": checkpoint, "status": show}
        best = train(network, training, device=device, **files)
    command = " ".join(["aspire-mom", *sys.argv[1:]])
    how = {"command": command, "loss": best, "training": asdict(training)}
    save(network, out, how, overwrite=True)
    checkpoint.unlink()
    click.echo(f"{out}, validation loss {best:.4f}")
