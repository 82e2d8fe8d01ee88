"""Moments of a volume and a density by quadrature, eq. 20, in both bases."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aspire_mom.bases import Basis, CartesianBasis, PolarBasis
from aspire_mom.checks import describe_shift_std
from aspire_mom.inversion.cartesian import CartesianForward, in_chunks
from aspire_mom.processes import all_gather_rows, local_rows
from aspire_mom.rotations import SO3Quadrature
from aspire_mom.volumes import FourierVolume

# Largest standard deviation in boxes of unknown shifts; centred images have less.
MAX_SHIFT_STD = 0.1


class PolarForward(torch.nn.Module):
    """
    Moments in a polar basis, eq. 20, with in-plane rotations done as phases: the volume
    is evaluated once per viewing direction, not once per node.

    Opposite viewing directions show mirror images, whose in-plane averaged second
    moments are complex conjugates. If the second half of the views is opposite to the
    first, one half is evaluated.

    :param basis: `PolarBasis` of the moments.
    :param quadrature: Nodes on SO(3), view-major.
    :param shift_std: As for :func:`forward_model` (see :class:`Shifts`).
    :raises ValueError: Images have shifts and the basis is not averaged in plane.
    """

    directions: Tensor

    def __init__(
        self, basis: PolarBasis, quadrature: SO3Quadrature, shift_std: float | None
    ):
        super().__init__()
        self.L, self.n_rings, self.max_order = basis.L, basis.n_rings, basis.max_order
        self.averaged, self.n_inplane = basis.inplane_average, quadrature.n_inplane
        self.n_nodes, self.shift_std, self.shifts = len(quadrature), shift_std, None
        if shift_std != 0:
            if not self.averaged:
                raise ValueError(
                    f"the images have shifts of {describe_shift_std(shift_std)}; these"
                    " are modelled in Cartesian bases and in polar ones that average"
                    " over in-plane angles"
                )
            max_std = MAX_SHIFT_STD if shift_std is None else shift_std / basis.L
            self.shifts = Shifts(self.n_rings, self.max_order, max_std)
        rotations = torch.from_numpy(quadrature.view_rotations)
        views, antipodes = rotations[:, :, 2].tensor_split(2)
        pairs = self.averaged and len(views) == len(antipodes)
        self.antipodal = pairs and torch.allclose(views, -antipodes)
        if self.antipodal:
            rotations = rotations[: len(views)]
        self.n_views = len(rotations)
        # An object within the box has orders up to π r on ring r; with this many
        # samples on half a ring, their aliases miss the orders in use.
        alias_free = math.pi * (self.n_rings - 1) + 6
        self.n_angles = math.ceil((self.max_order + alias_free) / 2)
        angles = math.pi / self.n_angles * torch.arange(self.n_angles).double()
        inplane = torch.stack((angles.cos(), angles.sin()))
        directions = (rotations[:, :, :2] @ inplane).transpose(1, 2).reshape(-1, 3)
        # Buffers are float64 and cast to the volume's precision where they are used.
        self.register_buffer("directions", directions)
        self.register_buffer("radii", torch.arange(self.n_rings).double())
        orders = torch.arange(self.max_order + 1)
        # F(φ + π) = conj F(φ), so even orders depend on Re F, odd ones on i Im F.
        fourier = torch.exp(-1j * orders[:, None] * angles) / self.n_angles
        fourier[1::2] *= 1j
        self.register_buffer("fourier", torch.view_as_real(fourier))

    def forward(
        self, volume: FourierVolume, probabilities: Tensor, std: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        c = self._coefficients(volume)
        p = probabilities.to(c.real.dtype).reshape(-1, self.n_inplane)
        if not self.averaged:
            return self._unaveraged_moments(c, p)
        first, second = self._averaged_moments(c, p.sum(1))
        if self.shifts is None:
            return first, second
        std = self.shift_std if std is None else std
        return self.shifts(first, second, std / self.L)

    def _coefficients(self, volume: FourierVolume) -> Tensor:
        """Return coefficients (max_order + 1, n_rings, n_views), complex, of the clean
        images at in-plane angle 0."""
        dtype, n = next(volume.parameters()).dtype, len(self.directions)
        radii = self.radii.to(dtype)
        directions = self.directions.to(dtype)[local_rows(n)]
        if volume.rings_at_once:
            values = volume.on_rings(directions, radii)
        else:
            values = in_chunks(volume, volume.on_rings, directions, radii)
        rings = all_gather_rows(values, n) / self.L
        return self.orders(rings.real, rings.imag)

    def orders(self, real: Tensor, imag: Tensor) -> Tensor:
        """
        :param real: Real parts of functions on `directions`, (n_directions, n), each
            the Fourier transform of a real volume on a sphere.
        :param imag: Their imaginary parts.
        :return: Angular orders (max_order + 1, n, n_views), complex.
        """
        n = real.shape[1]
        fourier = torch.view_as_complex(self.fourier.to(real.dtype))
        c = fourier.new_zeros((self.max_order + 1, n, self.n_views))
        for parity, part in enumerate((real, imag)):
            flat = part.reshape(self.n_views, self.n_angles, n).permute(1, 2, 0)
            flat = flat.reshape(self.n_angles, -1)
            rows = fourier[parity::2]
            orders = torch.complex(rows.real @ flat, rows.imag @ flat)
            c[parity::2] = orders.reshape(-1, n, self.n_views)
        return c

    def _averaged_moments(self, c: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        p_difference = p
        if self.antipodal:
            p_views, p_antipodes = p.tensor_split(2)
            p, p_difference = p_views + p_antipodes, p_views - p_antipodes
        first = (c[0] * p).sum(-1)
        # Views as columns: blocks of (rings × views)(views × rings) per order. PyTorch
        # multiplies them one by one where they are not contiguous.
        re, im = c.real.contiguous(), c.imag.contiguous()
        both = torch.cat((re, im), 2)
        real = (both * p.repeat(2)) @ both.mT
        cross = (im * p_difference) @ re.mT
        return first, torch.complex(real, cross - cross.mT)

    def _unaveraged_moments(self, c: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        M = self.max_order
        # R(view) Rz(α) multiplies order m by exp(imα), α = 2πj / n_inplane.
        differences = torch.arange(-M, 2 * M + 1, device=c.device)
        turns = torch.outer(differences, torch.arange(self.n_inplane, device=c.device))
        angles = 2 * math.pi * (turns % self.n_inplane).to(p) / self.n_inplane
        spectrum = torch.polar(torch.ones_like(angles), angles) @ p.T.to(c)
        first = torch.einsum("mrv,mv->mr", c, spectrum[M : 2 * M + 1])
        signs = (-1.0) ** torch.arange(1, M + 1)[:, None, None].to(p)
        both = torch.cat(((signs * c[1:].conj()).flip(0), c))
        both = both.conj().permute(2, 0, 1)
        blocks = []
        for m in range(M + 1):
            # m - m' runs from m + M down to m - M.
            weights = spectrum[m : m + 2 * M + 1].flip(0).T
            weighted = (weights[:, :, None] * both).reshape(self.n_views, -1)
            blocks.append((c[m] @ weighted).reshape(self.n_rings, 2 * M + 1, -1))
        return first, torch.stack(blocks)


class Shifts(torch.nn.Module):
    """
    The effect of Gaussian shifts of images on their in-plane averaged moments. A shift
    by o multiplies f(k) by exp(2πi k·o/L). On average, with a = 2π² (std/L)²,

        E f(k)        → exp(-a |k|²) E f(k),
        E f(k) f(k')* → exp(-a |k - k'|²) E f(k) f(k')*,

    |k - k'|² = r² + r'² - 2 r r' cos θ, so each angle θ between frequencies has its own
    factor. Orders m are Fourier coefficients in θ.

    :param n_rings: Rings of the moments.
    :param max_order: Largest angular order of the moments.
    :param max_std: Largest shift standard deviation, in box lengths, for which angular
        sampling is fine enough. Larger ones alias.
    """

    def __init__(self, n_rings: int, max_order: int, max_std: float):
        super().__init__()
        r = torch.arange(n_rings).double()
        # Orders of the factor exp(-x (1 - cos θ)), x = 2a r r', fall as those of a
        # Gaussian in θ; all but 1e-10 of them lie within these.
        reach = math.ceil(6 * 2 * math.pi * max_std * (n_rings - 1)) + 8
        self.n_angles = 2 * max_order + reach + reach % 2
        angles = 2 * math.pi / self.n_angles * torch.arange(self.n_angles).double()
        products = 2 * torch.outer(r, r) * angles.cos()[:, None, None]
        self.register_buffer("squared_radii", r**2)
        self.register_buffer("squared_distances", r[:, None] ** 2 + r**2 - products)

    def forward(
        self, first: Tensor, second: Tensor, std: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """
        :param first: First moment (n_rings,) of centred images.
        :param second: Second moment (max_order + 1, n_rings, n_rings) of them.
        :param std: Standard deviation of shifts along each axis, boxes.
        :return: Both moments of shifted images, differentiable in `std`.
        """
        dtype, a = second.real.dtype, 2 * math.pi**2 * std**2
        # Orders -m are the conjugates of orders m: values at angles are real.
        at_angles = torch.fft.irfft(second, self.n_angles, dim=0)
        factors = torch.exp(-a * self.squared_distances.to(dtype))
        shifted = torch.fft.rfft(at_angles * factors, dim=0)[: len(second)]
        return first * torch.exp(-a * self.squared_radii.to(dtype)), shifted


def forward_model(
    basis: Basis, quadrature: SO3Quadrature, *, shift_std: float | None = 0.0
) -> PolarForward | CartesianForward:
    """
    Return the map from a volume and probabilities to moments in a basis.

    :param basis: `CartesianBasis` or `PolarBasis`.
    :param quadrature: Nodes on SO(3).
    :param shift_std: Standard deviation along each axis, pixels, of the images' shifts;
        None to give it in every call.
    :return: A module to call with a volume model, probabilities (n,) of the nodes and,
        if `shift_std` is None, the standard deviation of shifts. It returns the first
        and the second moment, complex, in the basis's shapes.
    """
    model = CartesianForward if isinstance(basis, CartesianBasis) else PolarForward
    return model(basis, quadrature, shift_std)
