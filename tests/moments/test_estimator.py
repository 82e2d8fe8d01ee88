import dataclasses
import logging

import mrcfile
import numpy as np
import pytest
from aspire.noise import AnisotropicNoiseEstimator, WhiteNoiseEstimator
from aspire.operators import CTFFilter, IdentityFilter, RadialCTFFilter, ScalarFilter
from aspire.source import ArrayImageSource, RelionSource
from aspire.utils import Rotation
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.moments import (
    CorrectionOptions,
    MomentEstimator,
    Moments,
    Noise,
    StreamingOptions,
    ThirdMomentBasis,
)
from aspire_mom.moments.ctf import TransferFunctions, radial_part
from aspire_mom.moments.moments import weighted_norm
from tests.moments.sources import (
    VARIANCE,
    array_source,
    largest_difference,
    noise_images,
    simulation,
)
from tests.references import moments as reference

BASES = {
    "cartesian": CartesianBasis,
    "polar": PolarBasis,
    "general": lambda L: PolarBasis(L, max_order=9, inplane_average=False),
}
bases = pytest.mark.parametrize("basis", BASES)
ARRAYS = ("first", "second", "first_error", "second_error")


def estimate(source, basis, **options):
    return MomentEstimator(source, BASES[basis](source.L), **options).estimate()


def downsampled(dtype=np.float32, n=20):
    return simulation(32, dtype=dtype, n=n).downsample(24)


@bases
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("L", [24, 25])
def test_moments_are_those_of_the_images_one_by_one(basis, dtype, L):
    source = simulation(L, n=20, dtype=dtype)
    moments = estimate(
        source,
        basis,
        noise=Noise(variance=VARIANCE),
        streaming=StreamingOptions(batch_size=13),
    )
    first, second, *errors = reference.raw_moments(
        source.images[:].asnumpy(), moments.basis
    )
    if basis == "cartesian":
        second -= VARIANCE * source.L**2 * np.eye(source.L**2)
    else:
        second -= VARIANCE * reference.noise_second(moments.basis)
    close = 1e-5 if dtype == np.float32 else 1e-10
    for name, expected in zip(ARRAYS, (first, second, *errors), strict=True):
        value = getattr(moments, name)
        assert value.dtype == (np.complex128 if "error" not in name else np.float64)
        # A standard error of nearly 0 is the root of a difference.
        loose = 10 if "error" in name else 1
        assert largest_difference(value, expected) < loose * close, name
    assert moments.n_images == source.n
    assert moments.noise_variance == VARIANCE
    assert moments.pixel_size == 2.0
    assert (moments.third is None) == (basis != "polar")
    assert moments.nyquist


@bases
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_downsampled_even_images(basis, dtype):
    """Their Nyquist row and column are empty, and the noise bias is so, too."""
    source = downsampled(dtype)
    moments = estimate(source, basis, noise=Noise(variance=0))
    assert not moments.nyquist
    first, second, *_ = reference.raw_moments(source.images[:].asnumpy(), moments.basis)
    close = 1e-5 if dtype == np.float32 else 1e-10
    assert largest_difference(moments.first, first) < close
    assert largest_difference(moments.second, second) < close
    noisy = estimate(source, basis, noise=Noise(variance=0.5))
    bias = 0.5 * moments.basis.noise_second(nyquist=False)
    assert largest_difference(moments.second - noisy.second, bias) < close


@pytest.mark.parametrize("make", [lambda: simulation(25), downsampled])
def test_default_noise_variance_is_aspires(make):
    source = make()
    expected = WhiteNoiseEstimator(source).estimate()
    moments = estimate(source, "polar")
    assert moments.noise_variance == pytest.approx(expected, rel=1e-5)
    given_estimator = estimate(
        source, "polar", noise=Noise(variance=AnisotropicNoiseEstimator(source))
    )
    assert given_estimator.noise_variance == pytest.approx(expected, rel=1e-3)


