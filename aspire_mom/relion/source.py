"""ASPIRE source of the images of particles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from aspire.image import Image
from aspire.operators import CTFFilter, IdentityFilter
from aspire.source import ImageSource

from aspire_mom.relion.particles import Particles
from aspire_mom.relion.stacks import read_images
from aspire_mom.relion.table import PHASE_FLIPPED, PREMULTIPLIED


class PhasePlateFilter(CTFFilter):
    """
    ASPIRE's CTF, sin(χ - arcsin α), of a microscope with a phase plate:
    sin(χ - arcsin α - φ).

    :param phase_shift: φ in radians.
    :param parameters: Arguments of `CTFFilter`.
    :param B: The same.
    """

    def __init__(self, phase_shift: float, *parameters: float, B: float = 0):
        super().__init__(*parameters, B=B)
        self.phase_shift = phase_shift
        # α of sin(χ - arcsin α + π/2) = cos(χ - arcsin α).
        self._quarter_turn = CTFFilter(
            *parameters[:-1], -np.sqrt(1 - self.alpha**2), B=B
        )

    def _evaluate(self, omega: np.ndarray, **options: object) -> np.ndarray:
        sine = super()._evaluate(omega, **options)
        cosine = self._quarter_turn._evaluate(omega, **options)
        return np.cos(self.phase_shift) * sine - np.sin(self.phase_shift) * cosine


class ParticleSource(ImageSource):
    """
    ASPIRE source of particles that have been read and checked. Unlike ASPIRE's
    `RelionSource`, it reads stacks of different modes, float16 and unsigned bytes too.
    Images are float32. Orientation angles in the file are ignored. There is one filter
    for each CTF of `Particles.ctfs`.

    :param particles: The particles.
    """

    def __init__(self, particles: Particles):
        table, size = particles.table, particles.pixel_size
        shifts = particles.shifts * size
        paths = np.array([str(path) for path in particles.stacks], dtype=object)
        metadata = {
            "__mrc_filepath": paths[table.stack_indices],
            "__mrc_index": table.numbers,
            "__star_row": table.rows,  # for messages
            "_rlnImagePixelSize": np.full(len(particles), size),
            "_rlnOriginXAngst": shifts[:, 0].copy(),
            "_rlnOriginYAngst": shifts[:, 1].copy(),
        }
        for name in ("_aspireAmplitude", PHASE_FLIPPED, PREMULTIPLIED):
            if name in table.columns:
                metadata[name] = table.columns[name]
        super().__init__(
            particles.L, len(particles), np.float32, metadata, pixel_size=size
        )
        self._stack_L = particles.L
        ctfs, indices = particles.ctfs
        # RELION's exp(-B s² / 4) is in Å², ASPIRE's exp(-B s²) in nm².
        self.unique_filters = [
            PhasePlateFilter(
                np.radians(phase), *first, np.radians(angle), Cs, contrast, B=b / 400
            )
            if phase
            else CTFFilter(*first, np.radians(angle), Cs, contrast, B=b / 400)
            for *first, angle, Cs, contrast, b, phase in ctfs
        ] or [IdentityFilter()]
        self.filter_indices = indices
        self._mutable = False

    def _images(self, indices: np.ndarray) -> Image:
        if self._cached_im is not None:
            images = self._cached_im[indices]
        else:
            images = Image(self._pixels(indices), pixel_size=self.pixel_size)
        return self.generation_pipeline.forward(images, indices)

    def _pixels(self, indices: np.ndarray) -> np.ndarray:
        """Read images as they are in their stacks."""
        names = ("__mrc_filepath", "__mrc_index")
        paths, numbers = (self._metadata[name][indices] for name in names)
        stacks = np.unique(paths)
        if len(stacks) == 1:  # without a copy
            return read_images(Path(stacks[0]), numbers)
        pixels = np.empty((len(indices), self._stack_L, self._stack_L), np.float32)
        for path in stacks:
            of_stack = np.flatnonzero(paths == path)
            pixels[of_stack] = read_images(Path(path), numbers[of_stack])
        return pixels
