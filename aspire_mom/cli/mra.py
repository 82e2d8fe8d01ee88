"""`aspire-mom mra`: multireference alignment from the command line."""

from __future__ import annotations

from pathlib import Path

import click

import aspire_mom
from aspire_mom.cli import console
from aspire_mom.cli.train import run_training

METHODS = ("auto", "spectral", "marching", "least-squares", "mixture", "network")


@click.group(cls=console.Group)
def mra() -> None:
    """Multireference alignment: signals shifted at random, under noise."""


@mra.command("train")
@console.out_option("File to write (.npz).", ".npz")
@click.option(
    "--encoder",
    type=click.Choice(["mixture", "paper"]),
    default="mixture",
    help="The package's encoder, for moments with and without noise, or the paper's,"
    " for exact moments.",
)
@click.option(
    "--gaussians",
    "ks",
    type=console.COUNT,
    multiple=True,
    default=(1, 2, 3),
    help="Gaussians in v and in ρ; may be given several times.",
)
@click.option("--n", type=click.IntRange(min=8), default=41, help="Samples of v and ρ.")
@click.option("--steps", "n_steps", type=console.COUNT, default=7000, help="Steps.")
@click.option(
    "--batch-size",
    type=console.COUNT,
    help="Problems in a step.  [default: 256, or 64 for the paper's encoder]",
)
@console.learning_rate_option(1e-3)
@click.option(
    "--training-set",
    "set_size",
    type=console.COUNT,
    help="Size of a fixed training set (paper's encoder only).  [default: every problem"
    " is new]",
)
@console.run_options
def train_command(
    out: Path, encoder: str, n: int, device: str, overwrite: bool, **options
) -> None:
    """
    Train an encoder on problems drawn while it runs, and write its parameters.

    Progress is kept beside OUT in OUT.checkpoint: the same command goes on where a
    stopped one was.

    \b
    Example:
        aspire-mom mra train --steps 1000 -o encoder.npz
    """
    from aspire_mom.mra.mixture_encoder import HIGHEST, MIN_SIZE

    console.check_outputs([out], overwrite)
    mra, seed = aspire_mom.mra, options["seed"]
    if encoder == "paper":
        network = mra.PaperEncoder(n, seed=seed)
        defaults = {"batch_size": 64, "exact_share": 1.0}
    elif options["set_size"] is not None:
        raise ValueError("--training-set is for --encoder paper")
    elif n < MIN_SIZE:
        raise ValueError(f"--n is {n}; --encoder mixture is for at least {MIN_SIZE}")
    else:
        network = mra.MixtureEncoder(most=max(options["ks"]), seed=seed)
        defaults = {"batch_size": 256, "highest": HIGHEST}
    given = {name: value for name, value in options.items() if value is not None}
    training = mra.Training(n=n, **defaults | given)
    run_training(mra.train, mra.save_weights, network, training, out, device)


@mra.command("solve")
@click.argument("data", type=console.INPUT)
@console.out_option("File to write (.npz).", ".npz")
@click.option("--method", type=click.Choice(METHODS), default="auto")
@click.option(
    "--sigma",
    type=console.Positive(),
    help="Standard deviation of the noise.  [default: as in the file; estimated from"
    " observations]",
)
@click.option(
    "--weights",
    type=console.INPUT,
    help="Trained encoder (.npz) for --method network.  [default: the package's]",
)
@console.overwrite_option
def solve_command(
    data: Path,
    out: Path,
    method: str,
    sigma: float | None,
    weights: Path | None,
    overwrite: bool,
) -> None:
    """
    Find a signal v and a density of shifts ρ from DATA.

    DATA are moments, an .npz file with first (n) and second (n x n): unitary DFT,
    numpy.fft.fftfreq order, noise bias removed, and n_observations and sigma where they
    are noisy; or observations, an .npy file of N x n real numbers. The file has v and
    rho; beside it a picture of the same name is written (.png).

    \b
    Example:
        aspire-mom mra solve observations.npy -o solution.npz
    """
    from aspire_mom.mra.moments import read_moments

    mra, picture = aspire_mom.mra, out.with_suffix(".png")
    console.check_outputs([out, picture], overwrite)
    if weights is not None and method != "network":
        raise ValueError("--weights is for --method network")
    moments = read_moments(data, sigma)
    if method == "network":
        network = mra.pretrained() if weights is None else mra.load_weights(weights)
        # `predict` does not validate its input; `MRAInversion` does.
        moments = mra.MRAInversion(moments).moments
        solution = mra.MRASolution(*mra.predict(network, moments))
    else:
        solution = mra.MRAInversion(moments, method=method).estimate()
    with aspire_mom.files.staged(out.parent) as folder:
        solution.save(folder / out.name)
        solution.plot().savefig(folder / picture.name, dpi=120)
    click.echo(f"v and rho in {out}, picture in {picture}")


@mra.command("benchmark")
@click.option(
    "--gaussians", type=click.IntRange(1, 3), default=2, help="Gaussians in v and in ρ."
)
@click.option("--instances", type=console.COUNT, default=50, help="Problems.")
@click.option(
    "--observations",
    type=console.COUNT,
    help="Observations of each signal.  [default: exact moments]",
)
@click.option("--sigma", type=console.Positive(), default=1.0)
@click.option(
    "--scale",
    type=click.Choice(["density", "unit"]),
    default="density",
    help="v of mean 1, or of Euclidean norm 1.",
)
@click.option(
    "--method",
    "methods",
    type=click.Choice([*METHODS, "paper"]),
    multiple=True,
    default=("marching", "auto", "network"),
    help="May be given several times.",
)
@console.seed_option
def benchmark_command(
    gaussians: int,
    instances: int,
    observations: int | None,
    sigma: float,
    scale: str,
    methods: tuple[str, ...],
    seed: int,
) -> None:
    """
    Print errors and times of methods on problems with known answers.

    Errors are those of eq. 21, relative and up to a shift.

    \b
    Example:
        aspire-mom mra benchmark --gaussians 2 --observations 1000000
    """
    from aspire_mom.mra.comparison import HEADER, draw_test, score

    family = aspire_mom.mra.GaussianFamily(gaussians, scale=scale)
    v, rho, moments = draw_test(family, instances, seed, observations, sigma)
    click.echo(HEADER)
    for method in methods:
        scores = score(method, gaussians, v, rho, moments)
        click.echo(f"{method:<14}  {scores}")