@bases
@pytest.mark.parametrize("L", [16, 17, "downsampled"])
@pytest.mark.parametrize("variance", ["given", "estimated"])
def test_noise_bias_is_removed(basis, L, variance):
    """
    Of pure noise only scatter is left. The share of the bias that is left is a mean
    over 60 or more coefficients of N = 3000 images each, every one of which has it to
    sqrt(2/N) = 2.6 % or better: below 1 %, three standard errors if 60 of them
    were independent. Not minding the empty Nyquist row and column would leave 14 %.
    """
    n = 3000
    if L == "downsampled":
        source = array_source(noise_images(n, 20, seed=1)).downsample(16)
        true = (16 / 20) ** 2 * (15 / 16) ** 2
    else:
        source, true = array_source(noise_images(n, L, seed=2)), 1.0
    noise = Noise(variance=true if variance == "given" else None)
    moments = estimate(source, basis, noise=noise)
    assert moments.noise_variance == pytest.approx(true, rel=0.01)
    noise = true * moments.basis.noise_second(moments.nyquist)
    noise, left = (diagonal(a, moments.basis) for a in (noise, moments.second))
    inside = noise > 1e-6 * noise.max()
    assert np.count_nonzero(inside) >= 60
    assert abs(np.mean(left[inside] / noise[inside])) < 0.01
    # All entries: as far from zero as their standard errors say.
    known = moments.second_error > 1e-3 * moments.second_error.max()
    z = np.abs(moments.second[known]) / moments.second_error[known]
    assert np.mean(z**2) == pytest.approx(1, abs=0.3)


def diagonal(second, basis):
    """E |f|² of every order and ring, or of every Fourier pixel."""
    if second.ndim == 2:
        return np.diagonal(second).real
    if second.ndim == 3:
        return np.einsum("mrr->mr", second).real
    return np.einsum("mrmr->mr", second[:, :, basis.max_order :]).real


@bases
def test_standard_errors_are_the_scatter_of_repeated_draws(basis):
    """
    200 draws of 60 images: the scatter of each entry is known to 1/sqrt(400) = 5 %,
    that of the sum over entries to less.
    """
    L, n, signal = 8, 60, 3 * np.exp(-((np.arange(8) - 4) ** 2) / 5)
    draws = []
    for seed in range(200):
        images = noise_images(n, L, seed=seed, dtype=np.float64)
        images *= 1 + np.outer(signal, signal)
        draws.append(estimate(array_source(images), basis, noise=Noise(variance=0)))
    for name in ("first", "second"):
        scatter = np.var([getattr(d, name) for d in draws], axis=0)
        stated = np.mean([getattr(d, f"{name}_error") ** 2 for d in draws], axis=0)
        assert stated.sum() == pytest.approx(scatter.sum(), rel=0.08)
        large = scatter > 0.01 * scatter.max()
        ratio = np.sqrt(stated[large] / scatter[large])
        assert np.median(ratio) == pytest.approx(1, abs=0.05)
        assert np.percentile(ratio, [5, 95]) == pytest.approx([1, 1], abs=0.2)


@bases
@settings(max_examples=6)
@given(split=st.integers(1, 89), even=st.booleans(), share=st.floats(0, 1))
@example(split=1, even=True, share=0.5)
@example(split=89, even=False, share=0.5)
def test_merged_is_all_at_once(basis, split, even, share):
    source = array_source(noise_images(90, 12 if even else 13, dtype=np.float64))
    # The mean of the two variances is 1.
    variances = 1 + share * (90 - split) / 90, 1 - share * split / 90
    parts = [
        estimate(part, basis, noise=Noise(variance=v))
        for part, v in zip((source[:split], source[split:]), variances, strict=True)
    ]
    merged, whole = (
        parts[0].merge(parts[1]),
        estimate(
            source,
            basis,
            noise=Noise(variance=1),
            streaming=StreamingOptions(batch_size=31),
        ),
    )
    assert merged.n_images == 90
    assert merged.noise_variance == pytest.approx(1)
    for name in ARRAYS:
        value, expected = getattr(merged, name), getattr(whole, name)
        assert largest_difference(value, expected) < 1e-7, name


