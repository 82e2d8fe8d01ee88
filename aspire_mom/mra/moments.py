"""
Fourier moments of multireference alignment: exact, estimated and simulated ones.

The DFT is unitary, v̂(k) = n^(-1/2) Σ_j v[j] exp(-2πi k j/n), with frequencies in the
order of `numpy.fft.fftfreq`. A shift v(· - s) by s samples multiplies v̂(k) by
exp(-2πi k s/n). With ρ̃(d) = Σ_s ρ[s] exp(-2πi d s/n),

    first[k] = E v̂_j(k) = v̂(k) ρ̃(k),
    second[k, l] = E v̂_j(k) conj v̂_j(l) = v̂(k) ρ̃(k - l) conj v̂(l)    (eq. 15).

This is the sign of eq. 25; eq. 4 and 5 have the other one. Moments have no noise bias.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from aspire_mom.files import contents_of, load_npz
from aspire_mom.mra.signals import Array, Arrays, all_shifts, check_pair

# Fraction of the second moment's eigenvectors from which σ is estimated.
NOISE_FRACTION = 1 / 8
BATCH_SIZE = 20_000


@dataclass(frozen=True, eq=False)
class FourierMoments:
    """
    Moments of one problem or of a batch of them.

    :param first: E v̂_j, (..., n), complex128.
    :param second: E v̂_j v̂_j*, noise bias removed, (..., n, n), complex128.
    :param n_observations: Number N of observations; None for exact moments.
    :param sigma: Standard deviation of the noise per sample, in v's units.
    """

    first: np.ndarray
    second: np.ndarray
    n_observations: int | None = None
    sigma: float = 0.0

    @property
    def mean_variance(self) -> float:
        """Noise variance σ²/N of the mean, 0 for exact moments."""
        exact = self.n_observations is None
        return 0.0 if exact else self.sigma**2 / self.n_observations


def forward_moments(v: Array, rho: Array) -> tuple[Array, Array]:
    """
    :param v: Real signals (..., n), an array, or a tensor through which gradients flow.
    :param rho: Densities of shifts (..., n); any real values.
    :return: First (..., n) and second moment (..., n, n), complex (eq. 6, 25).
    """
    fft = torch.fft.fft if isinstance(v, torch.Tensor) else np.fft.fft
    k = np.arange(v.shape[-1])
    v_hat, rho_hat = fft(v) * len(k) ** -0.5, fft(rho)
    products = v_hat[..., :, None] * v_hat.conj()[..., None, :]
    return v_hat * rho_hat, products * rho_hat[..., (k[:, None] - k) % len(k)]


def exact_moments(v: np.ndarray, rho: np.ndarray) -> FourierMoments:
    """
    :param v: Signals (..., n).
    :param rho: Probabilities of shifts (..., n).
    :return: Their exact moments.
    """
    return FourierMoments(*forward_moments(*check_pair(v, rho)))


def estimate_moments(
    batches: Iterable[np.ndarray], *, sigma: float | None = None
) -> FourierMoments:
    """
    Average the moments of observations in one pass (eq. 24).

    If σ is not given, σ² is the mean power along the n/8 weakest eigenvectors of the
    second moment, which is too large if they hold signal. To avoid bias, eigenvectors
    are taken from even batches and powers from odd ones, and vice versa.

    :param batches: Arrays of observations (any number, n), real.
    :param sigma: Standard deviation of the noise; estimated if None.
    :return: The moments, with σ.
    :raises ValueError: no observations, too few to estimate σ (two batches of at least
        n), shapes that differ, or values that are not finite.
    """
    count, total, gram, n = np.zeros(2, int), 0.0, [0.0, 0.0], None
    for i, batch in enumerate(batches):
        batch = np.asarray(batch, np.float64)
        n = batch.shape[-1] if n is None else n
        if batch.shape[1:] != (n,):
            shape = f"shape {batch.shape}"
            raise ValueError(f"batch {i} has {shape}; batches must be (N, {n})")
        if not np.isfinite(batch).all():
            raise ValueError(f"batch {i} has values that are NaN or infinite")
        count[i % 2] += len(batch)
        total = total + batch.sum(0)
        gram[i % 2] = gram[i % 2] + batch.T @ batch
    N = int(count.sum())
    if N == 0:
        raise ValueError("there are no observations; at least 1 is needed")
    if sigma is None:
        if min(count) < n:
            found = f"batches of {count[0]} and {count[1]} observations"
            raise ValueError(f"to estimate sigma, {found} are too few; n is {n}")
        sigma = _noise_level(gram[0] / count[0], gram[1] / count[1])
    second = (gram[0] + gram[1]) / N - sigma**2 * np.eye(n)
    return FourierMoments(*to_fourier(total / N, second), N, float(sigma))


def read_moments(path: Path, sigma: float | None = None) -> FourierMoments:
    """
    :param path: Moments (.npz) with `first`, `second` and maybe `n_observations` and
        `sigma`; or raw observations (.npy), real, (N, n).
    :param sigma: σ of the noise, if not in the file; None to estimate it.
    :return: The moments, noise bias removed.
    :raises ValueError: the file cannot be read, or its arrays are of another kind.
    """
    if path.suffix == ".npy":
        return _from_observations(path, sigma)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: its name must end in .npz (moments) or .npy")
    arrays = load_npz(path)
    with contents_of(path):
        first, second = arrays["first"], arrays["second"]
        given = (arrays.get(name) for name in ("n_observations", "sigma"))
        N, known = (None if value is None else value.item() for value in given)
    if sigma is not None and known not in (None, sigma):
        raise ValueError(f"sigma is {sigma:g}, but {path} has a sigma of {known:g}")
    N = int(N) if isinstance(N, float) and N.is_integer() else N
    return FourierMoments(first, second, N, known or sigma or 0.0)


def _from_observations(path: Path, sigma: float | None) -> FourierMoments:
    with contents_of(path):
        observations = np.load(path, mmap_mode="r", allow_pickle=False)
    if observations.ndim != 2 or observations.dtype.kind not in "iuf":
        found = f"{observations.dtype} of shape {observations.shape}"
        raise ValueError(f"{path} holds {found}; observations are real, (N, n)")
    # At least two batches, between which the noise level is found.
    size = min(BATCH_SIZE, max(1, len(observations) // 2))
    starts = range(0, len(observations), size)
    return estimate_moments((observations[i : i + size] for i in starts), sigma=sigma)


def simulate_moments(
    v: np.ndarray,
    rho: np.ndarray,
    n_observations: int,
    sigma: float,
    rng: np.random.Generator,
    *,
    highest: int | None = None,
) -> FourierMoments:
    """
    Draw what :func:`estimate_moments` returns for N observations and a known σ, at a
    cost independent of N. The number c_s of observations with shift s is multinomial,
    the sum e_s of their noise Gaussian, and the scatter of the noise about its means
    Wishart and independent of both:

        N M1 = Σ c_s v_s + e_s,
        N (M2 + σ²I) = Σ (c_s v_s + e_s)(c_s v_s + e_s)ᵀ / c_s + Wishart(N - #shifts).

    :param v: Signals (..., n).
    :param rho: Probabilities of shifts (..., n).
    :param n_observations: N.
    :param sigma: Standard deviation of the noise.
    :param rng: Source of randomness.
    :param highest: Highest frequency to draw, less than n/2; others are 0. All if None.
    :return: Moments with one independent draw for each signal.
    """
    v, rho = check_pair(v, rho)
    n = v.shape[-1]
    # Orthonormal, so that noise remains white.
    basis = np.eye(n) if highest is None else _low_waves(n, highest)
    counts = rng.multinomial(n_observations, rho / rho.sum(-1, keepdims=True))
    root = np.sqrt(counts)[..., None]
    # Rows (c_s v_s + e_s)/√c_s; 0 for shifts that do not occur.
    noise = rng.standard_normal((*v.shape, len(basis)))
    rows = (root * (all_shifts(v) @ basis.T) + sigma * noise) * (root > 0)
    first = (root * rows).sum(-2) / n_observations
    free = n_observations - (counts > 0).sum(-1)
    second = rows.swapaxes(-1, -2) @ rows
    second += sigma**2 * _wishart(len(basis), free, rng)
    second = second / n_observations - sigma**2 * np.eye(len(basis))
    spectra = np.fft.fft(basis, norm="ortho")
    second = spectra.T @ second @ spectra.conj()
    return FourierMoments(first @ spectra, second, n_observations, float(sigma))


def to_fourier(first: np.ndarray, second: np.ndarray) -> Arrays:
    """
    :param first: E v_j on sample points, (..., n).
    :param second: E v_j v_jᵀ, (..., n, n).
    :return: F first and F second F*, F the unitary DFT.
    """
    rows = np.fft.fft(second, axis=-2, norm="ortho")
    return np.fft.fft(first, norm="ortho"), np.fft.ifft(rows, norm="ortho")


def to_samples(first: np.ndarray, second: np.ndarray) -> Arrays:
    """
    :param first: E v̂_j, (..., n).
    :param second: E v̂_j v̂_j*, (..., n, n).
    :return: E v_j and E v_j v_jᵀ, real: the inverse of :func:`to_fourier`.
    """
    rows = np.fft.ifft(second, axis=-2, norm="ortho")
    second = np.fft.fft(rows, norm="ortho").real
    return np.fft.ifft(first, norm="ortho").real, second


def relative_errors(
    v: Array, rho: Array, first: Array, second: Array
) -> tuple[Array, Array]:
    """
    Return the relative errors of both moments in the Frobenius norm (eq. 22).

    :param v: Signals (..., n), as for :func:`forward_moments`.
    :param rho: Densities (..., n).
    :param first: A₁ (..., n), the moment estimated from data.
    :param second: A₂ (..., n, n).
    :return: ‖M1 - A₁‖/‖A₁‖ and ‖M2 - A₂‖/‖A₂‖, (...,) each, M1 and M2 of v and ρ.
    """

    def norm(x, axes):
        return (abs(x) ** 2).sum(axes) ** 0.5

    own_first, own_second = forward_moments(v, rho)
    return (
        norm(own_first - first, -1) / norm(first, -1),
        norm(own_second - second, (-2, -1)) / norm(second, (-2, -1)),
    )


def _noise_level(even: np.ndarray, odd: np.ndarray) -> float:
    """σ from second moments (n, n), noise included, of two halves of the data."""
    count = max(1, round(NOISE_FRACTION * len(even)))
    powers = []
    for chosen, measured in ((even, odd), (odd, even)):
        directions = np.linalg.eigh(chosen)[1][:, :count]
        powers.append(np.mean(np.sum(directions * (measured @ directions), 0)))
    return float(np.sqrt(max(np.mean(powers), 0)))


def _low_waves(n: int, highest: int) -> np.ndarray:
    """An orthonormal basis (2 highest + 1, n) of the frequencies up to `highest`."""
    angle = 2 * np.pi / n * np.outer(np.arange(highest + 1), np.arange(n))
    waves = np.concatenate((np.cos(angle), np.sin(angle[1:])))
    return waves / np.linalg.norm(waves, axis=1, keepdims=True)


def _wishart(n: int, degrees: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Wishart matrices (..., n, n) of unit scale, degrees of freedom (...,) ≥ 0."""
    degrees = np.asarray(degrees)
    # Bartlett's decomposition needs at least n degrees; fewer are cheap to draw.
    if degrees.size and degrees.min() < n:
        few = np.arange(max(degrees.max(), 1))[:, None] < degrees[..., None, None]
        rows = few * rng.standard_normal((*few.shape[:-1], n))
        return rows.swapaxes(-1, -2) @ rows
    factor = np.tril(rng.standard_normal((*degrees.shape, n, n)), -1)
    i = np.arange(n)
    factor[..., i, i] = np.sqrt(rng.chisquare(degrees[..., None] - i))
    return factor @ factor.swapaxes(-1, -2)
