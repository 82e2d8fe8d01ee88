"""Particles as an ASPIRE source."""

from __future__ import annotations

import numpy as np
from aspire.operators import CTFFilter
from aspire.source import RelionSource

from aspire_mom.relion.particles import Particles


class ParticleSource(RelionSource):
    """
    ASPIRE's `RelionSource` for particles that have been read and checked. It reads
    their images; the STAR file is not read again.

    Images are float32; ASPIRE casts all of them to the mode of the first stack.
    Orientation angles in the file are ignored. There is one filter for each CTF
    of `Particles.ctfs`.

    :param particles: The particles.
    """

    def __init__(self, particles: Particles):
        self._particles = particles
        super().__init__(particles.table.path, pixel_size=particles.pixel_size)
        self.dtype = np.dtype(np.float32)
        ctfs, indices = particles.ctfs
        if len(ctfs) > 0:
            self.unique_filters = [
                # RELION's exp(-B s² / 4) is in Å², ASPIRE's exp(-B s²) in nm².
                CTFFilter(voltage, u, v, np.radians(angle), cs, contrast, B=b / 400)
                for voltage, u, v, angle, cs, contrast, b in ctfs
            ]
            self.filter_indices = indices
        del self._particles  # copies of the source need not have them

    def populate_metadata(self) -> dict[str, np.ndarray]:
        """
        :return: What ASPIRE keeps of a STAR file, by column.
        """
        particles, table = self._particles, self._particles.table
        shifts = particles.shifts * particles.pixel_size
        paths = np.array([str(path) for path in particles.stacks], dtype=object)
        metadata = {
            "__mrc_filepath": paths[table.stack_indices],
            "__mrc_index": table.numbers,
            "_rlnImagePixelSize": np.full(len(particles), particles.pixel_size),
            "_rlnOriginXAngst": shifts[:, 0].copy(),
            "_rlnOriginYAngst": shifts[:, 1].copy(),
        }
        if "_aspireAmplitude" in table.columns:
            metadata["_aspireAmplitude"] = table.columns["_aspireAmplitude"]
        return metadata
