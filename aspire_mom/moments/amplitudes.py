"""Contrast and amplitudes of images, and moments corrected for them."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from scipy.special import j0, jv

from aspire_mom.moments.moments import Moments

logger = logging.getLogger(__name__)

# Radii of the molecule and of the background around it, in radii of the inscribed disc,
# as in ASPIRE's `ImageSource.invert_contrast`.
MOLECULE, BACKGROUND = 0.5, 0.8
# Standard errors from which on the sign of the contrast is certain.
CERTAIN = 5.0
# Largest standard error at which the relative variance of amplitudes is used.
MAX_VARIANCE_ERROR = 0.05


def with_bright_molecules(groups: list[Moments]) -> list[Moments]:
    """
    Find out whether molecules are bright or dark, and invert the contrast if they are
    dark: as they are in micrographs, and in images from RELION once corrected for
    ASPIRE's CTF, which is negative at low frequencies, where RELION's is positive.

    Third moments tell by the mean cube of the images, which has the molecule's sign
    whatever its shape; first moments by the middle of the mean image, compared with its
    surroundings. The third counts where both are certain. Without CTFs, contrast that
    is uncertain stays as it is.

    :param groups: Moments of all images, which tell; and of parts of them.
    :return: The same with bright molecules.
    """
    moments, has_ctf = groups[0], groups[0].first_information is not None
    middle = _middle(moments)
    signs = [z for z in (_cube(moments), middle) if abs(z) >= CERTAIN]
    if moments.n_images == 1:  # there are no standard errors
        signs = []
    if not signs or min(signs) < 0 < max(signs):
        logger.warning(
            "Whether molecules are bright or dark is not certain from the images'"
            " moments. A volume may have the wrong sign"
        )
    if not (signs or [middle if has_ctf else 0.0])[0] < 0:
        return groups
    if not has_ctf:
        logger.warning("Molecules are dark in the images: their contrast is inverted")
    return [inverted(moments) for moments in groups]


def _middle(moments: Moments) -> float:
    """How much brighter the middle of the mean image is than its surroundings, in
    standard errors, rings taken as independent; infinite where these are unknown."""
    basis = moments.basis
    profile = basis.ring_mean(basis.order_zero(moments.first).real)
    r = np.arange(len(profile))
    weights, error = np.maximum(r, 1 / 12), np.zeros(len(r))
    if moments.first_error is not None:
        error = basis.ring_error(basis.order_zero(moments.first_error))
        if moments.first_information is not None:
            # Rings of which CTFs let hardly anything pass are noise.
            total = profile**2 + error**2
            some = total > 0
            weights *= np.divide(profile**2, total, where=some, out=np.zeros(len(r)))
    # The mean image averaged over in-plane angles is Σ_r 2πr f(r) J_0(2πr|x|/L).
    distances = np.linspace(0, 1, 101)
    image = j0(np.pi * np.outer(distances, r)) * weights
    inside, around = (
        np.average(image[where], weights=distances[where], axis=0)
        for where in (distances <= MOLECULE, distances >= BACKGROUND)
    )
    difference = inside - around
    return _in_errors(difference @ profile, difference**2 @ error**2)


def _cube(moments: Moments) -> float:
    """The integral over the disc of the images' mean cube, in standard errors, entries
    taken as independent; 0 without third moments."""
    third = moments.third_basis
    if third is None or moments.third_error is None:
        return 0.0
    distances = np.linspace(0, 1, 61)
    waves = np.pi * np.outer(distances, np.arange(moments.basis.n_rings))
    # The m-th order of an image around its centre is Σ_r 2πr i^m c[m, r] J_m(2πr|x|/L).
    orders = [jv(m, waves) @ U for m, U in enumerate(third.vectors)]
    total, variance = 0.0, 0.0
    for m1, m2 in third.pairs:
        factors = orders[m1], orders[m2], orders[m1 + m2].conj()
        product = np.einsum("p,pi,pj,pk->ijk", distances, *factors, optimize=True)
        product = product * third.block(third.weights, m1, m2)
        total += (product * third.block(moments.third, m1, m2)).real.sum()
        errors = third.block(moments.third_error, m1, m2)
        variance += (np.abs(product) ** 2 * errors**2).sum()
    return _in_errors(total, variance)


def _in_errors(value: float, variance: float) -> float:
    """Express a value in standard errors."""
    if value == 0:
        return 0.0
    return float(value / np.sqrt(variance) if variance > 0 else np.sign(value) * np.inf)


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
