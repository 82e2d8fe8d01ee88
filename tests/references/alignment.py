"""Multireference alignment by its defining sums, one entry at a time."""

import numpy as np


def fourier_matrix(n):
    j = np.arange(n)
    return np.exp(-2j * np.pi * np.outer(j, j) / n) / np.sqrt(n)


def moments(v, rho):
    """E F v_s and E (F v_s)(F v_s)* as sums over shifts."""
    F = fourier_matrix(len(v))
    first, second = 0, 0
    for s, probability in enumerate(rho):
        moved = F @ np.roll(v, s)
        first = first + probability * moved
        second = second + probability * np.outer(moved, moved.conj())
    return first, second


def interpolation(n, x):
    """Rows of the trigonometric interpolant of least oscillation, at positions x."""
    lag = np.asarray(x)[:, None] - np.arange(n)
    rows = np.zeros(lag.shape)
    for k in range(-(n // 2), n // 2 + 1):
        half = 0.5 if n % 2 == 0 and abs(k) == n // 2 else 1.0
        rows += half * np.cos(2 * np.pi * k * lag / n) / n
    return rows


def shifted(signal, by):
    n = len(signal)
    return interpolation(n, np.arange(n) - by) @ signal


def shift_error(truth, estimate, points=50):
    """Eq. 21 on a grid of shifts: never below the infimum."""
    n = len(truth)
    x = np.arange(n * points) / points
    fine = interpolation(n, x) @ truth
    at = (np.arange(n) * points - np.arange(n * points)[:, None]) % (n * points)
    return np.linalg.norm(fine[at] - estimate, axis=1).min() / np.linalg.norm(truth)


def periodic_pairs(k, n, count, rng):
    """Signals and densities of k Gaussians that wrap around the segment, sums one."""
    x = (np.arange(n) + 0.5) / n - 0.5
    curves = np.zeros((2, count, n))
    for i, j in np.ndindex(2, count):
        for mean, width in zip(
            rng.uniform(-0.5, 0.5, k), rng.uniform(1 / 20, 1 / 10, k), strict=True
        ):
            for turn in (-1, 0, 1):
                curves[i, j] += np.exp(-(((x - mean + turn) / width) ** 2) / 2) / width
    return curves / curves.sum(-1, keepdims=True)