@bases
def test_one_image_has_no_standard_error(basis):
    """Two have the half of their difference, also when merged."""
    images = noise_images(2, 12, dtype=np.float64)
    one, other = (
        estimate(array_source(image[None]), basis, noise=Noise(variance=1))
        for image in images
    )
    assert one.first_error is None
    assert one.second_error is None
    for two in (one.merge(other), estimate(array_source(images), basis)):
        expected = np.abs(one.first - other.first) / 2
        assert largest_difference(two.first_error, expected) < 1e-7
        expected = np.abs(one.second - other.second) / 2
        assert largest_difference(two.second_error, expected) < 1e-7


class CountingSource(ArrayImageSource):
    def _images(self, indices):
        self.read = [*getattr(self, "read", []), indices]
        return super()._images(indices)


def test_images_are_read_once_in_batches():
    source = CountingSource(noise_images(50, 9), pixel_size=1.0)
    estimate(source, "polar", streaming=StreamingOptions(batch_size=16))
    # After a look at some, for their identity, and at a sample, for what they are like.
    in_batches = source.read[3:]
    assert [len(indices) for indices in in_batches] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate(in_batches), np.arange(50))


def test_integer_images(tmp_path):
    """int8 stacks, whose squares would overflow."""
    images = np.clip(noise_images(60, 16, variance=900), -127, 127).astype(np.int8)
    with mrcfile.new(tmp_path / "stack.mrcs") as file:
        file.set_data(images)
    rows = "\n".join(f"{i + 1:06d}@stack.mrcs" for i in range(60))
    star = tmp_path / "particles.star"
    star.write_text(f"data_\n\nloop_\n_rlnImageName #1\n{rows}\n")
    source = RelionSource(star, pixel_size=1.5)
    assert source.dtype == np.int8
    for basis in BASES:
        moments = estimate(source, basis)
        expected = estimate(array_source(images.astype(np.float32)), basis)
        assert moments.noise_variance == expected.noise_variance > 800
        np.testing.assert_array_equal(moments.second, expected.second)
    as_they_are = CorrectionOptions(unchecked=True)
    for integer in (np.int16, np.uint16, np.int64):
        source = array_source(images.astype(integer) + 128)
        moments = estimate(source, "polar", corrections=as_they_are)
        assert moments.noise_variance == pytest.approx(expected.noise_variance)


def test_an_offset_does_not_hide_an_empty_nyquist_row():
    images = noise_images(40, 20, dtype=np.float64)
    source = array_source(images + 1e4).downsample(16)
    assert not estimate(source, "polar").nyquist
    assert estimate(array_source(images + 1e4), "polar").nyquist


def test_a_ramp_subtracted_after_downsampling_does_not_either():
    source = array_source(noise_images(40, 20)).downsample(16).normalize_background()
    moments = estimate(source, "polar")
    assert not moments.nyquist
    assert moments.noise_variance == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("n_bad", [0, 37])
def test_bad_image_is_named_by_its_index(n_bad):
    images = noise_images(50, 9)
    images[n_bad, 3, 4] = np.nan
    with pytest.raises(ValueError, match=f"image {n_bad + 1} has values that are NaN"):
        estimate(
            array_source(images),
            "polar",
            noise=Noise(variance=1),
            streaming=StreamingOptions(batch_size=16),
        )


@pytest.mark.parametrize("filters", [None, [IdentityFilter()], [ScalarFilter(value=2)]])
@pytest.mark.parametrize(
    "prepare",
    [
        lambda s: s,
        lambda s: s.downsample(12),
        lambda s: s.whiten(),
        lambda s: s.downsample(12).whiten().normalize_background(),
        lambda s: s.phase_flip().cache().downsample(11),
        lambda s: s[:10],
    ],
)
def test_flat_filters_are_not_refused(filters, prepare):
    source = prepare(simulation(16, n=20, unique_filters=filters))
    assert np.abs(estimate(source, "polar").second).max() > 0


