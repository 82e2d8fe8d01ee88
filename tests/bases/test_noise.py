"""Noise that is not white: its second moment, exactly and from ASPIRE's own noise."""

import numpy as np
import pytest
from aspire.image import Image
from aspire.noise import LegacyNoiseEstimator
from aspire.operators import (
    ArrayFilter,
    MultiplicativeFilter,
    ScalarFilter,
)
from aspire.source import ArrayImageSource

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.moments import MomentEstimator, Noise, StreamingOptions
from aspire_mom.moments.corners import corner_power, corner_spectrum
from tests.moments.sources import (
    COLOURED,
    array_source,
    coloured_source,
    largest_difference,
    noise_images,
)
from tests.references.moments import dft, impulse_coefficients

BASES = {
    "cartesian": CartesianBasis,
    "polar": PolarBasis,
    "general": lambda L: PolarBasis(L, max_order=5, inplane_average=False),
}


def spectrum(L):
    return COLOURED.evaluate_grid(2 * L - 1, dtype=np.float64)


def covariance(L):
    """Of all pairs of pixels, by the defining sum over frequencies."""
    omega = 2 * np.pi / (2 * L - 1) * np.arange(1 - L, L)
    d = np.arange(1 - L, L)
    wave = np.exp(1j * np.outer(d, omega))
    by_distance = (wave @ spectrum(L) @ wave.T).real / (2 * L - 1) ** 2
    x = np.arange(L)
    apart = x[:, None] - x + L - 1
    return by_distance[apart[:, None, :, None], apart[None, :, None, :]].reshape(
        L**2, L**2
    )


def emptied(L):
    """Images less their Nyquist row and column, as a matrix on pixels."""
    a = (-1.0) ** np.arange(L) / np.sqrt(L)
    keep = np.eye(L) - np.outer(a, a)
    return np.kron(keep, keep)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(("L", "nyquist"), [(7, True), (8, True), (8, False)])
def test_second_moment_from_covariances_of_pixels(basis, L, nyquist):
    basis = BASES[basis](L)
    pixels = covariance(L)
    if not nyquist:
        pixels = emptied(L) @ pixels @ emptied(L)
    if isinstance(basis, CartesianBasis):
        A = np.stack([dft(e.reshape(L, L)).ravel() for e in np.eye(L**2)], axis=1)
        expected = A @ pixels @ A.conj().T
    else:
        M = basis.max_order
        A = impulse_coefficients(L, basis.n_rings, np.arange(-M, M + 1))
        if basis.inplane_average:
            expected = np.array([a @ pixels @ a.conj().T for a in A[M:]])
        else:
            expected = np.einsum("mrx,xy,nsy->mrns", A[M:], pixels, A.conj())
    value = basis.stationary_noise_second(spectrum(L), nyquist)
    assert largest_difference(value, expected) < 1e-9


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(("L", "nyquist"), [(7, True), (8, True), (8, False)])
def test_a_flat_spectrum_is_white_noise(basis, L, nyquist):
    basis = BASES[basis](L)
    flat = np.ones((2 * L - 1, 2 * L - 1))
    value = basis.stationary_noise_second(flat, nyquist)
    if not nyquist:  # the same variance per pixel lies within the other frequencies
        value = value * (L / (L - 1)) ** 2
    assert largest_difference(value, basis.noise_second(nyquist)) < 1e-9


@pytest.mark.parametrize("L", [12, 13])
@pytest.mark.parametrize("basis", ["cartesian", "polar"])
def test_aspires_coloured_noise_is_removed(basis, L):
    """
    Zero within 5 standard errors (an entry exceeds that by chance with 1e-11), and 1 of
    them in the root mean square; with white noise of the same variance removed instead,
    many times more.
    """
    source = coloured_source(2000, L)
    basis = BASES[basis](L)
    moments = MomentEstimator(source, basis, noise=Noise(spectrum=COLOURED)).estimate()
    known = moments.second_error > 1e-3 * moments.second_error.max()
    z = np.abs(moments.second[known]) / moments.second_error[known]
    assert z.max() < 5
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1, abs=0.15)
    white = MomentEstimator(
        source, basis, noise=Noise(variance=moments.noise_variance)
    ).estimate()
    assert (np.abs(white.second[known]) / moments.second_error[known]).max() > 20


