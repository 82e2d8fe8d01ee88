"""
Curves that are a few Gaussians on a window of the circle.

A curve's parameters are (centres, log widths, log heights) of its k Gaussians, in
samples, and an offset by which the whole curve is shifted off the sample points: 3k + 1
numbers. Its window begins at a sample; there the Gaussians are cut off, and they do not
wrap around. Window -1 stands for curves without a cut, on the circle. Curves with the
same k are handled together, as rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from aspire_mom.mra.signals import shift

NO_CUT = -1
# Widths allowed, centres' margin beyond the window, in units of n.
WIDTHS, MARGIN = (1 / 40, 1 / 6), 1 / 20
LARGEST_OFFSET = 0.6


@dataclass(frozen=True, eq=False)
class Curves:
    """
    Curves of the same number of Gaussians.

    :param parameters: (S, 3k + 1), as the module says.
    :param windows: First sample of each window, or -1, (S,).
    :param n: Samples.
    :param density: Whether curves are divided by their sum.
    """

    parameters: np.ndarray
    windows: np.ndarray
    n: int
    density: bool

    @property
    def k(self) -> int:
        return self.parameters.shape[1] // 3

    @property
    def n_free(self) -> np.ndarray:
        """Numbers that a fit has adjusted, (S,); a window counts as its offset."""
        return 3 * self.k - self.density + (self.windows != NO_CUT)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, rows) -> Curves:
        some = Curves(self.parameters[rows], self.windows[rows], self.n, self.density)
        if "curves" in self.__dict__:
            some.__dict__["curves"] = self.curves[rows]
        return some

    def with_parameters(self, parameters: np.ndarray) -> Curves:
        return Curves(parameters, self.windows, self.n, self.density)

    @cached_property
    def _terms(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gaussians (S, k, n), distances from their centres in standard deviations
        (S, k, n), and inverses of these (S, k, 1)."""
        n, k = self.n, self.k
        parameters = self.parameters[:, :-1, None]
        centres, heights = parameters[:, :k], parameters[:, 2 * k :]
        narrowness = np.exp(-parameters[:, k : 2 * k])
        if len(self) == 1:
            distance = _inside(self.windows.item(), n) - centres
        else:
            j, windows = np.arange(n), self.windows[:, None]
            distance = np.where(j >= windows, j, j + n)[:, None] - centres
        uncut = self.windows == NO_CUT
        if np.count_nonzero(uncut):
            distance[uncut] = (distance[uncut] + n / 2) % n - n / 2
        scaled = distance * narrowness
        terms = scaled * scaled
        terms *= -0.5
        terms += heights
        return np.exp(terms, out=terms), scaled, narrowness

    @cached_property
    def curves(self) -> np.ndarray:
        """The curves (S, n)."""
        return self._moved(self._unmoved)

    @cached_property
    def _unmoved(self) -> np.ndarray:
        """The curves without their offsets (S, n)."""
        curves = np.add.reduce(self._terms[0], 1)
        if self.density:
            curves /= np.add.reduce(curves, 1, keepdims=True)
        return curves

    @cached_property
    def by_shape(self) -> np.ndarray:
        """Their derivatives by all parameters but the offset (S, 3k, n)."""
        k, (terms, scaled, narrowness) = self.k, self._terms
        by = np.empty((len(self), 3 * k, self.n))
        np.multiply(terms, scaled, out=by[:, :k])
        np.multiply(by[:, :k], scaled, out=by[:, k : 2 * k])
        by[:, :k] *= narrowness
        by[:, 2 * k :] = terms
        if self.density:
            by -= np.add.reduce(by, -1, keepdims=True) * self._unmoved[:, None]
            by /= np.add.reduce(terms, (1, 2), keepdims=True)
        return self._moved(by)

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: The curves (S, n) and their derivatives by parameters (S, 3k + 1, n).
        """
        n, offset = self.n, self.parameters[:, -1:]
        turns = -2j * np.pi / n * np.arange(n // 2 + 1)
        moved = np.fft.rfft(self._unmoved) * np.exp(offset * turns)
        by_offset = np.fft.irfft(moved * turns, n)
        return self.curves, np.concatenate((self.by_shape, by_offset[:, None]), 1)

    def _moved(self, x: np.ndarray) -> np.ndarray:
        """What belongs to the curves, (S, …, n), shifted by their offsets."""
        offset = self.parameters[:, -1]
        if not np.count_nonzero(offset):
            return x
        return shift(x, offset.reshape(-1, *[1] * (x.ndim - 2)))

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest parameters, (S, 3k + 1) each."""
        n, ones = self.n, np.ones((len(self), self.k))
        start = np.where(self.windows == NO_CUT, -n, self.windows - 0.5 - MARGIN * n)
        span = np.where(self.windows == NO_CUT, 3 * n, (1 + 2 * MARGIN) * n)
        low = (start[:, None] * ones, np.log(WIDTHS[0] * n) * ones, -50 * ones)
        high = ((start + span)[:, None] * ones, np.log(WIDTHS[1] * n) * ones, 50 * ones)
        edge = LARGEST_OFFSET * ones[:, :1]
        return np.hstack((*low, -edge)), np.hstack((*high, edge))


def at_windows(curves: Curves, windows: np.ndarray) -> Curves:
    """
    :param curves: One curve, or one for each window.
    :param windows: First samples of windows (S,).
    :return: Curves of the same Gaussians, cut off at the ends of other windows.
    """
    parameters = curves.parameters.repeat(len(windows) // len(curves), 0)
    k, start = curves.k, windows[:, None] - 0.5
    parameters[:, :k] = start + (parameters[:, :k] - start) % curves.n
    return Curves(parameters, windows, curves.n, curves.density)


def in_all_windows(curve: Curves) -> np.ndarray:
    """
    :param curve: One curve, without an offset.
    :return: Values (n, n) of its Gaussians cut off at the ends of window 0, 1, …, as
        :func:`at_windows` has them.
    """
    n, k = curve.n, curve.k
    centres, widths, heights = curve.parameters[0, :-1].reshape(3, k, 1)
    grid, places = _places(n)
    centres = (centres + 0.5) % n - 0.5
    # At distances of -n to 2n, from which each window takes its n.
    scaled = (grid - centres) * np.exp(-widths)
    terms = np.exp(heights - 0.5 * scaled**2)
    after = np.where(grid[n : 2 * n] - 0.5 > centres, n, 0)
    values = terms[0].take(places - after[0, :, None])
    for i in range(1, k):
        values += terms[i].take(places - after[i, :, None])
    if curve.density:
        values /= np.add.reduce(values, 1, keepdims=True)
    return values


def joined(*parts: Curves) -> Curves:
    """Curves with the same number of Gaussians, one after the other."""
    return Curves(
        np.concatenate([p.parameters for p in parts]),
        np.concatenate([p.windows for p in parts]),
        parts[0].n,
        parts[0].density,
    )


@cache
def _inside(window: int, n: int) -> np.ndarray:
    """Where a window has each sample."""
    j = np.arange(n)
    return np.where(j >= window, j, j + n)


@cache
def _places(n: int) -> tuple[np.ndarray, np.ndarray]:
    """-n … 2n - 1, and where there sample j is in the window that begins at w, if its
    Gaussian's centre is at w or later, (w, j)."""
    j = np.arange(n)
    return np.arange(-n, 2 * n), n + np.where(j < j[:, None], j + n, j)
