"""CTFs undone by least squares: for groups and images, astigmatic, phases flipped."""

import numpy as np
import pytest
from aspire.noise import AnisotropicNoiseEstimator, WhiteNoiseAdder
from aspire.numeric import fft
from aspire.operators import CTFFilter, IdentityFilter, RadialCTFFilter, ScalarFilter
from aspire.source import ArrayImageSource, Simulation
from aspire.utils import Rotation
from scipy.spatial.transform import Rotation as Turn

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.moments import CorrectionOptions, MomentEstimator, Noise
from aspire_mom.moments.ctf import TransferFunctions
from aspire_mom.phantoms import gaussian_phantom
from tests.moments.sources import largest_difference
from tests.references import ctf as reference

PIXEL_SIZE = 4.0
N_GROUPS = 5
POLAR = {"polar": PolarBasis, "cartesian": CartesianBasis}


def ctfs(astigmatism=0.0, n=N_GROUPS):
    return [
        CTFFilter(
            voltage=300,
            defocus_u=d + astigmatism,
            defocus_v=d - astigmatism,
            defocus_ang=0.3 + i,
            Cs=2.7,
            alpha=0.1,
        )
        for i, d in enumerate(np.linspace(0.8e4, 1.6e4, n))
    ]


def simulation(L, filters, *, n_views=2, n_turns=24, dtype=np.float64, noise=0):
    """Images of a few views, each turned in plane by evenly spaced angles, so that
    in-plane averages are exact; CTF i is that of every i-th image."""
    views = Turn.random(n_views, random_state=L).as_matrix()
    # Turns differ from group to group, so that no turn is a matter of the CTF.
    angles = 2 * np.pi * np.arange(n_turns * N_GROUPS) / (n_turns * N_GROUPS)
    turns = Turn.from_euler("z", angles[:, None]).as_matrix()
    rotations = Rotation((views[:, None] @ turns).reshape(-1, 3, 3))
    source = Simulation(
        vols=gaussian_phantom(L, pixel_size=PIXEL_SIZE).astype(dtype),
        n=len(rotations),
        angles=rotations.angles.astype(dtype),
        offsets=0,
        amplitudes=1,
        unique_filters=filters,
        noise_adder=WhiteNoiseAdder(noise, seed=L) if noise else None,
    )
    if filters:
        source.filter_indices = np.arange(source.n) % len(filters)
    return source


def estimate(source, basis=PolarBasis, **options):
    options = {"noise": Noise(variance=0)} | options
    return MomentEstimator(source, basis(source.L), **options).estimate()


@pytest.mark.parametrize("L", [24, 25])
@pytest.mark.parametrize(("astigmatism", "close"), [(0, 2e-3), (2000, 4e-3)])
@pytest.mark.parametrize(
    "prepare",
    [
        lambda s: s,
        lambda s: s.phase_flip(),
        lambda s: s.downsample(16),
        lambda s: s.phase_flip().downsample(16),
        lambda s: s[np.arange(s.n)[::-1]],
    ],
    ids=["plain", "flipped", "downsampled", "both", "selected"],
)
def test_moments_are_those_without_ctf(L, astigmatism, close, prepare):
    """To what the CTF spreads beyond the box: psf and object must fit in it."""
    clean = estimate(prepare(simulation(L, None)))
    moments = estimate(prepare(simulation(L, ctfs(astigmatism))))
    errors = clean.relative_error(moments)
    # Phases flipped on pixels leave kinks that downsampling cuts through.
    assert max(errors) < (5 * close if moments.basis.L == 16 else close)
    # What ignoring the CTF would give.
    ignored = estimate(
        prepare(simulation(L, ctfs(astigmatism))),
        corrections=CorrectionOptions(ignore_ctf=True),
    )
    assert min(clean.relative_error(ignored)) > 0.3


