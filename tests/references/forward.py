"""Moments of a (volume, density) pair by their definitions, eq. 20: a loop over nodes,
every node's slice evaluated in full. Nothing here is shared with the package."""

import numpy as np


def polar_moments(transform, rotations, probabilities, L, n_rings, max_order):
    """
    E c[m, r] (m ≥ 0) and E c[m, r] conj c[m', r'] (m ≥ 0, all m'), of images with
    Fourier values V(R (kx, ky, 0)ᵀ) / L, by sampling rings densely.

    :param transform: V as a function of points (n, 3).
    """
    orders = np.arange(-max_order, max_order + 1)
    n_angles = 2 * max_order + 80
    theta = 2 * np.pi * np.arange(n_angles) / n_angles
    waves = np.exp(-1j * np.outer(orders, theta)) / n_angles
    first = second = 0
    for rotation, probability in zip(rotations, probabilities, strict=True):
        c = np.zeros((len(orders), n_rings), complex)
        for r in range(n_rings):
            plane = np.stack((r * np.cos(theta), r * np.sin(theta), 0 * theta), 1)
            c[:, r] = waves @ transform(plane @ rotation.T) / L
        first = first + probability * c[max_order:]
        second = second + probability * np.einsum(
            "mr,ns->mrns", c[max_order:], c.conj()
        )
    return first, second


def averaged(first, second):
    """What is left of :func:`polar_moments` if all in-plane angles are equally likely:
    order 0 of the first moment, blocks m = m' of the second."""
    M = len(first) - 1
    return first[0], np.einsum("mrms->mrs", second[:, :, M:])


def cartesian_moments(transform, rotations, probabilities, L):
    """E f and E f f* of all Fourier pixels, [ky, kx] flattened; for even L the Nyquist
    row and column are zero."""
    f, total = 0, 0
    for rotation, probability in zip(rotations, probabilities, strict=True):
        image = np.zeros((L, L), complex)
        for row in range(L):
            for column in range(L):
                ky, kx = row - L // 2, column - L // 2
                if max(abs(ky), abs(kx)) < L / 2:
                    point = rotation @ np.array([kx, ky, 0.0])
                    image[row, column] = transform(point[None])[0] / L
        pixels = image.ravel()
        f = f + probability * pixels
        total = total + probability * np.outer(pixels, pixels.conj())
    return f, total


def gaussian_transform(centres, sigmas, weights):
    """V(k) = Σ_g w_g exp(-2π²σ_g²|k|² - 2πi k·μ_g), lengths in boxes."""

    def transform(k):
        decay = np.exp(-2 * np.pi**2 * np.outer((k**2).sum(1), sigmas**2))
        return (decay * np.exp(-2j * np.pi * k @ centres.T)) @ weights

    return transform
