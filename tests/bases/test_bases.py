import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import jv

from aspire_mom.bases import CartesianBasis, PolarBasis, multiply
from aspire_mom.bases.polar import _signed_orders
from aspire_mom.moments.moments import weighted_norm
from tests.moments.sources import largest_difference, noise_images
from tests.references import moments as reference

SIZES = pytest.mark.parametrize("L", [24, 25])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
few = settings(max_examples=15)


def tolerance(dtype):
    return 1e-5 if dtype == np.float32 else 1e-10


def blobs(L, points, sigma=1.5):
    """One image of three Gaussian blobs at points (3, 2), (x, y) in pixels."""
    axis = np.arange(L) - L // 2
    x, y = (np.exp(-((axis - points[:, [i]]) ** 2) / (2 * sigma**2)) for i in range(2))
    return np.einsum("g,gy,gx->yx", [1.0, 2.0, 1.5], y, x)


def random_points(n, seed=0):
    return np.random.default_rng(seed).uniform(-3, 3, (n, 3, 2))


def turned(points, alpha):
    c, s = np.cos(alpha), np.sin(alpha)
    return points @ np.array([[c, -s], [s, c]]).T


@SIZES
@DTYPES
def test_cartesian_coefficients_are_the_defining_sum(L, dtype):
    images = noise_images(3, L, dtype=dtype)
    f = CartesianBasis(L).coefficients(images)
    assert f.dtype == np.result_type(dtype, np.complex64)
    expected = [reference.dft(image).ravel() for image in images]
    assert largest_difference(f, np.array(expected)) < tolerance(dtype)


@SIZES
def test_cartesian_frequencies(L):
    kx, ky = CartesianBasis(L).frequencies.T
    axis = np.arange(L) - L // 2
    wave = np.cos(2 * np.pi / L * (3 * axis[:, None] - 2 * axis))  # y, x
    power = np.abs(CartesianBasis(L).coefficients(wave[None])[0])
    largest = np.argsort(power)[-2:]
    assert set(zip(kx[largest], ky[largest], strict=True)) == {(-2, 3), (2, -3)}


@SIZES
@DTYPES
def test_polar_coefficients_are_the_defining_sum(L, dtype):
    basis, images = PolarBasis(L), noise_images(3, L, dtype=dtype)
    c = basis.coefficients(images)
    assert c.dtype == np.result_type(dtype, np.complex64)
    orders = np.arange(-basis.max_order, basis.max_order + 1)
    expected = np.array(
        [reference.polar_coefficients(image, basis.n_rings, orders) for image in images]
    )
    assert c.shape == (3, basis.max_order + 1, basis.n_rings)
    both = _signed_orders(c)
    assert both.dtype == c.dtype
    assert largest_difference(both, expected) < tolerance(dtype)