@bases
def test_known_shifts_are_undone(basis):
    rng = np.random.default_rng(0)
    offsets = rng.normal(0, 1.5, (20, 2))
    source = simulation(25, n=20, offsets=offsets, dtype=np.float64, noise=0)
    centred = simulation(25, n=20, dtype=np.float64, noise=0)
    expected = estimate(centred, basis, noise=Noise(variance=0))
    moments = estimate(source, basis, noise=Noise(variance=0))
    assert max(expected.relative_error(moments)) < 1e-6
    assert "centred by shifts of up to" in str(moments.corrections)
    left = estimate(
        source,
        basis,
        noise=Noise(variance=0),
        corrections=CorrectionOptions(ignore_shifts=True),
    )
    assert min(expected.relative_error(left)) > 0.05
    assert "known shifts ignored" in str(left.corrections)


def test_known_shifts_are_undone_after_downsampling():
    offsets = np.random.default_rng(0).normal(0, 1.5, (20, 2))
    options = {"n": 20, "dtype": np.float64, "noise": 0}
    shifted = simulation(32, offsets=offsets, **options).downsample(24)
    centred = simulation(32, **options).downsample(24)
    expected = estimate(centred, "polar", noise=Noise(variance=0))
    moments = estimate(shifted, "polar", noise=Noise(variance=0))
    assert max(expected.relative_error(moments)) < 1e-6


def test_varying_amplitudes_are_mentioned(caplog):
    amplitudes = np.linspace(0.5, 2, 20)
    with caplog.at_level(logging.WARNING, "aspire_mom.moments.estimator"):
        estimate(simulation(9, n=20), "polar")
        assert not caplog.messages
        estimate(simulation(9, n=20, amplitudes=amplitudes), "polar")
    assert "amplitudes vary from 0.5 to 2; pass CorrectionOptions" in caplog.text


@bases
def test_amplitudes_that_vary(basis):
    """The sums of clean images tell the amplitudes' variance exactly, noisy ones to
    four standard errors; first moments are of the mean amplitude."""
    amplitudes = 1 + 0.3 * np.sqrt(3) * np.linspace(-1, 1, 300)
    std = amplitudes.std()
    # One view, so that amplitudes cannot go with views by chance.
    angles = {"angles": np.zeros((300, 3))}
    options = {"n": 300, "dtype": np.float64, "noise": 0} | angles
    varying = simulation(13, amplitudes=amplitudes, **options)
    expected = estimate(simulation(13, **options), basis, noise=Noise(variance=0))
    for known in (std, None):
        moments = estimate(
            varying,
            basis,
            noise=Noise(variance=0),
            corrections=CorrectionOptions(amplitude_std=known),
        )
        assert max(expected.relative_error(moments)) < 2e-3
        assert "amplitudes vary by 30" in str(moments.corrections)
    left = estimate(varying, basis, noise=Noise(variance=0))
    assert expected.relative_error(left)[1] == pytest.approx(
        std**2 / (1 + std**2), rel=0.05
    )


def test_amplitudes_cannot_be_seen_in_sums_that_noise_hides(caplog):
    source = array_source(noise_images(50, 9))
    with caplog.at_level(logging.WARNING, "aspire_mom.moments.amplitudes"):
        moments = estimate(
            source, "polar", corrections=CorrectionOptions(amplitude_std=None)
        )
    assert "Cannot estimate the amplitude variance" in caplog.text
    assert str(moments.corrections).endswith("amplitudes of unknown spread")
    assert (moments.second == estimate(source, "polar").second).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"source": np.zeros((5, 9, 9))}, TypeError, "source is a ndarray"),
        ({"source": array_source(np.ones((0, 9, 9)))}, ValueError, "has 0 images"),
        ({"basis": 9}, TypeError, "basis is a int, not a Basis"),
        ({"basis": PolarBasis(10)}, ValueError, "9 pixels along an edge, the basis 10"),
        (
            {"corrections": CorrectionOptions(shift_std=3)},
            ValueError,
            r"shift_std is 3\.0; it must be a number, 0 or more and 2\.25 at most",
        ),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    arguments = {"source": array_source(noise_images(5, 9)), "basis": PolarBasis(9)}
    arguments |= change
    with pytest.raises(error, match=message):
        MomentEstimator(**arguments)