def seen_covariances(images, nyquist=True):
    """By distances (dy, dx) of pixels, from -(L - 1) to L - 1."""
    n, L = len(images), images.shape[-1]
    sums = corner_power(images, np.arange(n), n)
    spectrum = corner_spectrum(sums["corner_power"], sums["corner_images"], L, nyquist)
    assert spectrum.shape == (2 * L - 1, 2 * L - 1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectrum))).real


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("L", [9, 10, 15])
def test_covariances_of_pairs_of_pixels(L, dtype):
    """Pair by pair; and of distances that no row has, where ASPIRE's quadrant and that
    of mirror images are all. Pixels have a mean, which both leave in."""
    images = (noise_images(4, L) + 0.5).astype(dtype)
    seen = seen_covariances(images)
    assert seen[L - 1, L - 1] >= 0
    y, x = np.mgrid[:L, :L]
    outside = np.hypot(y - (L - 1) / 2, x - (L - 1) / 2) >= L // 2 - 1
    y, x, pixels = y[outside], x[outside], images[:, outside].astype(float)
    squares = np.subtract.outer(y, y) ** 2 + np.subtract.outer(x, x) ** 2
    products = np.einsum("ni,nj->ij", pixels, pixels) / len(images)
    close = 1e-6 if dtype == np.float32 else 1e-12
    quadrants = [
        LegacyNoiseEstimator._estimate_power_spectrum_distribution_1d(
            Image(np.ascontiguousarray(images[..., ::step])), outside[:, ::step], L // 3
        )
        for step in (1, -1)
    ]
    sums = sum(means * counts for means, _, counts in quadrants)
    means = sums / sum(counts for _, _, counts in quadrants)
    of_aspire = dict(zip(np.round(quadrants[0][1] ** 2), means, strict=True))
    for dy in range(-L + 1, L):
        for dx in range(-L + 1, L):
            d, value = dy**2 + dx**2, seen[L - 1 + dy, L - 1 + dx]
            expected = products[squares == d].mean() if d <= (L // 3) ** 2 else 0
            assert value == pytest.approx(expected, abs=close)
            if d != 25:  # 5² + 0², and 3² + 4²
                assert value == pytest.approx(of_aspire.get(d, 0), abs=close)


def test_images_looked_at_are_evenly_spread():
    """Whatever the batches: every eighth of very many."""
    images = noise_images(40, 9)
    for n, step in ((9_999, 1), (19_999, 1), (30_001, 3), (10**6, 8)):
        whole = corner_power(images[::step], np.arange(0, 40, step), 1)
        assert whole["corner_images"] == len(images[::step])
        for batch in (40, 7, 3):
            parts = [
                corner_power(images[rows], rows, n)
                for rows in np.split(np.arange(40), range(batch, 40, batch))
            ]
            for name, value in whole.items():
                np.testing.assert_allclose(sum(p[name] for p in parts), value, 1e-5)


def test_spectrum_seen_in_the_corners():
    """
    Covariances of 1,000 images' corners leave 6 % of the noise; ASPIRE's windowed
    spectrum of the same covariances over 10 %, white noise a third. The same with
    halves of another batch size, and shared between them.
    """
    source, basis = coloured_source(1000, 16), PolarBasis(16)
    norm = np.linalg.norm(
        MomentEstimator(source, basis, noise=Noise(variance=0)).estimate().second
    )

    def left(**noise):
        moments = MomentEstimator(source, basis, **noise).estimate()
        return np.linalg.norm(moments.second) / norm

    estimator = MomentEstimator(source, basis, noise=Noise(spectrum="corners"))
    seen = estimator.estimate()
    assert seen.noise_variance == pytest.approx(spectrum(16).mean(), rel=0.02)
    assert str(seen.corrections).endswith("noise of the spectrum in the corners")
    assert np.linalg.norm(seen.second) / norm < 0.08
    assert left(noise=Noise(spectrum=LegacyNoiseEstimator(source).filter)) > 0.1
    assert left() > 0.3
    whole, *halves = MomentEstimator(
        source,
        basis,
        noise=Noise(spectrum="corners"),
        streaming=StreamingOptions(batch_size=37),
    ).estimate_with_halves()
    for moments in (whole, *halves):
        assert largest_difference(moments.noise_power, seen.noise_power) < 1e-10
    assert largest_difference(whole.second, seen.second) < 1e-10


def test_a_scalar_filter_is_a_variance():
    images = np.random.default_rng(0).standard_normal((20, 9, 9))
    source = array_source(images)
    a = MomentEstimator(
        source, PolarBasis(9), noise=Noise(spectrum=ScalarFilter(value=0.7))
    )
    b = MomentEstimator(source, PolarBasis(9), noise=Noise(variance=0.7))
    assert largest_difference(a.estimate().second, b.estimate().second) < 1e-9


def test_a_negative_spectrum_is_refused():
    source = ArrayImageSource(np.ones((3, 9, 9)), pixel_size=1.0)
    bad = ArrayFilter(np.full((17, 17), -1.0))
    with pytest.raises(ValueError, match="values from -1 to -1; a power spectrum"):
        MomentEstimator(source, PolarBasis(9), noise=Noise(spectrum=bad)).estimate()


@pytest.mark.parametrize("L", [23, 24])
def test_spectrum_seen_after_downsampling(L):
    """What is left of ASPIRE's coloured noise of 32 pixels, on the rings of 23 and of
    24, whose Nyquist row and column are empty: as much as after its true spectrum is
    removed, to 5 % of the noise, where white noise leaves more than a third."""
    source, basis = coloured_source(1500, 32), PolarBasis(L)
    small = source.downsample(L)
    raw = MomentEstimator(small, basis, noise=Noise(variance=0)).estimate().second

    def left(**noise):
        moments = MomentEstimator(small, basis, **noise).estimate()
        assert moments.nyquist == (L % 2 == 1)
        return np.linalg.norm(moments.second) / np.linalg.norm(raw)

    scale = ScalarFilter(dim=2, value=(L / 32) ** 2)
    exact = MultiplicativeFilter(COLOURED.scale(32 / L), scale)
    assert left(noise=Noise(spectrum=exact)) < 0.05
    assert left(noise=Noise(spectrum="corners")) < 0.08
    assert left() > 0.3


@pytest.mark.parametrize("L", [4, 5, 8])
def test_images_without_noise_in_their_corners(L):
    """Empty ones have nothing removed; constant ones, a variance that is none."""
    for images in (np.zeros((3, L, L)), np.ones((3, L, L), np.float32)):
        for basis in BASES.values():
            moments = MomentEstimator(
                array_source(images),
                basis(L),
                noise=Noise(spectrum="corners"),
                streaming=StreamingOptions(batch_size=2),
            ).estimate()
            assert moments.noise_variance >= 0
            assert images.any() or not moments.noise_power.any()


def test_empty_nyquist_frequencies_are_added_back():
    """White noise less its Nyquist row and column: flat, where covariances as they are
    would fall off."""
    L, n = 12, 4000
    keep = np.eye(L) - np.outer((-1.0) ** np.arange(L), (-1.0) ** np.arange(L)) / L
    images = keep @ noise_images(n, L, dtype=np.float64) @ keep
    raw = seen_covariances(images)[L - 1, L - 1]
    assert raw == pytest.approx((1 - 1 / L) ** 2, rel=0.01)
    whole = seen_covariances(images, nyquist=False)
    assert whole[L - 1, L - 1] == pytest.approx(1, rel=0.01)
    assert np.abs(whole[L - 1, L:]).max() < 0.01
