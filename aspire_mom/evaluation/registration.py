"""Registration of a volume to a reference: rotations, mirror images and shifts."""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from aspire.utils import Rotation
from aspire.volume import Volume
from scipy.ndimage import fourier_shift, map_coordinates, maximum_filter, spline_filter
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation as Rotations
from scipy.special import sph_harm_y_all

from aspire_mom.checks import check_volume
from aspire_mom.evaluation.fsc import check_pair
from aspire_mom.volumes.grid import mirror

# The grid search uses few low shells, on which correlation peaks are about as wide as
# the grid's steps and even poor reconstructions agree with the reference. Shell 16
# determines the rotation well below one degree.
SEARCH_SHELLS, REFINEMENT_SHELLS = 8, 16
# Spherical harmonics of degrees below 24 represent shell 8 of an object of radius 0.4
# boxes (2π · 8 · 0.4 = 20). Steps of each Euler angle in the search, on a full circle.
DEGREES, SEARCH_ANGLES = 24, 64
# Peaks refined for either handedness, and their least angle apart, a peak's width.
PEAKS, PEAK_SEPARATION = 4, np.radians(15)
# Cubic splines on half integers are good to 1e-3, away from their ends (margin).
OVERSAMPLING, MARGIN = 2, 4
# Levenberg-Marquardt evaluations for each pose; step of finite differences, radians.
MAX_EVALUATIONS, ROTATION_STEP = 6, 1e-6


@dataclass(frozen=True, eq=False)
class Registration:
    """
    The motion that takes a volume onto a reference: mirror, then rotate, then shift.
    reference(x) ≈ volume(J Rᵀ (x - t)), J = diag(1, 1, -1) if mirrored, else 1.

    :param rotation: One ASPIRE `Rotation` R of the volume's dtype.
    :param mirrored: Whether the volume has opposite handedness (see :func:`mirror`).
    :param shift: Shift t (3,) in voxels, xyz order, float64.
    """

    rotation: Rotation
    mirrored: bool
    shift: np.ndarray

    def apply(self, volume: Volume) -> Volume:
        """
        Move a volume onto the reference by trigonometric interpolation. Fourier values
        that the rotation would take from outside the cube become zero.

        :param volume: One ASPIRE `Volume` of the size that was registered.
        :return: ASPIRE `Volume` of the same dtype and pixel size, without the Nyquist
            planes of even L, which `Volume.rotate` zeroes.
        """
        check_volume("volume", volume)
        dtype = self.rotation.dtype
        voxels = mirror(volume) if self.mirrored else volume
        # A new volume has no symmetry group, about which `Volume.rotate` would warn.
        voxels = Volume(voxels.asnumpy(), dtype).rotate(self.rotation).asnumpy()[0]
        spectrum = np.fft.fftn(voxels.astype(np.float64))
        # The DFT is periodic: `Volume.rotate` fills corners with low frequencies.
        L = volume.resolution
        axis = np.fft.fftfreq(L, 1 / L)
        kz, ky, kx = np.ix_(axis, axis, axis)
        for x, y, z in self.rotation.matrices[0].T:
            spectrum[np.abs(x * kx + y * ky + z * kz) > L / 2] = 0
        moved = np.fft.ifftn(fourier_shift(spectrum, self.shift[::-1])).real
        return Volume(moved.astype(dtype), pixel_size=volume.pixel_size)


