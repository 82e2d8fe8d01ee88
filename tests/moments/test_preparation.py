"""Images that were not normalised, wild ones, and unusual scales."""

import numpy as np
import pytest
from aspire.operators import RadialCTFFilter
from aspire.source import ArrayImageSource

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.moments import (
    CorrectionOptions,
    MomentEstimator,
    Noise,
    StreamingOptions,
)
from aspire_mom.moments.preparation import warn_of_outliers
from tests.moments.sources import (
    COLOURED,
    array_source,
    coloured_source,
    noise_images,
    simulation,
)

BASES = {
    "cartesian": CartesianBasis,
    "polar": PolarBasis,
    "general": lambda L: PolarBasis(L, max_order=7, inplane_average=False),
}
ARRAYS = ("first", "second", "third", "first_error", "second_error", "third_error")
N, L = 593, 13
UNCHECKED = CorrectionOptions(unchecked=True)


def estimator(source, basis="polar", **options):
    options = {"streaming": StreamingOptions(batch_size=16)} | options
    return MomentEstimator(source, BASES[basis](source.L), **options)


def particles(n=N, L=L, dtype=np.float32):
    """A lopsided blob, turned, in noise of variance 1."""
    rng = np.random.default_rng(L)
    x = np.arange(L) - L // 2
    angles = (
        rng.uniform(0, 2 * np.pi, (2, n, 1, 1))
        * np.array([1, 0.1])[:, None, None, None]
    )
    centre = 0.15 * L * np.array([np.cos(angles[0]), np.sin(angles[0])])
    squares = (x - centre[0]) ** 2 + (x[:, None] - centre[1]) ** 2
    blobs = np.exp(-squares / (0.02 * L**2)) * (1 + angles[1])
    return (blobs + noise_images(n, L, seed=L)).astype(dtype)


def source_of(images, rows=None, *, ctf):
    """One CTF for each image, whichever are chosen."""
    rows = np.arange(len(images)) if rows is None else rows
    source = ArrayImageSource(images[rows], pixel_size=5.0)
    if ctf:
        source.unique_filters = [
            RadialCTFFilter(defocus=8e3 + 25 * i) for i in range(len(images))
        ]
        source.filter_indices = rows
    return source


def times_thousand(image):
    return 1000 * image


def with_a_hot_pixel(image):
    image[2, 3] = 60
    return image


def off(image):
    return image + 4


def empty(image):
    return 0 * image


@pytest.mark.parametrize("ctf", [False, True])
@pytest.mark.parametrize("fault", [times_thousand, with_a_hot_pixel, off, empty])
def test_outliers_are_left_out(fault, ctf, caplog):
    """As if they were not there: all sums agree. A batch may have no other image."""
    images = particles()
    bad = [3, 100, 101, N - 1]
    for i in bad:
        images[i] = fault(images[i].copy())
    options = {"noise": Noise(spectrum="corners")}
    found = estimator(source_of(images, ctf=ctf), **options).estimate()
    assert found.n_images == N - len(bad)
    assert found.corrections.left_out == len(bad)
    assert "4 outlier(s) left out" in str(found.corrections)
    assert f"4 of {N} images are outliers, left out (image 4: its" in caplog.text
    others = np.delete(np.arange(N), bad)
    options["corrections"] = UNCHECKED
    expected = estimator(source_of(images, others, ctf=ctf), **options).estimate()
    for name in (*ARRAYS, "second_information", "noise_power"):
        value, wanted = getattr(found, name), getattr(expected, name)
        if wanted is not None:
            np.testing.assert_allclose(value, wanted, 1e-3, 2e-5 * np.abs(wanted).max())


def test_halves_leave_out_their_own():
    images = particles()
    images[[0, 20]] *= 1000  # batches 0 and 1
    images[40] *= 1000
    whole, *halves = estimator(source_of(images, ctf=True)).estimate_with_halves()
    assert [m.corrections.left_out for m in (whole, *halves)] == [3, 2, 1]
    merged = halves[0].merge(halves[1])
    assert merged.n_images == whole.n_images == N - 3
    assert merged.corrections.left_out == 3
    np.testing.assert_allclose(merged.second, whole.second, 1e-6, 1e-9)


def test_too_many_outliers():
    images = particles()
    images[1::4] *= 1000
    with pytest.raises(ValueError, match=r"of 256 images differ .* \(10 % at most\)"):
        estimator(source_of(images, ctf=False)).estimate()
    images = particles()
    sampled = np.linspace(0, N - 1, 256).astype(int)
    images[np.setdiff1d(np.arange(N), sampled)[:40]] *= 1000
    source = source_of(images, ctf=False)
    with pytest.raises(ValueError, match=r"40 of 593 images differ .* unchecked=True"):
        estimator(source).estimate()
    found = estimator(source, corrections=UNCHECKED).estimate()
    assert found.n_images == N
    assert "images unchecked" in str(found.corrections)


