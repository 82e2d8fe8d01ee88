"""Contrast and amplitudes of images, and moments corrected for them."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from scipy.special import j0

from aspire_mom.moments.moments import Moments

logger = logging.getLogger(__name__)

# Radii of the molecule and of the background around it, in radii of the inscribed disc,
# as in ASPIRE's `ImageSource.invert_contrast`.
MOLECULE, BACKGROUND = 0.5, 0.8
# Largest standard error at which the relative variance of amplitudes is used.
MAX_VARIANCE_ERROR = 0.05


def is_dark(moments: Moments) -> bool:
    """
    Compare the middle of the mean image with its surroundings. Images with bright
    molecules from RELION become dark when corrected for ASPIRE's CTF, which is negative
    at low frequencies, where RELION's is positive.

    :param moments: Moments of images that were corrected for CTFs.
    :return: Whether the middle is darker.
    """
    basis = moments.basis
    profile = basis.ring_mean(basis.order_zero(moments.first).real)
    r = np.arange(len(profile))
    weights = np.maximum(r, 1 / 12)
    if moments.first_error is not None and moments.first_information is not None:
        # Rings of which CTFs let hardly anything pass are noise.
        power = profile**2
        total = power + basis.ring_error(basis.order_zero(moments.first_error)) ** 2
        weights *= np.divide(power, total, where=total > 0, out=np.zeros_like(power))
    # The mean image averaged over in-plane angles is Σ_r 2πr f(r) J_0(2πr|x|/L).
    distances = np.linspace(0, 1, 101)
    image = j0(np.pi * np.outer(distances, r)) @ (weights * profile)
    inside, around = (
        np.average(image[where], weights=distances[where])
        for where in (distances <= MOLECULE, distances >= BACKGROUND)
    )
    return bool(inside < around)


def inverted(moments: Moments) -> Moments:
    """
    :param moments: Moments of images.
    :return: Moments of the same images with inverted contrast.
    """
    third = None if moments.third is None else -moments.third
    negative = replace(moments, first=-moments.first, third=third)
    return negative.with_corrections(inverted=True)


def correct_amplitudes(moments: Moments, std: float) -> Moments:
    """
    Scatter of the amplitudes multiplies second moments by 1 + std², and third moments
    by 1 + 3 std² if their distribution has zero skewness. Divide by these factors.

    :param moments: Moments of such images.
    :param std: Standard deviation of amplitudes relative to their mean; NaN, which
        changes only `corrections`, if it is not known.
    :return: Moments of images of the mean amplitude.
    """
    if std == 0:
        return moments
    if np.isnan(std):
        return moments.with_corrections(amplitude_std=None)
    two, three = 1 + std**2, 1 + 3 * std**2
    divisors = {"second": two, "noise_power": two, "second_error": two}
    divisors |= {"third": three, "third_error": three}
    values = {name: getattr(moments, name) for name in divisors}
    scaled = {k: v / divisors[k] for k, v in values.items() if v is not None}
    return replace(moments, **scaled).with_corrections(amplitude_std=float(std))


def estimate_amplitude_std(moments: Moments) -> float:
    """
    Estimate the spread of amplitudes from pixel sums: E c(0)² / (E c(0))² = 1 + std².

    :param moments: Moments of images whose amplitudes vary.
    :return: Standard deviation of amplitudes relative to their mean; NaN, with a
        warning, if the standard error of its square is 0.05 or more.
    """
    basis = moments.basis
    where = int(np.argmin(basis.rings))
    mean = np.abs(basis.order_zero(moments.first)[where]) ** 2
    second = basis.diagonal_power(moments.second)[0, where]
    error = np.inf
    if moments.second_error is not None and mean > 0:
        error = basis.diagonal_power(moments.second_error)[0, where] / mean
        mean -= basis.order_zero(moments.first_error)[where] ** 2
    if not error < MAX_VARIANCE_ERROR:
        logger.warning(
            "Cannot estimate the amplitude variance: its standard error from the"
            f" images' pixel sums is {error:.2g} (limit {MAX_VARIANCE_ERROR})."
            " Amplitudes are not corrected."
        )
        return np.nan
    return float(np.sqrt(max(second / mean - 1, 0)))
