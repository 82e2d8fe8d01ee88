"""Real volumes in a ball, expanded in spherical Bessel functions and harmonics."""

import math

import numpy as np
import torch
from aspire.basis.basis_utils import all_besselj_zeros
from aspire.volume import Volume
from scipy.special import spherical_jn
from torch import Tensor

from aspire_mom.checks import check_integer, check_positive, check_volume
from aspire_mom.rotations import real_spherical_harmonics
from aspire_mom.volumes.base import FourierVolume
from aspire_mom.volumes.grid import volume_at

# Distance to a zero z of j_l within which j_l(κ)/(κ - z) is a Taylor series.
NEAR_ZERO = 1e-4


class BallHarmonics(FourierVolume):
    """
    A real volume in a ball of radius R, expanded in a basis whose Fourier transforms
    are concentrated in |k| ≤ K,

        v(x) = Σ_lsm a_lsm N_ls j_l(z_ls |x|/R) Y_lm(x/|x|)   for |x| <= R, else 0,

    with the zeros z_ls <= 2πRK of the spherical Bessel function j_l, real spherical
    harmonics Y_lm, and N_ls > 0 such that the basis is orthonormal in L²(ball). The
    Fourier transform V(k) = ∫ v(x) exp(-2πi k·x) dx has a closed form,

        V(k) = Σ_lsm a_lsm (-i)^l G_ls(|k|) Y_lm(k/|k|),
        G_ls(k) = ± 4π √(2R³) z_ls j_l(2πRk) / (z_ls² - (2πRk)²),

    where ± is the sign of j_{l+1}(z_ls). The coefficients are real, so V(-k) =
    conj V(k) exactly. With lengths in boxes a voxel of `to_volume(L)` is v(x)/L³, and
    Parseval's theorem reads ‖a‖² ≈ L³ ‖voxels‖².

    The parameter `coefficients` (n_coefficients,) runs over l, then s, then m from
    -l to l. It starts random, with ‖a‖ = 1 and amplitudes that fall with z_ls.
    It gets gradients; k does not.

    :param band_limit: K, cycles per box; L/2 is the Nyquist frequency of L voxels.
        There are about 17 (RK)³ coefficients.
    :param degree: Largest l, for fewer coefficients; default: all that K allows.
    :param support_radius: R, box units, at most 1/2.
    :param seed: Seed of the initial coefficients.
    :raises ValueError: a number is out of range, or K leaves no coefficient.
    """

    rings_at_once = True

    def __init__(
        self,
        band_limit: float,
        *,
        degree: int | None = None,
        support_radius: float = 0.5,
        seed: int = 0,
    ):
        super().__init__()
        if not 0 < support_radius <= 0.5:
            raise ValueError(f"support_radius is {support_radius}, not in (0, 0.5]")
        check_positive("band_limit", band_limit)
        if degree is not None:
            check_integer("degree", degree, 0)
        self.band_limit, self.support_radius = float(band_limit), float(support_radius)
        self.zeros = _bessel_zeros(2 * np.pi * support_radius * band_limit, degree)
        if not self.zeros:
            least = f"1/(2 support_radius) = {0.5 / support_radius}"
            raise ValueError(f"band_limit must exceed {least}, not {band_limit}")
        self.degree = len(self.zeros) - 1
        self.coefficients = torch.nn.Parameter(_random_coefficients(self.zeros, seed))
        self._rings: tuple | None = None

    def forward(self, k: Tensor) -> Tensor:
        return self._sum_degrees(_directions(k.detach()), k.detach())

    def slices(self, rotations: Tensor, frequencies: Tensor) -> Tensor:
        # The radii do not depend on the rotations, so gradients reach these too.
        plane = torch.nn.functional.pad(frequencies, (0, 1))
        directions = torch.einsum("nij,pj->npi", rotations, _directions(plane))
        return self._sum_degrees(directions, frequencies)

    def on_rings(self, directions: Tensor, radii: Tensor) -> Tensor:
        even, odd, is_odd, radial = self._ring_factors(directions, radii)
        rings = [G @ a for G, a in zip(radial, self._blocks(), strict=True)]
        rings = torch.cat(rings, 1).T
        return torch.complex(even @ rings[~is_odd], odd @ rings[is_odd])

    @torch.no_grad()
    def fit(self, volume: Volume) -> float:  # type: ignore[override]  # no options
        """
        Fit to a volume by linear least squares over the ball |k| <= K: integrate
        harmonics of V over shells at Gauss-Legendre radii, and solve degree by degree.

        :param volume: One ASPIRE `Volume` of size L >= 2K.
        :return: :meth:`relative_error`.
        :raises ValueError: the volume is smaller than 2K.
        """
        L, K = len(check_volume("volume", volume)), self.band_limit
        if 2 * K > L:
            raise ValueError(f"band_limit must be at most L/2 = {L / 2} here, not {K}")
        # The corners of the box are √3/2 from its centre: V has degrees up to √3πK.
        spread = math.ceil(math.sqrt(3) * math.pi * K)
        directions, weights = _half_sphere_quadrature(self.degree + spread + 10)
        nodes, radial_weights = np.polynomial.legendre.leggauss(spread // 2 + 10)
        radii = K * (1 + nodes) / 2
        values = volume_at(volume, radii[:, None] * directions[:, None, :])
        values = torch.from_numpy(values * weights[:, None])
        weighting = torch.from_numpy(radii * np.sqrt(radial_weights))[:, None]
        solution = []
        harmonics = real_spherical_harmonics(torch.from_numpy(directions), self.degree)
        radial = self._radial(torch.from_numpy(radii))
        for l, (Y, G) in enumerate(zip(harmonics, radial, strict=True)):
            shells = (values.imag if l % 2 else values.real).T @ Y
            matrix = weighting * G.cpu().double()
            solution.append(torch.linalg.lstsq(matrix, weighting * shells).solution)
        self.coefficients.copy_(torch.cat([block.ravel() for block in solution]))
        return self.relative_error(volume)

    @torch.no_grad()
    def _ring_factors(self, directions: Tensor, radii: Tensor) -> tuple:
        """Even and odd harmonics (n, ·), which columns are odd, G_l (n_rings, ·). Those
        of the last call are kept: an optimiser needs them thousands of times."""
        key = (directions, radii, self.coefficients[:0])
        if self._rings is None or not all(map(_identical, key, self._rings[0])):
            harmonics = real_spherical_harmonics(directions, self.degree)
            Y = torch.cat([y.to(self.coefficients) for y in harmonics], 1)
            l = torch.arange(Y.shape[1], device=Y.device).double().sqrt().long()
            odd = l % 2 == 1
            factors = Y[:, ~odd], Y[:, odd], odd, self._radial(radii)
            self._rings = tuple(tensor.clone() for tensor in key), factors
        return self._rings[1]

    def _sum_degrees(self, directions: Tensor, k: Tensor) -> Tensor:
        """V at directions (..., 3) and radii |k|, k (..., 3) or (p, 2) to broadcast."""
        radii, index = torch.linalg.norm(k, dim=-1).unique(return_inverse=True)
        harmonics = real_spherical_harmonics(directions, self.degree)
        terms = zip(harmonics, self._radial(radii), self._blocks(), strict=True)
        sums = [(Y.to(a) * (G @ a)[index]).sum(-1) for Y, G, a in terms]
        # Degree 1 may be missing.
        imaginary = sum(sums[1::2], torch.zeros_like(sums[0]))
        return torch.complex(sum(sums[2::2], sums[0]), imaginary)

    def _blocks(self) -> list[Tensor]:
        """The coefficients by degree, (n_s, 2l + 1) each."""
        sizes = [len(z) * (2 * l + 1) for l, z in enumerate(self.zeros)]
        blocks = self.coefficients.split(sizes)
        return [a.reshape(-1, 2 * l + 1) for l, a in enumerate(blocks)]

    def _radial(self, radii: Tensor) -> list[Tensor]:
        """G_ls times (-i)^l for even l, (-i)^l / i for odd l, (n_radii, n_s), by l."""
        kappa = 2 * np.pi * self.support_radius * radii.double().cpu().numpy()
        scale = 4 * np.pi * np.sqrt(2 * self.support_radius**3)
        scaled = [
            (1, -1, -1, 1)[l % 4] * scale * _radial_transform(l, z, kappa)
            for l, z in enumerate(self.zeros)
        ]
        return [torch.from_numpy(G).to(self.coefficients) for G in scaled]


def _half_sphere_quadrature(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions (n, 3), z > 0, and weights that integrate even polynomials up to the
    degree over the sphere."""
    n_heights = 2 * (degree // 4 + 1)  # even: no node at z = 0
    z, weights = np.polynomial.legendre.leggauss(n_heights)
    z, weights = z[z > 0, None], 2 * weights[z > 0, None]
    phi = 2 * np.pi * np.arange(degree + 1) / (degree + 1)
    rho = np.sqrt(1 - z**2)
    x, y, z = np.broadcast_arrays(rho * np.cos(phi), rho * np.sin(phi), z)
    weights = np.broadcast_to(weights * 2 * np.pi / (degree + 1), z.shape)
    return np.stack((x, y, z), -1).reshape(-1, 3), weights.ravel()


def _radial_transform(l: int, zeros: np.ndarray, kappa: np.ndarray) -> np.ndarray:
    """± z j_l(κ) / (z² - κ²), (n_kappa, n_zeros), with its limit at κ = z."""
    kappa = kappa[:, None]
    delta = kappa - zeros
    near = np.abs(delta) < NEAR_ZERO
    # j_l(κ)/(κ - z) about the zero z, from j_l' = -j_{l+1} and Bessel's equation there.
    curvature = (6 + l * (l + 1)) / zeros**2 - 1
    slope = -spherical_jn(l + 1, zeros)
    quotient = np.where(
        near,
        slope * (1 - delta / zeros + curvature * delta**2 / 6),
        spherical_jn(l, kappa) / np.where(near, 1, delta),
    )
    return np.sign(slope) * zeros * quotient / (zeros + kappa)


def _bessel_zeros(bound: float, degree: int | None) -> list[np.ndarray]:
    """Zeros of j_0, j_1, … up to the bound, as long as there are any."""
    zeros: list[np.ndarray] = []
    while degree is None or len(zeros) <= degree:
        count, z = all_besselj_zeros(len(zeros) + 0.5, bound * (1 + 1e-12))
        if count == 0:
            break
        zeros.append(z)
    return zeros


def _random_coefficients(zeros: list[np.ndarray], seed: int) -> Tensor:
    amplitudes = np.concatenate([np.repeat(z, 2 * l + 1) for l, z in enumerate(zeros)])
    amplitudes = np.exp(-2 * amplitudes / zeros[0][-1])
    values = amplitudes * np.random.default_rng(seed).standard_normal(len(amplitudes))
    return torch.tensor(values / np.linalg.norm(values), dtype=torch.float32)


def _directions(k: Tensor) -> Tensor:
    """Unit vectors along k; the pole at k = 0, where only l = 0 counts."""
    norm = torch.linalg.norm(k, dim=-1, keepdim=True)
    pole = torch.eye(3, dtype=k.dtype, device=k.device)[2]
    return torch.where(norm > 0, k / norm.clamp(min=torch.finfo(k.dtype).tiny), pole)


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