def test_astigmatism_matters():
    """Undone as if it were none, it leaves ten times the error."""
    clean = estimate(simulation(25, None))
    source = simulation(25, ctfs(2500))
    right = estimate(source)
    source.unique_filters = ctfs(0)
    wrong = estimate(source)
    assert clean.relative_error(wrong)[1] > 10 * clean.relative_error(right)[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("L", [24, 25])
def test_radial_ctfs_as_the_normal_equations_have_it(L, dtype):
    """Entry by entry, image by image, with ASPIRE's own values of the CTF."""
    source = simulation(L, ctfs(), n_views=2, n_turns=2, dtype=dtype, noise=1e-3)
    basis = PolarBasis(L, n_rings=7, max_order=9)
    moments = MomentEstimator(source, basis, noise=Noise(variance=1e-3)).estimate()
    first, second, effective = reference.normal_equations(
        source.images[:].asnumpy(),
        [reference.ring_ctf(source, i, basis) for i in range(source.n)],
        1e-3,
        basis,
    )
    close = 1e-5 if dtype == np.float32 else 1e-10
    assert largest_difference(moments.first, first) < close
    assert largest_difference(moments.second, second) < close
    assert largest_difference(moments.effective_images, effective) < 1e-10


@pytest.mark.parametrize("astigmatism", [0, 500])
def test_cartesian_moments_are_exact(astigmatism):
    """ASPIRE's filters act on Fourier pixels, so each pair of pixels is exact where
    every group has the same images."""
    source = simulation(13, None, n_views=2, n_turns=1)
    filters = ctfs(astigmatism)
    images = np.repeat(source.images[:2].asnumpy(), N_GROUPS, axis=0)
    clean = ArrayImageSource(images, pixel_size=PIXEL_SIZE)
    seen = np.concatenate(
        [
            clean.images[i].filter(filters[i % N_GROUPS]).asnumpy()
            for i in range(len(images))
        ]
    )
    blurred = ArrayImageSource(seen, pixel_size=PIXEL_SIZE)
    blurred.unique_filters = filters
    blurred.filter_indices = np.arange(len(images)) % N_GROUPS
    expected = estimate(clean, CartesianBasis)
    moments = estimate(blurred, CartesianBasis)
    assert largest_difference(moments.first, expected.first) < 1e-10
    assert largest_difference(moments.second, expected.second) < 1e-10


@pytest.mark.parametrize("multiplied", [False, True])
@pytest.mark.parametrize("astigmatism", [0, 300, 1000])
def test_noise_is_removed_whatever_the_ctf(astigmatism, multiplied):
    """
    Pure noise seen through CTFs has a second moment of zero: within 4.5 standard errors
    in all of some 700 entries (|z|² is exponential: the chance of more is 1e-6), 1 in
    the root mean square. Orders beyond those of an object within the disc are left out,
    where noise falls so steeply that what astigmatism mixes in exceeds it.
    """
    L = 16
    images = np.random.default_rng(0).standard_normal((3000, L, L))
    source = ArrayImageSource(images, pixel_size=PIXEL_SIZE)
    source.unique_filters = ctfs(astigmatism)
    source.filter_indices = np.arange(source.n) % N_GROUPS
    if multiplied:
        source = premultiplied(source)
    moments = estimate(source, noise=Noise(variance=None if multiplied else 1))
    order = np.arange(moments.basis.max_order + 1)[:, None, None]
    reach = np.pi * np.minimum.outer(*(np.arange(moments.basis.n_rings),) * 2)
    within = order <= reach
    z = np.abs(moments.second[within]) / moments.second_error[within]
    assert z.max() < 4.5
    # Noise that was multiplied is correlated: fewer entries are independent.
    scatter = 0.25 if multiplied else 0.1
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1, abs=scatter)


@pytest.mark.parametrize("basis", POLAR.values())
def test_merged_halves_are_the_whole(basis):
    source = simulation(13, ctfs(600), noise=1e-3)
    whole = estimate(source, basis, noise=Noise(variance=1e-3))
    merged = estimate(source[:101], basis, noise=Noise(variance=1e-3)).merge(
        estimate(source[101:], basis, noise=Noise(variance=1e-3))
    )
    for name in ("first", "second", "first_information", "second_information"):
        assert largest_difference(getattr(merged, name), getattr(whole, name)) < 1e-9
    ratio = (
        merged.second_error[whole.second_error > 0]
        / whole.second_error.clip(1e-99)[whole.second_error > 0]
    )
    assert np.median(ratio) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("sign", [1, -1])
def test_halves_of_one_pass(sign):
    """Halves are of one size, of one contrast, and merge to the whole."""
    source = simulation(13, ctfs(600))
    images = ArrayImageSource(sign * source.images[:].asnumpy(), pixel_size=PIXEL_SIZE)
    images.unique_filters = source.unique_filters
    images.filter_indices = source.filter_indices
    estimator = MomentEstimator(images, PolarBasis(13), noise=Noise(variance=0))
    whole, *halves = estimator.estimate_with_halves()
    assert [half.n_images for half in halves] == [120, 120]
    expected = estimate(images)
    for moments in (whole, halves[0].merge(halves[1])):
        assert largest_difference(moments.first, expected.first) < 1e-9
        assert largest_difference(moments.second, expected.second) < 1e-9
    assert ("contrast inverted" in str(whole.corrections)) == (sign < 0)
    assert {str(half.corrections) for half in halves} == {str(whole.corrections)}
    with pytest.raises(ValueError, match=r"3 image\(s\); two halves need 4"):
        MomentEstimator(images[:3], PolarBasis(13)).estimate_with_halves()


