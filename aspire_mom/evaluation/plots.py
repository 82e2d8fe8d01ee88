"""
Pictures of volumes, FSC curves and viewing directions.

Figures are made without pyplot: nothing opens a window and no global state is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from aspire.volume import Volume
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from scipy.ndimage import zoom
from skimage.measure import marching_cubes

if TYPE_CHECKING:
    from aspire_mom.evaluation.comparison import Comparison

INK, BLUE, ORANGE, GREEN = "#333333", "#0072b2", "#d55e00", "#009e73"
SURFACE = np.array([0.55, 0.70, 0.85])
# Surfaces are drawn from about this many voxels along an edge: smooth, yet quick.
SURFACE_VOXELS = 110


def plot_fsc(comparison: Comparison, ax: Axes) -> None:
    """
    FSC curve from shell 1 on, with the resolutions at 0.5 and 0.143 marked and, if
    there is a pixel size, Ångström along the top.

    :param comparison: A :class:`Comparison`.
    :param ax: matplotlib axes to draw on.
    """
    fsc = comparison.fsc
    shells = np.arange(len(fsc))
    ax.axhline(0, color=INK, lw=0.6)
    ax.plot(shells[1:], fsc[1:], color=BLUE, lw=2, marker="o", ms=3.5, zorder=3)
    for cutoff, color in ((0.5, ORANGE), (0.143, GREEN)):
        shell = comparison.resolution_shells(cutoff)
        # A curve that stays above the cutoff only bounds the resolution.
        least, most = ("≥ ", "≤ ") if (fsc[1:] >= cutoff).all() else ("", "")
        label = f"FSC {cutoff}: {least}{shell:.1f} shells"
        if comparison.pixel_size is not None:
            angstrom = comparison.resolution(cutoff)
            label = f"FSC {cutoff}: {most}{angstrom:.1f} Å ({shell:.1f} shells)"
        ax.axhline(cutoff, color=color, lw=1, ls="--")
        ax.plot([shell, shell], [0, cutoff], color=color, lw=1, ls=":")
        ax.plot(shell, cutoff, color=color, marker="D", ls="", zorder=4, label=label)
    ax.set(
        xlim=(0, len(fsc) - 1),
        ylim=(min(-0.1, fsc[1:].min() - 0.05), 1.05),
        xlabel="shell (cycles per box)",
        ylabel="Fourier shell correlation",
    )
    ax.legend(frameon=False, loc="best")
    ax.spines["right"].set_visible(False)
    if comparison.pixel_size is None:
        ax.spines["top"].set_visible(False)
        return
    box = comparison.aligned.resolution * comparison.pixel_size
    top = ax.secondary_xaxis("top")
    top.set_xlabel("resolution (Å)")
    top.xaxis.set_major_formatter(lambda s, _: f"{box / s:.3g}" if s > 0 else "")


def plot_slices(
    volumes: Sequence[Volume],
    titles: Sequence[str],
    path: str | PathLike | None = None,
) -> Figure:
    """
    The three central slices of several volumes side by side, on one gray scale.

    :param volumes: ASPIRE volumes, one each.
    :param titles: A title for each volume.
    :param path: Image file to write, if any.
    :return: matplotlib `Figure`.
    :raises ValueError: If there are not as many titles as volumes, at least one.
    """
    _check_titles(volumes, titles)
    slices = [_central_slices(volume) for volume in volumes]
    values = np.concatenate([plane.ravel() for planes in slices for plane in planes])
    low, high = np.percentile(values, (0.5, 99.8))
    figure = Figure(figsize=(2.4 * len(volumes) + 0.4, 7.4), layout="constrained")
    axes = figure.subplots(3, len(volumes), squeeze=False)
    for column, volume, title, planes in zip(
        axes.T, volumes, titles, slices, strict=True
    ):
        column[0].set_title(title)
        for ax, plane in zip(column, planes, strict=True):
            ax.imshow(plane, cmap="gray", vmin=low, vmax=high, origin="lower")
            ax.set(xticks=[], yticks=[])
        _scale_bar(column[-1], volume)
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
    Surfaces of several volumes side by side, each seen from two sides 90° apart.

    :param volumes: ASPIRE volumes, one each.
    :param titles: A title for each volume.
    :param path: Image file to write, if any.
    :param contour: Surface level in standard deviations above the volume's mean, as
        map viewers give it; lowered to half way between mean and maximum if no density
        is that high.
    :return: matplotlib `Figure`.
    :raises ValueError: If there are not as many titles as volumes, at least one, or a
        volume is constant.
    """
    _check_titles(volumes, titles)
    surfaces = [_surface(volume, contour) for volume in volumes]
    half = max(np.abs(triangles).max() for triangles, _ in surfaces)
    figure = Figure(figsize=(3.2 * len(volumes), 6.4))
    for column, (surface, title) in enumerate(zip(surfaces, titles, strict=True)):
        for row, azimuth in enumerate((-60, 30)):
            place = row * len(volumes) + column + 1
            ax = figure.add_subplot(2, len(volumes), place, projection="3d")
            _draw_surface(ax, *surface, azimuth, half)
            if row == 0:
                ax.set_title(title, y=1.0)
    figure.subplots_adjust(0, 0, 1, 0.92, wspace=0, hspace=0)
    return _finish(figure, path)


