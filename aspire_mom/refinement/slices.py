"""
Central slices of a volume in polar coefficients, and the volume that slices determine.

A volume is u on n³ voxels, with V(k) = Σ u(x) exp(-2πi k·x/n), k in cycles per box; its
slice on ring r of a view has the polar coefficients of V / L, as `PolarBasis` has them
of images of L pixels.
"""

from __future__ import annotations

import finufft
import numpy as np
import scipy.fft
from scipy.sparse.linalg import LinearOperator, cg

from aspire_mom.refinement.views import largest_order, planes

# Relative accuracy of the non-uniform transforms.
ACCURACY = 1e-4
# Conjugate gradients stop at this relative residual, or after this many steps.
CG_TOLERANCE, CG_STEPS = 1e-3, 30
# Views at once, which bounds temporary arrays to 0.1 GB at 24 rings.
VIEWS_AT_ONCE = 2048
# Views with less than this share of the largest view's information are left out.
LEAST_INFORMATION = 1e-6


def _half_circles(directions: np.ndarray, n_rings: int, n: int) -> tuple:
    """Numbers of points on half circles that determine an object's angular orders
    (n_rings,), and these points (z, y, x) in radians per voxel, ring by ring, each flat
    (views, points)."""
    counts = [scipy.fft.next_fast_len(largest_order(r) + 8) for r in range(n_rings)]
    axes, rings = planes(directions), []
    for ring, n_half in enumerate(counts):
        theta = np.pi * np.arange(n_half) / n_half
        circle = ring * (2 * np.pi / n) * np.stack((np.cos(theta), np.sin(theta)))
        rings.append(np.moveaxis(axes @ circle, 1, 0).reshape(3, -1))
    x, y, z = np.concatenate(rings, axis=1, dtype=np.float32)
    return np.array(counts), (z, y, x)


def slices(u: np.ndarray, directions: np.ndarray, n_rings: int, L: int) -> np.ndarray:
    """
    :param u: Voxels (n, n, n), [z, y, x].
    :param directions: Viewing directions (n_views, 3).
    :param n_rings: Number of rings.
    :param L: Pixels along the edge of the images.
    :return: Coefficients (n_views, max_order + 1, n_rings), complex64, 0 for orders
        beyond an object's.
    """
    n_orders = largest_order(n_rings - 1) + 1
    voxels = np.ascontiguousarray(u, dtype=np.complex64)
    found = np.zeros((len(directions), n_orders, n_rings), np.complex64)
    for start in range(0, len(directions), VIEWS_AT_ONCE):
        part = slice(start, start + VIEWS_AT_ONCE)
        n_views = len(directions[part])
        counts, points = _half_circles(directions[part], n_rings, len(u))
        values = finufft.nufft3d2(*points, voxels, eps=ACCURACY, isign=-1)
        ends = np.cumsum(n_views * counts)[:-1]
        for ring, half in enumerate(np.split(values, ends)):
            half = half.reshape(n_views, -1)
            circle = np.concatenate((half, half.conj()), axis=-1)
            orders = scipy.fft.fft(circle) / (circle.shape[1] * L)
            reach = largest_order(ring) + 1
            found[part, :reach, ring] = orders[:, :reach]
    return found