def test_images_with_and_without_ctf_merge():
    part = simulation(13, ctfs(600))
    both = estimate(part).merge(estimate(simulation(13, None)))
    assert both.n_images == 2 * part.n
    clean = estimate(simulation(13, None))
    assert max(clean.relative_error(both)) < 0.02


def test_moments_with_weights_are_saved_and_loaded(tmp_path):
    moments = estimate(simulation(13, ctfs(600)))
    moments.save(tmp_path / "m.npz")
    loaded = type(moments).load(tmp_path / "m.npz")
    assert (loaded.second_information == moments.second_information).all()
    assert (loaded.first_information == moments.first_information).all()
    assert str(loaded.corrections) == str(moments.corrections)
    assert "5 astigmatic" in str(loaded.corrections)


def ring_frequencies(transfer):
    """Radians per pixel, of rings at evenly spaced angles on their upper halves."""
    basis, n = transfer.basis, transfer.n_angles
    angles = np.pi * np.arange(n) / n
    radii = 2 * np.pi / basis.L * np.arange(basis.n_rings)
    waves = np.stack((np.cos(angles), np.sin(angles)))
    return (radii[:, None] * waves[:, None]).reshape(2, -1)


def test_hundreds_of_ctfs_at_once_are_those_one_by_one():
    filters = ctfs(300, n=200)
    source = simulation(24, filters)
    transfer = TransferFunctions(source, PolarBasis(24))
    values = transfer.of_images(np.arange(source.n))
    omega = ring_frequencies(transfer)
    for i in (0, 3, 117):
        expected = filters[i].evaluate(omega, pixel_size=PIXEL_SIZE)
        assert np.allclose(values[i].ravel(), expected, atol=1e-12)


def test_whitened_images_are_those_whose_filters_say_so():
    source = simulation(16, ctfs(), noise=1e-3)
    whitened = source.whiten(AnisotropicNoiseEstimator(source))
    moments = estimate(whitened, noise=Noise(variance=1))
    plain = estimate(source, noise=Noise(variance=1e-3))
    # The anisotropic estimator's window smears its spectrum.
    assert max(plain.relative_error(moments)) < 0.3


def test_flat_filters_are_none():
    source = simulation(16, [ScalarFilter(value=2), IdentityFilter()])
    moments = estimate(source)
    assert moments.second_information is None
    assert str(moments.corrections).startswith("no CTF")
    assert (moments.effective_images == source.n).all()


def test_astigmatism_needs_an_average_in_plane():
    source = simulation(16, ctfs(600))
    basis = PolarBasis(16, inplane_average=False)
    with pytest.raises(ValueError, match="astigmatic CTFs.*inplane_average=True"):
        MomentEstimator(source, basis)
    source = simulation(16, [RadialCTFFilter(defocus=1e4)])
    assert MomentEstimator(source, basis, noise=Noise(variance=0)).estimate().n_images


@pytest.mark.parametrize("last", [CTFFilter(B=20, defocus_u=8e3), IdentityFilter()])
def test_different_envelopes_and_filters(last):
    filters = [CTFFilter(B=0, defocus_u=9e3), CTFFilter(alpha=-0.3, voltage=100), last]
    source = simulation(16, filters)
    transfer = TransferFunctions(source, PolarBasis(16))
    values = transfer.of_images(np.arange(3))
    omega = ring_frequencies(transfer)
    for value, image_filter in zip(values, filters, strict=True):
        expected = image_filter.evaluate(omega, pixel_size=PIXEL_SIZE)
        assert np.allclose(value.ravel(), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["defocus_u", "Cs"])
def test_filters_that_are_no_numbers_are_named(name):
    source = simulation(16, [CTFFilter(), CTFFilter(**{name: np.nan})])
    with pytest.raises(ValueError, match=f"CTF 1 of the source has {name} = nan"):
        MomentEstimator(source, PolarBasis(16))


NOTHING = dict.fromkeys(("defocus_u", "defocus_v", "Cs", "alpha"), 0.0)


@pytest.mark.parametrize("nothing", [ScalarFilter(value=0), CTFFilter(**NOTHING)])
def test_images_that_nothing_reached_are_refused(nothing):
    source = simulation(16, [CTFFilter(), nothing])
    unchecked = CorrectionOptions(unchecked=True)  # half of the images are 0
    with pytest.raises(ValueError, match="filter 1 of the source is zero"):
        MomentEstimator(source, PolarBasis(16), corrections=unchecked).estimate()
    ignored = CorrectionOptions(unchecked=True, ignore_ctf=True)
    MomentEstimator(source, PolarBasis(16), corrections=ignored).estimate()