def plot_views(
    views: Sequence[tuple[np.ndarray, np.ndarray]],
    titles: Sequence[str],
    path: str | PathLike | None = None,
    *,
    width: float = 0.2,
) -> Figure:
    """
    Densities of viewing directions on Mollweide maps side by side, on one scale: 1 is
    the uniform density. Longitude 0 (the x axis) is in the middle, z at the top.

    :param views: Pairs of unit vectors (n, 3), xyz order, and their probabilities (n,),
        which need not be normalised.
    :param titles: A title for each pair.
    :param path: Image file to write, if any.
    :param width: Width of the smoothing kernel in radians, about the spacing of the
        directions or more.
    :return: matplotlib `Figure`.
    :raises ValueError: If titles, directions and probabilities disagree in number.
    """
    _check_titles(views, titles)
    longitude = np.linspace(-np.pi, np.pi, 181)
    latitude = np.linspace(-np.pi / 2, np.pi / 2, 91)
    maps = [
        _smooth_density(np.asarray(u), np.asarray(p), longitude, latitude, width)
        for u, p in views
    ]
    highest = max(values.max() for values in maps)
    figure = Figure(figsize=(4.6 * len(views) + 0.6, 3.0), layout="constrained")
    axes = [
        figure.add_subplot(1, len(views), i + 1, projection="mollweide")
        for i in range(len(views))
    ]
    for ax, values, title in zip(axes, maps, titles, strict=True):
        image = ax.pcolormesh(
            *(longitude, latitude, values),
            cmap="viridis",
            vmin=0,
            vmax=highest,
            shading="gouraud",
            rasterized=True,
        )
        ax.grid(color="white", lw=0.4, alpha=0.5)
        ax.set(xticklabels=[], yticklabels=[])
        ax.set_title(title, pad=12)
    figure.colorbar(image, ax=axes, shrink=0.8, label="density / uniform")
    return _finish(figure, path)


def _check_titles(items: Sequence, titles: Sequence[str]) -> None:
    if len(items) == 0 or len(items) != len(titles):
        raise ValueError(
            f"one title for each panel is needed, not {len(titles)} titles for "
            f"{len(items)}"
        )


