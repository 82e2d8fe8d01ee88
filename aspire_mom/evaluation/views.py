"""How evenly viewing directions cover a volume's Fourier space."""

from __future__ import annotations

import numpy as np

from aspire_mom.rotations import SphericalDesign

# Degree of the design whose points stand for all directions of Fourier space, and half
# the width in radians of the band around a view's plane that counts as seen by it.
DEGREE, BAND = 31, 0.1


def fourier_coverage(directions: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """
    How often images see a direction of Fourier space: all views perpendicular to it do.

    :param directions: Viewing directions (n, 3), unit vectors.
    :param probabilities: Their probabilities (n,), of any sum.
    :return: At points of a spherical design, relative to the mean (n_points,), float64.
    """
    cosines = SphericalDesign(DEGREE).points @ directions.T
    seen = np.exp(-0.5 * (cosines / BAND) ** 2) @ probabilities
    return seen / seen.mean()


def sampling_compensation_factor(
    directions: np.ndarray, probabilities: np.ndarray
) -> float:
    """
    Evenness of views in one number, after Baldwin & Lyumkis (2020): the harmonic mean
    of :func:`fourier_coverage`. 1 for uniform views, 0.81 for side views only, near 0
    where directions of Fourier space are not seen at all.

    :param directions: Viewing directions (n, 3), unit vectors.
    :param probabilities: Their probabilities (n,), of any sum.
    :return: A number from 0 to 1.
    """
    coverage = fourier_coverage(directions, probabilities)
    return float(1 / np.mean(1 / np.maximum(coverage, 1e-9)))
