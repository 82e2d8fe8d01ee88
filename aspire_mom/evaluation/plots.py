"""Plots of volumes, FSC curves, viewing directions and moments, without pyplot."""

from collections.abc import Sequence
from os import PathLike

import numpy as np
from aspire.volume import Volume
from matplotlib.axes import Axes
from matplotlib.colors import LightSource
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from scipy.ndimage import zoom
from skimage.measure import marching_cubes

from aspire_mom.checks import check_volume
from aspire_mom.evaluation.fsc import resolution_in_shells
from aspire_mom.moments import Moments
from aspire_mom.moments.report import RingReport

INK, BLUE, ORANGE, GREEN = "#333333", "#0072b2", "#d55e00", "#009e73"
SURFACE = "#8cb3d9"
# Surfaces are drawn from about this many voxels along an edge: smooth, yet quick.
SURFACE_VOXELS = 110
# Elevations and azimuths, in degrees, of the sides that surfaces are drawn from.
SIDES = ((20, -60), (20, 30), (90, -60))
# Angular orders of the second moment that are drawn.
ORDERS = (0, 1, 2, 4, 8)


def plot_fsc(
    fsc: np.ndarray, box: float | None = None, path: str | PathLike | None = None
) -> Figure:
    """
    Draw an FSC curve from shell 1 on, with the resolutions at 0.5 and 0.143.

    :param fsc: FSC of shells 0, 1, 2, …
    :param box: Edge of the box in Ångström, for resolutions in Ångström.
    :param path: Image file to write, if any.
    :return: matplotlib `Figure`.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.add_subplot()
    ax.axhline(0, color=INK, lw=0.6)
    shells = np.arange(1, len(fsc))
    ax.plot(shells, fsc[1:], color=BLUE, lw=2, marker="o", ms=3.5, zorder=3)
    for cutoff, color in ((0.5, ORANGE), (0.143, GREEN)):
        shell = resolution_in_shells(fsc, cutoff)
        # A curve that stays above the cutoff only bounds the resolution.
        above = bool((fsc[1:] >= cutoff).all())
        least, most = ("≥ ", "≤ ") if above else ("", "")
        label = f"FSC {cutoff}: {least}{shell:.1f} shells"
        if box is not None:
            label = f"FSC {cutoff}: {most}{box / shell:.1f} Å ({shell:.1f} shells)"
        line = label if above else None
        ax.axhline(cutoff, color=color, lw=1, ls="--", label=line)
        if not above:
            ax.plot([shell, shell], [0, cutoff], color=color, lw=1, ls=":")
            diamond = {"color": color, "marker": "D", "ls": "", "zorder": 4}
            ax.plot(shell, cutoff, label=label, **diamond)
    ax.set(
        xlim=(0, len(fsc) - 1),
        ylim=(min(-0.1, fsc[1:].min() - 0.05), 1.05),
        xlabel="shell (cycles per box)",
        ylabel="Fourier shell correlation",
    )
    ax.legend(facecolor="w", edgecolor="none", loc="best")
    ax.spines[["top", "right"]].set_visible(False)
    if box is not None:
        top = ax.secondary_xaxis("top")
        top.set_xlabel("resolution (Å)")
        top.xaxis.set_major_formatter(lambda s, _: f"{box / s:.3g}" if s > 0 else "")
    return _finish(figure, path)


def plot_slices(
    volumes: Sequence[Volume], titles: Sequence[str], path: str | PathLike | None = None
) -> Figure:
    """
    Draw the three central slices of volumes side by side, on one gray scale.

    :param volumes: ASPIRE volumes, one each.
    :param titles: A title for each volume.
    :param path: Image file to write, if any.
    :return: matplotlib `Figure`.
    """
    _check_titles(volumes, titles)
    slices = []
    for volume in volumes:
        voxels = check_volume("volume", volume)
        centre = len(voxels) // 2
        # Planes (y, x), (z, x) and (z, y), the vertical axis first.
        slices.append((voxels[centre], voxels[:, centre], voxels[:, :, centre]))
    values = np.concatenate([np.ravel(planes) for planes in slices])
    low, high = np.percentile(values, (0.5, 99.8))
    figure = Figure(figsize=(2.4 * len(volumes) + 0.4, 7.4), layout="constrained")
    axes = figure.subplots(3, len(volumes), squeeze=False)
    panels = zip(axes.T, volumes, titles, slices, strict=True)
    for column, volume, title, planes in panels:
        column[0].set_title(title)
        for ax, plane in zip(column, planes, strict=True):
            ax.imshow(plane, cmap="gray", vmin=low, vmax=high, origin="lower")
            ax.set(xticks=[], yticks=[])
        _draw_scale_bar(column[-1], volume)
    for ax, (across, up) in zip(axes[:, 0], ("xy", "xz", "yz"), strict=True):
        ax.set(xlabel=f"{across} →", ylabel=f"{up} →")
    return _finish(figure, path)


def plot_isosurfaces(
    volumes: Sequence[Volume],
    titles: Sequence[str],
    path: str | PathLike | None = None,
    *,
    contour: float = 3.0,
) -> Figure:
    """
    Draw surfaces of volumes side by side, each from two sides 90° apart and from above.

    :param volumes: ASPIRE volumes, one each.
    :param titles: A title for each volume.
    :param path: Image file to write, if any.
    :param contour: As :func:`surface_level` takes it.
    :return: matplotlib `Figure`.
    """
    _check_titles(volumes, titles)
    surfaces = [_triangles(volume, contour) for volume in volumes]
    half = max(np.abs(triangles).max() for triangles in surfaces)
    figure = Figure(figsize=(3.2 * len(volumes), 3.2 * len(SIDES)))
    for column, (triangles, title) in enumerate(zip(surfaces, titles, strict=True)):
        for row, (elevation, azimuth) in enumerate(SIDES):
            place = row * len(volumes) + column + 1
            ax = figure.add_subplot(len(SIDES), len(volumes), place, projection="3d")
            # Light from the upper left; azimuths are clockwise from the y axis.
            light = LightSource(azdeg=140 - azimuth, altdeg=min(elevation + 30, 60))
            style = {"facecolors": SURFACE, "edgecolors": SURFACE, "lw": 0.2}
            style |= {"shade": True, "lightsource": light}
            ax.add_collection3d(Poly3DCollection(triangles, **style))
            ax.view_init(elev=elevation, azim=azimuth)
            ax.set_proj_type("ortho")
            ax.set(**dict.fromkeys(("xlim", "ylim", "zlim"), (-half, half)))
            ax.set_box_aspect((1, 1, 1), zoom=1.25)
            ax.set_axis_off()
            if row == 0:
                ax.set_title(title, y=1.0)
    figure.subplots_adjust(0, 0, 1, 0.95, wspace=0, hspace=0)
    return _finish(figure, path)


def plot_views(
    views: Sequence[tuple[np.ndarray, np.ndarray]],
    titles: Sequence[str],
    path: str | PathLike | None = None,
    *,
    width: float = 0.2,
) -> Figure:
    """
    Draw densities of viewing directions, relative to the uniform density, on Mollweide
    maps side by side, on one scale. The x axis is in the middle, z at the top.

    :param views: Pairs of unit vectors (n, 3), xyz, and probabilities (n,) of any sum.
    :param titles: A title for each pair.
    :param path: Image file to write, if any.
    :param width: Width of the smoothing kernel, radians, about the views' spacing.
    :return: matplotlib `Figure`.
    """
    _check_titles(views, titles)
    longitude = np.linspace(-np.pi, np.pi, 181)
    latitude = np.linspace(-np.pi / 2, np.pi / 2, 91)
    maps = [_smooth_density(*pair, longitude, latitude, width) for pair in views]
    style = {"vmin": 0, "vmax": np.max(maps), "shading": "gouraud", "rasterized": True}
    figure = Figure(figsize=(4.6 * len(views) + 0.6, 3.0), layout="constrained")
    map_axes = {"squeeze": False, "subplot_kw": {"projection": "mollweide"}}
    axes = figure.subplots(1, len(views), **map_axes)[0]
    for ax, values, title in zip(axes, maps, titles, strict=True):
        image = ax.pcolormesh(longitude, latitude, values, **style)
        ax.grid(color="white", lw=0.4, alpha=0.5)
        ax.set(xticklabels=[], yticklabels=[])
        ax.set_title(title, pad=12)
    figure.colorbar(image, ax=axes, shrink=0.8, label="density / uniform")
    return _finish(figure, path)


def plot_moments(
    moments: Moments, report: RingReport, path: str | PathLike | None = None
) -> Figure:
    """
    Plot the first moment, the power of each ring, signal over standard error, and the
    second moment: its orders 0, 1, 2, 4 and 8, or all pairs of Fourier pixels.

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
    return _finish(figure, path)