@pytest.mark.parametrize(
    ("options", "change", "error", "message"),
    [
        (Noise, {"variance": -1}, ValueError, "noise variance is -1; .* 0 or more"),
        (Noise, {"variance": np.nan}, ValueError, "noise variance is nan"),
        (Noise, {"variance": "white"}, ValueError, "noise variance is 'white'; it"),
        (Noise, {"spectrum": 1.0}, ValueError, r"spectrum is 1\.0; an ASPIRE Filter"),
        (Noise, {"spectrum": "rings"}, ValueError, "spectrum is 'rings'; an ASPIRE"),
        (
            Noise,
            {"spectrum": IdentityFilter(), "variance": 1},
            ValueError,
            "both variance and spectrum of the noise",
        ),
        (
            CorrectionOptions,
            {"shift_std": -1},
            ValueError,
            "shift_std is -1; it must be a number, 0 or more",
        ),
        (CorrectionOptions, {"shift_std": np.nan}, ValueError, "shift_std is nan"),
        (CorrectionOptions, {"shift_std": "auto"}, ValueError, "shift_std is 'auto'"),
        (
            CorrectionOptions,
            {"amplitude_std": 3},
            ValueError,
            "amplitude_std is 3; .* 0 or more and 1 at most",
        ),
        (StreamingOptions, {"batch_size": 0}, ValueError, "batch_size is 0; it must"),
        (StreamingOptions, {"batch_size": 2.5}, ValueError, r"batch_size is 2\.5; it"),
    ],
)
def test_wrong_options_are_named(options, change, error, message):
    with pytest.raises(error, match=message):
        options(**change)


def test_third_moments_are_estimated_with_the_others():
    """The same as those of the coefficients of all images at once."""
    source, basis = simulation(16, n=90), PolarBasis(16)
    kept = ThirdMomentBasis.rings(basis, 5)
    moments = estimate(
        source,
        "polar",
        noise=Noise(variance=1e-3),
        third=kept,
        streaming=StreamingOptions(batch_size=40),
    )
    c = basis.coefficients(source.images[:].asnumpy())
    noise = 1e-3 * basis.noise_second()
    third, error = kept.finish(kept.sums(c), 90, noise)
    assert largest_difference(moments.third, third) < 1e-5
    assert largest_difference(moments.third_error, error) < 1e-3
    assert moments.third_basis == kept


def test_third_moments_are_estimated_by_default():
    source = simulation(12, n=4)
    for basis in (PolarBasis(12), PolarBasis(12, n_rings=1), PolarBasis(12, 3, 0)):
        kept = ThirdMomentBasis.rings(basis)
        assert MomentEstimator(source, basis).third == kept
        assert MomentEstimator(source, basis).estimate().third.shape == (kept.size,)
        assert MomentEstimator(source, basis, third=None).third is None
    for basis in (CartesianBasis(12), PolarBasis(12, inplane_average=False)):
        assert MomentEstimator(source, basis).third is None
    with pytest.raises(ValueError, match="third is 'all'"):
        MomentEstimator(source, PolarBasis(12), third="all")


@pytest.mark.parametrize("astigmatism", [0, 500])
def test_third_moments_seen_through_ctfs(astigmatism):
    """Those without a CTF, to what the CTFs spread beyond the box."""
    basis = PolarBasis(24)
    kept = ThirdMomentBasis.rings(basis, 5)
    options = {"n": 40, "noise": 0, "dtype": np.float64}
    filters = [
        CTFFilter(defocus_u=d, defocus_v=d - astigmatism, defocus_ang=d)
        for d in (5e3, 7e3, 9e3)
    ]
    # Every image behind every CTF.
    angles = Rotation.generate_random_rotations(14, seed=0, dtype=np.float64).angles
    clean = simulation(24, angles=angles, **options | {"n": 14})
    seen = simulation(
        24,
        angles=np.repeat(angles, 3, 0),
        unique_filters=filters,
        **options | {"n": 42},
    )
    seen.filter_indices = np.arange(42) % 3
    expected = estimate(clean, "polar", noise=Noise(variance=0), third=kept)
    moments = estimate(seen, "polar", noise=Noise(variance=0), third=kept)
    difference = np.linalg.norm(kept.weights * (moments.third - expected.third))
    assert difference < 0.04 * np.linalg.norm(kept.weights * expected.third)


