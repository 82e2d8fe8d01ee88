"""Reports on rings, against images whose signal and noise are known."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from aspire.operators import FunctionFilter

from aspire_mom import CartesianBasis, MomentEstimator, Moments, PolarBasis
from aspire_mom.evaluation import plot_moments
from aspire_mom.moments import CorrectionOptions, Noise
from aspire_mom.moments.report import (
    RingReport,
    informative_rings,
    ring_agreement,
    ring_rms,
    second_residual,
)
from tests.moments.sources import (
    VARIANCE,
    array_source,
    largest_difference,
    noise_images,
    simulation,
)
from tests.moments.test_ctf import ctfs

L, N = 17, 3000
FALLING = FunctionFilter(lambda x, y: 1 / (0.3 + x**2 + y**2))
BASES = pytest.mark.parametrize(
    "basis",
    [
        PolarBasis(L),
        CartesianBasis(L),
        PolarBasis(L, n_rings=6, max_order=8, inplane_average=False),
    ],
    ids=["polar", "cartesian", "polar, all angles"],
)


@cache
def clean_images(n):
    return simulation(L, n=n, noise=None).images[:].asnumpy()


def estimate(basis, n=N):
    """Moments of the phantom's images under noise that leaves the centre alone."""
    return MomentEstimator(
        array_source(clean_images(n) + noise_images(n, L, VARIANCE)),
        basis,
        noise=Noise(variance=VARIANCE),
    ).estimate()


@BASES
def test_powers_are_those_of_the_images(basis):
    clean = MomentEstimator(
        array_source(clean_images(N)), basis, noise=Noise(variance=0)
    ).estimate()
    moments = estimate(basis)
    report = RingReport.of(moments)
    truth = ring_rms(clean)[: len(report.signal)] ** 2
    assert len(report.signal) == basis.n_rings
    assert np.abs((report.signal - truth) / report.error).max() < 4
    np.testing.assert_array_equal(report.signal_to_error, report.signal / report.error)
    np.testing.assert_allclose(report.angstrom[1:], L * 2 / np.arange(1, len(truth)))
    # White noise has the same power at all frequencies, L² σ² in a pixel.
    if isinstance(basis, CartesianBasis):
        np.testing.assert_allclose(report.noise, L**2 * VARIANCE)
    elif basis.inplane_average:
        np.testing.assert_allclose(report.noise, L**2 * VARIANCE, rtol=0.05)


@BASES
def test_residual_of_the_clean_images_is_noise(basis):
    """About 1 on all orders and rings, and more on a ring that is wrong."""
    moments = estimate(basis)
    clean = MomentEstimator(
        array_source(clean_images(N)), basis, noise=Noise(variance=0)
    ).estimate()
    found = second_residual(clean, moments)
    assert found.shape == (basis.max_order + 1, basis.n_rings)
    # Errors hold the spread of the clean images, too.
    supported = found > 0
    assert 0.4 < found[supported].mean() < 1.1
    assert found.max() < 4
    wrong = clean.second.copy()
    wrong[..., basis.rings == 3] *= 10
    worse = second_residual(replace(clean, second=wrong), moments)
    assert worse[0, 3] > 3 * found[0, 3]
    inner = basis.cut(n_rings=3)
    cut = second_residual(replace(clean, second=wrong), moments, inner)
    assert cut.shape == (inner.max_order + 1, inner.n_rings)
    assert (cut[0, 3:].max(initial=0) > 3 * found[0, 3]) == (inner.n_rings > 3)


@BASES
def test_errors_are_those_of_noise(basis):
    """Scatter of 40 estimates from noise alone."""
    reports = [
        RingReport.of(
            MomentEstimator(
                array_source(noise_images(200, L, seed=seed)),
                basis,
                noise=Noise(variance=1),
            ).estimate()
        )
        for seed in range(40)
    ]
    scatter = np.std([report.signal for report in reports], axis=0)
    expected = np.mean([report.error for report in reports], axis=0)
    ratio = expected / scatter
    assert (np.abs(np.log(ratio)) < np.log(1.6)).all(), ratio
    assert np.mean([r.reduced_chi2 for r in reports]) == pytest.approx(1, abs=0.1)
    assert np.mean([r.supported for r in reports]) < 0.05


@pytest.mark.parametrize("astigmatism", [0, 1500])
@pytest.mark.parametrize("noise", ["corners", FALLING, None], ids=str)
@pytest.mark.parametrize("basis", [PolarBasis, CartesianBasis])
def test_power_of_the_noise_that_was_removed(basis, noise, astigmatism):
    """
    What the signal has more if none is removed, behind CTFs; of the union of unequal
    parts too, and where amplitudes vary.
    """
    source = array_source(noise_images(60, 16) + 0.1)
    source.unique_filters = ctfs(astigmatism, n=4)
    source.filter_indices = np.arange(60) % 4
    basis = basis(16)

    def estimated(source, std=0.0, **options):
        # Small parts would not be looked at, the whole would.
        corrections = CorrectionOptions(amplitude_std=std, unchecked=True)
        return MomentEstimator(
            source, basis, corrections=corrections, **options
        ).estimate()

    raw = RingReport.of(estimated(source, noise=Noise(variance=0)))
    assert not raw.noise.any()
    moments = estimated(source, noise=Noise(spectrum=noise))
    report = RingReport.of(moments)
    lost = raw.signal - report.signal
    np.testing.assert_allclose(report.noise, lost, rtol=1e-9, atol=1e-9 * lost.max())
    assert np.isrealobj(report.noise)
    assert report.summary()["noise_power"] == list(report.noise)
    varying = estimated(source, std=0.5, noise=Noise(spectrum=noise))
    np.testing.assert_allclose(RingReport.of(varying).noise, report.noise / 1.25)
    if noise == "corners":
        return  # of each part its own
    options = {"noise": Noise(spectrum=noise) if noise else Noise(variance=1)}
    whole = estimated(source, **options)
    few, others = (estimated(source[i], **options) for i in (range(13), range(13, 60)))
    for merged in (few.merge(others), others.merge(few)):
        assert largest_difference(merged.noise_power, whole.noise_power) < 1e-9
    assert few.merge(replace(others, noise_power=None)).noise_power is None


