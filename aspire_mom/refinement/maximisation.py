"""What sums over images say of the volume, the density of views and the noise."""

from __future__ import annotations

from functools import reduce

import numpy as np

from aspire_mom.moments.streaming import Sums
from aspire_mom.refinement.fourier import SUPPORT_RADIUS, resized
from aspire_mom.refinement.posterior import Model, inner
from aspire_mom.refinement.slices import volume_from_slices
from aspire_mom.refinement.state import with_uniform_share

# Least noise as a share of the images' power.
LEAST_NOISE = 1e-3
# Least variance of the volume on a shell, as a share of the largest beyond ring 0.
LEAST_SIGNAL = 1e-12
# Voxels along an edge beyond twice the number of rings.
MARGIN = 5


def edge_of(n_rings: int, L: int) -> int:
    """
    :param n_rings: Number of rings in use.
    :param L: Pixels along the edge of the images.
    :return: Voxels along the edge of volumes.
    """
    return min(L, 2 * n_rings + MARGIN)


def volume_of(
    model: Model, sums: list[Sums], signal: np.ndarray, start: np.ndarray, L: int
) -> np.ndarray:
    """
    :param model: The model that images were turned by.
    :param sums: Sums over images, of both halves or one.
    :param signal: Variance of the volume's Fourier values / L on shells 0, 1, …; the
        last one's counts for all further ones.
    :param start: Voxels to start from.
    :param L: Pixels along the edge of the images.
    :return: Voxels (n, n, n), float32, of n = `edge_of(model.n_rings, L)`.
    """
    last = signal[-1:].repeat(max(0, model.n_rings - len(signal)))
    signal = np.concatenate((signal, last))
    slices, information, _ = added(sums)
    edge = edge_of(model.n_rings, L)
    return volume_from_slices(
        slices,
        information,
        model.views.finest,
        model.weights,
        1 / np.maximum(signal, LEAST_SIGNAL * signal[1:].max()),
        n=edge,
        L=L,
        support_radius=SUPPORT_RADIUS,
        start=resized(start, edge),
    )


def density_of(model: Model, sums: Sums) -> np.ndarray:
    """
    :param model: The model that images were turned by.
    :param sums: Sums over them.
    :return: Probabilities of the coarse views (n_views,), none of them 0.
    """
    n = len(model.views.directions)
    return with_uniform_share(np.bincount(model.views.coarsest[-1], sums["mass"], n))


def residual_power(model: Model, sums: Sums) -> np.ndarray:
    """
    :param model: The model that images were turned by.
    :param sums: Sums over them.
    :return: Mean over images of their squared differences from the model on the rings
        (n_rings,).
    """
    # Σ p |c - H s|² = Σ |c|² - 2 Re Σ conj(N) s + Σ D |s|²
    both = inner(sums["slices"], model.slices).sum(0)
    squares = sums["power"] - 2 * both + explained_power(model, sums)
    return np.maximum(squares, LEAST_NOISE * sums["power"]) / float(sums["n"])


def explained_power(model: Model, sums: Sums) -> np.ndarray:
    """
    :param model: The model that images were turned by.
    :param sums: Sums over them.
    :return: Sum over images of the squares of the model's images on the rings
        (n_rings,).
    """
    return (sums["information"] * model.power).sum(0)


def shell_precision(model: Model, sums: Sums) -> np.ndarray:
    """
    :param model: The model that images were turned by.
    :param sums: Sums over them.
    :return: Precision of the volume's Fourier values / L on each shell (n_rings,).
    """
    r = np.arange(model.n_rings)
    voxels = 4 * np.pi * r**2 + np.pi / 3
    return np.maximum(model.weights * sums["information"].sum(0) / voxels, 1e-12)


def added(sums: list[Sums]) -> list[np.ndarray]:
    """
    :param sums: Sums over images of each half.
    :return: Slices, information and mass of all.
    """
    names = "slices", "information", "mass"
    # One half is not copied: its slices may take 0.3 GB.
    return [reduce(np.add, (of_half[name] for of_half in sums)) for name in names]
