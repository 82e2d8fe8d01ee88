"""What a trained encoder says of estimated moments: a start for `MomentInversion`."""

from __future__ import annotations

import numpy as np
import torch

from aspire_mom.bases import PolarBasis
from aspire_mom.checks import spread
from aspire_mom.inversion.inversion import MomentInversion
from aspire_mom.moments import Moments
from aspire_mom.moments.rings import ring_rms
from aspire_mom.networks.problems import power_errors
from aspire_mom.networks.start_encoder import StartEncoder
from aspire_mom.networks.weights import shipped
from aspire_mom.rotations import DiscreteDensity, SO3Quadrature
from aspire_mom.volumes import GaussianMixture


@torch.no_grad()
def predict(
    moments: Moments,
    quadrature: SO3Quadrature | None = None,
    *,
    encoder: StartEncoder | None = None,
) -> tuple[GaussianMixture, DiscreteDensity]:
    """
    A volume and a density of views from moments alone, at once: one pass of an
    encoder, without any optimisation. `MomentInversion(moments, *predict(moments))`
    goes on from there.

    Both are in one frame, near the volume's principal axes, of either hand. Standard
    errors of the moments, where known, tell the encoder how far to trust each ring.

    :param moments: Moments in the polar basis, in-plane averaged or not, with the
        encoder's rings and orders at least.
    :param quadrature: Nodes that the density is wanted on; by default those that
        `MomentInversion(moments)` has.
    :param encoder: The encoder; by default that of `pretrained()`.
    :return: The volume, `GaussianMixture`, and its views, a smooth `DiscreteDensity`.
    :raises TypeError: no moments.
    :raises ValueError: moments of another basis, with too few rings or orders, without
        power, or of images that still have shifts.
    """
    encoder = shipped() if encoder is None else encoder
    device = encoder.mean.device
    inputs = [t.to(device) for t in encoder_inputs(moments, encoder)]
    (centres, sigmas, weights), coefficients = encoder(*inputs)
    defaults = MomentInversion(moments, quadrature=quadrature)
    # |V(k)| ≤ V(0) for volumes that are nowhere negative: then this is the mean.
    total = moments.basis.L * float(ring_rms(moments).max())
    volume = GaussianMixture(
        encoder.n_gaussians,
        support_radius=defaults.support_radius,
        signed=defaults.signed,
        total=total,
    )
    volume = volume.with_gaussians(centres[0], sigmas[0], total * weights[0]).cpu()
    density = DiscreteDensity(defaults.quadrature, degree=encoder.degree)
    density.coefficients.copy_(coefficients[0])
    return volume, density


def encoder_inputs(
    moments: Moments, encoder: StartEncoder
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    :param moments: As for :func:`predict`.
    :param encoder: The encoder that is to be told.
    :return: First and second moment and errors of the rings' powers, cut to the
        encoder's rings and orders, averaged over in-plane angles, in units of the
        strongest ring, float32, a batch of one.
    :raises TypeError: as for :func:`predict`.
    :raises ValueError: as for :func:`predict`.
    """
    _check(moments, encoder)
    R, orders = encoder.n_rings, np.arange(encoder.max_order + 1)
    first, second, error = moments.first, moments.second, moments.second_error
    if not moments.basis.inplane_average:
        # The average over in-plane angles keeps m' = m only.
        first = first[0]
        same = orders + moments.basis.max_order
        second = second[orders, :, same]
        error = None if error is None else error[orders, :, same]
    unit = float(ring_rms(moments).max())
    second = second[: len(orders), :R, :R] / unit**2
    own_error = np.zeros((len(orders), R))
    if error is not None:
        own_error = np.einsum("mrr->mr", error[: len(orders), :R, :R]) / unit**2
    first = torch.from_numpy((first[:R] / unit).astype(np.complex64))
    second = torch.from_numpy(second.astype(np.complex64))
    own_error = torch.from_numpy(own_error.astype(np.float32))
    return first[None], second[None], power_errors(own_error[None])


def _check(moments: Moments, encoder: StartEncoder) -> None:
    if not isinstance(moments, Moments):
        raise TypeError(f"moments is a {type(moments).__name__}, not a Moments")
    if moments.shift_std != 0:
        raise ValueError(
            f"the images have shifts of {spread(moments.shift_std)}, which"
            " encoders do not model; where they are small, pass"
            " dataclasses.replace(moments, shift_std=0.0)"
        )
    basis = moments.basis
    if not isinstance(basis, PolarBasis):
        raise ValueError(f"moments are in {basis}; encoders take those of a PolarBasis")
    if basis.n_rings < encoder.n_rings or basis.max_order < encoder.max_order:
        raise ValueError(
            f"moments are in {basis}; the encoder needs n_rings of at least"
            f" {encoder.n_rings} and max_order of at least {encoder.max_order}, which"
            f" PolarBasis(L) has from L = {2 * encoder.n_rings - 1} on"
        )
    if not ring_rms(moments).max() > 0:
        raise ValueError("the moments have no power on any ring")
