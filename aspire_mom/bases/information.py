"""
Normal equations of moments. Averaged over in-plane angles, second moments and their
information depend on two radii and the angle θ between two frequencies; their orders
are Fourier coefficients in θ. There is one normal equation for each θ.
"""

from __future__ import annotations

import numpy as np

# Entries with less information than this share of the images' number are set to zero.
LEAST_SHARE = 1e-8
# Limit and relative residual at which the iteration in `divide` stops.
MAX_ITERATIONS = 50
TOLERANCE = 1e-13


def solve_entries(
    total: np.ndarray, information: np.ndarray, n_images: int
) -> np.ndarray:
    """
    Solve normal equations that have one unknown each.

    :param total: Values times information, summed over images.
    :param information: Information, summed over images; broadcast to it.
    :param n_images: Number of images.
    :return: The values; 0 where information is less than 1e-8 of the images.
    """
    information = np.broadcast_to(information, total.shape)
    known = information > LEAST_SHARE * n_images
    return np.divide(total, information, where=known, out=np.zeros_like(total))


def standard_error(
    squares: np.ndarray, information: np.ndarray | None, n_images: int
) -> np.ndarray | None:
    """
    :param squares: Sums over images of squared deviations of what is summed.
    :param information: What the sums are divided by; None for the number of images.
    :param n_images: Number of images.
    :return: Standard errors of the results; None for one image.
    """
    if n_images < 2:
        return None
    error = np.sqrt(np.maximum(squares, 0) * n_images / (n_images - 1))
    if information is None:
        return error / n_images
    return solve_entries(error, information, n_images)


def multiply(values: np.ndarray, information: np.ndarray) -> np.ndarray:
    """
    :param values: Orders 0, 1, … of values along the first axis.
    :param information: Even orders 0, 2, … of information along it.
    :return: Orders of their product at every angle, as many as of the values.
    """
    if len(information) == 1:
        return values * information[0].real
    n = _n_angles(values, information)
    return _orders(_on_angles(values, n, 1) * _on_angles(information, n, 2), values)


def divide(values: np.ndarray, information: np.ndarray, n_images: int) -> np.ndarray:
    """
    Invert :func:`multiply`.

    :param values: Orders 0, 1, … of the product along the first axis.
    :param information: Even orders 0, 2, … of information along it.
    :param n_images: As for :func:`solve_entries`.
    :return: Orders of the values before multiplication.
    """
    if len(information) == 1:
        return solve_entries(values, information[0].real, n_images)
    # Solve at every angle separately, truncate to the stored orders, and iterate on the
    # residual until `multiply` returns `values`, so that subsets can be merged exactly.
    n = _n_angles(values, information)
    on_angles = _on_angles(information, n, 2)
    solution, rest = np.zeros_like(values), values
    for _ in range(MAX_ITERATIONS):
        found = solve_entries(_on_angles(rest, n, 1), on_angles, n_images)
        solution = solution + _orders(found, values)
        rest = values - multiply(solution, information)
        if np.abs(rest).max() <= TOLERANCE * np.abs(values).max():
            break
    return solution


def correlation(values: np.ndarray, n_harmonics: int) -> np.ndarray:
    """
    Return Σ over images of ⟨values(r, φ) values(r', φ + θ)⟩, as coefficients in θ.

    :param values: Values on half rings, (images, n_rings, angles), of period π.
    :param n_harmonics: Number of orders wanted.
    :return: Orders 0, 2, …, (n_harmonics, n_rings, n_rings), complex; real if one.
    """
    K = values.shape[-1]
    if K == 1:
        rings = values[..., 0]
        return (rings.T @ rings)[None]
    waves = np.exp(-2j * np.pi / K * np.outer(np.arange(n_harmonics), np.arange(K))) / K
    re, im = (
        (part @ values.transpose(1, 2, 0)).swapaxes(0, 1)
        for part in (waves.real.copy(), waves.imag.copy())
    )
    real = re @ re.swapaxes(1, 2) + im @ im.swapaxes(1, 2)
    mixed = im @ re.swapaxes(1, 2)
    return real + 1j * (mixed - mixed.swapaxes(1, 2))


def _n_angles(values: np.ndarray, information: np.ndarray) -> int:
    """Angles on a ring that hold all orders of a product."""
    return 2 * (len(values) + 2 * len(information))


def _on_angles(values: np.ndarray, n: int, step: int) -> np.ndarray:
    """Real values at n angles from orders 0, step, 2·step, … on the first axis."""
    spectrum = np.zeros((n // 2 + 1, *values.shape[1:]), dtype=np.complex128)
    spectrum[: step * len(values) : step] = values
    return np.fft.irfft(spectrum, n, axis=0) * n


def _orders(on_angles: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Orders of values at angles, as many as another array has."""
    return np.fft.rfft(on_angles, axis=0)[: len(like)] / len(on_angles)
