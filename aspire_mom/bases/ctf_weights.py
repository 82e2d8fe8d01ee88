"""
Least squares over images that see the same coefficients through different transfer
functions.

Image i has coefficients f_i = H_i c_i + noise. With H_i f_i summed over images instead
of f_i, the normal equations of every entry by itself are

    Σ H_i(k) f_i(k)                  = Σ H_i(k)²          E c(k)
    Σ H_i(k) H_i(k') f_i(k) f_i(k')* = Σ H_i(k)² H_i(k')² E c(k) c(k')*  + noise,

so that sums of products of H are all that must be known of the transfer functions: one
pass does, whether groups of images share a defocus or every image has its own.

In-plane averaged, the second moment is a function of two radii and the angle between
two frequencies. Where transfer functions vary along rings (astigmatism), weights are
correlations along rings, of the same three, and the equations hold for every angle.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aspire_mom.bases.bases import Basis, CartesianBasis, PolarBasis

# Entries that fewer images than this share of all determine are set to zero.
LEAST_SHARE = 1e-8
# Corrections of orders beyond the largest, and what they may leave of the whole.
MAX_CORRECTIONS = 50
CORRECTED = 1e-13


def weight_sums(basis: Basis, H: np.ndarray, n_harmonics: int) -> dict[str, np.ndarray]:
    """
    Sums over images of a batch, to be added over batches.

    :param basis: The basis.
    :param H: Transfer functions as `TransferFunctions.of_images` has them.
    :param n_harmonics: Even orders that their squares have along rings.
    :return: "weights", Σ H², of the first moment's frequencies: (n_rings,) or (L²,),
        and "noise_weights" and "second_weights", Σ H H' and Σ H² H'²: (orders, n_rings,
        n_rings), even orders 0, 2, … of the correlation along rings (order 0 alone
        where H is radial), or (L², L²). float64.
    """
    squares = H**2
    if isinstance(basis, CartesianBasis):
        h, squares = (a.reshape(len(a), -1) for a in (H, squares))
        return {
            "weights": squares.sum(0),
            "noise_weights": h.T @ h,
            "second_weights": squares.T @ squares,
        }
    return {
        "weights": squares.mean(-1).sum(0),
        "noise_weights": _correlation(H, n_harmonics),
        "second_weights": _correlation(squares, n_harmonics),
    }


def expand(weights: np.ndarray, basis: Basis) -> np.ndarray:
    """
    :param weights: "noise_weights" or "second_weights" of a radial or Cartesian kind.
    :param basis: The basis.
    :return: The same, broadcast to the second moment's shape.
    """
    if isinstance(basis, CartesianBasis):
        return weights
    weights = weights[0].real
    return weights if basis.inplane_average else weights[None, :, None, :]


def multiply(second: np.ndarray, weights: np.ndarray, basis: Basis) -> np.ndarray:
    """
    :param second: Second moment, or the noise's.
    :param weights: Weights as :func:`weight_sums` has them.
    :param basis: The basis of both.
    :return: Their product, at every pair of frequencies.
    """
    if isinstance(basis, CartesianBasis) or len(weights) == 1:
        return second * expand(weights, basis)
    n = _n_angles(basis, weights)
    product = _on_angles(second, n, 1) * _on_angles(weights, n, 2)
    return _orders(product, basis)


def solve_entries(first: np.ndarray, weights: np.ndarray, n_images: int) -> np.ndarray:
    """
    :param first: Weighted sum of first moments.
    :param weights: "weights", broadcast to it.
    :param n_images: As in :func:`divide`.
    :return: The first moment.
    """
    weights = np.broadcast_to(weights, first.shape)
    known = weights > LEAST_SHARE * n_images
    return np.divide(first, weights, where=known, out=np.zeros_like(first))


def divide(
    second: np.ndarray, weights: np.ndarray, basis: Basis, n_images: int
) -> np.ndarray:
    """
    Undo :func:`multiply`: solve each entry's normal equation.

    :param second: Weighted sum of second moments.
    :param weights: "second_weights".
    :param basis: The basis of both.
    :param n_images: Number of images; entries whose weight is below 1e-8 of it are
        zero, since nothing is known of them.
    :return: The second moment.
    """
    if isinstance(basis, CartesianBasis) or len(weights) == 1:
        return solve_entries(second, expand(weights, basis), n_images)
    # At every angle by itself; what that leaves beyond the largest order is corrected
    # for, so that multiplying gives `second` again and parts merge to the whole.
    n = _n_angles(basis, weights)
    on_angles = _on_angles(weights, n, 2)
    solution, rest = 0, second
    for _ in range(MAX_CORRECTIONS):
        values = solve_entries(_on_angles(rest, n, 1), on_angles, n_images)
        solution = solution + _orders(values, basis)
        rest = second - multiply(solution, weights, basis)
        if np.abs(rest).max() <= CORRECTED * np.abs(second).max():
            break
    return solution


def own_power(second: np.ndarray, basis: Basis) -> np.ndarray:
    """
    :param second: Second moment.
    :param basis: Its basis.
    :return: E |f|² of single coefficients: (max_order + 1, n_rings) or (L²,), float64.
    """
    if isinstance(basis, CartesianBasis):
        return second.diagonal().real
    if not basis.inplane_average:
        second = np.einsum("mrmq->mrq", second[:, :, basis.max_order :])
    return np.einsum("mrr->mr", second).real


def multiply_power(power: np.ndarray, weights: np.ndarray, basis: Basis) -> np.ndarray:
    """
    :param power: What :func:`own_power` returns of a second moment.
    :param weights: Weights as :func:`multiply` takes them.
    :param basis: The basis.
    :return: The same of :func:`multiply`'s product, which is at every pair of rings.
    """
    return multiply(power, *_of_own(weights, basis)).real


def divide_power(
    power: np.ndarray, weights: np.ndarray, basis: Basis, n_images: int
) -> np.ndarray:
    """
    :param power: What :func:`own_power` returns of a second moment.
    :param weights: Weights as :func:`divide` takes them.
    :param basis: The basis.
    :param n_images: Number of images.
    :return: The same of :func:`divide`'s solution.
    """
    return divide(power, *_of_own(weights, basis), n_images).real


def _of_own(weights: np.ndarray, basis: Basis) -> tuple[np.ndarray, Basis]:
    """Weights of rings or pixels with themselves, and the basis of such powers."""
    if isinstance(basis, CartesianBasis):
        return weights.diagonal(), basis
    return np.einsum("mrr->mr", weights), replace(basis, inplane_average=True)


def _correlation(values: np.ndarray, n_harmonics: int) -> np.ndarray:
    """
    Σ over images of ⟨values(r, φ) values(r', φ + θ)⟩ as Fourier coefficients in θ:
    orders 0, 2, … of a function of period π, (orders, n_rings, n_rings).
    """
    if values.shape[-1] == 1:
        rings = values[..., 0]
        return (rings.T @ rings)[None]
    K = values.shape[-1]
    waves = np.exp(-2j * np.pi / K * np.outer(np.arange(n_harmonics), np.arange(K))) / K
    re, im = (
        (part @ values.transpose(1, 2, 0)).swapaxes(0, 1)
        for part in (waves.real.copy(), waves.imag.copy())
    )
    real = re @ re.swapaxes(1, 2) + im @ im.swapaxes(1, 2)
    mixed = im @ re.swapaxes(1, 2)
    return real + 1j * (mixed - mixed.swapaxes(1, 2))


def _n_angles(basis: PolarBasis, weights: np.ndarray) -> int:
    """Angles on a ring that hold all orders of a second moment and its weights."""
    return 2 * (basis.max_order + 2 * len(weights)) + 2


def _on_angles(values: np.ndarray, n: int, step: int) -> np.ndarray:
    """
    Σ_m values_m exp(imθ) at n angles, values_-m being conj values_m.

    :param values: Orders 0, step, 2·step, …, along the first axis.
    """
    spectrum = np.zeros((n // 2 + 1, *values.shape[1:]), dtype=np.complex128)
    spectrum[: step * len(values) : step] = values
    return np.fft.irfft(spectrum, n, axis=0) * n


def _orders(values: np.ndarray, basis: PolarBasis) -> np.ndarray:
    return np.fft.rfft(values, axis=0)[: basis.max_order + 1] / len(values)
