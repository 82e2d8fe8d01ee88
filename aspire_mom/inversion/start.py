"""How inversions start: defaults from the moments, and a trained encoder."""

from __future__ import annotations

import math

import numpy as np
import torch

from aspire_mom.bases import Basis
from aspire_mom.checks import check_kind, describe_shift_std
from aspire_mom.moments import Moments
from aspire_mom.moments.report import informative_rings, ring_rms
from aspire_mom.networks.start_encoder import StartEncoder, pretrained
from aspire_mom.networks.training import power_errors
from aspire_mom.rotations import DiscreteDensity, SO3Quadrature, SphericalDesign
from aspire_mom.volumes import GaussianMixture

# Radius in boxes of a ball that holds most molecules.
SUPPORT_RADIUS = 0.4
MAX_DEGREE = 41
# Fewest rings of a grid: third moments of two, and rings 0 and 1, which do not count.
LEAST_GRID_RINGS = 4
# A volume with signal on so many rings needs more Gaussians than a search finds in
# minutes.
MANY_RINGS = 10


def cut_to_support(basis: Basis, n_rings: int, support_radius: float) -> Basis:
    """
    :param basis: Basis of the moments.
    :param n_rings: Number of rings in use.
    :param support_radius: Radius in boxes of a ball that holds the molecule.
    :return: Basis of these rings and of the molecule's angular orders on the outermost.
    """
    order = math.ceil(2 * math.pi * support_radius * (n_rings - 1)) + 1
    return basis.cut(n_rings, order)


def default_quadrature(
    moments: Moments, n_rings: int, support_radius: float = SUPPORT_RADIUS
) -> SO3Quadrature:
    """
    :param moments: The moments.
    :param n_rings: Number of rings in use.
    :param support_radius: Radius in boxes of a ball that holds the molecule.
    :return: A spherical design as fine as the angular orders where the moments are
        averaged over in-plane angles; else the paper's 100 × 12 nodes (section 5.2).
    """
    if moments.basis.inplane_average:
        inner = cut_to_support(moments.basis, n_rings, support_radius)
        degree = min(inner.max_order, MAX_DEGREE)
        return SO3Quadrature.product(SphericalDesign(degree), 1)
    return SO3Quadrature.product(SphericalDesign(13, n_points=100), 12)


def zero_frequency_mean(moments: Moments) -> float:
    """
    :param moments: The moments.
    :return: E f at zero frequency, the voxel sum of the volume divided by L; with CTFs,
        |E f| on the innermost ring that has at least 1 % of the largest information.
    """
    basis, information = moments.basis, moments.first_information
    on_rings = basis.ring_mean(basis.order_zero(moments.first).real)
    if information is None:
        return float(on_rings[0])
    on_ring = basis.ring_mean(information)
    return float(abs(on_rings[np.argmax(on_ring >= 0.01 * on_ring.max())]))


def needs_signs(moments: Moments) -> bool:
    """
    :param moments: The moments.
    :return: Whether the volume must be negative somewhere, since a ring's RMS exceeds
        E f at zero frequency by more than 5 %, and a non-negative volume has
        |V(k)| ≤ V(0). False for images with CTFs.
    """
    if moments.first_information is not None:
        return False
    rms = ring_rms(moments)
    return bool(rms[1:].max(initial=0) > 1.05 * zero_frequency_mean(moments))


def default_volume(moments: Moments) -> str:
    """
    :param moments: The moments.
    :return: "grid" if the grid's search can use the moments and the molecule seems to
        lie in solvent or has signal on at least 10 rings; else "gaussians". Images with
        CTFs are taken to be of real particles, which lie in solvent. Without CTFs,
        solvent shows where no non-negative volume alone has such moments.
    """
    in_solvent = moments.first_information is not None or needs_signs(moments)
    n_rings = informative_rings(moments)
    third = moments.third_basis
    usable = third is not None and third.ring_indices is not None
    usable &= moments.shift_std is not None
    usable &= n_rings >= LEAST_GRID_RINGS
    wanted = in_solvent or n_rings >= MANY_RINGS
    return "grid" if usable and wanted else "gaussians"


@torch.no_grad()
def predict(
    moments: Moments,
    quadrature: SO3Quadrature | None = None,
    *,
    encoder: StartEncoder | None = None,
) -> tuple[GaussianMixture, DiscreteDensity]:
    """
    Predict a volume and a density of viewing directions from moments by an encoder.
    `MomentInversion(moments, *predict(moments))` starts from them. The axes are close
    to the volume's principal ones, and the handedness is arbitrary.

    :param moments: Moments in a polar basis that has the encoder's rings and orders.
    :param quadrature: Nodes of the density; by default :func:`default_quadrature`.
    :param encoder: A trained encoder; by default the one that the package ships.
    :return: The volume and the smooth density.
    :raises TypeError: `moments` is no `Moments`.
    :raises ValueError: The moments have too few rings or orders, or no power, or are of
        images with shifts.
    """
    check_kind("moments", moments, Moments)
    encoder = pretrained() if encoder is None else encoder
    device = encoder.mean.device
    inputs = [t.to(device) for t in _encoder_inputs(moments, encoder)]
    (centres, sigmas, weights), coefficients = encoder(*inputs)
    # A non-negative volume has |V(k)| ≤ V(0), so the strongest ring gives its mean.
    total = moments.basis.L * float(ring_rms(moments).max())
    options = {"signed": needs_signs(moments), "total": total}
    volume = GaussianMixture(1, support_radius=SUPPORT_RADIUS, **options)
    volume = volume.with_gaussians(centres[0], sigmas[0], total * weights[0]).cpu()
    if quadrature is None:
        quadrature = default_quadrature(moments, informative_rings(moments))
    density = DiscreteDensity(quadrature, degree=encoder.degree)
    density.coefficients.copy_(coefficients[0])
    return volume, density


def _encoder_inputs(moments: Moments, encoder: StartEncoder) -> list[torch.Tensor]:
    """
    Cut moments to the encoder's rings and orders, average them over in-plane angles and
    divide them by the strongest ring's RMS. Return the first (1, n_rings) and the
    second moment (1, max_order + 1, n_rings, n_rings), complex64, and standard errors
    of the rings' powers (1, n_rings), float32.
    """
    if moments.shift_std != 0:
        raise ValueError(
            f"the images have shifts of {describe_shift_std(moments.shift_std)},"
            " which encoders do not model; if they are small, pass"
            " moments.with_corrections(shift_std=0.0)"
        )
    basis, R, M = moments.basis, encoder.n_rings, encoder.max_order
    if basis.n_rings < R or basis.max_order < M:
        raise ValueError(
            f"moments are in {basis}; the encoder needs n_rings of at least {R} and"
            f" max_order of at least {M}, as PolarBasis(L) has from L = {2 * R - 1} on"
        )
    unit = float(ring_rms(moments).max())
    if not unit > 0:
        raise ValueError("the moments have no power on any ring")
    error = np.zeros((M + 1, R))
    if moments.second_error is not None:
        error = basis.diagonal_power(moments.second_error)[: M + 1, :R] / unit**2
    first = basis.order_zero(moments.first)[:R] / unit
    second = basis.equal_order_blocks(moments.second)[: M + 1, :R, :R] / unit**2
    first, second = (torch.from_numpy(a.astype(np.complex64)) for a in (first, second))
    error = power_errors(torch.from_numpy(error.astype(np.float32))[None])
    return [first[None], second[None], error]
