"""The distance of non-negative grids from moments, for many starts at once."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from aspire_mom.inversion.forward import PolarForward
from aspire_mom.inversion.grid_entries import (
    Entries,
    first_and_second_entries,
    third_entries,
    weights,
)
from aspire_mom.inversion.grid_shifts import ShiftedMoment
from aspire_mom.inversion.grid_views import GridViews
from aspire_mom.inversion.start import cut_to_support
from aspire_mom.moments import Moments
from aspire_mom.moments.report import ring_rms
from aspire_mom.rotations import SO3Quadrature, SphericalDesign
from aspire_mom.rotations.densities import log_density_harmonics
from aspire_mom.volumes import PositiveGrid
from aspire_mom.volumes.positive_grid import log_ring_gains

# Masks and filters leave on rings 0 and 1 of real maps what no compact density has.
FIRST_RING = 2
# Starts in one batch of tensors: more do not fit into cache.
BATCH = 16
# Degree of the quadrature beyond the largest angular order.
EXTRA_DEGREE = 5
# Weight in the loss of the squared coefficients of the log-density.
DENSITY_WEIGHT = 1e-5
# Least RMS of a ring as a share of the strongest ring's.
LEAST_RMS = 0.01


class GridProblem:
    """
    The distance of grids and densities from moments on rings FIRST_RING … n_rings - 1:
    the sum over first, second and third moments of Σ w |M - M̂|² / Σ w |M̂|², of entries
    divided by the RMS of their rings. 1/w is the squared standard error plus that of
    the model, see :func:`weights`. Entries on which CTFs leave no information do not
    count. Residual Gaussian shifts of images, of the standard deviation
    `moments.shift_std`, are modelled (see :class:`ShiftedMoment`). Penalties on the
    squares of the density's coefficients and of the free gains are added.

    A row of coefficients is one angular order m on one ring r, ordered by m, then r.
    `noise_loss` is what the standard errors add to the loss of the truth.

    :param moments: In-plane averaged polar moments.
    :param grid: The kind of volume.
    :param degree: Degree of the log-density's harmonics.
    :param n_rings: Number of rings.
    :param gain_weights: Weights (n_starts,) of the penalty on free gains.
    """

    def __init__(
        self,
        moments: Moments,
        grid: PositiveGrid,
        degree: int,
        n_rings: int,
        gain_weights: Tensor,
    ):
        basis = cut_to_support(moments.basis, n_rings, grid.support_radius)
        design = SphericalDesign(basis.max_order + EXTRA_DEGREE)
        forward = PolarForward(basis, SO3Quadrature.product(design, 1), 0.0)
        supported = basis.order_support.diagonal(axis1=1, axis2=2).copy()
        supported[:, :FIRST_RING] = False
        self.grid, self.n_rings, self.L = grid, n_rings, basis.L
        self.gain_weights = gain_weights
        self.orders, self.rings = np.nonzero(supported)
        rms = ring_rms(moments)
        # Noise can leave weak rings with no power at all.
        self.rms = np.maximum(rms, LEAST_RMS * rms.max())
        units = basis.L * self.rms
        self.grid_views = GridViews(grid, forward, self.orders, self.rings, units)
        self.harmonics = log_density_harmonics(design.points, degree).float()
        power = moments.second[self.orders, self.rings, self.rings].real
        self.powers = torch.from_numpy(power / self.rms[self.rings] ** 2).float()
        self._set_entries(moments)

    def _set_entries(self, moments: Moments) -> None:
        rows = self.orders, self.rings, self.rms
        first, second = first_and_second_entries(moments, *rows)
        groups = [
            group
            for group in ([first], [second], third_entries(moments, *rows))
            if group
        ]
        every = [entries for group in groups for entries in group]
        self.i, self.j, self.k = (
            torch.from_numpy(np.concatenate(rows))
            for rows in zip(*((e.i, e.j, e.k) for e in every), strict=True)
        )
        self.n_i, self.n_pairs = [len(e.i) for e in every], [len(e.j) for e in every]
        target = np.concatenate([e.value.ravel() for e in every])
        self.target = torch.from_numpy(target.astype(np.complex64))
        found, noise_losses = zip(*map(weights, groups), strict=True)
        self.noise_loss = sum(noise_losses)
        self.weights = torch.from_numpy(np.concatenate(found).astype(np.float32))
        self.sizes = [len(w) for w in found]
        std = moments.shift_std / self.L
        self.shifts = [*self._shifted_moments(groups, std)] if std else []

    def _shifted_moments(
        self, groups: list[list[Entries]], std: float
    ) -> Iterator[ShiftedMoment]:
        """The effect of shifts on first, second and third moments."""
        for i, group in enumerate(groups):
            rows = np.concatenate([entries.rows() for entries in group])
            # First and second moments have one factor and two.
            rows = rows[:, (slice(1, 2), slice(1, 3), slice(3))[i]]
            yield ShiftedMoment(self.rings[rows], self.orders[rows], std)

    def to(self, device: torch.device) -> "GridProblem":
        """
        :param device: Device of the tensors.
        :return: The same problem, there.
        """
        names = "grid_views", "harmonics", "powers", "gain_weights", "target", "weights"
        for name in (*names, "i", "j", "k"):
            setattr(self, name, getattr(self, name).to(device))
        self.shifts = [shift.to(device) for shift in self.shifts]
        return self

    def losses(self, x: Tensor) -> Tensor:
        """
        :param x: Parameters (n_starts, n): those of grids, roots, solvent and log_gains
            side by side, then the coefficients of log-densities.
        :return: Losses (n_starts,).
        """
        losses = torch.cat([self._distances(part) for part in x.split(BATCH)])
        _, _, log_gains, coefficients = self.split(x)
        penalty = DENSITY_WEIGHT * coefficients.square().sum(1)
        return losses + penalty + self.gain_weights * log_gains.square().sum(1)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """
        :param x: Parameters (n_starts, n).
        :return: Roots, solvent and log_gains of grids, coefficients of log-densities.
        """
        sizes = [p.numel() for p in self.grid.parameters()]
        return x.split([*sizes, self.harmonics.shape[1]], dim=1)

    def views(self, x: Tensor) -> Tensor:
        """
        :param x: Parameters (n_starts, n).
        :return: Coefficients of the views (n_starts, rows, n_views), complex, in units
            of the RMS of their rings.
        """
        roots, solvent, log_gains, _ = self.split(x)
        gains = log_ring_gains(solvent, log_gains).exp()[:, self.rings]
        return self.grid_views(roots**2) * gains[..., None]

    def _moments(self, x: Tensor) -> Tensor:
        """The model's moments (n_starts, n_entries), as those of `target`."""
        views = self.views(x)
        a = torch.cat((views, torch.ones_like(views[:, :1])), 1)
        factors = torch.view_as_real(a).flatten(2)
        j, k = (
            torch.view_as_complex(factors.index_select(1, rows).unflatten(2, (-1, 2)))
            for rows in (self.j, self.k)
        )
        pairs = torch.view_as_real(j * k.conj()).flatten(2)
        # Views, then their antipodes, which show mirror images: conjugate coefficients.
        logits = self.split(x)[-1] @ self.harmonics.T
        ahead, behind = torch.softmax(logits, -1)[:, None].tensor_split(2, -1)
        conjugate = a.conj()
        # For real and for imaginary parts of the moments.
        i = (conjugate * (ahead + behind), 1j * conjugate * (ahead - behind))
        i = torch.view_as_real(torch.stack(i, 2)).flatten(3).index_select(1, self.i)
        factors = zip(pairs.split(self.n_pairs, 1), i.split(self.n_i, 1), strict=True)
        parts = [(part @ i.flatten(1, 2).mT).flatten(1) for part, i in factors]
        moments = torch.view_as_complex(torch.cat(parts, 1).unflatten(1, (-1, 2)))
        if self.shifts:
            groups = zip(self.shifts, moments.split(self.sizes, 1), strict=True)
            moments = torch.cat([shifted(group) for shifted, group in groups], 1)
        return moments

    def _distances(self, x: Tensor) -> Tensor:
        difference = torch.view_as_real(self._moments(x) - self.target)
        return difference.square().sum(-1) @ self.weights