def register(
    volume: Volume, reference: Volume, *, translate: bool = True
) -> Registration:
    """
    Register a volume to a reference over rotations, mirror images and shifts.

    The volumes are correlated on a grid of rotations, by their spherical harmonics on a
    few low shells, about the middle of the box and about the centres of power. The
    highest peaks for either handedness are refined together with shifts, and the best
    two once more on more shells.

    :param volume: One ASPIRE `Volume`, [z, y, x].
    :param reference: One ASPIRE `Volume` of the same size L and pixel size.
    :param translate: Whether to find a shift, too. Any shift is found if the volumes
        agree well, one of up to about L/16 voxels if noise or solvent dominates.
    :return: The :class:`Registration` of highest correlation.
    """
    check_pair(volume, reference)
    L = volume.resolution
    shells = min(REFINEMENT_SHELLS, (L - 1) // 2)
    # Without the solvent level (median), whose transform would dominate.
    volume, reference = (
        Volume(v.asnumpy() - np.median(v.asnumpy())) for v in (volume, reference)
    )
    moving, fixed = fourier_spline(volume, shells), fourier_spline(reference, shells)

    def refine(poses: list[_Pose], n_shells: int) -> list[_Pose]:
        k = half_ball(n_shells)
        # Unit norms make the result independent of the volumes' scales.
        target = spline_values(fixed, k)
        target /= np.linalg.norm(target)
        scaled = moving / np.linalg.norm(spline_values(moving, k))
        poses = [_refine(pose, scaled, k, target, translate) for pose in poses]
        return sorted(poses, key=lambda pose: -pose.correlation)

    search_shells = min(SEARCH_SHELLS, shells)
    poses = _search(moving, fixed, search_shells, np.zeros((2, 3)))
    if translate:
        centres = np.array([_centre_of_power(v) for v in (volume, reference)])
        poses += _search(moving, fixed, search_shells, centres)
    poses = refine(poses, search_shells)
    best = refine(poses[:2], shells)[0]
    dtype = np.result_type(volume.dtype, np.float32)
    rotation = Rotation(best.rotation.astype(dtype))
    return Registration(rotation, bool(best.hand < 0), best.shift * L)


class _Pose(NamedTuple):
    rotation: np.ndarray
    hand: int
    shift: np.ndarray  # in boxes
    correlation: float


def fourier_spline(volume: Volume, shells: int) -> np.ndarray:
    """
    :param volume: One ASPIRE `Volume`.
    :param shells: Largest frequency wanted, cycles per box.
    :return: Cubic spline coefficients [kz, ky, kx], complex128, of its Fourier
        transform Σ V[z, y, x] exp(-2πi k·(x, y, z)/L), positions from voxel L//2, at
        half integers k, zero frequency in the middle.
    """
    L = volume.resolution
    edge = OVERSAMPLING * shells + MARGIN
    k = np.arange(-edge, edge + 1) / OVERSAMPLING
    waves = np.exp(-2j * np.pi / L * np.outer(np.arange(L) - L // 2, k))
    values = volume.asnumpy()[0].astype(np.float64)
    for _ in range(3):
        values = np.tensordot(values, waves, (0, 0))
    return spline_filter(values, output=np.complex128)


def spline_values(spline: np.ndarray, k: np.ndarray) -> np.ndarray:
    """
    :param spline: What :func:`fourier_spline` returned.
    :param k: Frequencies (n, 3), xyz order, cycles per box.
    :return: The Fourier transform there, interpolated, (n,), complex128.
    """
    zyx = OVERSAMPLING * k.T[::-1] + len(spline) // 2
    return map_coordinates(spline, zyx, prefilter=False)


def half_ball(shells: int) -> np.ndarray:
    """
    :param shells: Number of shells.
    :return: Integer frequencies (n, 3) of shells 1 to `shells`, one of each pair ±k.
    """
    axis = np.arange(-shells, shells + 1.0)
    k = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    k = k[len(k) // 2 + 1 :]
    return k[np.rint(np.linalg.norm(k, axis=1)) <= shells]


def _centre_of_power(volume: Volume) -> np.ndarray:
    """Σ x v(x)² / Σ v(x)² (3,) in boxes from voxel L//2, xyz order."""
    power, L = volume.asnumpy()[0].astype(np.float64) ** 2, volume.resolution
    axis = (np.arange(L) - L // 2) / L
    sums = [power.sum(others) @ axis for others in ((0, 1), (0, 2), (1, 2))]
    return np.array(sums) / power.sum()


def shell_harmonics(spline: np.ndarray, shells: int, centre: np.ndarray) -> np.ndarray:
    """
    :param spline: What :func:`fourier_spline` returned.
    :param shells: Number of shells.
    :param centre: Centre (3,) to take positions from, in boxes, xyz order.
    :return: Coefficients s ∫ V(s n) conj Y_lm(n) dn [s - 1, l, m], complex128, for
        m = 0, 1, …, -2, -1. With the factor s, sums over shells are over the ball.
    """
    points, rule = _quadrature()
    s = np.arange(1, shells + 1)[:, None]
    k = (s[:, :, None] * points).reshape(-1, 3)
    values = spline_values(spline, k) * np.exp(2j * np.pi * k @ centre)
    return np.moveaxis(rule @ (s * values.reshape(shells, -1)).T, -1, 0)


@cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors n (points, 3), and weights times conj Y_lm(n) [l, m, points]."""
    # A Gauss-Legendre rule in cos θ with equispaced φ is exact for these degrees.
    nodes, weights = np.polynomial.legendre.leggauss(DEGREES)
    phi = np.pi / DEGREES * np.arange(2 * DEGREES)
    theta, phi = np.meshgrid(np.arccos(nodes), phi, indexing="ij")
    x, y = np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi)
    points = np.stack((x, y, np.cos(theta)), -1).reshape(-1, 3)
    Y = sph_harm_y_all(DEGREES - 1, DEGREES - 1, theta.ravel(), phi.ravel())
    return points, np.repeat(np.pi / DEGREES * weights, 2 * DEGREES) * Y.conj()


def rotation_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """
    Correlate functions on spheres over all rotations R = Rz(α) Ry(β) Rz(γ).

    The correlation is Σ_l Σ_mm' exp(-imα) d^l_mm'(β) exp(-im'γ) Σ_s a_slm' conj b_slm.
    The eigenvalues of the angular momentum J_y are integers, so in its eigenvectors β
    is a Fourier variable too, and one three-dimensional FFT gives all values (Risbo
    1996, Kostelec & Rockmore 2008).

    :param a: Coefficients [s, l, m] as :func:`shell_harmonics` returns them.
    :param b: Those of the functions that stay.
    :return: Re Σ_s ∫ a_s(Rᵀn) conj b_s(n) dn [α, β, γ], float64, each angle in
        `SEARCH_ANGLES` steps of a full circle.
    """
    spectrum = np.zeros((SEARCH_ANGLES,) * 3, dtype=np.complex128)
    for l in range(a.shape[1]):
        m = np.arange(-l, l + 1)
        products = b[:, l, m].conj().T @ a[:, l, m]
        raising = np.diag(np.sqrt((l - m[:-1]) * (l + m[:-1] + 1)), -1)
        _, vectors = np.linalg.eigh((raising - raising.T) / 2j)
        spectrum[np.ix_(m, m, m)] += np.einsum(
            "im,jm,ij->imj", vectors, vectors.conj(), products
        )
    return np.fft.fftn(spectrum).real


def _search(moving, fixed, shells: int, centres: np.ndarray) -> list[_Pose]:
    """Highest peaks of the correlation for both hands, about two centres (2, 3)."""
    a = shell_harmonics(moving, shells, centres[0])
    b = shell_harmonics(fixed, shells, centres[1])
    # Y_lm(Jn) = (-1)^(l + m) Y_lm(n), and -m is as even or odd as m.
    m = np.r_[:DEGREES, 1 - DEGREES : 0]
    parity = (-1.0) ** (np.arange(DEGREES)[:, None] + m)
    return [
        _Pose(rotation, hand, centres[1] - rotation @ (centres[0] * (1, 1, hand)), 0.0)
        for hand, coefficients in ((1, a), (-1, parity * a))
        for rotation in _peaks(rotation_correlation(coefficients, b))
    ]


def _peaks(correlation: np.ndarray) -> np.ndarray:
    """Rotations (n, 3, 3) of the highest local maxima that lie apart."""
    is_peak = correlation == maximum_filter(correlation, 3, mode="wrap")
    # (α, -β, γ) is the rotation (α + π, β, γ + π).
    is_peak[:, SEARCH_ANGLES // 2 + 1 :] = False
    # At β = 0 only α + γ matters, so that one peak may appear many times.
    highest = np.argsort(-correlation[is_peak], kind="stable")[: 100 * PEAKS]
    angles = 2 * np.pi / SEARCH_ANGLES * np.argwhere(is_peak)[highest]
    rotations = Rotations.from_euler("ZYZ", angles).as_matrix()
    peaks = []
    while len(rotations) and len(peaks) < PEAKS:
        peaks.append(rotations[0])
        traces = np.einsum("nij,ij->n", rotations, peaks[-1])
        rotations = rotations[traces < 1 + 2 * np.cos(PEAK_SEPARATION)]
    return np.array(peaks)


def _refine(pose: _Pose, moving, k, target, translate: bool) -> _Pose:
    """Minimise Σ |V(J Rᵀk) exp(-2πi k·t) - target(k)|². A volume's norm does not change
    when it moves, so this maximises the correlation."""

    def moved(step: np.ndarray) -> _Pose:
        rotation = Rotations.from_rotvec(step[:3]).as_matrix() @ pose.rotation
        shift = pose.shift + step[3:] if translate else pose.shift
        return pose._replace(rotation=rotation, shift=shift)

    def model(step: np.ndarray) -> np.ndarray:
        rotation, hand, shift, _ = moved(step)
        values = spline_values(moving, (k @ rotation) * (1, 1, hand))
        return values * np.exp(-2j * np.pi * (k @ shift))

    def jacobian(step: np.ndarray) -> np.ndarray:
        # Rotations by finite differences, shifts in closed form.
        values, small = model(step), ROTATION_STEP * np.eye(3, len(step))
        columns = [(model(step + change) - values) / ROTATION_STEP for change in small]
        if translate:
            columns.extend(-2j * np.pi * k.T * values)
        return np.array(columns).view(np.float64).T

    def residual(step: np.ndarray) -> np.ndarray:
        return (model(step) - target).view(np.float64)

    start = np.zeros(6 if translate else 3)
    best = least_squares(
        residual, start, jacobian, method="lm", xtol=1e-6, max_nfev=MAX_EVALUATIONS
    ).x
    values = model(best)
    correlation = np.vdot(target, values).real / np.linalg.norm(values)
    return moved(best)._replace(correlation=float(correlation))
