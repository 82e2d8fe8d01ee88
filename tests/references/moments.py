"""Moments of images by their definitions: defining sums, explicit loops over images,
and closed forms with Bessel functions. Nothing here is shared with the package."""

import numpy as np
from scipy.special import jv


def dft(image):
    """F[ky, kx] = Σ image[y, x] exp(-2πi (kx x + ky y)/L), all counted from L//2."""
    L = len(image)
    axis = np.arange(L) - L // 2
    wave = np.exp(-2j * np.pi / L * np.outer(axis, axis))
    return wave @ image.astype(np.float64) @ wave.T


def polar_coefficients(image, n_rings, orders, n_angles=128):
    """c[m, r] = mean over angles θ of F(r cos θ, r sin θ) exp(-imθ), for given m."""
    L = len(image)
    axis = np.arange(L) - L // 2
    theta = 2 * np.pi * np.arange(n_angles) / n_angles
    waves = np.exp(-1j * np.outer(orders, theta)) / n_angles
    c = np.zeros((len(orders), n_rings), complex)
    for r in range(n_rings):
        x_wave = np.exp(-2j * np.pi / L * r * np.outer(np.cos(theta), axis))
        y_wave = np.exp(-2j * np.pi / L * r * np.outer(np.sin(theta), axis))
        c[:, r] = waves @ np.sum((y_wave @ image.astype(np.float64)) * x_wave, axis=1)
    return c


def raw_moments(images, basis):
    """E f, E f f* and both standard errors, noise included, image by image."""
    n = len(images)
    means = [0, 0]
    squares = [0, 0]
    for image in images:
        for i, value in enumerate(feature_products(image, basis)):
            means[i] = means[i] + value / n
            squares[i] = squares[i] + np.abs(value) ** 2 / n
    errors = [
        np.sqrt(np.maximum(square - np.abs(mean) ** 2, 0) / (n - 1))
        for mean, square in zip(means, squares, strict=True)
    ]
    return *means, *errors


def feature_products(image, basis):
    """f and f f* of one image, in-plane averaged where the basis is."""
    if type(basis).__name__ == "CartesianBasis":
        f = dft(image).ravel()
        return f, np.outer(f, f.conj())
    M = basis.max_order
    c = polar_coefficients(image, basis.n_rings, np.arange(-M, M + 1))
    if basis.inplane_average:
        return c[M], np.array([np.outer(row, row.conj()) for row in c[M:]])
    return c[M:], np.einsum("mr,ns->mrns", c[M:], c.conj())


def impulse_coefficients(L, n_rings, orders):
    """A[m, r, pixel] = (-i)^m J_m(2πr|x|/L) exp(-imθ_x) of unit impulses."""
    axis = np.arange(L) - L // 2
    y, x = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
    return point_coefficients(np.stack((x, y), -1) / L, n_rings, orders)


def point_coefficients(points, n_rings, orders):
    """(-i)^m J_m(2πr|p|) exp(-imθ_p), (orders, rings, points), p in box units."""
    m = np.asarray(orders)[:, None, None]
    r = np.arange(n_rings)[:, None]
    distance = np.hypot(points[:, 0], points[:, 1])
    angle = np.arctan2(points[:, 1], points[:, 0])
    return (-1j) ** m * jv(m, 2 * np.pi * r * distance) * np.exp(-1j * m * angle)


def noise_second(basis):
    """Σ over pixels of A A*, white noise of unit variance."""
    M = basis.max_order
    A = impulse_coefficients(basis.L, basis.n_rings, np.arange(-M, M + 1))
    if basis.inplane_average:
        return np.einsum("mrx,msx->mrs", A[M:], A[M:].conj())
    left, right = A[M:].reshape(-1, basis.L**2), A.reshape(-1, basis.L**2)
    return (left @ right.conj().T).reshape(basis.second_shape)


def gaussian_coefficients(centres, sigmas, masses, L, rotations, n_rings, orders):
    """
    c[m, r] of ASPIRE's clean projections of a sum of Gaussians, (views, orders, rings):
    Σ_g mass_g/L exp(-2π²σ_g²r²) (-i)^m J_m(2πr|p_g|) exp(-imθ_g), where p_g is the
    centre projected, Rᵀc, all lengths in box units (given in voxels).
    """
    r = np.arange(n_rings)
    width = np.exp(-2 * np.pi**2 * np.outer(sigmas / L, r) ** 2)  # (g, r)
    points = np.einsum("nij,gi->ngj", rotations[:, :, :2], centres / L)
    A = point_coefficients(points.reshape(-1, 2), n_rings, orders)
    A = A.reshape(*A.shape[:2], *points.shape[:2])
    return np.einsum("g,gr,mrng->nmr", masses / L, width, A)


def product_quadrature(degree):
    """
    Viewing directions and weights exact to a degree on the sphere: Gauss-Legendre in
    the height times equal spacing in azimuth.
    """
    heights, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    azimuths = 2 * np.pi * np.arange(degree + 1) / (degree + 1)
    z, phi = (a.ravel() for a in np.meshgrid(heights, azimuths, indexing="ij"))
    s = np.sqrt(1 - z**2)
    directions = np.stack((s * np.cos(phi), s * np.sin(phi), z), -1)
    return directions, np.repeat(weights / 2, degree + 1) / (degree + 1)


def rotations_to(directions):
    """Rotations (n, 3, 3) with the directions as third columns, any in-plane angle."""
    helper = np.where(np.abs(directions[:, [2]]) < 0.9, [[0.0, 0, 1]], [[1.0, 0, 0]])
    first = np.cross(helper, directions)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack((first, np.cross(directions, first), directions), -1)
