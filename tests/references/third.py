"""Third moments by their definition, image by image, and noise with exact moments.
Nothing here is shared with the package."""

import numpy as np

from tests.references.moments import polar_coefficients


def third_moment(images, n_rings, max_order, factors=None):
    """
    {(m1, m2): E c[m1, i] c[m2, j] conj c[m1 + m2, k]} for m1, m2 and m1 + m2 from
    -max_order to max_order, of images whose rings are multiplied by factors
    (n, n_rings) where given.
    """
    M = max_order
    total = {}
    for n, image in enumerate(images):
        c = polar_coefficients(image, n_rings, np.arange(-M, M + 1))
        if factors is not None:
            c = c * factors[n]
        for m1 in range(-M, M + 1):
            for m2 in range(max(-M, -M - m1), min(M, M - m1) + 1):
                product = np.einsum(
                    "i,j,k->ijk", c[m1 + M], c[m2 + M], c[m1 + m2 + M].conj()
                )
                total[m1, m2] = total.get((m1, m2), 0) + product / len(images)
    return total


def compressed(third, vectors, pairs):
    """Flat blocks, in the order of `pairs`, of a third moment of U[m]* c[m]; within a
    block the first factor's index runs fastest."""
    blocks = [
        np.einsum(
            "ijk,ia,jb,kc->bca",
            third[m1, m2],
            vectors[m1].conj(),
            vectors[m2].conj(),
            vectors[m1 + m2],
        )
        for m1, m2 in pairs
    ]
    return np.concatenate([block.ravel() for block in blocks])


def norm(third, areas):
    """Of all signs, entry by entry: twice per complex pair of real numbers, weighted by
    ring areas."""
    w = np.einsum("i,j,k->ijk", areas, areas, areas)
    return np.sqrt(sum(np.sum(w * np.abs(block) ** 2) for block in third.values()))


def sigma_points(root):
    """
    Noise images (2p, L, L) of mean 0, covariance root rootᵀ (p = L² pixels) and third
    moment 0, so that means of polynomials of degree 3 over them are those over Gaussian
    noise of this covariance, exactly.
    """
    p = len(root)
    points = np.sqrt(p) * np.concatenate((root.T, -root.T))
    L = int(np.sqrt(p))
    return points.reshape(-1, L, L)