def _finish(figure: Figure, path: str | PathLike | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _voxels(volume: Volume) -> np.ndarray:
    if len(volume) != 1:
        raise ValueError(f"expected one volume, got a stack of {len(volume)}")
    return volume.asnumpy()[0]


def _central_slices(volume: Volume) -> list[np.ndarray]:
    """Planes (up, across) through voxel L//2: (y, x), (z, x) and (z, y)."""
    voxels = _voxels(volume)
    centre = len(voxels) // 2
    return [voxels[centre], voxels[:, centre], voxels[:, :, centre]]


def _scale_bar(ax: Axes, volume: Volume) -> None:
    """A bar of a round length, at most 40 % of the box."""
    if volume.pixel_size is None:
        return
    L = volume.resolution
    longest = 0.4 * L * volume.pixel_size
    power = 10 ** np.floor(np.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    left, right = 0.06 * L, 0.06 * L + length / volume.pixel_size
    ax.plot([left, right], [0.06 * L] * 2, color="white", lw=3, solid_capstyle="butt")
    ax.text(
        *((left + right) / 2, 0.09 * L, f"{length:g} Å"),
        color="white",
        ha="center",
        va="bottom",
        fontsize=9,
    )


def _surface(volume: Volume, contour: float) -> tuple[np.ndarray, np.ndarray]:
    """Triangles (n, 3 corners, xyz) of an isosurface, outward unit normals (n, 3)."""
    voxels = _voxels(volume).astype(np.float64)
    if np.ptp(voxels) == 0:
        raise ValueError(
            f"the volume is {voxels.flat[0]} throughout: it has no surface"
        )
    mean = voxels.mean()
    level = min(mean + contour * voxels.std(), (mean + voxels.max()) / 2)
    scale = SURFACE_VOXELS / len(voxels)
    # A rim below the level closes surfaces that leave the box.
    voxels = np.pad(voxels, 1, constant_values=voxels.min())
    fine = zoom(voxels, scale, mode="nearest", grid_mode=True)
    corners, faces, normals, _ = marching_cubes(fine, level, spacing=(1 / scale,) * 3)
    triangles = corners[faces][..., ::-1] - len(voxels) / 2
    normals = normals[faces].mean(1)[:, ::-1]
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return triangles, normals / np.maximum(lengths, 1e-12)


def _draw_surface(
    ax: Axes, triangles: np.ndarray, normals: np.ndarray, azimuth: float, half: float
) -> None:
    """Shaded triangles, lit from above the viewer's left shoulder."""
    elevation = 20
    ax.view_init(elev=elevation, azim=azimuth)
    ax.set_proj_type("ortho")
    a, e = np.radians(azimuth), np.radians(elevation)
    to_viewer = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0])
    light = to_viewer - 0.5 * right + 0.6 * np.cross(to_viewer, right)
    light /= np.linalg.norm(light)
    lit = np.clip(normals @ light, 0, 1)
    glint = np.clip(2 * lit * (normals @ to_viewer) - light @ to_viewer, 0, 1) ** 20
    depth = triangles.mean(1) @ to_viewer
    haze = 0.15 * (1 - (depth - depth.min()) / max(np.ptp(depth), 1e-12))[:, None]
    colors = SURFACE * (0.35 + 0.65 * lit[:, None]) + 0.25 * glint[:, None]
    colors = np.clip(colors * (1 - haze) + haze, 0, 1)
    ax.add_collection3d(
        Poly3DCollection(triangles, facecolors=colors, edgecolors=colors, lw=0.2)
    )
    ax.set(xlim=(-half, half), ylim=(-half, half), zlim=(-half, half))
    ax.set_box_aspect((1, 1, 1), zoom=1.25)
    ax.set_axis_off()


def _smooth_density(
    directions: np.ndarray,
    probabilities: np.ndarray,
    longitude: np.ndarray,
    latitude: np.ndarray,
    width: float,
) -> np.ndarray:
    """Density (latitude, longitude), uniform = 1, by von Mises-Fisher kernels."""
    if directions.ndim != 2 or directions.shape[1] != 3:
        raise ValueError(f"directions must have shape (n, 3), not {directions.shape}")
    if probabilities.shape != (len(directions),):
        raise ValueError(
            f"{len(directions)} directions need probabilities ({len(directions)},), "
            f"not {probabilities.shape}"
        )
    lat, lon = np.meshgrid(latitude, longitude, indexing="ij")
    points = np.stack(
        [np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1
    )
    kappa = 1 / width**2
    # exp(κ (cos - 1)) has mean (1 - exp(-2κ)) / 2κ over the sphere.
    kernel = np.exp(kappa * (points @ directions.T - 1))
    mean = -np.expm1(-2 * kappa) / (2 * kappa)
    return kernel @ probabilities / (probabilities.sum() * mean)
