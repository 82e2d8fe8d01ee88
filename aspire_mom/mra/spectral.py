"""The spectral method of Abbe et al. (IEEE Trans. Inform. Theory 65, 2019, 3565)."""

from __future__ import annotations

import numpy as np

from aspire_mom.mra.density import density_of_shifts
from aspire_mom.mra.marching import SIGNIFICANT, entry_variance
from aspire_mom.mra.moments import to_samples
from aspire_mom.mra.shift_ambiguity import centre_density


def spectral(
    first: np.ndarray,
    second: np.ndarray,
    *,
    n_observations: int | None = None,
    sigma: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """
    v from an eigenvector of the second moment with its power spectrum divided out
    (arXiv 1710.02590, algorithm 1; eq. 16 here): that matrix is a circulant one of
    phases times diag(ρ) times its inverse, so that eigenvalues are ρ's values and
    eigenvectors are shifts of v with |v̂| made flat. The eigenvector taken is that whose
    eigenvalue is farthest from all others. ρ then follows by linear least squares.

    The method needs a power spectrum without zeros: frequencies within three standard
    errors of zero are left out, which smooth signals do not survive well.

    :param first: First moments (..., n).
    :param second: Second moments (..., n, n), noise bias removed.
    :param n_observations: N; None for exact moments.
    :param sigma: Standard deviation of the noise.
    :return: v and ρ, (..., n) each, ρ a distribution.
    """
    power = np.maximum(np.einsum("...kk->...k", second).real, 0)
    share = 0.0 if n_observations is None else sigma**2 / n_observations
    variance = entry_variance(power, share, sigma)
    noise = np.sqrt(np.einsum("...kk->...k", variance))
    kept = power > SIGNIFICANT * noise
    modulus = np.sqrt(np.where(kept, power, 0))
    flatten = np.divide(1, modulus, out=np.zeros_like(modulus), where=kept)
    flat = flatten[..., :, None] * second * flatten[..., None, :]
    _, flat = to_samples(first, flat)
    values, vectors = np.linalg.eigh(flat)
    gaps = np.diff(values, axis=-1)
    none = np.full((*gaps.shape[:-1], 1), np.inf)
    alone = np.minimum(np.append(none, gaps, -1), np.append(gaps, none, -1))
    chosen = np.argmax(alone, -1)[..., None, None]
    vector = np.take_along_axis(vectors, chosen, -1)[..., 0]
    v_hat = np.fft.fft(vector) * modulus
    sign = np.where(v_hat[..., :1].real * first[..., :1].real < 0, -1, 1)
    v = np.fft.ifft(sign * v_hat, norm="ortho").real
    return centre_density(v, density_of_shifts(v, first, second))