@pytest.mark.parametrize(("astigmatism", "least"), [(500, 0.002), (2000, 0.01)])
def test_third_moments_take_astigmatic_ctfs_as_radial(astigmatism, least):
    """Error from what astigmatic CTFs of 5.6 Å pixels carry from order to order."""
    L, n, n_ctfs = 63, 20, 10
    basis = PolarBasis(L)
    kept, none = ThirdMomentBasis.rings(basis), np.zeros(basis.second_shape)
    clean = simulation(L, n=n, noise=0).images[:].asnumpy()
    expected, _ = kept.finish(kept.sums(basis.coefficients(clean)), n, none)
    # Every image behind every CTF.
    clean = np.repeat(clean, n_ctfs, axis=0)
    source = ArrayImageSource(clean, pixel_size=5.6)
    source.unique_filters = [
        CTFFilter(defocus_u=d, defocus_v=d - astigmatism, defocus_ang=d)
        for d in np.linspace(8e3, 30e3, n_ctfs)
    ]
    source.filter_indices = np.arange(n * n_ctfs) % n_ctfs
    H = TransferFunctions(source, basis).of_images(np.arange(n * n_ctfs))
    seen = basis.coefficients(clean, H**2)
    third, _ = kept.finish(kept.sums(seen, radial_part(H)), n * n_ctfs, none)
    error = weighted_norm(third - expected, kept.weights)
    assert error < least * weighted_norm(expected, kept.weights)


def test_third_moments_with_ctfs_merge(tmp_path):
    """Halves to the whole; with images without a CTF, in proportion to information."""
    filters = [RadialCTFFilter(voltage=300, defocus=d) for d in (5e3, 7e3, 9e3)]
    source = simulation(16, n=60, unique_filters=filters)
    estimator = MomentEstimator(source, PolarBasis(16))
    whole, *halves = estimator.estimate_with_halves()
    halves[0].save(tmp_path / "half.npz")
    merged = Moments.load(tmp_path / "half.npz").merge(halves[1])
    for name in ("third", "third_error", "third_information"):
        value, expected = getattr(merged, name), getattr(whole, name)
        assert largest_difference(value, expected) < 1e-10, name
    plain = estimate(simulation(16, n=60), "polar")
    mixed = whole.merge(plain)
    assert whole.third_basis.ring_indices[1][2] == 3
    of_first = whole.third_information[3, 4, 5]
    weights = np.array([of_first, 60]) / (of_first + 60)
    found, *parts = (
        whole.third_basis.block(moments.third, 1, 2)[2, 3, 4]
        for moments in (mixed, whole, plain)
    )
    assert found == pytest.approx(weights @ parts)
    lacking = dataclasses.replace(whole, third_information=None)
    with pytest.raises(ValueError, match="with CTFs lack their third_information"):
        lacking.merge(plain)


def test_third_moments_that_cannot_be():
    basis = PolarBasis(16)
    source = simulation(16, n=20, unique_filters=[RadialCTFFilter(defocus=1e4)])
    pilot = estimate(simulation(16, n=200), "polar")
    compressed = ThirdMomentBasis.from_moments(pilot)
    with pytest.raises(ValueError, match="CTFs cannot be compressed; pass third=Third"):
        MomentEstimator(source, basis, third=compressed)
    rings = ThirdMomentBasis.rings(basis, 5)
    with pytest.raises(ValueError, match="third moments are in PolarBasis"):
        MomentEstimator(array_source(noise_images(5, 9)), PolarBasis(9), third=rings)
    with pytest.raises(TypeError, match="third is a int, not a ThirdMomentBasis"):
        MomentEstimator(source, basis, third=5)


def test_large_results_are_not_made_on_many_cores_at_once():
    source = array_source(noise_images(2, 64))
    assert MomentEstimator(source, PolarBasis(64))._most_workers > 64
    assert MomentEstimator(source, CartesianBasis(64))._most_workers == 2
