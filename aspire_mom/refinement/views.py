"""Viewing directions of a refinement: coarse ones, and finer ones around each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.fft import next_fast_len
from scipy.spatial import KDTree

from aspire_mom.rotations import SphericalDesign, viewing_rotations

# Largest radius in boxes of what is refined, and orders beyond those that it has.
OBJECT_RADIUS, EXTRA_ORDERS = 0.42, 2
# Rings on which every view is tried; further rings are used around the best views only.
COARSE_RINGS = 8
# Spacing of views in radians, times the outermost ring: points at 0.3 boxes from the
# centre are then off by a sixth of a period at most.
SPACING = 1.0
# Finer views for each coarse one at least, so that every coarse one has some.
LEAST_CHILDREN = 4


def largest_order(ring: int) -> int:
    """
    :param ring: A ring, cycles per box.
    :return: Largest angular order of an object of radius `OBJECT_RADIUS` there.
    """
    return math.ceil(2 * math.pi * OBJECT_RADIUS * ring) + EXTRA_ORDERS


def inplane_angles(n_rings: int) -> int:
    """
    :param n_rings: Number of rings.
    :return: Number of in-plane angles to try.
    """
    return next_fast_len(2 * largest_order(n_rings - 1) + 2, real=True)


@dataclass(frozen=True, eq=False)
class Views:
    """
    Viewing directions, each with the finer ones that are closest to it.

    :param directions: Unit vectors (n, 3), xyz order.
    :param finer: Finer unit vectors (n_finer, 3), or None where `directions` are fine
        enough for all rings.
    :param children: Indices (n, n_children) of the finer ones that are closest to each
        direction, -1 where it has fewer.
    """

    directions: np.ndarray
    finer: np.ndarray | None = None
    children: np.ndarray | None = None

    @classmethod
    def for_rings(cls, n_rings: int) -> Views:
        """
        :param n_rings: Number of rings in use.
        :return: Views as fine as they need.
        """
        directions = coarse_directions()
        if n_rings <= COARSE_RINGS:
            return cls(directions)
        n_finer = math.ceil(4 * math.pi * ((n_rings - 1) / SPACING) ** 2)
        finer = spiral(max(n_finer, LEAST_CHILDREN * len(directions)))
        _, parents = KDTree(directions).query(finer)
        order = np.argsort(parents, kind="stable")
        counts = np.bincount(parents, minlength=len(directions))
        children = np.full((len(directions), counts.max()), -1)
        children[np.arange(counts.max()) < counts[:, None]] = order
        return cls(directions, finer, children)

    @property
    def finest(self) -> np.ndarray:
        """The finest directions (n, 3)."""
        return self.directions if self.finer is None else self.finer

    @property
    def parents(self) -> np.ndarray:
        """Indices (n_finest,) of the direction that each of the finest belongs to."""
        if self.children is None:
            return np.arange(len(self.directions))
        parents = np.empty(len(self.finest), dtype=np.int64)
        which, place = np.nonzero(self.children >= 0)
        parents[self.children[which, place]] = which
        return parents


def coarse_directions() -> np.ndarray:
    """:return: The directions (n, 3) that are fine enough for `COARSE_RINGS`."""
    return SphericalDesign(5 * (COARSE_RINGS - 1)).points


def spiral(n: int) -> np.ndarray:
    """
    :param n: Number of points.
    :return: Nearly uniform points (n, 3) on the sphere along a golden spiral (Swinbank
        & Purser 2006).
    """
    z = 1 - (2 * np.arange(n) + 1) / n
    azimuth = np.arange(n) * np.pi * (3 - math.sqrt(5))
    radius = np.sqrt(1 - z**2)
    return np.stack((radius * np.cos(azimuth), radius * np.sin(azimuth), z), axis=-1)


def planes(directions: np.ndarray) -> np.ndarray:
    """
    :param directions: Viewing directions (n, 3).
    :return: Axes x and y of their image planes, in-plane angle 0, (n, 3, 2).
    """
    return viewing_rotations(directions)[:, :, :2]
