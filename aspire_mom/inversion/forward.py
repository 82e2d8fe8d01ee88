"""Moments of a (volume, density) pair by quadrature, eq. 20, in both bases."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aspire_mom.inversion.cartesian import CartesianForward, check_count, in_chunks
from aspire_mom.inversion.processes import gathered, own_rows
from aspire_mom.moments import Basis, CartesianBasis, PolarBasis
from aspire_mom.quadrature import SO3Quadrature
from aspire_mom.volumes import FourierVolume


class PolarForward(torch.nn.Module):
    """
    Moments in a polar basis, eq. 20 with in-plane rotations done as phases, so that the
    volume is evaluated once per viewing direction and not once per node.

    Where the basis is in-plane averaged, opposite viewing directions see mirror images,
    whose second moments are complex conjugates: a quadrature whose views come in
    antipodal pairs (second half = -first half) costs half.

    :param basis: `PolarBasis` of the moments.
    :param quadrature: Nodes on SO(3).
    :param n_rings: Use rings 0 … n_rings - 1 only.
    :param max_order: Use angular orders 0 … max_order only.
    """

    def __init__(
        self,
        basis: PolarBasis,
        quadrature: SO3Quadrature,
        *,
        n_rings: int | None = None,
        max_order: int | None = None,
    ):
        super().__init__()
        self.n_rings = min(n_rings or basis.n_rings, basis.n_rings)
        limit = basis.max_order if max_order is None else max_order
        self.max_order = min(limit, basis.max_order)
        self.L = basis.L
        self.inplane_average = basis.inplane_average
        self.n_inplane = quadrature.n_inplane
        rotations = torch.from_numpy(quadrature.view_rotations)
        self.n_quadrature_views = len(rotations)
        ahead, behind = rotations[:, :, 2].tensor_split(2)
        self.antipodal = (
            self.inplane_average
            and len(ahead) == len(behind)
            and torch.allclose(ahead, -behind)
        )
        if self.antipodal:
            rotations = rotations[: len(ahead)]
        self.n_views = len(rotations)
        # An object within the box has orders up to π r on ring r; these many samples
        # on half a ring keep their aliases out of the orders used.
        alias_free = math.pi * (self.n_rings - 1) + 6
        self.n_angles = math.ceil((self.max_order + alias_free) / 2)
        angles = math.pi / self.n_angles * torch.arange(self.n_angles).double()
        inplane = torch.stack((angles.cos(), angles.sin()))
        directions = (rotations[:, :, :2] @ inplane).transpose(1, 2).reshape(-1, 3)
        # Buffers are float64 and cast to the volume's precision where they are used.
        self.register_buffer("directions", directions)
        self.register_buffer("radii", torch.arange(self.n_rings).double())
        orders = torch.arange(self.max_order + 1)
        # Over a whole ring F(φ + π) = conj F(φ): even orders see Re F, odd ones i Im F.
        fourier = torch.exp(-1j * orders[:, None] * angles) / self.n_angles
        fourier[1::2] *= 1j
        self.register_buffer("fourier", torch.view_as_real(fourier))

    def coefficients(self, volume: FourierVolume) -> Tensor:
        """
        :param volume: The volume model.
        :return: c (max_order + 1, n_rings, n_views), complex, of the clean images at
            the distinct views with in-plane angle 0.
        """
        dtype = next(volume.parameters()).dtype
        radii = self.radii.to(dtype)
        n = len(self.directions)
        directions = self.directions.to(dtype)[own_rows(n)]
        if volume.rings_at_once:
            values = volume.on_rings(directions, radii)
        else:
            values = in_chunks(volume, volume.on_rings, directions, radii)
        rings = gathered(values, n) / self.L
        rings = rings.reshape(self.n_views, self.n_angles, self.n_rings)
        fourier = torch.view_as_complex(self.fourier.to(dtype))
        c = values.new_zeros((self.max_order + 1, self.n_rings, self.n_views))
        parts = (rings.real, rings.imag)
        for parity, part in enumerate(parts):
            flat = part.permute(1, 2, 0).reshape(self.n_angles, -1)
            rows = fourier[parity::2]
            even = torch.complex(rows.real @ flat, rows.imag @ flat)
            c[parity::2] = even.reshape(-1, self.n_rings, self.n_views)
        return c

    def forward(
        self, volume: FourierVolume, probabilities: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        :param volume: The volume model.
        :param probabilities: Weights of the quadrature's nodes, (n,), view-major.
        :return: First and second moment in the basis's shapes, cut to the rings and
            orders in use.
        :raises ValueError: If there is not one probability per node.
        """
        check_count(probabilities, self.n_quadrature_views * self.n_inplane)
        c = self.coefficients(volume)
        probabilities = probabilities.to(c.real.dtype)
        if not self.inplane_average:
            return self._all_orders(c, probabilities.reshape(-1, self.n_inplane))
        p = probabilities.reshape(self.n_quadrature_views, -1).sum(1)
        if self.antipodal:
            ahead, behind = p[: self.n_views], p[self.n_views :]
            p, odd = ahead + behind, ahead - behind
        first = (c[0] * p).sum(-1)
        # Views as columns: blocks of (rings × views)(views × rings) per order.
        re, im = c.real, c.imag
        rt, it = re.transpose(1, 2), im.transpose(1, 2)
        real = (re * p) @ rt + (im * p) @ it
        if self.antipodal:
            p = odd
        cross = (im * p) @ rt
        return first, torch.complex(real, cross - cross.transpose(1, 2))

    def _all_orders(self, c: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Moments with no in-plane average, probabilities (n_views, n_inplane)."""
        M = self.max_order
        # R(view) Rz(α) multiplies order m by exp(imα), α = 2πj / n_inplane.
        differences = torch.arange(-M, 2 * M + 1, device=c.device)
        turns = torch.outer(differences, torch.arange(self.n_inplane, device=c.device))
        turns = (turns % self.n_inplane).to(c.real.dtype) / self.n_inplane
        angles = 2 * math.pi * turns
        phases = torch.polar(torch.ones_like(angles), angles)
        spectrum = phases @ probabilities.T.to(c.dtype)
        orders = torch.arange(M + 1, device=c.device)
        first = torch.einsum("mrv,mv->mr", c, spectrum[orders + M])
        signs = (-1.0) ** orders[1:, None, None].to(c.real.dtype)
        both = torch.cat(((signs * c[1:].conj()).flip(0), c))
        both = both.conj().permute(2, 0, 1)
        blocks = []
        for m in range(M + 1):
            # m - m' runs from m + M down to m - M.
            weights = spectrum[m : m + 2 * M + 1].flip(0).T
            weighted = (weights[:, :, None] * both).reshape(self.n_views, -1)
            blocks.append((c[m] @ weighted).reshape(self.n_rings, 2 * M + 1, -1))
        return first, torch.stack(blocks)


def forward_model(
    basis: Basis,
    quadrature: SO3Quadrature,
    *,
    n_rings: int | None = None,
    max_order: int | None = None,
) -> PolarForward | CartesianForward:
    """
    The map from (volume, probabilities) to moments in a basis.

    :param basis: `CartesianBasis` or `PolarBasis`.
    :param quadrature: Nodes on SO(3).
    :param n_rings: Rings to use of a polar basis.
    :param max_order: Angular orders to use of a polar basis.
    :return: A module to call with a volume model and the nodes' probabilities.
    """
    if isinstance(basis, CartesianBasis):
        return CartesianForward(basis, quadrature)
    return PolarForward(basis, quadrature, n_rings=n_rings, max_order=max_order)
