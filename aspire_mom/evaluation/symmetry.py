"""Symmetry of volumes: the axes that a group has in them, and its imposition."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import numpy as np
from aspire.numeric import fft
from aspire.volume import SymmetryGroup, Volume
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation as Rotations

from aspire_mom.checks import check_volume
from aspire_mom.evaluation.fsc import fourier_shell_correlation, resolution_in_shells
from aspire_mom.evaluation.registration import (
    SEARCH_ANGLES,
    SEARCH_SHELLS,
    fourier_spline,
    half_ball,
    rotation_correlation,
    shell_harmonics,
    spline_values,
)
from aspire_mom.rotations import SphericalDesign, viewing_rotations
from aspire_mom.volumes.grid import volume_at

# Degree of the design on whose points axes are looked for, about 8° apart, angles about
# each, and orientations that are refined.
DEGREE, ANGLES, REFINED = 35, 45, 3
# By their overall shape, volumes without a symmetry agree with turned copies to about 3
# shells, as volumes without relation do; compact ones further, whatever the angle. A
# symmetric volume agrees to this many more than between its copies.
LEAST_SHELLS, MORE_THAN_BETWEEN = 4.0, 1.0
# Between copies, as a share of the step from one to the next: halfway, a volume of a
# higher symmetry would have copies, too.
BETWEEN = 0.38


@dataclass(frozen=True, eq=False)
class Symmetrised:
    """
    A volume with a symmetry imposed, its axes as ASPIRE has them.

    :param volume: Mean over the volume's copies.
    :param rotation: Q (3, 3): volume(x) is the mean of copies of original(Q x).
    :param shells: Up to which shell (FSC 0.5, on average) the volume and its other
        copies agree.
    :param between: The same for copies turned further about z, between these, which
        tells how far the overall shape agrees.
    """

    volume: Volume
    rotation: np.ndarray
    shells: float
    between: float

    @property
    def shown(self) -> bool:
        """Whether the volume shows the symmetry."""
        least = max(LEAST_SHELLS, self.between + MORE_THAN_BETWEEN)
        return self.shells >= least

    @property
    def verdict(self) -> str:
        """What to think of the symmetry, in words."""
        found = (
            f"The volume agrees with its symmetric copies to {self.shells:.1f} shells,"
            f" between them to {self.between:.1f}"
        )
        return f"{found}{'' if self.shown else ': it does not show this symmetry'}."


def symmetry_rotations(symmetry: str) -> np.ndarray:
    """
    :param symmetry: C1, C2, …, D2, D3, …, T, O or I.
    :return: Rotation matrices of the group (n, 3, 3), the identity first.
    :raises ValueError: It is none of these.
    """
    if not re.fullmatch("C[1-9][0-9]?|D([2-9]|[1-9][0-9])|[TOI]", str(symmetry)):
        raise ValueError(
            f"symmetry is {symmetry!r}; it must be C1, C2, …, D2, D3, …, T, O or I"
        )
    rotations = SymmetryGroup.parse(symmetry).matrices
    return rotations[np.argsort(-np.trace(rotations, axis1=1, axis2=2), kind="stable")]


def mean_of_copies(volume: Volume, rotations: np.ndarray) -> Volume:
    """
    :param volume: One ASPIRE `Volume`.
    :param rotations: Rotation matrices R (n, 3, 3).
    :return: Mean over R of volume(R x), without frequencies beyond Nyquist.
    """
    L = volume.resolution
    axis = np.arange(L) - L // 2
    kz, ky, kx = np.meshgrid(axis, axis, axis, indexing="ij")
    k = np.stack((kx, ky, kz), axis=-1)
    inside = np.linalg.norm(k, axis=-1) <= (L - 1) // 2
    spectrum = np.zeros((L, L, L), complex)
    for rotation in rotations:
        spectrum[inside] += volume_at(volume, k[inside] @ rotation.T) / len(rotations)
    voxels = fft.centered_ifftn(spectrum).real.astype(volume.dtype)
    return Volume(voxels, pixel_size=volume.pixel_size)


def symmetrised(volume: Volume, symmetry: str) -> Symmetrised:
    """
    Find the axes, through the middle of the box, about which a volume agrees best with
    its copies, each of a few low shells counting alike, and average over them.

    :param volume: One ASPIRE `Volume`, of any orientation.
    :param symmetry: As for :func:`symmetry_rotations`.
    :return: The mean, in the group's orientation; the same volume for C1.
    """
    check_volume("volume", volume)
    group = symmetry_rotations(symmetry)
    if len(group) == 1:
        all_shells = float((volume.resolution - 1) // 2)
        return Symmetrised(volume, np.eye(3), all_shells, 0.0)
    Q = _orientation(volume, group, axis_only=symmetry.startswith("C"))
    copies = [mean_of_copies(volume, Q @ g[None]) for g in group]
    step = 2 * np.pi / np.count_nonzero(np.isclose(group[:, 2, 2], 1))
    off = Rotations.from_euler("z", BETWEEN * step).as_matrix()
    turned = (mean_of_copies(volume, Q @ (off @ g)[None]) for g in group)
    shells, between = (
        resolution_in_shells(
            np.mean([fourier_shell_correlation(v, copies[0]) for v in those], axis=0),
            0.5,
        )
        for those in (copies[1:], turned)
    )
    voxels = np.mean([copy.asnumpy() for copy in copies], axis=0)
    mean = Volume(voxels.astype(volume.dtype), pixel_size=volume.pixel_size)
    return Symmetrised(mean, Q, shells, between)


def _orientation(volume: Volume, group: np.ndarray, *, axis_only: bool) -> np.ndarray:
    """Q whose turns Q g Qᵀ, g of the group, change the volume least."""
    voxels = volume.asnumpy()
    shells = min(SEARCH_SHELLS, (volume.resolution - 1) // 2)
    spline = fourier_spline(Volume(voxels - np.median(voxels)), shells)
    harmonics = shell_harmonics(spline, shells, np.zeros(3))
    powers = np.linalg.norm(harmonics, axis=(1, 2), keepdims=True)
    harmonics = harmonics / np.maximum(powers, 1e-12 * powers.max())
    correlation = rotation_correlation(harmonics, harmonics)
    starts = viewing_rotations(SphericalDesign(DEGREE).points)
    if not axis_only:
        turns = 2 * np.pi / ANGLES * np.arange(ANGLES)
        about_z = Rotations.from_euler("z", turns[:, None]).as_matrix()
        starts = (starts[:, None] @ about_z).reshape(-1, 3, 3)
    scores = np.zeros(len(starts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of poles of Euler angles
        for g in group[1:]:
            turned = Rotations.from_matrix(starts @ g @ starts.transpose(0, 2, 1))
            angles = turned.as_euler("ZYZ") * (SEARCH_ANGLES / (2 * np.pi))
            scores += map_coordinates(correlation, angles.T, order=1, mode="grid-wrap")
    k = half_ball(shells)
    own = spline_values(spline, k)
    ring = np.rint(np.linalg.norm(k, axis=1)).astype(int)
    power = np.bincount(ring, np.abs(own) ** 2)
    weights = 1 / np.maximum(power, 1e-12 * power.max())[ring]

    def turned_by(step: np.ndarray, start: np.ndarray) -> np.ndarray:
        return Rotations.from_rotvec(step).as_matrix() @ start

    def loss(step: np.ndarray, start: np.ndarray) -> float:
        Q = turned_by(step, start)
        copies = (spline_values(spline, k @ (Q @ g.T @ Q.T)) for g in group[1:])
        return -sum(float(np.sum(weights * (own.conj() * v).real)) for v in copies)

    best = np.argsort(-scores)[:REFINED]
    found = [minimize(loss, np.zeros(3), (starts[i],), method="BFGS") for i in best]
    i = int(np.argmin([f.fun for f in found]))
    return turned_by(found[i].x, starts[best[i]])
