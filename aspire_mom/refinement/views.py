"""Viewing directions of a refinement: coarse ones, and finer ones level by level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

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
# Finer views for each coarser one at least, so that every one has some.
LEAST_CHILDREN = 2


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
    Viewing directions, finer from level to level.

    :param rings: Number of rings that each level is fine enough for.
    :param levels: Unit vectors (n, 3) of each level, xyz order.
    """

    rings: tuple[int, ...]
    levels: tuple[np.ndarray, ...]

    @classmethod
    def for_rings(cls, n_rings: int) -> Views:
        """
        :param n_rings: Number of rings in use.
        :return: Views as fine as they need, on levels of at most twice the rings of the
            one before.
        """
        if n_rings <= COARSE_RINGS:
            return cls((n_rings,), (coarse_directions(),))
        ratio = n_rings / COARSE_RINGS
        n_steps = math.ceil(math.log2(ratio))
        steps = np.arange(n_steps + 1) / n_steps
        rings = tuple(round(COARSE_RINGS * ratio**step) for step in steps)
        levels = [coarse_directions()]
        for n in rings[1:]:
            n_views = math.ceil(4 * math.pi * ((n - 1) / SPACING) ** 2)
            levels.append(spiral(max(n_views, LEAST_CHILDREN * len(levels[-1]))))
        return cls(rings, tuple(levels))

    @property
    def directions(self) -> np.ndarray:
        """The coarsest directions (n, 3)."""
        return self.levels[0]

    @property
    def finest(self) -> np.ndarray:
        """The finest directions (n, 3)."""
        return self.levels[-1]

    @cached_property
    def _closest(self) -> list[np.ndarray]:
        """For each level but the first: the closest view of the level before."""
        pairs = zip(self.levels[:-1], self.levels[1:], strict=True)
        return [KDTree(coarser).query(finer)[1] for coarser, finer in pairs]

    @cached_property
    def children(self) -> list[np.ndarray]:
        """
        :return: For each level but the first: indices (n, n_children) of its views that
            are closest to each of the n of the level before, -1 where there are fewer.
        """
        found = []
        for coarser, closest in zip(self.levels, self._closest, strict=False):
            counts = np.bincount(closest, minlength=len(coarser))
            children = np.full((len(coarser), counts.max()), -1)
            filled = np.arange(counts.max()) < counts[:, None]
            children[filled] = np.argsort(closest, kind="stable")
            found.append(children)
        return found

    @cached_property
    def coarsest(self) -> list[np.ndarray]:
        """:return: For each level: the coarsest direction of each view, (n,)."""
        found = [np.arange(len(self.directions))]
        for closest in self._closest:
            found.append(found[-1][closest])
        return found


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
