"""Noise that is not white: its second moment, exactly and from ASPIRE's own noise."""

import numpy as np
import pytest
from aspire.noise import CustomNoiseAdder, LegacyNoiseEstimator
from aspire.operators import ArrayFilter, FunctionFilter, ScalarFilter
from aspire.source import ArrayImageSource, Simulation
from aspire.volume import Volume

from aspire_mom.moments import (
    CartesianBasis,
    MomentEstimator,
    PolarBasis,
    estimate_noise_filter,
)
from aspire_mom.moments.noise import (
    downsampled_noise_filter,
    stationary_noise_second,
)
from tests.moments.sources import array_source, largest_difference
from tests.references.moments import dft, impulse_coefficients

BASES = {
    "cartesian": CartesianBasis,
    "polar": PolarBasis,
    "general": lambda L: PolarBasis(L, max_order=5, inplane_average=False),
}
# Falls by a factor of 11 from zero frequency to Nyquist.
COLOURED = FunctionFilter(lambda x, y: 1 / (0.1 + (x**2 + y**2) / np.pi**2))


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
    value = stationary_noise_second(basis, spectrum(L), nyquist)
    assert largest_difference(value, expected) < 1e-9


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(("L", "nyquist"), [(7, True), (8, True), (8, False)])
def test_a_flat_spectrum_is_white_noise(basis, L, nyquist):
    basis = BASES[basis](L)
    flat = np.ones((2 * L - 1, 2 * L - 1))
    value = stationary_noise_second(basis, flat, nyquist)
    if not nyquist:  # the same variance per pixel lies within the other frequencies
        value = value * (L / (L - 1)) ** 2
    assert largest_difference(value, basis.noise_second(nyquist)) < 1e-9


def noise_source(n, L, noise_filter=COLOURED):
    empty = Volume(np.zeros((1, L, L, L), dtype=np.float64), pixel_size=2.0)
    return Simulation(
        vols=empty,
        n=n,
        offsets=0,
        amplitudes=1,
        dtype=np.float64,
        noise_adder=CustomNoiseAdder(noise_filter, seed=1),
    )


@pytest.mark.parametrize("L", [12, 13])
@pytest.mark.parametrize("basis", ["cartesian", "polar"])
def test_aspires_coloured_noise_is_removed(basis, L):
    """
    Zero within 5 standard errors (an entry exceeds that by chance with 1e-11), and 1 of
    them in the root mean square; with white noise of the same variance removed instead,
    many times more.
    """
    source = noise_source(2000, L)
    basis = BASES[basis](L)
    moments = MomentEstimator(source, basis, noise_filter=COLOURED).estimate()
    known = moments.second_error > 1e-3 * moments.second_error.max()
    z = np.abs(moments.second[known]) / moments.second_error[known]
    assert z.max() < 5
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1, abs=0.15)
    white = MomentEstimator(
        source, basis, noise_variance=moments.noise_variance
    ).estimate()
    assert (np.abs(white.second[known]) / moments.second_error[known]).max() > 20


def test_spectrum_seen_in_the_corners():
    """
    Covariances of 1,000 images' corners leave 6 % of the noise; ASPIRE's windowed
    spectrum of the same covariances over 10 %, white noise a third.
    """
    source, basis = noise_source(1000, 16), PolarBasis(16)
    norm = np.linalg.norm(
        MomentEstimator(source, basis, noise_variance=0).estimate().second
    )

    def left(**noise):
        moments = MomentEstimator(source, basis, **noise).estimate()
        return np.linalg.norm(moments.second) / norm

    estimated = estimate_noise_filter(source)
    assert estimated.evaluate_grid(31).mean() == pytest.approx(
        spectrum(16).mean(), rel=0.02
    )
    assert left(noise_filter=estimated) < 0.08
    assert left(noise_filter=LegacyNoiseEstimator(source).filter) > 0.1
    assert left() > 0.3


def test_spectrum_of_a_part_of_the_images():
    source = noise_source(50, 16)
    few = estimate_noise_filter(source, n_images=5)
    assert (
        few.xfer_fn_array
        == estimate_noise_filter(source[[0, 12, 24, 36, 49]]).xfer_fn_array
    ).all()
    with pytest.raises(ValueError, match="0 images"):
        estimate_noise_filter(array_source(np.ones((0, 9, 9))))


def test_a_scalar_filter_is_a_variance():
    images = np.random.default_rng(0).standard_normal((20, 9, 9))
    source = array_source(images)
    a = MomentEstimator(source, PolarBasis(9), noise_filter=ScalarFilter(value=0.7))
    b = MomentEstimator(source, PolarBasis(9), noise_variance=0.7)
    assert largest_difference(a.estimate().second, b.estimate().second) < 1e-9


def test_a_negative_spectrum_is_refused():
    source = ArrayImageSource(np.ones((3, 9, 9)), pixel_size=1.0)
    bad = ArrayFilter(np.full((17, 17), -1.0))
    with pytest.raises(ValueError, match="values from -1 to -1; a power spectrum"):
        MomentEstimator(source, PolarBasis(9), noise_filter=bad).estimate()


def test_spectrum_before_downsampling_serves_after():
    """What is left of ASPIRE's coloured noise at 24 of 32 pixels, against its spectrum
    at 32 as estimated: within a tenth, where white noise leaves more than a third."""
    source, basis = noise_source(1500, 32), PolarBasis(24)
    small = source.downsample(24)
    noise_filter = downsampled_noise_filter(estimate_noise_filter(source), 32, 24)
    raw = MomentEstimator(small, basis, noise_variance=0).estimate().second

    def left(**noise):
        moments = MomentEstimator(small, basis, **noise).estimate()
        return np.linalg.norm(moments.second) / np.linalg.norm(raw)

    exact = downsampled_noise_filter(COLOURED, 32, 24)
    assert left(noise_filter=exact) < 0.05
    assert left(noise_filter=noise_filter) < 0.15
    assert left() > 0.3
    with pytest.raises(ValueError, match="pass it through downsampled_noise_filter"):
        estimate_noise_filter(small)
