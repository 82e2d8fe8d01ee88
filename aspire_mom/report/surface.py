"""A volume for the view of its surface that turns."""

from __future__ import annotations

from base64 import b64encode
from typing import NamedTuple

import numpy as np
from aspire.volume import Volume
from scipy.ndimage import zoom

from aspire_mom.evaluation.plots import surface_level

# Voxels along an edge: smooth, and 0.5 MB in a page.
VOXELS = 72


class Surface(NamedTuple):
    """
    What `surface.js` draws.

    :param voxels: VOXELS³ bytes [z, y, x] in base64: 0 for the volume's mean, 255 for
        its maximum.
    :param size: Voxels along an edge.
    :param highest: The maximum in standard deviations above the mean.
    :param level: The level of the surface in the same unit, to begin with.
    :param radius: Of the ball that holds the surface, in boxes.
    """

    voxels: str
    size: int
    highest: float
    level: float
    radius: float

    @classmethod
    def of(cls, volume: Volume) -> Surface:
        """
        :param volume: One ASPIRE `Volume`.
        :return: Its surface.
        """
        voxels = volume.asnumpy()[0].astype(np.float64)
        level = surface_level(voxels)
        voxels = (voxels - voxels.mean()) / voxels.std()
        scale = VOXELS / len(voxels)
        fine = zoom(voxels, scale, mode="nearest", grid_mode=True)
        centres = (np.arange(len(fine)) + 0.5) / len(fine) - 0.5
        inside = np.argwhere(fine > level)
        radius = np.sqrt((centres[inside] ** 2).sum(1)).max(initial=0.1)
        highest = float(fine.max())
        data = np.rint(255 * np.clip(fine / highest, 0, 1)).astype(np.uint8)
        text = b64encode(data.tobytes()).decode("ascii")
        return cls(text, len(fine), highest, level, float(radius))
