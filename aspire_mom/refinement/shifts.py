"""Shifts of images that a refinement tries."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from aspire_mom.refinement.views import largest_order

# Largest shift that is tried, in standard deviations.
MOST_SHIFT = 2.5


class Shifts:
    """
    Shifts to try, with Gaussian prior probabilities. `offsets` (n, 2) holds them as x
    and y in pixels, `finer` (n_finer, 2) what is added around the best ones.

    :param std: Standard deviation of the shifts along each axis, pixels; 0 for none.
    :param spacing: Distance of shifts, pixels.
    :param L: Pixels along the edge of the images.
    :param device: torch device.
    """

    def __init__(self, std: float, spacing: float, L: int, device: torch.device):
        self.std, self.L = std, L
        most = math.ceil(MOST_SHIFT * std / spacing)
        axis = spacing * np.arange(-most, most + 1)
        offsets = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        squares = (offsets**2).sum(1)
        near = squares <= (MOST_SHIFT * std) ** 2
        self.offsets = offsets[near]
        prior = -squares[near] / (2 * max(std, 1e-9) ** 2)
        prior -= np.log(np.exp(prior).sum())
        # Around each, half as far apart, and no further than shifts are likely.
        corners = np.array(((-1, -1), (-1, 1), (1, -1), (1, 1)))
        self.finer = min(spacing / 4, std) * corners if std else np.zeros((1, 2))
        self.prior = torch.from_numpy(prior.astype(np.float32)).to(device)

    def __len__(self) -> int:
        return len(self.offsets)

    def orders(self, n_rings: int) -> int:
        """
        :param n_rings: Number of rings.
        :return: Orders 0, 1, … that images need there to be moved, as shifts mix them.
        """
        reach = 2 * math.pi * (n_rings - 1) * MOST_SHIFT * self.std / self.L
        return largest_order(n_rings - 1) + math.ceil(reach) + 1

    def undone(
        self, x: Tensor, offsets: np.ndarray, moved: Tensor | None = None
    ) -> Tensor:
        """
        :param x: Coefficients of images (n, orders, n_rings).
        :param offsets: Shifts (n_shifts, 2), x and y in pixels.
        :param moved: Which of the shifts to try each image is moved back by as well
            (n,).
        :return: Coefficients of the images moved back by each of the shifts, (n ·
            n_shifts, orders, n_rings), complex64; the images as they are where shifts
            have no spread.
        """
        if not self.std:
            return x
        n_orders, n_rings = x.shape[1:]
        n_angles = next_fast_len(2 * n_orders)
        signs = (-1.0) ** torch.arange(1, n_orders, device=x.device)
        full = x.new_zeros(len(x), n_angles, n_rings)
        full[:, :n_orders] = x
        full[:, 1 - n_orders :] = (x[:, 1:].conj() * signs[:, None]).flip(1)
        values = torch.fft.ifft(full, dim=1, norm="forward")[:, None]
        if moved is not None:
            all_phases = self._phases(self.offsets, n_angles, n_rings, x.device)
            values = values * all_phases[moved, None]
        values = values * self._phases(offsets, n_angles, n_rings, x.device)
        back = torch.fft.fft(values, dim=2, norm="forward")
        return back[:, :, :n_orders].flatten(0, 1)

    def _phases(
        self, offsets: np.ndarray, n_angles: int, n_rings: int, device: torch.device
    ) -> Tensor:
        """Factors (shifts, angles, rings) that move images back."""
        flat = tuple(offsets.ravel().tolist())
        return _phases(flat, self.L, n_angles, n_rings, device)


@lru_cache(maxsize=16)
def _phases(
    offsets: tuple[float, ...],
    L: int,
    n_angles: int,
    n_rings: int,
    device: torch.device,
) -> Tensor:
    """Factors (shifts, angles, rings) that move images back by offsets x, y, x, …"""
    theta = 2 * np.pi * np.arange(n_angles) / n_angles
    axes = np.stack((np.cos(theta), np.sin(theta)))
    along = np.reshape(offsets, (-1, 2)) @ axes
    phase = -2 * np.pi / L * along[..., None] * np.arange(n_rings)
    return torch.from_numpy(np.exp(1j * phase).astype(np.complex64)).to(device)
