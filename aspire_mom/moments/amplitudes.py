"""Images whose amplitudes vary."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from aspire_mom.moments.moments import Moments

logger = logging.getLogger(__name__)

# Largest standard error of a relative variance of amplitudes that is put to use.
WEAK_SUMS = 0.05


def correct_amplitudes(moments: Moments, std: float) -> Moments:
    """
    Second moments of images whose amplitudes vary are 1 + std² times those of images of
    the mean amplitude, third ones 1 + 3 std² times where amplitudes scatter evenly.

    :param moments: Moments of such images.
    :param std: Standard deviation of amplitudes relative to their mean; NaN where it is
        not known, which leaves moments as they are and says so.
    :return: Moments of images of the mean amplitude.
    """
    if std == 0:
        return moments
    if np.isnan(std):
        return moments.with_corrections(amplitude_std=None)
    scaled = {}
    for name, factor in (("second", 1 + std**2), ("third", 1 + 3 * std**2)):
        for field in (name, f"{name}_error"):
            value = getattr(moments, field)
            scaled[field] = None if value is None else value / factor
    if moments.noise_power is not None:
        scaled["noise_power"] = moments.noise_power / (1 + std**2)
    return replace(moments, **scaled).with_corrections(amplitude_std=float(std))


def estimate_amplitude_std(moments: Moments) -> float:
    """
    Spread of the images' sums: E c(0)² / (E c(0))² = 1 + std² at zero frequency.

    :param moments: Moments of images whose amplitudes vary.
    :return: Standard deviation of amplitudes relative to their mean; NaN, with a
        warning, where its square is known no better than to 0.05. (What a long pass has
        found must not be lost.)
    """
    basis = moments.basis
    where = basis.zero_frequency
    mean = np.abs(basis.zeroth(moments.first)[where]) ** 2
    second = basis.own_power(moments.second)[0, where]
    error = np.inf
    if moments.second_error is not None and mean > 0:
        error = basis.own_power(moments.second_error)[0, where] / mean
        mean -= basis.zeroth(moments.first_error)[where] ** 2
    if not error < WEAK_SUMS:
        logger.warning(
            "the images' sums determine the variance of their amplitudes no better than"
            f" to {error:.2g}: amplitudes are not corrected for"
        )
        return np.nan
    return float(np.sqrt(max(second / mean - 1, 0)))
