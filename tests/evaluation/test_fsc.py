import numpy as np
import pytest
from aspire.volume import Volume
from hypothesis import given, settings
from hypothesis import strategies as st

from aspire_mom.evaluation import fourier_shell_correlation
from aspire_mom.evaluation.fsc import check_pair, resolution_in_shells
from tests.evaluation.blobs import blobs
from tests.references.shells import fsc_by_definition


def noise(L, seed, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(L, L, L)).astype(dtype)


@pytest.mark.parametrize("L", [9, 10, 15, 16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fsc_is_its_definition(L, dtype):
    a = noise(L, 0, dtype)
    b = a + noise(L, 1, dtype)
    fsc = fourier_shell_correlation(Volume(a), Volume(b))
    assert fsc.shape == ((L - 1) // 2 + 1,)
    assert fsc.dtype == np.float64
    np.testing.assert_allclose(fsc, fsc_by_definition(a, b), atol=1e-12)


@pytest.mark.parametrize("L", [15, 33])
def test_fsc_is_aspires_at_odd_sizes(L):
    a, b = Volume(noise(L, 0)), Volume(noise(L, 0) + noise(L, 1))
    _, expected = a.fsc(b, method="fft")
    fsc = fourier_shell_correlation(a, b)
    np.testing.assert_allclose(fsc[1:], expected.ravel(), atol=1e-12)


@pytest.mark.parametrize("L", [16, 17])
def test_a_sharp_cut_stays_sharp(L):
    a = noise(L, 0)
    k = np.fft.fftfreq(L, 1 / L)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
    sign = np.where(radius < 5.5, 1, -1)
    b = np.fft.ifftn(np.fft.fftn(a) * sign).real
    fsc = fourier_shell_correlation(Volume(a), Volume(b))
    np.testing.assert_allclose(fsc[:6], 1, atol=1e-12)
    np.testing.assert_allclose(fsc[6:], -1, atol=1e-12)


def test_nyquist_planes_do_not_count():
    a, b = noise(16, 0), noise(16, 1)
    wave = 100 * (-1.0) ** np.arange(16)
    rippled = a + wave[:, None, None] * np.cos(2 * np.pi * np.arange(16) / 8)
    fsc = fourier_shell_correlation(Volume(a), Volume(b))
    again = fourier_shell_correlation(Volume(rippled), Volume(b))
    np.testing.assert_allclose(again, fsc, atol=1e-12)


def test_a_shell_without_power_has_correlation_zero():
    # cos(πx/2) at L = 8 has integer values and exact zeros off shell 2.
    wave = np.tile(np.array([1.0, 0, -1, 0, 1, 0, -1, 0]), (8, 8, 1))
    fsc = fourier_shell_correlation(Volume(wave), Volume(wave))
    np.testing.assert_array_equal(fsc, [0, 0, 1, 0])


@settings(max_examples=10)
@given(st.sampled_from([8, 9]), st.integers(0, 100), st.floats(1e-3, 1e3))
def test_fsc_is_symmetric_and_without_scale(L, seed, scale):
    a, b = Volume(noise(L, seed)), Volume(noise(L, seed) + noise(L, seed + 1))
    fsc = fourier_shell_correlation(a, b)
    np.testing.assert_allclose(fourier_shell_correlation(b, a), fsc, atol=1e-12)
    np.testing.assert_allclose(fourier_shell_correlation(a * scale, b), fsc, atol=1e-12)
    np.testing.assert_allclose(fourier_shell_correlation(a, a), 1, atol=1e-12)
    assert abs(fsc[2:]).max() < 0.99


@pytest.mark.parametrize(
    ("fsc", "cutoff", "shell"),
    [
        ([1, 0.9, 0.7, 0.3, 0.6], 0.5, 2.5),
        ([1, 0.9, 0.7, 0.3, 0.6], 0.8, 1.5),
        ([1, 0.9, 0.5, 0.3], 0.5, 2.0),
        ([-1, 0.5, 0.2], 0.75, 0.5),
        ([1, 0.9, 0.8, 0.7], 0.5, 3.0),
        ([-1, 0.9, 0.8, 0.7], 0.5, 3.0),
        ([1, -0.5, 0.8], 0.143, 0.857 / 1.5),
    ],
)
def test_resolution_is_where_the_curve_first_goes_below(fsc, cutoff, shell):
    assert resolution_in_shells(np.array(fsc), cutoff) == pytest.approx(shell)


@pytest.mark.parametrize("cutoff", [0, 1, -0.5, 2, np.nan])
def test_cutoff_lies_between_0_and_1(cutoff):
    with pytest.raises(ValueError, match="cutoff must lie between 0 and 1"):
        resolution_in_shells(np.array([1, 0.5]), cutoff)


def broken(change):
    voxels = blobs(8).asnumpy()[0].copy()
    return Volume(change(voxels))


def with_nan(voxels):
    voxels[1, 2, 3] = np.nan
    return voxels


@pytest.mark.parametrize(
    ("volume", "error", "match"),
    [
        (np.ones((8, 8, 8)), TypeError, "must be an ASPIRE Volume, not ndarray"),
        (Volume(noise(8, 0).reshape(1, 8, 8, 8).repeat(2, 0)), ValueError, "stack"),
        (broken(with_nan), ValueError, "NaN or infinity"),
        (broken(lambda v: np.where(v == v.max(), -np.inf, v)), ValueError, "infinity"),
        (broken(lambda v: 0 * v), ValueError, "is 0.0 everywhere"),
        (broken(lambda v: 0 * v + 2), ValueError, "is 2.0 everywhere"),
        (broken(lambda v: 1j * v), TypeError, "must be real, not complex128"),
        (Volume(noise(9, 0)), ValueError, "9³ voxels and reference 8³"),
        (Volume(noise(8, 0), pixel_size=3), ValueError, "pixel size of 3.0 Å"),
        (Volume(noise(2, 0)), ValueError, "it needs at least 3³"),
    ],
)
def test_unfit_volumes_are_refused(volume, error, match):
    with pytest.raises(error, match=match):
        check_pair(volume, blobs(8, pixel_size=2))
    if "and reference" not in match and "pixel" not in match:
        with pytest.raises(error, match=match.replace("volume ", "reference ")):
            check_pair(blobs(8), volume)


def test_a_missing_pixel_size_is_the_others():
    with_size, without = blobs(8, pixel_size=2), blobs(8)
    assert check_pair(with_size, without) == 2
    assert check_pair(without, with_size) == 2
    assert check_pair(without, without) is None