@pytest.mark.parametrize("L", [24, 25, 63])
def test_no_alias_even_from_the_corners(L):
    """Impulses in the corner and beside the centre, against Bessel functions."""
    basis = PolarBasis(L)
    impulses = np.zeros((2, L, L))
    impulses[0, 0, 0] = impulses[1, L // 2, L // 2 + 1] = 1
    orders = np.arange(basis.max_order + 1)
    points = np.array([[-(L // 2), -(L // 2)], [1, 0]]) / L
    expected = reference.point_coefficients(points, basis.n_rings, orders)
    difference = basis.coefficients(impulses) - expected.transpose(2, 0, 1)
    assert np.abs(difference).max() < 2e-10


@SIZES
@few
@given(alpha=st.floats(-7, 7))
def test_turning_an_image_is_a_phase(L, alpha):
    basis, points = PolarBasis(L), random_points(1)[0]
    c, after = (
        basis.coefficients(blobs(L, p)[None])[0]
        for p in (points, turned(points, alpha))
    )
    phases = np.exp(-1j * alpha * np.arange(basis.max_order + 1))
    # Blobs reach the images' edge at about 1e-4 of their height.
    assert largest_difference(after, phases[:, None] * c) < 1e-4
    assert (
        largest_difference(after[1:], c[1:]) > 1e-3 or abs(math.sin(alpha / 2)) < 0.01
    )


@SIZES
@few
@given(seed=st.integers(0, 1000))
def test_averaged_moments_ignore_in_plane_rotations(L, seed):
    basis, points = PolarBasis(L), random_points(6)
    alphas = np.random.default_rng(seed).uniform(0, 2 * np.pi, 6)
    before = basis.sums(np.array([blobs(L, p) for p in points]))
    after = basis.sums(
        np.array([blobs(L, turned(*pair)) for pair in zip(points, alphas, strict=True)])
    )
    for b, a in zip(before, after, strict=True):
        assert largest_difference(a, b) < 2e-4


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_exact(turns):
    """On an odd grid, from x (axis 2) towards y (axis 1)."""
    basis, images = PolarBasis(25), noise_images(2, 25, dtype=np.float64)
    c = basis.coefficients(images)
    after = basis.coefficients(np.rot90(images, turns, axes=(2, 1)))
    phases = (-1j) ** (turns * np.arange(basis.max_order + 1))
    assert largest_difference(after, phases[:, None] * c) < 1e-10


@SIZES
@pytest.mark.parametrize("average", [True, False])
def test_polar_noise_is_the_closed_form(L, average):
    basis = PolarBasis(L, max_order=11, inplane_average=average)
    noise = basis.noise_second()
    assert noise.shape == basis.second_shape
    assert largest_difference(noise, reference.noise_second(basis)) < 1e-10


@pytest.mark.parametrize(("n_rings", "max_order"), [(48, None), (3, 40), (1, 0)])
def test_averaged_noise_of_larger_images(n_rings, max_order):
    """Of fewer rings or more orders than there are pixels to tell apart, too."""
    basis = PolarBasis(96, n_rings=n_rings, max_order=max_order)
    distances = np.hypot(*np.meshgrid(np.arange(-48, 48), np.arange(-48, 48))) / 96
    distances, counts = np.unique(distances, return_counts=True)
    for m in {0, basis.max_order // 2, basis.max_order}:
        J = jv(m, 2 * np.pi * np.outer(np.arange(n_rings), distances))
        expected = (J * counts) @ J.T
        difference = np.abs(basis.noise_second()[m] - expected).max()
        assert difference < 1e-11 * 96**2


@pytest.mark.parametrize(
    "basis",
    [
        CartesianBasis(12),
        PolarBasis(12),
        PolarBasis(12, max_order=7, inplane_average=False),
    ],
)
def test_noise_without_nyquist_is_that_of_emptied_images(basis):
    """Of impulses with the Nyquist row and column removed, the same variance kept."""
    impulses = np.eye(144).reshape(-1, 12, 12)
    transform = np.fft.fft2(impulses)
    transform[:, 6], transform[:, :, 6] = 0, 0
    emptied = np.fft.ifft2(transform).real
    emptied *= np.sqrt(144 / np.sum(emptied**2))  # unit variance per pixel
    second = sum(reference.feature_products(image, basis)[1] for image in emptied)
    assert largest_difference(basis.noise_second(nyquist=False), second) < 1e-10
    assert largest_difference(basis.noise_second(), second) > 0.01


@SIZES
@pytest.mark.parametrize("average", [True, False])
def test_polar_weights_make_norms_cartesian(L, average):
    """
    Of blobs, which have no power beyond the last ring; averaged, they are turned to
    many in-plane angles before they are transformed.
    """
    points = random_points(2)
    if average:
        alphas = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        points = np.concatenate([turned(points, alpha) for alpha in alphas])
    images = np.array([blobs(L, p) for p in points])
    norms = []
    for basis in (CartesianBasis(L), PolarBasis(L, inplane_average=average)):
        first, second, _ = basis.finish(basis.sums(images))
        norms.append(
            (
                weighted_norm(first, basis.first_weights),
                weighted_norm(second, basis.second_weights),
            )
        )
    np.testing.assert_allclose(norms[1], norms[0], rtol=5e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CartesianBasis(3), "L is 3; it must be an integer of at least 4"),
        (lambda: CartesianBasis(25.0), r"L is 25\.0; it must be an integer"),
        (lambda: PolarBasis("25"), "L is '25'; it must be an integer"),
        (lambda: PolarBasis(25, n_rings=14), "n_rings is 14; .* 1 to 13 rings"),
        (lambda: PolarBasis(24, n_rings=13), "n_rings is 13; .* 1 to 12 rings"),
        (lambda: PolarBasis(25, n_rings=0), "n_rings is 0; .* at least 1"),
        (lambda: PolarBasis(25, max_order=-1), "max_order is -1; .* at least 0"),
        (lambda: PolarBasis(25, max_order=2.5), r"max_order is 2\.5; .* integer"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("basis", [CartesianBasis(9), PolarBasis(9)])
@pytest.mark.parametrize("method", ["coefficients", "sums"])
def test_wrong_images_are_named(basis, method):
    call = getattr(basis, method)
    for shape in ((9, 9), (2, 8, 8), (2, 9, 8), (0, 9, 9)):
        with pytest.raises(ValueError, match=r"images have shape .* takes \(n, 9, 9\)"):
            call(np.zeros(shape))
    images = np.zeros((4, 9, 9))
    images[2, 0, 0] = np.inf
    with pytest.raises(ValueError, match="image 2 has values that are NaN or infinite"):
        call(images)
    with pytest.raises(TypeError, match="images have dtype complex128"):
        call(np.zeros((1, 9, 9), complex))


def test_numpy_integers_are_plain_and_bases_compare():
    basis = PolarBasis(np.int64(25), n_rings=np.int32(13))
    assert basis == PolarBasis(25)
    assert type(basis.L) is type(basis.n_rings) is int
    assert basis != PolarBasis(25, inplane_average=False)
    assert CartesianBasis(25) != basis


KINDS = pytest.mark.parametrize(
    "basis",
    [
        CartesianBasis(10),
        PolarBasis(10),
        PolarBasis(10, max_order=6, inplane_average=False),
    ],
    ids=["cartesian", "polar", "general"],
)


@KINDS
def test_moments_cut_are_those_of_the_cut_basis(basis):
    inner, images = basis.cut(3, 4), noise_images(5, 10, dtype=np.float64)
    assert inner == basis.cut(3, 4).cut(99, 99)
    found, expected = (b.finish(b.sums(images)) for b in (basis, inner))
    for whole, part in zip(found, expected, strict=True):
        assert largest_difference(basis.cut_array(whole, inner), part) < 1e-12
    for name in ("first_weights", "second_weights"):
        values = basis.cut_array(getattr(basis, name), inner)
        np.testing.assert_array_equal(values, getattr(inner, name))


@KINDS
def test_powers_are_those_of_coefficients(basis):
    images = noise_images(5, 10, dtype=np.float64)
    f = basis.coefficients(images).reshape(5, *basis.power_shape)
    power = (np.abs(f) ** 2).sum(0)
    second = basis.finish(basis.sums(images))[1]
    assert largest_difference(basis.diagonal_power(second), power) < 1e-12
    twice = 1 + (np.arange(len(power)) > 0)
    on_rings = [
        (twice @ power)[basis.rings == r].mean() for r in range(max(basis.rings) + 1)
    ]
    np.testing.assert_allclose(basis.ring_power(power), on_rings)


@KINDS
def test_dividing_undoes_multiplying(basis):
    rng = np.random.default_rng(0)
    H = rng.uniform(0.5, 1, (7, len(np.unique(basis.rings))))[:, basis.rings]
    H = basis.filter_values(H.T)
    information = basis.information_sums(H, 1)["second_information"]
    second = rng.standard_normal(basis.second_shape)
    product = basis.multiply(second, information)
    np.testing.assert_allclose(basis.divide(product, information, 7), second)
    own = np.einsum("mrr->mr", information)
    np.testing.assert_allclose(
        basis.diagonal_power(product), multiply(basis.diagonal_power(second), own)
    )
