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
VIEWS_AT_ONCE = 1024
# Views with less than this share of the largest view's information are left out.
LEAST_INFORMATION = 1e-6


def circle_points(n_rings: int) -> int:
    """
    :param n_rings: Number of rings.
    :return: Number of points on a half circle that determines all angular orders.
    """
    return scipy.fft.next_fast_len(largest_order(n_rings - 1) + 8)


def _half_circles(directions: np.ndarray, radii: np.ndarray, n_half: int, n: int):
    """Points (z, y, x) on half circles, in radians per voxel, each flat (views, rings,
    n_half)."""
    theta = np.pi * np.arange(n_half) / n_half
    unit = planes(directions) @ np.stack((np.cos(theta), np.sin(theta)))
    points = radii[:, None, None] * unit[:, None] * (2 * np.pi / n)
    x, y, z = np.moveaxis(points, 2, 0).reshape(3, -1).astype(np.float32)
    return z, y, x


def slices(u: np.ndarray, directions: np.ndarray, n_rings: int, L: int) -> np.ndarray:
    """
    :param u: Voxels (n, n, n), [z, y, x].
    :param directions: Viewing directions (n_views, 3).
    :param n_rings: Number of rings.
    :param L: Pixels along the edge of the images.
    :return: Coefficients (n_views, max_order + 1, n_rings), complex64, 0 for orders
        beyond an object's.
    """
    n_half, M = circle_points(n_rings), largest_order(n_rings - 1)
    voxels = np.ascontiguousarray(u, dtype=np.complex64)
    found = np.empty((len(directions), M + 1, n_rings), np.complex64)
    for start in range(0, len(directions), VIEWS_AT_ONCE):
        part = slice(start, start + VIEWS_AT_ONCE)
        points = _half_circles(directions[part], np.arange(n_rings), n_half, len(u))
        values = finufft.nufft3d2(*points, voxels, eps=ACCURACY, isign=-1)
        half = values.reshape(-1, n_rings, n_half) / (2 * n_half * L)
        rings = np.concatenate((half, half.conj()), axis=-1)
        orders = scipy.fft.fft(rings, axis=-1)[..., : M + 1].transpose(0, 2, 1)
        np.multiply(orders, _supported(n_rings), out=found[part])
    return found


def _supported(n_rings: int) -> np.ndarray:
    """Whether an order is one that an object has on a ring (max_order + 1, n_rings)."""
    reach = np.array([largest_order(r) for r in range(n_rings)])
    return np.arange(largest_order(n_rings - 1) + 1)[:, None] <= reach


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
    n_rings, n_half = sums.shape[2], circle_points(sums.shape[2])
    adjoint, kernel = (np.zeros((size,) * 3, np.float32) for size in (n, 2 * n))
    for i in range(0, len(used), VIEWS_AT_ONCE):
        part = used[i : i + VIEWS_AT_ONCE]
        points = _half_circles(directions[part], np.arange(n_rings), n_half, n)
        values = _values(sums[part], n_half) * (weights[:, None] / n_half)
        values = np.ascontiguousarray(values.reshape(-1), dtype=np.complex64)
        scale = np.repeat(information[part] * (weights / n_half), n_half, axis=-1)
        scale = scale.reshape(-1).astype(np.complex64)
        options = {"eps": ACCURACY, "isign": 1}
        adjoint += finufft.nufft3d1(*points, values, (n, n, n), **options).real
        kernel += finufft.nufft3d1(*points, scale, (2 * n,) * 3, **options).real
    # As much as the outermost ring weighs, to leave nothing beyond it.
    beyond = weights[-1] * information[:, -1].sum() / (4 * np.pi * (n_rings - 1) ** 2)
    prior = np.append(prior, max(prior[-1], beyond))
    return _solve(adjoint * L, kernel, prior, support_radius, start)


def _values(orders: np.ndarray, n_half: int) -> np.ndarray:
    """Values on half circles (n_views, n_rings, n_half) of orders m ≥ 0, (n_views,
    max_order + 1, n_rings), each standing for itself and for its opposite point."""
    n_views, n_orders, n_rings = orders.shape
    M = n_orders - 1
    full = np.zeros((n_views, n_rings, 2 * n_half), np.complex64)
    full[..., : M + 1] = orders.transpose(0, 2, 1)
    signs = (-1.0) ** np.arange(1, M + 1)
    full[..., -M:] = (signs * full[..., 1 : M + 1].conj())[..., ::-1]
    values = scipy.fft.ifft(full, axis=-1, norm="forward", overwrite_x=True)
    return values[..., :n_half]


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
