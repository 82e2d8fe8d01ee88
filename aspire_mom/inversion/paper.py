"""The configuration of the paper's section 5.2."""

from __future__ import annotations

import math
from typing import Any

from aspire_mom.bases import CartesianBasis
from aspire_mom.checks import check_integer, check_kind
from aspire_mom.inversion.inversion import MomentInversion
from aspire_mom.inversion.loss import LossOptions
from aspire_mom.inversion.search import SearchOptions
from aspire_mom.moments import Moments
from aspire_mom.moments.report import ring_rms
from aspire_mom.networks import LatentEncoder, MomentEncoder
from aspire_mom.rotations import SO3Quadrature, SphericalDesign
from aspire_mom.volumes import FourierNet

# Adam's learning rates in section 5.2 of the paper.
PAPER_LEARNING_RATES = (1e-5, 1e-6)


def paper_inversion(
    moments: Moments,
    *,
    n_epochs: int = 10_000,
    n_latent: int = 0,
    lam: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> MomentInversion:
    """
    Set up the inversion of Khoo, Paul & Sharon: moments of all n² Fourier pixels, nodes
    of a 100-point 13-design times 12 in-plane angles with equal weights, their
    probabilities from the encoder ξ_θ^ρ and the volume a `FourierNet`, both optimised
    by Adam on eq. 28, with learning rate 1e-5 and then 1e-6.

    The paper does not say the following. λ is 1, and each norm is divided by that of
    the estimate. `FourierNet` has layers of width 128, ω = 5, the largest RMS of the
    three innermost rings as its scale, and frequencies up to the corners of the Fourier
    square, √2 · n/2 cycles per box.

    :param moments: Moments in a `CartesianBasis`.
    :param n_epochs: Steps at each of the two learning rates.
    :param n_latent: Length of z_v, the output of an encoder ξ_θ^v that is optimised
        too; 0 for none, as in the paper's experiments.
    :param lam: λ of eq. 28.
    :param seed: Seed of all initial parameters.
    :param options: `device`, `status` and `checkpoint`, as for `MomentInversion`.
    :return: The inversion, to call `estimate()` on.
    :raises TypeError: `moments` is no `Moments`.
    :raises ValueError: They are of another basis, or an option is out of range.
    """
    check_kind("moments", moments, Moments)
    if not isinstance(moments.basis, CartesianBasis):
        raise ValueError(
            f"moments are of {moments.basis}; they must be of a CartesianBasis"
        )
    check_integer("n_epochs", n_epochs, 1)
    check_integer("n_latent", n_latent, 0)
    L = moments.basis.L
    quadrature = SO3Quadrature.product(SphericalDesign(13, n_points=100), 12)
    encoder = LatentEncoder.cartesian(L, n_latent, seed=seed) if n_latent else None
    scale = L * float(ring_rms(moments)[:3].max())
    return MomentInversion(
        moments,
        FourierNet(L / math.sqrt(2), scale=scale, encoder=encoder, seed=seed),
        MomentEncoder.cartesian(L, len(quadrature), seed=seed),
        quadrature,
        loss=LossOptions("none", lam),
        search=SearchOptions(
            optimizer="adam",
            n_steps=len(PAPER_LEARNING_RATES) * n_epochs,
            learning_rates=PAPER_LEARNING_RATES,
            seed=seed,
        ),
        **options,
    )
