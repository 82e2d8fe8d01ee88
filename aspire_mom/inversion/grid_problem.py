"""The distance of non-negative grids from moments, for many starts at once."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from aspire_mom.inversion.forward import PolarForward
from aspire_mom.inversion.grid_shifts import Block, ShiftedMoment
from aspire_mom.inversion.grid_third import AveragedProducts, OrderProducts
from aspire_mom.inversion.loss import relative_information
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
# Error of the model, relative to an entry's rings, that is added to standard errors.
MODEL_ERROR = 0.03
# Least RMS of a ring as a share of the strongest ring's.
LEAST_RMS = 0.01


class GridProblem:
    """
    The distance of grids and densities from moments on rings FIRST_RING … n_rings - 1:
    the sum over first, second and third moments of Σ w |M - M̂|² / Σ w |M̂|², of entries
    divided by the RMS of their rings. 1/w is the squared standard error plus 0.03², for
    errors of the model. Entries on which CTFs leave no information do not count.
    Residual Gaussian shifts of images, of the standard deviation `moments.shift_std`,
    are modelled (see :class:`ShiftedMoment`).
    Penalties on the squares of the density's coefficients and of the free gains are
    added.

    A row of coefficients is one angular order m on one ring r, ordered by m, then r.

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
        self.matrix = self._matrix(forward)
        self.harmonics = log_density_harmonics(design.points, degree).float()
        self._set_first_and_second(moments)
        self._set_third(moments)
        self.shifts = [*self._shifted_moments(moments.shift_std / basis.L)]

    def _matrix(self, forward: PolarForward) -> Tensor:
        """Coefficients of each point's Gaussian without the gain, real and imaginary
        parts, (2, rows, n_views, n_points), float32."""
        n_points = len(self.grid.points)
        matrix = torch.empty(2, len(self.rings), forward.n_views, n_points)
        for ring in np.unique(self.rings):
            values = self.grid.functions(ring * forward.directions.float())
            c = forward.orders(*values) / (forward.L * self.rms[ring])
            for row in np.flatnonzero(self.rings == ring):
                part = torch.view_as_real(c[self.orders[row]])
                matrix[:, row] = part.permute(2, 1, 0)
        return matrix

    def _set_first_and_second(self, moments: Moments) -> None:
        self.second, first_error = [], moments.first_error
        known = [share > 0 for share in relative_information(moments)]
        for m in range(self.orders.max() + 1):
            rows = np.flatnonzero(self.orders == m)
            rings, scale = self.rings[rows], self.rms[self.rings[rows]]
            pairs = np.outer(scale, scale)
            at = (m, *np.ix_(rings, rings))
            error = None if moments.second_error is None else moments.second_error[at]
            target = _Target(moments.second[at], error, pairs, known[1][at])
            self.second.append((slice(rows[0], rows[-1] + 1), 1 + (m > 0), target))
            if m == 0:
                error = None if first_error is None else first_error[rings]
                first = moments.first[rings]
                self.first = _Target(first, error, scale, known[0][rings])
        self.powers = torch.cat([t.value.diagonal().real for *_, t in self.second])

    def _set_third(self, moments: Moments) -> None:
        """Products of rows (m2, m1 + m2) that meet rows m1, per m1."""
        self.third: list[tuple[OrderProducts, _Target]] = []
        third = moments.third_basis
        if third is None:
            return
        rows, places, units = [], [], []
        for m in range(min(self.orders.max(), third.max_order) + 1):
            kept = third.ring_indices[m].tolist()
            of_order = np.flatnonzero(self.orders == m)
            rows.append(of_order[np.isin(self.rings[of_order], kept)])
            rings = self.rings[rows[-1]]
            places.append([kept.index(ring) for ring in rings])
            units.append(third.vectors[m][rings, places[-1]].real * self.rms[rings])

        def blocks(values: np.ndarray, m1: int, m2: int) -> np.ndarray:
            orders = (m1, m2, m1 + m2)
            block = third.block(values, m1, m2)[np.ix_(*(places[m] for m in orders))]
            return block.transpose(1, 2, 0).reshape(-1, len(rows[m1]))

        for m1 in range((len(rows) - 1) // 2 + 1):
            parts = []
            for m2 in range(m1, len(rows) - m1):
                b, c = rows[m2], rows[m1 + m2]
                if not (len(rows[m1]) and len(b) and len(c)):
                    continue
                scale = np.outer(np.outer(units[m2], units[m1 + m2]), units[m1])
                error, known = scale * 0, np.ones_like(scale)
                if moments.third_error is not None:
                    error = blocks(moments.third_error, m1, m2)
                    known = error > 0  # 0 where CTFs let nothing through
                # Signs and permutations of the three orders, see `ThirdMomentBasis`.
                count = 12 / ((1 + (m1 == m2)) * (1 + (m1 == 0))) if m2 else 1.0
                pairs = np.repeat(b, len(c)), np.tile(c, len(b))
                value = blocks(moments.third, m1, m2)
                parts.append((*pairs, value, error, scale, count * known))
            if parts:
                b, c, value, error, scale, count = map(
                    np.concatenate, zip(*parts, strict=True)
                )
                target = _Target(value, error, scale, count)
                span = slice(rows[m1][0], rows[m1][-1] + 1)
                part = OrderProducts(span, torch.from_numpy(b), torch.from_numpy(c))
                self.third.append((part, target))

    def _shifted_moments(self, std: float) -> Iterator[ShiftedMoment]:
        """The effect of shifts on first, second and third moments; none without."""
        rows = np.arange(len(self.rings))
        second = [_rows(rows[span], rows[span]) for span, *_ in self.second]
        third = []
        for part, _ in self.third:
            at = _rows(np.arange(len(part.second)), rows[part.first])
            b, c = part.second.numpy()[at[:, 0]], part.third.numpy()[at[:, 0]]
            third.append(np.stack((at[:, 1], b, c), 1))
        for parts in ([_rows(rows[: len(self.first.value)])], second, third):
            if std and parts:
                at = np.concatenate(parts)
                yield ShiftedMoment(self.rings[at], self.orders[at], std)

    def to(self, device: torch.device) -> "GridProblem":
        """
        :param device: Device of the tensors.
        :return: The same problem, there.
        """
        for name in ("matrix", "harmonics", "powers", "gain_weights"):
            setattr(self, name, getattr(self, name).to(device))
        for target in (self.first, *self.shifts):
            target.to(device)
        for *_, target in self.second:
            target.to(device)
        self.third = [(p.to(device), target.to(device)) for p, target in self.third]
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

    def views(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        :param x: Parameters (n_starts, n).
        :return: Real and imaginary parts of the coefficients of the views, (n_starts,
            rows, n_views), in units of the RMS of their rings.
        """
        roots, solvent, log_gains, _ = self.split(x)
        _, n_rows, n_views, n_points = self.matrix.shape
        flat = roots**2 @ self.matrix.reshape(-1, n_points).T
        gains = log_ring_gains(solvent, log_gains).exp()[:, self.rings]
        flat = flat.reshape(-1, 2, n_rows, n_views) * gains[:, None, :, None]
        return flat[:, 0], flat[:, 1]

    def _moments(self, x: Tensor) -> list[list[Block]]:
        """First, second and third moments of the model, as those of the targets."""
        re, im = self.views(x)
        logits = self.split(x)[-1] @ self.harmonics.T
        # Views, then their antipodes, which show mirror images.
        ahead, behind = torch.softmax(logits, -1)[:, None].tensor_split(2, -1)
        even, odd = ahead + behind, ahead - behind
        first = (re[:, : len(self.first.value)] * even).sum(-1)
        moments: list[list[Block]] = [[(first, torch.zeros_like(first))], [], []]
        for span, *_ in self.second:
            a, b = re[:, span], im[:, span]
            real = (a * even) @ a.mT + (b * even) @ b.mT
            cross = (b * odd) @ a.mT
            moments[1].append((real, cross - cross.mT))
        products = [part for part, _ in self.third]
        parts = AveragedProducts.apply(re, im, even, odd, products)
        moments[2] += zip(parts[::2], parts[1::2], strict=True)
        for i, shifted in enumerate(self.shifts):
            moments[i] = shifted(moments[i])
        return moments

    def _distances(self, x: Tensor) -> Tensor:
        moments = self._moments(x)
        first = self.first.distance(*moments[0][0])
        second = third = torch.zeros_like(first)
        for (_, count, target), parts in zip(self.second, moments[1], strict=True):
            second = second + count * target.distance(*parts)
        for (_, target), parts in zip(self.third, moments[2], strict=True):
            third = third + target.distance(*parts)
        norms = (
            (first, self.first.norm),
            (second, sum(count * target.norm for _, count, target in self.second)),
            (third, sum(target.norm for *_, target in self.third)),
        )
        return sum(distance / norm for distance, norm in norms if norm > 0)


def _rows(*parts: np.ndarray) -> np.ndarray:
    """All choices of one number of each part, (n, len(parts)), the last fastest."""
    return np.stack(np.meshgrid(*parts, indexing="ij"), -1).reshape(-1, len(parts))


class _Target:
    """
    Entries of a moment, in units of the RMS of their rings, and their weights.

    :param value: Entries.
    :param error: Their standard errors, None if they are exact.
    :param scale: The units.
    :param count: Number of entries that each stands for; 0 leaves it out.
    """

    def __init__(
        self,
        value: np.ndarray,
        error: np.ndarray | None,
        scale: np.ndarray,
        count: np.ndarray | float = 1.0,
    ):
        relative = 0 if error is None else error / scale
        weights = count / ((relative / MODEL_ERROR) ** 2 + 1)
        self.value = torch.from_numpy((value / scale).astype(np.complex64))
        weights = np.broadcast_to(weights, value.shape).astype(np.float32)
        self.weights = torch.from_numpy(weights)
        self.norm = float((self.weights * self.value.abs() ** 2).sum())

    def to(self, device: torch.device) -> "_Target":
        self.value, self.weights = self.value.to(device), self.weights.to(device)
        return self

    def distance(self, real: Tensor, imag: Tensor) -> Tensor:
        squares = (real - self.value.real) ** 2 + (imag - self.value.imag) ** 2
        return (self.weights * squares).flatten(1).sum(1)
