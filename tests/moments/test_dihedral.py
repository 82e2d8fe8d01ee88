"""Two ways to polar coefficients, and the defining sum."""

import numpy as np
import pytest
from scipy.special import jv

from aspire_mom.moments import PolarBasis, bases
from aspire_mom.moments.dihedral import DihedralTransform
from tests.moments.sources import noise_images


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("L", [4, 5, 16, 17, 32, 33])
def test_dense_is_the_defining_sum(L, dtype):
    """Also of a pixel in a corner, of one on an axis, and of one on a diagonal."""
    basis, h = PolarBasis(L), L // 2
    images = noise_images(7, L, dtype=dtype)
    for image, (y, x) in zip(images[:4], [(0, 0), (h, h), (h, 0), (1, 1)], strict=True):
        image[:] = 0
        image[y, x] = 1
    found = DihedralTransform(basis, dtype)(images)
    y, x = np.indices((L, L)) - h
    m = np.arange(basis.max_order + 1)[:, None, None]
    waves = (-1j) ** m * np.exp(-1j * m * np.arctan2(y, x))
    z = 2 * np.pi / L * np.hypot(x, y)
    for ring in range(0, basis.n_rings, 5):
        expected = np.einsum("nyx,myx->mn", images, waves * jv(m, ring * z))
        error = np.abs(found[:, ring] - expected).max(0) / np.abs(expected).max(0)
        assert error.max() < (4e-6 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_rings", [1, 2, None])
@pytest.mark.parametrize("max_order", [0, 3, None, 70])
def test_dense_is_the_non_uniform_transform(monkeypatch, dtype, n_rings, max_order):
    """With more images than either does at once."""
    basis = PolarBasis(24, n_rings, max_order)
    images = noise_images(300, 24, dtype=dtype)
    dense = basis.coefficients(images)
    monkeypatch.setattr(bases, "DENSE_UP_TO", dict.fromkeys(bases.DENSE_UP_TO, 0))
    other = basis.coefficients(images)
    assert dense.shape == other.shape == (300, basis.max_order + 1, basis.n_rings)
    assert dense.dtype == other.dtype == np.result_type(dtype, np.complex64)
    error = np.abs(dense - other).max() / np.abs(other).max()
    assert error < (3e-6 if dtype == np.float32 else 3e-12)


def test_a_batch_does_not_change_an_image():
    basis, images = PolarBasis(20), noise_images(300, 20)
    every = basis.coefficients(images)
    two = basis.coefficients(images[257:259])
    np.testing.assert_allclose(two, every[257:259], atol=3e-5)
