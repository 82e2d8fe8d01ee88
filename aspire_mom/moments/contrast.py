"""Whether molecules are bright or dark, of which second moments know nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import j0

from aspire_mom.moments.moments import Moments

# The molecule and the background, in radii of the inscribed disc, as ASPIRE's
# `ImageSource.invert_contrast` has them.
MOLECULE, BACKGROUND = 0.5, 0.8


def is_dark(moments: Moments) -> bool:
    """
    ASPIRE's CTF is negative at low frequencies, where RELION's is positive, so
    correcting bright particles of RELION's for it leaves them dark. As
    `ImageSource.invert_contrast` has it, molecules are dark where the mean of the
    images is darker in the middle than around it.

    :param moments: Moments of images that were corrected for CTFs.
    :return: Whether molecules are dark.
    """
    return _contrast(moments) < 0


def inverted(moments: Moments) -> Moments:
    """
    :param moments: Moments of images.
    :return: Those of their negatives.
    """
    third = moments.third
    negative = replace(
        moments, first=-moments.first, third=None if third is None else -third
    )
    return negative.with_corrections(inverted=True)


def _contrast(moments: Moments) -> float:
    """
    Mean over the molecule's disc less that over the ring around it of the mean image,
    turned by all angles: Σ_r 2πr f(r) J_0(2πr|x|/L) up to a factor.
    """
    basis = moments.basis
    profile = basis.ring_mean(basis.zeroth(moments.first).real)
    r = np.arange(len(profile))
    weights = r.astype(float)
    weights[0] = 1 / 12
    if moments.first_error is not None and moments.first_information is not None:
        # Rings that a CTF hardly lets pass are noise.
        power = profile**2
        total = power + basis.ring_error(basis.zeroth(moments.first_error)) ** 2
        weights *= np.divide(power, total, where=total > 0, out=np.zeros_like(power))
    distances = np.linspace(0, 1, 101)
    image = j0(np.pi * np.outer(distances, r)) @ (weights * profile)
    inside, around = distances <= MOLECULE, distances >= BACKGROUND
    return float(
        np.average(image[inside], weights=distances[inside])
        - np.average(image[around], weights=distances[around])
    )