@pytest.mark.parametrize("offset", [0.3, 3, "varying"])
def test_backgrounds_are_subtracted(offset, caplog):
    """What remains is noise: moments are within their errors of the sound ones."""
    images = particles()
    sound = estimator(source_of(images, ctf=False)).estimate()
    assert caplog.text.count("WARNING") == 0
    if offset == "varying":
        offset = 5 + np.random.default_rng(0).normal(0, 1, (N, 1, 1))
    shifted = (images + offset).astype(np.float32)
    found = estimator(source_of(shifted, ctf=False)).estimate()
    assert "normalize_background or RELION's relion_preprocess --norm" in caplog.text
    assert "background of each image subtracted" in str(found.corrections)
    assert found.noise_variance == pytest.approx(sound.noise_variance, rel=0.01)
    for name in ("first", "second", "third"):
        error = getattr(found, f"{name}_error")
        known = error > 1e-3 * error.max()
        z = np.abs(getattr(found, name) - getattr(sound, name))[known] / error[known]
        assert z.max() < 4, name
    kept = estimator(source_of(shifted, ctf=False), corrections=UNCHECKED).estimate()
    assert abs(kept.first[0]) > 2 * abs(found.first[0])


@pytest.mark.parametrize("L", [8, 9])
@pytest.mark.parametrize(
    ("basis", "noise"),
    [*((basis, "white") for basis in BASES), ("polar", "coloured")],
)
def test_noise_less_its_mean_is_removed(L, basis, noise):
    """Subtracting a mean changes the noise's second moment: of pure noise only scatter
    is left. The diagonal on the inner rings has most of the change."""
    n = 1000
    if noise == "white":
        images, spectrum = noise_images(n, L, seed=7), None
    else:
        images, spectrum = coloured_source(n, L).images[:].asnumpy(), COLOURED
    found = estimator(
        array_source(images + 5),
        basis,
        noise=Noise(spectrum=spectrum),
        third=None,
    ).estimate()
    assert found.corrections.background_subtracted
    left = found.basis.diagonal_power(found.second)
    error = found.basis.diagonal_power(found.second_error)
    inner = (found.basis.rings <= 2) & (error > 1e-3 * error.max())
    assert np.abs(left[inner] / error[inner]).max() < 4.5
    # It matters: without it the mean pixel would have twice its noise or more.
    change = estimator(array_source(images), basis, third=None).estimate().noise_power
    centre = found.basis.rings == 0
    assert (found.noise_power[0, centre] > 2 * change[0, centre]).all()


@pytest.mark.parametrize(
    "source",
    [
        lambda: simulation(12, n=60, noise=0),
        lambda: simulation(13, n=60, amplitudes=None),
        lambda: simulation(16, n=60).downsample(12),
        lambda: simulation(32, n=60, unique_filters=[RadialCTFFilter()]),
        lambda: coloured_source(100, 12),
        lambda: array_source(noise_images(100, 9)),
        lambda: array_source(np.ones((60, 9, 9))),
        lambda: array_source(np.zeros((60, 9, 9))),
    ],
)
def test_sound_images_are_left_alone(source):
    """Bitwise, apart from constant ones, of which all is background."""
    source = source()
    found, expected = (
        estimator(source, corrections=corrections).estimate()
        for corrections in (CorrectionOptions(), UNCHECKED)
    )
    constant = np.ptp(source.images[:].asnumpy()) == 0
    assert found.corrections.left_out == 0
    if constant:
        assert not found.second.any()
        return
    assert not found.corrections.background_subtracted
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exponent", [-60, -40, 27, 50])
def test_any_scale_is_like_any_other(dtype, exponent):
    """To the last bit for powers of two: 1e-18, 1e-12, 1e8, 1e15."""
    images = particles(n=80, dtype=dtype)
    images[7] *= 1000
    expected = estimator(source_of(images, ctf=True)).estimate()
    scaled = np.ldexp(images, exponent)
    found = estimator(source_of(scaled, ctf=True)).estimate()
    assert found.n_images == 79
    powers = {"first": 1, "second": 2, "third": 3}
    powers |= {f"{name}_error": power for name, power in powers.items()}
    for name, power in {**powers, "noise_power": 2}.items():
        wanted = np.ldexp(1.0, power * exponent) * getattr(expected, name)
        np.testing.assert_array_equal(getattr(found, name), wanted)
    assert found.noise_variance == np.ldexp(expected.noise_variance, 2 * exponent)


def test_uneven_noise_is_mentioned(caplog):
    spread = np.random.default_rng(0).uniform(0.5, 1.5, (N, 1, 1))
    estimator(source_of(particles() * spread, ctf=False)).estimate()
    assert "standard deviation of the images' background varies by" in caplog.text


@pytest.mark.parametrize("ctf", [False, True])
def test_a_batch_of_outliers_has_the_sums_of_others(ctf):
    """Processes exchange them, by name and shape."""
    images = particles()
    images[:16] *= 1000
    of = estimator(source_of(images, ctf=ctf))
    empty, full = (of._batch_sums(of._images(i, i + 16), i) for i in (0, 16))
    assert {k: (v.shape, v.dtype) for k, v in empty.items()} == {
        k: (v.shape, v.dtype) for k, v in full.items()
    }
    assert empty["left_out"] == 16
    assert not any(v.any() for k, v in empty.items() if k != "left_out")


def test_outliers_of_other_processes_have_no_names(caplog):
    warn_of_outliers(source_of(particles(), ctf=False), {}, 3)
    assert "3 of 593 images are outliers, left out" in caplog.text
    assert "(" not in caplog.text.partition("left out")[2]


def test_images_without_noise_are_sound(caplog):
    source = simulation(L, n=300, noise=None)
    estimator(source).estimate()
    assert "background" not in caplog.text