def test_phases_flipped_out_of_sight(caplog):
    """ASPIRE flips wrong signs after a cached downsampling, and forgets flips."""
    source = simulation(24, ctfs())
    late = source.downsample(16).cache().phase_flip()
    with pytest.raises(ValueError, match="flip them before downsampling"):
        MomentEstimator(late, PolarBasis(16))
    hidden = source.phase_flip().cache().downsample(16)
    with caplog.at_level("WARNING", "aspire_mom.moments.ctf"):
        MomentEstimator(hidden, PolarBasis(16))
    assert "pass CorrectionOptions(phase_flipped=True)" in caplog.text
    moments = estimate(hidden, corrections=CorrectionOptions(phase_flipped=True))
    clean = estimate(simulation(24, None).downsample(16))
    assert max(clean.relative_error(moments)) < 0.01


@pytest.mark.parametrize("basis", POLAR.values())
@pytest.mark.parametrize("sign", [1, -1])
def test_molecules_come_out_bright(basis, sign):
    """Whatever the sign of the CTF: RELION's is minus ASPIRE's."""
    source = simulation(17, ctfs(200))
    images = ArrayImageSource(sign * source.images[:].asnumpy(), pixel_size=PIXEL_SIZE)
    images.unique_filters = source.unique_filters
    images.filter_indices = source.filter_indices
    moments = estimate(images, basis)
    assert max(estimate(simulation(17, None), basis).relative_error(moments)) < 0.02
    assert ("contrast inverted" in str(moments.corrections)) == (sign < 0)


def premultiplied(source):
    """The source's images, multiplied once more by their CTFs."""
    H = TransferFunctions(source, CartesianBasis(source.L)).of_images(range(source.n))
    images = source.images[:].asnumpy()
    seen = fft.centered_ifft2(H * fft.centered_fft2(images)).real
    found = ArrayImageSource(seen.astype(images.dtype), pixel_size=PIXEL_SIZE)
    found.unique_filters = source.unique_filters
    found.filter_indices = source.filter_indices
    found.set_metadata("_rlnCtfDataAreCtfPremultiplied", 1.0)
    return found


@pytest.mark.parametrize(("L", "astigmatism"), [(12, 0), (13, 0), (13, 500)])
def test_premultiplied_images_have_the_same_moments(L, astigmatism):
    """To rounding on Fourier pixels, errors included, where the noise is known."""
    source = simulation(L, ctfs(astigmatism), n_views=1, n_turns=2, noise=1e-3)
    basis = CartesianBasis(L)
    expected = MomentEstimator(source, basis, noise=Noise(variance=1e-3)).estimate()
    values = [f.evaluate_grid(L, pixel_size=PIXEL_SIZE) for f in source.unique_filters]
    noise = Noise(variance=1e-3 * np.mean(np.square(values)))
    moments = MomentEstimator(premultiplied(source), basis, noise=noise).estimate()
    for name in ("first", "first_error", "second", "second_error"):
        own, same = getattr(moments, name), getattr(expected, name)
        assert largest_difference(own, same) < 1e-6


@pytest.mark.parametrize("astigmatism", [0, 500])
def test_premultiplied_images_have_the_same_polar_moments(astigmatism):
    """To what the CTF spreads beyond the box; all three moments."""
    source = simulation(24, ctfs(astigmatism))
    expected, moments = (
        MomentEstimator(s, PolarBasis(24), noise=Noise(variance=0)).estimate()
        for s in (source, premultiplied(source))
    )
    assert "premultiplied" in str(moments.corrections)
    assert max(moments.relative_error(expected)) < 0.03
    difference = np.linalg.norm(moments.third - expected.third)
    assert difference < 0.03 * np.linalg.norm(expected.third)


def test_premultiplied_in_part_or_flipped():
    source = premultiplied(simulation(8, ctfs(), n_views=1, n_turns=1))
    with pytest.raises(ValueError, match="multiplied by their CTF and phase-flipped"):
        estimate(source, corrections=CorrectionOptions(phase_flipped=True))
    source.set_metadata("_rlnCtfDataAreCtfPremultiplied", [0, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="4 of 5 images were multiplied by their CTF"):
        estimate(source)
    source.set_metadata("_rlnCtfDataArePhaseFlipped", [0, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="4 of 5 images were phase-flipped"):
        MomentEstimator(source, PolarBasis(8))
    MomentEstimator(
        source, PolarBasis(8), corrections=CorrectionOptions(ignore_ctf=True)
    )
