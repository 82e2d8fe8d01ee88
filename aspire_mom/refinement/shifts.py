"""Shifts of images that a refinement tries."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

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

    def undone(self, x: Tensor, offsets: np.ndarray) -> Tensor:
        """
        :param x: Coefficients of images (n, orders, n_rings).
        :param offsets: Shifts (n_shifts, 2), x and y in pixels.
        :return: Coefficients of the images moved back by each of the shifts, (n ·
            n_shifts, orders, n_rings).
        """
        if not offsets.any():
            return x
        M, n_angles = x.shape[1] - 1, 2 * x.shape[1]
        signs = (-1.0) ** torch.arange(1, M + 1, device=x.device)
        negative = (x[:, 1:].conj() * signs[:, None]).flip(1)
        full = torch.cat((x, torch.zeros_like(x[:, :1]), negative), 1)
        values = torch.fft.ifft(full, dim=1, norm="forward")[:, None]
        values = values * self._phases(offsets, n_angles, x.shape[2]).to(x.device)
        moved = torch.fft.fft(values, dim=2, norm="forward")
        return moved[:, :, : M + 1].flatten(0, 1)

    def _phases(self, offsets: np.ndarray, n_angles: int, n_rings: int) -> Tensor:
        """Factors (shifts, angles, rings) that move images back."""
        theta = 2 * np.pi * np.arange(n_angles) / n_angles
        along = offsets @ np.stack((np.cos(theta), np.sin(theta)))
        phase = -2 * np.pi / self.L * along[..., None] * np.arange(n_rings)
        return torch.from_numpy(np.exp(1j * phase).astype(np.complex64))
