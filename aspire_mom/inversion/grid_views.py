"""Polar coefficients of the views of many non-negative grids at once."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import spherical_jn
from torch import Tensor

from aspire_mom.inversion.forward import PolarForward
from aspire_mom.rotations.sphere import real_spherical_harmonics
from aspire_mom.volumes import PositiveGrid

# Degrees of harmonics beyond 2π |k| |μ|: with 6, the error of points on the edge of the
# ball is about 1e-3 of a ring's RMS on 8 rings, far less than `MODEL_ERROR`.
MARGIN = 6


class GridViews:
    """
    Coefficients of the views of grids, without their gains. On a sphere |k| = r the
    wave of a point μ is a sum of few spherical harmonics,

        exp(-2πi k·μ) = 4π Σ_l (-i)^l j_l(2πr|μ|) Σ_m Y_lm(k/|k|) Y_lm(μ/|μ|),

    so the sums over points are done once, not once per view.

    :param grid: The kind of volume.
    :param forward: Views and angular orders.
    :param orders: Angular orders (n_rows,).
    :param rings: Rings (n_rows,).
    :param units: What each ring's coefficients are divided by.
    """

    def __init__(
        self,
        grid: PositiveGrid,
        forward: PolarForward,
        orders: np.ndarray,
        rings: np.ndarray,
        units: np.ndarray,
    ):
        self.n_views = forward.n_views
        points = grid.points.double().cpu()
        distances, toward = points.norm(dim=1), torch.nn.functional.normalize(points)
        expansions, rows = [], []
        self.matrices: list[Tensor] = []
        for ring in np.unique(rings):
            x = 2 * math.pi * ring * distances
            degree = math.ceil(float(x.max())) + MARGIN
            of_points = list(enumerate(real_spherical_harmonics(toward, degree)))
            of_views = list(real_spherical_harmonics(forward.directions, degree))
            scale = 4 * math.pi * grid.decay(torch.tensor(ring)) / units[ring]
            # Even degrees are real and make even orders, odd degrees imaginary ones.
            for parity in (0, 1):
                expansion = [
                    (1, -1, -1, 1)[l % 4] * torch.from_numpy(spherical_jn(l, x)) * Y.T
                    for l, Y in of_points[parity::2]
                ]
                expansions.append(scale * torch.cat(expansion))
                Y = torch.cat(of_views[parity::2], 1)
                zero = torch.zeros_like(Y)
                parts = (zero, Y) if parity else (Y, zero)
                at = np.flatnonzero((rings == ring) & (orders % 2 == parity))
                c = torch.view_as_real(forward.orders(*parts)[orders[at]])
                matrix = c.permute(1, 0, 2, 3).flatten(1)
                self.matrices.append(matrix.float())
                rows.append(at)
        self.sizes = [len(expansion) for expansion in expansions]
        self.expansion = torch.cat(expansions).T.contiguous().float()
        self.order = torch.from_numpy(np.concatenate(rows).argsort())

    def to(self, device: torch.device) -> GridViews:
        """
        :param device: Device of the tensors.
        :return: The same, there.
        """
        self.expansion = self.expansion.to(device)
        self.order = self.order.to(device)
        self.matrices = [matrix.to(device) for matrix in self.matrices]
        return self

    def __call__(self, weights: Tensor) -> Tensor:
        """
        :param weights: Weights of the points (n_starts, n_points).
        :return: Coefficients (n_starts, n_rows, n_views), complex.
        """
        harmonics = (weights @ self.expansion).split(self.sizes, 1)
        blocks = [
            (part @ matrix).unflatten(1, (-1, 2 * self.n_views))
            for part, matrix in zip(harmonics, self.matrices, strict=True)
        ]
        rows = torch.cat(blocks, 1).index_select(1, self.order)
        return torch.view_as_complex(rows.unflatten(2, (-1, 2)))
