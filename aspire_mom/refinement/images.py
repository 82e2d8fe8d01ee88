"""Polar coefficients of a source's images, times their CTFs."""

from __future__ import annotations

import numpy as np
import torch
from aspire.source import ImageSource

from aspire_mom.bases import PolarBasis
from aspire_mom.moments.ctf import TransferFunctions
from aspire_mom.moments.options import CorrectionOptions
from aspire_mom.moments.preparation import Preparation, centred_images, known_offsets
from aspire_mom.refinement.posterior import inner

# Least squared CTF, as a share of its mean on a ring, by which a power is divided.
LEAST_SQUARE = 0.1
# Bytes of coefficients that are kept in memory; more are computed anew each time.
MEMORY = 2**30


class PolarImages:
    """
    What posteriors need of images: coefficients times CTF, squared CTFs and powers.
    Astigmatic CTFs multiply images exactly; their squares count as radial. Images are
    prepared as for their moments. Those left out there are 0 here, and so are their
    CTFs, so that they tell nothing.

    :param source: ASPIRE `ImageSource`.
    :param basis: Polar basis of the coefficients.
    :param corrections: What to correct the images for, as for their moments.
    :param inverted: Whether molecules are dark in the images as they are.
    :raises ValueError: A CTF has parameters that are not finite; or phases of some
        images only were flipped, or some only were multiplied by their CTFs, or both.
    """

    def __init__(
        self,
        source: ImageSource,
        basis: PolarBasis,
        corrections: CorrectionOptions,
        inverted: bool,
    ):
        self.source, self.basis = source, basis
        self.sign = -1 if inverted else 1
        done = corrections.phase_flipped, corrections.premultiplied
        found = TransferFunctions(source, basis, *done)
        ignored = corrections.ignore_ctf or found.flat
        self.transfer = None if ignored else found
        self.premultiplied = not ignored and found.premultiplied
        self.phase_flipped = not ignored and found.phase_flipped
        known = known_offsets(source)
        self.offsets = None if corrections.ignore_shifts else known
        self.preparation = Preparation.of(
            source, self.offsets, unchecked=corrections.unchecked
        )
        self.preparation.warn()
        n, (orders, R) = source.n, basis.power_shape
        self._kept: tuple[torch.Tensor, ...] | None = None
        if 8 * n * orders * R <= MEMORY:
            x = torch.empty(n, orders, R, dtype=torch.complex64)
            self._kept = x, torch.empty(n, R), torch.empty(n, R)
            self._done = np.zeros(n, bool)

    def __len__(self) -> int:
        return self.source.n

    def batch(self, start: int, stop: int) -> tuple[torch.Tensor, ...]:
        """
        :param start: First image.
        :param stop: One past the last.
        :return: Coefficients of images times CTF (n, max_order + 1, n_rings),
            complex64; means of squared CTFs on the rings (n, n_rings); mean squares of
            the images' own coefficients there (n, n_rings).
        :raises ValueError: An image has values that are not finite.
        """
        here = slice(start, stop)
        if self._kept is None:
            return self._computed(start, stop)
        if not self._done[here].all():
            for kept, new in zip(self._kept, self._computed(start, stop), strict=True):
                kept[here] = new
            self._done[here] = True
        return tuple(kept[here] for kept in self._kept)

    def _computed(self, start: int, stop: int) -> tuple[torch.Tensor, ...]:
        rows = np.arange(start, stop)
        images = centred_images(self.source, self.offsets, rows)
        kept, faults = self.preparation.apply(images)
        pixels = np.zeros(images.shape, np.float32)
        pixels[np.delete(rows - start, list(faults))] = self.sign * kept
        c = self.basis.coefficients(pixels)
        x, h, power = c, np.ones((len(c), c.shape[2])), inner(c, c)
        if self.transfer is not None:
            H = self.transfer.of_images(rows)
            h = (H**2).mean(-1)
            if self.premultiplied:
                power = _before(power, h)
            else:
                x = self.basis.coefficients(pixels, H) if H.shape[-1] > 1 else c * H.mT
        h[list(faults)] = 0
        arrays = x.astype(np.complex64), h, power
        return tuple(
            torch.from_numpy(
                np.ascontiguousarray(a, np.complex64 if i == 0 else np.float32)
            )
            for i, a in enumerate(arrays)
        )


def _before(power: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Powers (n, n_rings) before images were multiplied by CTFs of mean squares h; too
    small where h is, which is made up for in the mean over images."""
    least = np.maximum(LEAST_SQUARE * h.mean(0), 1e-12)
    divided = np.maximum(h, least)
    return power / divided / np.maximum((h / divided).mean(0), 1e-12)