def _check_titles(items: Sequence, titles: Sequence[str]) -> None:
    n = len(titles)
    if n == 0 or len(items) != n:
        found = f"{len(items)} items to plot and {n} titles"
        raise ValueError(f"got {found}; there must be as many of both, at least 1")


def _finish(figure: Figure, path: str | PathLike | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _draw_scale_bar(ax: Axes, volume: Volume) -> None:
    """A bar of a round length, at most 40 % of the box."""
    if volume.pixel_size is None:
        return
    L = volume.resolution
    longest = 0.4 * L * volume.pixel_size
    power = 10 ** np.floor(np.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    ends = np.array([0.06 * L, 0.06 * L + length / volume.pixel_size])
    ax.plot(ends, [0.06 * L] * 2, color="white", lw=3, solid_capstyle="butt")
    style = {"color": "white", "ha": "center", "va": "bottom", "fontsize": 9}
    ax.text(ends.mean(), 0.09 * L, f"{length:g} Å", **style)


def surface_level(voxels: np.ndarray, contour: float = 3.0) -> float:
    """
    :param voxels: A volume's voxels.
    :param contour: Level of its surface in standard deviations above the mean.
    :return: The level, at most half way from the mean to the maximum.
    """
    highest = (voxels.max() - voxels.mean()) / voxels.std()
    return float(min(contour, highest / 2))


def _triangles(volume: Volume, contour: float) -> np.ndarray:
    """Isosurface (n, 3 corners, xyz), counterclockwise as seen from outside."""
    voxels = check_volume("volume", volume).astype(np.float64)
    mean = voxels.mean()
    level = mean + surface_level(voxels, contour) * voxels.std()
    scale = SURFACE_VOXELS / len(voxels)
    # A rim below the level closes surfaces that leave the box.
    voxels = np.pad(voxels, 1, constant_values=voxels.min())
    fine = zoom(voxels, scale, mode="nearest", grid_mode=True)
    corners, faces, _, _ = marching_cubes(fine, level, spacing=(1 / scale,) * 3)
    return corners[faces][..., ::-1] - len(voxels) / 2


def _smooth_density(directions, probabilities, longitude, latitude, width):
    """Density (latitude, longitude), uniform = 1, by von Mises-Fisher kernels."""
    n = len(probabilities)
    if directions.shape != (n, 3):
        raise ValueError(f"directions have shape {directions.shape}, not ({n}, 3)")
    lat, lon = np.meshgrid(latitude, longitude, indexing="ij")
    across = np.cos(lat)
    points = np.stack((across * np.cos(lon), across * np.sin(lon), np.sin(lat)), -1)
    kappa = 1 / width**2
    # exp(κ (cos - 1)) has mean (1 - exp(-2κ)) / 2κ over the sphere.
    kernel = np.exp(kappa * (points @ directions.T - 1))
    mean = -np.expm1(-2 * kappa) / (2 * kappa)
    return kernel @ probabilities / (probabilities.sum() * mean)


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
