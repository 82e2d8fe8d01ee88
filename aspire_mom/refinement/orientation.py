"""Orientations from a refinement, as ASPIRE's sources take them."""

from __future__ import annotations

import numpy as np
from aspire.abinitio import Orient3D

from aspire_mom.refinement.model import RefinedModel
from aspire_mom.refinement.refinement import Refinement


class MomentOrientation(Orient3D):
    """
    Rotations and shifts of images from a refinement, for ASPIRE's
    `OrientedSource(source, MomentOrientation(refinement))`. The source must be the one
    whose images were refined.

    :param found: A refined model; or a refinement, which runs when orientations are
        asked for.
    :raises TypeError: It is neither.
    """

    def __init__(self, found: RefinedModel | Refinement):
        if not isinstance(found, RefinedModel | Refinement):
            raise TypeError(
                f"found is a {type(found).__name__}, not a RefinedModel or Refinement"
            )
        # `Orient3D.__init__` prepares common lines, of which there are none here.
        self._found = found
        self.rotations: np.ndarray | None = None
        self.shifts: np.ndarray | None = None

    @property
    def model(self) -> RefinedModel:
        """The refined model."""
        if isinstance(self._found, Refinement):
            self._found = self._found.estimate()
        return self._found

    def estimate_rotations(self) -> np.ndarray:
        """:return: Rotation matrices (n, 3, 3)."""
        self.rotations = found = self.model.rotations.matrices
        return found

    def estimate_shifts(self) -> np.ndarray:
        """:return: Shifts (n, 2), x and y in pixels, as `source.offsets`."""
        self.shifts = found = self.model.offsets
        return found