def volume_from_slices(
    sums: np.ndarray,
    information: np.ndarray,
    directions: np.ndarray,
    weights: np.ndarray,
    prior: np.ndarray,
    *,
    n: int,
    L: int,
    support_radius: float,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """
    Find the volume u in a ball that minimises

        Σ_vr w_r (D_vr Σ_m |s_vmr|² - 2 Re Σ_m conj(N_vmr) s_vmr) + Σ_k λ(k) |V(k)|²

    over m = -max_order … max_order, s the slices of u, by conjugate gradients. The
    normal operator of all slices is a convolution, as in ASPIRE's `MeanEstimator`.

    :param sums: N, posterior sums of images times CTF (n_views, max_order + 1,
        n_rings), complex.
    :param information: D, posterior sums of squared CTFs (n_views, n_rings).
    :param directions: Viewing directions (n_views, 3).
    :param weights: w, Fourier pixels on a ring over the variance of the noise
        (n_rings,).
    :param prior: λ on shells 0 … n_rings - 1, times L².
    :param n: Voxels along an edge.
    :param L: Pixels along the edge of the images.
    :param support_radius: Radius of the ball in boxes.
    :param start: Voxels (n, n, n) to start from.
    :return: Voxels (n, n, n), float32.
    """
    total = information.sum(1)
    used = np.flatnonzero(total > LEAST_INFORMATION * total.max())
    n_rings = sums.shape[2]
    adjoint, kernel = (np.zeros((size,) * 3, np.float32) for size in (n, 2 * n))
    for i in range(0, len(used), VIEWS_AT_ONCE):
        part = used[i : i + VIEWS_AT_ONCE]
        counts, points = _half_circles(directions[part], n_rings, n)
        scales = weights / counts
        values = [
            scale * _values(sums[part, : largest_order(ring) + 1, ring], n_half)
            for ring, (scale, n_half) in enumerate(zip(scales, counts, strict=True))
        ]
        values = np.concatenate([ring.ravel() for ring in values], dtype=np.complex64)
        density = (scales * information[part]).T.ravel().astype(np.complex64)
        density = density.repeat(counts.repeat(len(part)))
        options = {"eps": ACCURACY, "isign": 1}
        adjoint += finufft.nufft3d1(*points, values, (n, n, n), **options).real
        kernel += finufft.nufft3d1(*points, density, (2 * n,) * 3, **options).real
    # As much as the outermost ring weighs, to leave nothing beyond it.
    beyond = weights[-1] * information[:, -1].sum() / (4 * np.pi * (n_rings - 1) ** 2)
    prior = np.append(prior, max(prior[-1], beyond))
    return _solve(adjoint * L, kernel, prior, support_radius, start)


def _values(orders: np.ndarray, n_half: int) -> np.ndarray:
    """Values on half circles (n_views, n_half) of orders m ≥ 0, (n_views, max_order +
    1), each standing for itself and for its opposite point."""
    M = orders.shape[1] - 1
    full = np.zeros((len(orders), 2 * n_half), np.complex64)
    full[:, : M + 1] = orders
    signs = (-1.0) ** np.arange(1, M + 1)
    full[:, -M:] = (signs * full[:, 1 : M + 1].conj())[:, ::-1]
    values = scipy.fft.ifft(full, norm="forward", overwrite_x=True)
    return values[:, :n_half]


def _solve(
    right: np.ndarray,
    kernel: np.ndarray,
    prior: np.ndarray,
    support_radius: float,
    start: np.ndarray | None,
) -> np.ndarray:
    """Solve (B (K + Λ) B) u = B right, B the ball, K the convolution with the kernel, Λ
    the prior in Fourier space."""
    n = len(right)
    axis = np.arange(n) - n // 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    inside = radius <= support_radius * n
    k = np.abs(np.fft.fftfreq(n, 1 / n))
    half = np.fft.rfftfreq(n, 1 / n)
    shells = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + half**2)
    levels = np.interp(shells, np.arange(len(prior)), prior).astype(np.float32)
    transfer = scipy.fft.rfftn(scipy.fft.ifftshift(kernel)).real.astype(np.float32)
    # The closest circulant operator (T. Chan 1988) preconditions.
    fade = 1 - np.abs(np.arange(-n, n)) / n
    faded = kernel * fade[:, None, None] * fade[:, None] * fade
    circulant = scipy.fft.rfftn(scipy.fft.ifftshift(faded)).real
    circulant = circulant[::2, ::2, ::2][..., : n // 2 + 1].astype(np.float32)
    inverse = 1 / (np.maximum(circulant, 0) + levels * n**3)

    def applied(u: np.ndarray) -> np.ndarray:
        box = np.zeros((n, n, n), np.float32)
        box[inside] = u
        padded = scipy.fft.rfftn(box, (2 * n,) * 3) * transfer
        found = scipy.fft.irfftn(padded, (2 * n,) * 3)[:n, :n, :n]
        found += scipy.fft.irfftn(scipy.fft.rfftn(box) * levels, (n, n, n)) * n**3
        return found[inside]

    def conditioned(u: np.ndarray) -> np.ndarray:
        box = np.zeros((n, n, n), np.float32)
        box[inside] = u
        return scipy.fft.irfftn(scipy.fft.rfftn(box) * inverse, (n, n, n))[inside]

    size, dtype = inside.sum(), np.float32
    options = {"shape": (size, size), "dtype": dtype}
    first = None if start is None else start[inside].astype(dtype)
    found, _ = cg(
        LinearOperator(matvec=applied, **options),
        right[inside].astype(dtype),
        first,
        rtol=CG_TOLERANCE,
        maxiter=CG_STEPS,
        M=LinearOperator(matvec=conditioned, **options),
    )
    volume = np.zeros((n, n, n), dtype)
    volume[inside] = found
    return volume
