"""Plot of moments."""

from os import PathLike

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aspire_mom.evaluation.plots import BLUE, GREEN, INK, ORANGE
from aspire_mom.moments import Moments
from aspire_mom.moments.report import RingReport

ORDERS = (0, 1, 2, 4, 8)


def plot_moments(
    moments: Moments, report: RingReport, path: str | PathLike | None = None
) -> Figure:
    """
    Plot the first moment, the power of each ring, signal over standard error, and the
    second moment: its first angular orders, or all pairs of Fourier pixels.

    :param moments: The moments.
    :param report: The report on them.
    :param path: Image file to write, if any.
    :return: matplotlib `Figure`.
    """
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1)
    first, power, ratio = top.subplots(1, 3)
    _plot_first(first, moments)
    _plot_power(power, report)
    _plot_ratio(ratio, report)
    blocks = moments.basis.equal_order_blocks(moments.second)
    orders = [m for m in ORDERS if m < len(blocks)]
    name = moments.basis.frequency_name
    bottom.suptitle("square root of |second moment|")
    axes = bottom.subplots(1, len(orders), squeeze=False)[0]
    for ax, m in zip(axes, orders, strict=True):
        # The square root shows weak rings beside strong ones.
        ax.imshow(np.sqrt(np.abs(blocks[m])), cmap="viridis", origin="lower")
        title = f"order {m}" if len(blocks) > 1 else "all frequencies"
        ax.set(title=title, xlabel=name, ylabel=name)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _plot_first(ax: Axes, moments: Moments) -> None:
    basis, errors = moments.basis, moments.first_error
    ax.set_title("first moment")
    image = basis.image(moments.first)
    if image is not None:
        ax.imshow(np.sqrt(np.abs(image)), origin="lower")
        ax.set(xlabel="kx", ylabel="ky", xticks=[], yticks=[])
        return
    profile = basis.order_zero(moments.first).real
    if errors is not None:
        errors = basis.order_zero(errors)
    ax.axhline(0, color=INK, lw=0.6)
    ax.errorbar(basis.rings, profile, errors, color=BLUE, fmt="o", ms=3)
    ax.set(xlabel="ring (cycles per box)", ylabel="E c[0, r]")
    ax.set_yscale("symlog", linthresh=1e-2 * np.abs(profile).max() or 1)


def _plot_power(ax: Axes, report: RingReport) -> None:
    rings = np.arange(len(report.signal))
    above = report.signal > 0
    error = None if report.error is None else report.error[above]
    style = {"color": BLUE, "marker": "o", "ms": 3, "label": "signal"}
    ax.errorbar(rings[above], report.signal[above], error, **style)
    if report.noise is not None and (report.noise > 0).any():
        ax.plot(rings, report.noise, color=ORANGE, label="noise power per image")
    if above.any():
        ax.set_yscale("log")
    ax.set(title="ring power", xlabel="ring (cycles per box)")
    ax.legend(frameon=False)
    _mark_last(ax, report)


def _plot_ratio(ax: Axes, report: RingReport) -> None:
    rings = np.arange(len(report.signal))
    ax.set(title="signal / standard error", xlabel="ring (cycles per box)")
    if report.signal_to_error is None:
        ax.text(0.5, 0.5, "errors unknown", ha="center", transform=ax.transAxes)
    else:
        ax.plot(rings, report.signal_to_error, color=BLUE, marker="o", ms=3)
        ax.axhline(0, color=INK, lw=0.6)
        ax.set_yscale("symlog", linthresh=1)
        _mark_last(ax, report)
    if report.agreement is not None:
        right = ax.twinx()
        right.plot(rings, report.agreement, color=GREEN, ls="--")
        right.set(ylim=(-0.1, 1.05), ylabel="half-set correlation (dashed)")


def _mark_last(ax: Axes, report: RingReport) -> None:
    if report.last_ring is not None:
        ax.axvline(report.last_ring, color=GREEN, lw=1, ls=":")