@BASES
def test_noise_without_ctfs_merges(basis):
    images = noise_images(50, L)
    few, others, whole = (
        MomentEstimator(array_source(x), basis, noise=Noise(variance=2)).estimate()
        for x in (images[:20], images[20:], images)
    )
    merged = few.merge(replace(others, noise_power=4 * others.noise_power))
    assert largest_difference(merged.noise_power, 2.8 * whole.noise_power) < 1e-12
    white = basis.ring_power(basis.diagonal_power(basis.noise_second()))
    white = white[: len(RingReport.of(whole).noise)]
    np.testing.assert_allclose(RingReport.of(whole).noise, 2 * white)


def test_files_that_do_not_tell_the_noise(tmp_path):
    """As those from before powers were kept: the column is left out."""
    path = tmp_path / "m.npz"
    moments = estimate(PolarBasis(L), 200)
    moments.save(path)
    assert "noise" in RingReport.of(Moments.load(path)).table().splitlines()[1].split()
    replace(moments, noise_power=None).save(path, overwrite=True)
    report = RingReport.of(Moments.load(path))
    assert "noise" not in report.table().splitlines()[1].split()
    assert report.summary()["noise_power"] is None
    plot_moments(report.moments, report)


@BASES
def test_last_ring_has_signal(basis):
    """It moves out with more images, and is what the inversion goes by."""
    few, many = (RingReport.of(estimate(basis, n)) for n in (100, N))
    assert 0 < few.last_ring <= many.last_ring
    assert f"ring {many.last_ring}, {many.angstrom[many.last_ring]:.1f} Å" in (
        many.verdict()
    )
    if isinstance(basis, PolarBasis) and basis.inplane_average:
        expected = min(many.last_ring + 3, basis.n_rings)
        assert informative_rings(many.moments) == expected


@BASES
def test_halves_agree_where_there_is_signal(basis):
    whole = clean_images(2 * N)
    halves = [
        MomentEstimator(
            array_source(whole[i::2] + noise_images(N, L, VARIANCE, seed=i)),
            basis,
            noise=Noise(variance=VARIANCE),
        ).estimate()
        for i in (0, 1)
    ]
    curve = ring_agreement(*halves)
    assert curve[:2].min() > 0.98
    noise = [
        MomentEstimator(
            array_source(noise_images(N, L, seed=i)), basis, noise=Noise(variance=1)
        ).estimate()
        for i in (0, 1)
    ]
    assert np.abs(ring_agreement(*noise)).max() < 0.5
    np.testing.assert_allclose(ring_agreement(halves[0], halves[0]), 1)
    report = RingReport.of(halves[0].merge(halves[1]), halves)
    np.testing.assert_array_equal(report.agreement, curve[: len(report.signal)])
    assert "halves" in report.table().splitlines()[1]


def test_exact_moments_and_no_pixel_size():
    basis = PolarBasis(8)
    second = np.zeros(basis.second_shape, complex)
    second[0, :3, :3] = 1
    moments = Moments(np.ones(basis.first_shape, complex), second, basis)
    report = RingReport.of(moments)
    assert report.last_ring == 2
    assert report.signal_to_error is None
    assert report.angstrom is None
    assert "exact moments of 8 x 8 pixels, PolarBasis" in report.table()
    assert "up to ring 2" in report.verdict()
    assert report.summary()["signal_error"] is None
    nothing = RingReport.of(replace(moments, second=0 * second))
    assert nothing.last_ring is None
    assert "no signal" in nothing.verdict()


@BASES
def test_effective_images(basis):
    """How many images without a CTF moments are worth."""
    plain = estimate(basis, 50)
    assert RingReport.of(plain).effective is None
    n = basis.n_frequencies
    weights = np.diag(np.linspace(1000, 10, n)) + 0.5
    report = RingReport.of(
        replace(
            plain,
            first_information=np.sqrt(weights.diagonal()),
            second_information=weights[None],
        )
    )
    assert len(report.effective) == len(report.signal)
    assert report.effective.max() < 1000.6
    assert report.summary()["effective_images"] == list(report.effective)
    assert "images" in report.table().splitlines()[1].split()


def test_few_images_cannot_tell():
    report = RingReport.of(estimate(PolarBasis(L), 5))
    assert report.verdict() == (
        "5 images are too few (at least 100 are needed) to tell which rings have"
        " significant signal"
    )


def test_halves_must_be_of_one_basis():
    with pytest.raises(ValueError, match="different bases"):
        ring_agreement(estimate(PolarBasis(L), 5), estimate(PolarBasis(L, 3), 5))
