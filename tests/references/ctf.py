"""Least squares over CTFs by its definition, image by image and entry by entry."""

import numpy as np

from tests.references.moments import noise_second, polar_coefficients


def ring_ctf(source, index, basis):
    """ASPIRE's values of image i's CTF on rings, (n_rings,), for radial ones."""
    image_filter = source.unique_filters[source.filter_indices[index]]
    radii = 2 * np.pi / basis.L * np.arange(basis.n_rings)
    omega = np.stack((radii, np.zeros_like(radii)))
    return image_filter.evaluate(omega, pixel_size=source.pixel_size)


def normal_equations(images, transfers, variance, basis):
    """
    First and second moment, in-plane averaged, and the number of images without a CTF
    that would determine the latter as well.
    """
    M, R = basis.max_order, basis.n_rings
    noise = variance * noise_second(basis)
    first, second = np.zeros(R, complex), np.zeros((M + 1, R, R), complex)
    weights, weights_2 = np.zeros(R), np.zeros((R, R))
    for image, h in zip(images, transfers, strict=True):
        c = polar_coefficients(image, R, np.arange(M + 1))
        first += h * c[0]
        weights += h**2
        for m in range(M + 1):
            second[m] += np.outer(h, h) * (np.outer(c[m], c[m].conj()) - noise[m])
        weights_2 += np.outer(h**2, h**2)
    return first / weights, second / weights_2, weights_2
