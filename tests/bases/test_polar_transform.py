"""Polar coefficients by matrix products, the defining sum and a non-uniform FFT."""

from itertools import product

import finufft
import numpy as np
import pytest
import torch
from scipy.special import jv

from aspire_mom.bases import PolarBasis
from aspire_mom.bases.polar_transform import PolarTransform
from tests.moments.sources import DEVICES, noise_images


def sizes(basis):
    return basis.L, basis.n_rings, basis.max_order


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("L", [4, 5, 16, 17, 32, 33])
@pytest.mark.parametrize("device", [None, *DEVICES], ids=str)
def test_it_is_the_defining_sum(L, dtype, device):
    """Also of a pixel in a corner, of one on an axis, and of one on a diagonal."""
    basis, h = PolarBasis(L), L // 2
    images = noise_images(7, L, dtype=dtype)
    for image, (y, x) in zip(images[:4], [(0, 0), (h, h), (h, 0), (1, 1)], strict=True):
        image[:] = 0
        image[y, x] = 1
    given = images if device is None else torch.tensor(images, device=device)
    real, imaginary = PolarTransform(*sizes(basis), dtype, device)(given)
    found = real + 1j * imaginary
    if device is not None:
        found = found.cpu().numpy()
    assert found.dtype == np.result_type(dtype, np.complex64)
    y, x = np.indices((L, L)) - h
    m = np.arange(basis.max_order + 1)[:, None, None]
    waves = (-1j) ** m * np.exp(-1j * m * np.arctan2(y, x))
    z = 2 * np.pi / L * np.hypot(x, y)
    for ring in range(0, basis.n_rings, 5):
        expected = np.einsum("nyx,myx->mn", images, waves * jv(m, ring * z))
        error = np.abs(found[:, ring] - expected).max(0) / np.abs(expected).max(0)
        assert error.max() < (2e-6 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("L", "n_rings", "max_order"),
    [(24, 1, 0), (24, 1, 3), (24, 2, None), (24, None, 3), (24, None, 70)]
    + [(5, 2, None), (7, 2, None), (9, 2, 30), (11, 2, 0)]
    + [(63, None, None), (128, None, None)],
)
def test_it_is_the_non_uniform_transform(L, n_rings, max_order, dtype):
    """With more images than it takes at once, on the rings' upper halves."""
    basis = PolarBasis(L, n_rings, max_order)
    images = noise_images(70, L, dtype=dtype)
    found = basis.coefficients(images)
    assert found.shape == (70, basis.max_order + 1, basis.n_rings)
    assert found.dtype == np.result_type(dtype, np.complex64)
    kx, ky = basis.half_rings
    some = images[[0, -1]].astype(complex)
    half = finufft.nufft2d2(ky, kx, some, eps=1e-13, isign=-1) / (2 * basis.n_angles)
    expected = basis._orders(half.reshape(2, basis.n_rings, -1))
    error = np.abs(found[[0, -1]] - expected).max() / np.abs(expected).max()
    assert error < (1e-6 if dtype == np.float32 else 3e-12)


@pytest.mark.parametrize("L", [6, 25, 64])
def test_orders_left_out_are_zero(L):
    """Those that the second moment's products are not made of."""
    transform = PolarTransform(*sizes(PolarBasis(L, max_order=4 * L)), np.float32)
    c = transform(noise_images(3, L))
    orders = np.arange(4 * L + 1)[:, None]
    assert not c[:, orders > transform.reach].any()
    assert c[:, 0].any(2).any(0).all()
    assert (np.diff(transform.reach) >= 0).all()


@pytest.mark.parametrize("L", [*range(4, 70, 3), 5, 9, 11])
def test_rings_are_crossed_closely_enough(L):
    """So that inverses, which multiply rounding errors, stay small."""
    for dtype, n_rings in product((np.float32, np.float64), (2, 3, None)):
        if n_rings is not None and n_rings > (L + 1) // 2:
            continue
        transform = PolarTransform(*sizes(PolarBasis(L, n_rings)), dtype)
        for _, matrices in transform.angular:
            assert max(np.linalg.norm(m, 2, axis=(1, 2)).max() for m in matrices) < 1


def test_a_batch_does_not_change_an_image():
    basis, images = PolarBasis(20), noise_images(300, 20)
    every = basis.coefficients(images)
    two = basis.coefficients(images[257:259])
    np.testing.assert_allclose(two, every[257:259], atol=3e-5)
