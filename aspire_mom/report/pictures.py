"""Plots of how a model was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aspire_mom.evaluation.plots import BLUE, GREEN, INK, ORANGE

# Residuals above this many standard errors are drawn alike.
MOST_RESIDUAL = 4.0


def plot_residual(residual: np.ndarray, path: Path) -> Figure:
    """
    Draw residuals of the second moment in standard errors.

    :param residual: What `second_residual` returns, (n_orders, n_rings).
    :param path: Image file to write.
    :return: matplotlib `Figure`.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.add_subplot()
    known = np.ma.masked_equal(residual, 0)
    image = ax.imshow(known, "cividis", aspect="auto", vmin=0, vmax=MOST_RESIDUAL)
    ax.invert_yaxis()
    ax.locator_params(axis="x", integer=True)
    if len(residual) == 1:
        ax.set_yticks([])
    ax.set(xlabel="ring (cycles per box)", ylabel="angular order")
    bar = figure.colorbar(image, extend="max")
    bar.set_label("residual / standard error")
    figure.savefig(path, dpi=150)
    return figure


def plot_starts(starts: list[dict], history: list[dict], path: Path) -> Figure:
    """
    Draw the criterion of all starts, and how the loss of the best one came about.

    :param starts: Starts, best first, as `Reconstruction.starts`.
    :param history: Stages of the best start, as `Reconstruction.history`.
    :param path: Image file to write.
    :return: matplotlib `Figure`.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    criteria = [start["criterion"] for start in starts]
    left.plot(range(1, len(criteria) + 1), criteria, "o", color=BLUE, ms=5)
    left.plot(1, criteria[0], "o", color=ORANGE, ms=8, label="the one chosen")
    left.set(title="all starts", xlabel="rank", ylabel="criterion (lower is better)")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False)
    losses = [stage["loss"] for stage in history]
    right.plot(range(1, len(losses) + 1), losses, "o-", color=BLUE, ms=4, lw=1.5)
    _name_rings(right, [stage["n_rings"] for stage in history])
    right.set(title="the one chosen", xlabel="stage", ylabel="loss", yscale="log")
    figure.savefig(path, dpi=150)
    return figure


def plot_iterations(history: list[dict], path: Path) -> Figure:
    """
    Draw how far the halves agree, and the likelihood, after each iteration.

    :param history: Iterations, as `RefinedModel.history`.
    :param path: Image file to write.
    :return: matplotlib `Figure`.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = np.arange(1, len(history) + 1)
    rings = [entry["n_rings"] - 1 for entry in history]
    left.step(numbers, rings, color=INK, lw=1, where="mid", label="outermost ring")
    shells = [entry["shells"] for entry in history]
    left.plot(numbers, shells, "o-", color=BLUE, ms=4, label="halves agree to")
    left.set(xlabel="iteration", ylabel="shell", ylim=(0, None))
    likelihoods = [entry["log_likelihood"] for entry in history]
    right.plot(numbers, likelihoods, "o-", color=GREEN, ms=4)
    right.set(xlabel="iteration", ylabel="log-likelihood per image")
    for ax in (left, right):
        ax.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    return figure


def plot_probabilities(probabilities: np.ndarray, path: Path) -> Figure:
    """
    Draw a histogram of the probabilities of the images' best poses.

    :param probabilities: They, (n,).
    :param path: Image file to write.
    :return: matplotlib `Figure`.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.add_subplot()
    ax.hist(probabilities, np.linspace(0, 1, 41).tolist(), color=BLUE)
    median = float(np.median(probabilities))
    ax.axvline(median, color=ORANGE, lw=1.5, ls="--", label=f"median {median:.2g}")
    ax.set(xlabel="probability of the best pose", ylabel="images", xlim=(0, 1))
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return figure


def plot_share(
    share: np.ndarray, rings: tuple[int, int], least: float, path: Path
) -> Figure:
    """
    Draw the share of the images' signal that a model explains on each ring.

    :param share: It on rings 0, 1, … (n,), NaN where it is not known.
    :param rings: First and last ring that count.
    :param least: Least median on these of a model that is right.
    :param path: Image file to write.
    :return: matplotlib `Figure`.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.add_subplot()
    first, last = rings
    ax.axvspan(first - 0.5, last + 0.5, color=INK, alpha=0.08, lw=0)
    ax.axhline(least, color=ORANGE, lw=1.5, ls="--", label=f"least median, {least}")
    ax.plot(np.arange(len(share)), share, "o-", color=BLUE, ms=4)
    # Weak outer rings have shares of any size.
    ax.set(xlabel="ring", ylabel="share of the signal", ylim=(0, 1.5))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, loc="lower left")
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return figure


def _name_rings(ax, rings: list[int]) -> None:
    """Mark where rings were added."""
    for i, (before, after) in enumerate(zip(rings, rings[1:], strict=False), 1):
        if after != before:
            ax.axvline(i + 0.5, color=INK, lw=0.6, ls=":")
    ax.xaxis.get_major_locator().set_params(integer=True)
