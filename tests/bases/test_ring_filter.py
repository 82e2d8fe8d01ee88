"""Products with functions that vary along rings, by their definition on whole rings."""

import numpy as np
import pytest
from aspire.operators import CTFFilter
from aspire.source import ArrayImageSource

from aspire_mom.bases import PolarBasis
from aspire_mom.moments.ctf import TransferFunctions
from tests.moments.sources import noise_images

N_ANGLES = 512
PIXEL_SIZE = 4.0


def seen_through(images, image_filters, basis):
    """Coefficients of filtered transforms, by sums over pixels at even angles."""
    y, x = np.indices((basis.L, basis.L)).reshape(2, -1) - basis.L // 2
    theta = 2 * np.pi * np.arange(N_ANGLES) / N_ANGLES
    waves = np.stack((np.cos(theta), np.sin(theta)))
    pixels = images.reshape(len(images), -1).astype(float)
    c = np.empty((len(images), basis.max_order + 1, basis.n_rings), complex)
    for r in range(basis.n_rings):
        omega = 2 * np.pi * r / basis.L * waves
        rings = pixels @ np.exp(-1j * (np.outer(x, omega[0]) + np.outer(y, omega[1])))
        for own, image_filter in zip(rings, image_filters, strict=True):
            own *= image_filter.evaluate(omega, pixel_size=PIXEL_SIZE)
        c[..., r] = np.fft.fft(rings)[:, : basis.max_order + 1] / N_ANGLES
    return c


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("L", "n_rings", "max_order"),
    [(12, None, None), (17, None, None), (32, None, None), (24, 7, 9), (24, None, 0)]
    + [(24, None, 70), (25, 1, 3)],
)
@pytest.mark.parametrize("astigmatism", [30, 1000, 8000])
def test_it_is_the_product_on_whole_rings(L, n_rings, max_order, astigmatism, dtype):
    """Of noise, whose corners have the highest orders, however strong astigmatism is,
    and with more images than are multiplied at once."""
    rng = np.random.default_rng(L)
    basis, images = PolarBasis(L, n_rings, max_order), noise_images(67, L, dtype=dtype)
    filters = [
        CTFFilter(
            voltage=300,
            defocus_u=defocus + astigmatism / 2,
            defocus_v=defocus - astigmatism / 2,
            defocus_ang=angle,
        )
        for defocus, angle in rng.uniform((1e4, 0), (2e4, np.pi), (len(images), 2))
    ]
    source = ArrayImageSource(images, pixel_size=PIXEL_SIZE)
    source.unique_filters, source.filter_indices = filters, np.arange(len(images))
    transfer = TransferFunctions(source, basis)
    assert transfer.n_angles > 1 or n_rings == 1
    H = transfer.of_images(np.arange(len(images)))
    found = basis.coefficients(images, H)
    assert found.dtype == np.result_type(dtype, np.complex64)
    some = [0, 1, -1]
    expected = seen_through(images[some], [filters[i] for i in some], basis)
    error = np.abs(found[some] - expected).max() / np.abs(expected).max()
    assert error < (1e-6 if dtype == np.float32 else 1e-11)


@pytest.mark.parametrize("max_order", [5, 12])
def test_orders_are_convolved(max_order):
    """With a function of few orders, exactly."""
    L, J = 16, 3
    rng = np.random.default_rng(0)
    basis = PolarBasis(L, max_order=max_order)
    images = noise_images(3, L, dtype=np.float64)
    wide = PolarBasis(L, max_order=max_order + 2 * J).coefficients(images)
    orders = rng.standard_normal((3, 8, J)) + 1j * rng.standard_normal((3, 8, J))
    angles = np.pi * np.arange(2 * J + 1) / (2 * J + 1)
    even = 2 * np.arange(1, J + 1)
    H = 0.5 + 2 * (orders @ np.exp(1j * np.outer(even, angles))).real
    expected = 0.5 * wide[:, : max_order + 1]
    for m in range(max_order + 1):
        for j in range(1, J + 1):
            h = orders[..., j - 1]
            expected[:, m] += h.conj() * wide[:, m + 2 * j]
            low = m - 2 * j
            below = wide[:, low] if low >= 0 else (-1) ** low * wide[:, -low].conj()
            expected[:, m] += h * below
    np.testing.assert_allclose(basis.coefficients(images, H), expected, atol=1e-11)
