from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from aspire.operators import RadialCTFFilter
from aspire.source import ArrayImageSource
from aspire.utils import Rotation
from aspire.volume import CnSymmetricVolume, Volume

from aspire_mom import (
    CorrectionOptions,
    MomentEstimator,
    Reconstruction,
    Refinement,
    SO3Quadrature,
    SphericalDesign,
    VonMisesFisherMixture,
    compare,
)
from aspire_mom.bases import PolarBasis
from aspire_mom.moments.report import ring_power
from aspire_mom.phantoms import chain_phantom
from aspire_mom.refinement.fourier import noise_variance, resized
from aspire_mom.refinement.images import PolarImages
from aspire_mom.refinement.iteration import settled
from aspire_mom.refinement.model import LEAST_LOG_LIKELIHOOD
from aspire_mom.rotations import viewing_rotations
from aspire_mom.simulation import FastSimulation, WhiteNoise
from aspire_mom.volumes.grid import low_pass

L = 25
SHORT = {"n_rings": 10, "n_iterations": 6}


@pytest.fixture(scope="module")
def truth():
    return chain_phantom(L, seed=3, pixel_size=4.0)


def images_of(volume, n=300, snr=1.0, **options):
    rotations = VonMisesFisherMixture.random(seed=1).sample(n, seed=2)
    options = {"offsets": 0, "amplitudes": 1, **options}
    return FastSimulation(
        vols=volume,
        n=n,
        angles=rotations.angles.astype(np.float32),
        noise_adder=WhiteNoise.from_snr(snr),
        seed=4,
        **options,
    )


def start_from(volume, shift_std=0.0, **settings):
    quadrature = SO3Quadrature.product(SphericalDesign(13), 1)
    density = np.full(len(quadrature), 1 / len(quadrature))
    settings = {"n_rings": 6, **settings}
    found = Reconstruction(volume, density, quadrature, [], [], settings, 0)
    return replace(found, shift_std=shift_std)


@pytest.fixture(scope="module")
def refined(truth, tmp_path_factory):
    path = tmp_path_factory.mktemp("refined") / "checkpoint.pt"
    start = start_from(low_pass(truth, 25.0))
    refinement = Refinement(images_of(truth), start, checkpoint=path, **SHORT)
    return refinement.estimate(), path


def pose_errors(model, source):
    """Angles in degrees between true and found rotations."""
    between = np.einsum("nji,njk->nik", model.rotations.matrices, source.rotations)
    cosines = (np.trace(between, axis1=1, axis2=2) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def test_resolution(truth, refined):
    model, _ = refined
    start = compare(low_pass(truth, 25.0), truth)
    found = compare(model.volume, truth)
    assert found.resolution_shells(0.5) > 1.5 * start.resolution_shells(0.5)
    assert abs(model.density.sum() - 1) < 1e-9
    own = model.history[-1]["log_likelihood"]
    assert 1 < model.held_out_log_likelihood < own
    assert model.volume.pixel_size == 4.0
    assert len(model.rotations.matrices) == len(model.offsets) == 300


def test_poses_of_clean_images(truth):
    source = images_of(truth, 100, snr=100)
    refinement = Refinement(source, start_from(truth, n_rings=10), n_rings=10)
    iterations = refinement._iterations()
    state = refinement._start(iterations, truth.asnumpy()[0])
    noise = source.noise_adder.noise_var * L**2
    state = replace(state, noises=np.full_like(state.noises, noise))
    models, sums, poses = iterations.sums(replace(state, n_images=100))
    views = models[0].views.finest[poses[:, 0].astype(int)]
    matrices = viewing_rotations(views, poses[:, 1])
    model = SimpleNamespace(rotations=Rotation(matrices))
    # The spacing of views is 4°, that of in-plane angles 7°.
    assert np.median(pose_errors(model, source)) < 4
    # Rings beyond 5 have noise, and little error from the spacing.
    found = iterations.noise(models[0], sums[0])[6:] / noise
    np.testing.assert_allclose(found, 1, atol=0.8)


def test_projections_have_the_images_poses(truth, refined):
    model, _ = refined
    rotations = Rotation(model.rotations.matrices.astype(np.float32))
    projections = model.volume.project(rotations).asnumpy()
    clean = images_of(truth).projections[:].asnumpy()
    own, others = (
        [
            np.corrcoef(a.ravel(), b.ravel())[0, 1]
            for a, b in zip(projections, images, strict=True)
        ]
        for images in (clean, np.roll(clean, 1, axis=0))
    )
    assert np.median(own) > 0.9
    assert np.median(own) > 1 - 0.5 * (1 - np.median(others))


def test_another_run_goes_on_where_one_stopped(truth, refined, tmp_path):
    model, _ = refined
    source, start = images_of(truth), start_from(low_pass(truth, 25.0))
    path = tmp_path / "checkpoint.pt"
    options = SHORT | {"checkpoint": path}
    first = Refinement(source, start, **options | {"n_iterations": 2}).estimate()
    assert len(first.history) == 2
    again = Refinement(source, start, **options).estimate()
    # Several threads of finufft add in any order.
    expected = model.volume.asnumpy()
    scale = abs(expected).max()
    np.testing.assert_allclose(again.volume.asnumpy(), expected, atol=0.02 * scale)
    np.testing.assert_array_equal(again.offsets, model.offsets)


def test_the_volume_is_smoothed_and_half_volumes_are_not(truth, monkeypatch):
    seen = []

    def filtered(u, noise):
        seen.append(noise)
        return 0 * u

    monkeypatch.setattr("aspire_mom.refinement.refinement.locally_filtered", filtered)
    start = start_from(low_pass(truth, 25.0))
    model = Refinement(
        images_of(truth, 100), start, n_rings=6, n_iterations=1
    ).estimate()
    assert not model.volume.asnumpy().any()
    halves = model.half_volumes.asnumpy()
    n = 2 * len(model.fsc) + 5
    small = np.stack([resized(u, n) for u in halves])
    # The sum of two has half of the noise of each.
    assert seen == [pytest.approx(noise_variance(small) / 2, rel=0.01)]


def test_noise_alone_supports_no_model(truth):
    """Whatever the start, which the halves may well agree on."""
    clean = images_of(truth)
    nothing = Volume(1e-6 * truth.asnumpy(), pixel_size=4.0)
    source = images_of(nothing, snr=1e-12)
    assert np.std(source.images[:9].asnumpy()) > 0.5 * clean.images[:9].asnumpy().std()
    start = start_from(low_pass(truth, 25.0))
    model = Refinement(source, start, **SHORT).estimate()
    assert model.held_out_log_likelihood < LEAST_LOG_LIKELIHOOD
    assert "support no model" in model.verdict()


@pytest.mark.parametrize("mixed", [False, True])
def test_two_molecules_are_not_taken_for_one(truth, mixed):
    """A model of two explains less than the images' signal."""
    shown = truth
    if mixed:
        both = truth.asnumpy(), chain_phantom(L, seed=8, pixel_size=4.0).asnumpy()
        shown = Volume(np.concatenate(both), pixel_size=4.0)
    source = images_of(shown, 600, snr=1.0)
    moments = MomentEstimator(source, PolarBasis(L)).estimate()
    start = replace(start_from(low_pass(truth, 25.0)), signal_power=ring_power(moments))
    model = Refinement(source, start, **SHORT).estimate()
    assert model.failed() == mixed
    assert ("several molecules" in model.verdict()) == mixed


def test_ctfs_and_shifts(truth):
    rng = np.random.default_rng(5)
    filters = [RadialCTFFilter(defocus=d) for d in np.linspace(1.0e4, 2.0e4, 4)]
    offsets = rng.normal(scale=0.6, size=(200, 2))
    options = {"unique_filters": filters, "offsets": offsets}
    source = images_of(truth, 200, 2.0, **options)
    start = start_from(low_pass(truth, 25.0), shift_std=0.6)
    corrections = CorrectionOptions(ignore_shifts=True)
    options = {"corrections": corrections, "n_rings": 10, "n_iterations": 3}
    model = Refinement(source, start, **options).estimate()
    assert compare(model.volume, truth).resolution_shells(0.5) > 6
    # Without shifts the error would be 0.7 pixels in the median.
    assert np.median(np.linalg.norm(model.offsets - offsets, axis=1)) < 0.5


def test_symmetry_of_the_start_is_imposed():
    symmetric = CnSymmetricVolume(L, 1, 4, K=4, seed=1).generate()
    truth = Volume(symmetric.asnumpy().astype(np.float32), pixel_size=4.0)
    source, start = images_of(truth, n=200, snr=0.1), low_pass(truth, 25.0)
    found = start_from(start, symmetry="C4")
    model = Refinement(source, found, **SHORT).estimate()
    voxels = model.volume.asnumpy()[0]
    turned = np.rot90(voxels, axes=(1, 2))
    np.testing.assert_allclose(voxels, turned, atol=0.01 * abs(voxels).max())
    assert model.settings["symmetry"] == "C4"
    assert compare(model.volume, truth).correlation > 0.95


def test_dark_molecules(truth):
    dark = Volume(-truth.asnumpy(), pixel_size=4.0)
    start = start_from(low_pass(truth, 25.0), inverted=True)
    model = Refinement(images_of(dark, 200), start, n_iterations=2).estimate()
    assert compare(model.volume, truth).resolution_shells(0.5) > 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_rings": 3}, "n_rings is 3"),
        ({"n_iterations": 0}, "n_iterations is 0"),
        ({"device": "tpu"}, "device is tpu"),
    ],
)
def test_options_out_of_range_are_named(truth, change, message):
    with pytest.raises(ValueError, match=message):
        Refinement(images_of(truth, 10), start_from(truth), **change)


def test_images_of_another_size_are_refused(truth):
    with pytest.raises(ValueError, match="the images have 25 pixels .* the volume 31"):
        Refinement(images_of(truth, 10), start_from(chain_phantom(31)))
    with pytest.raises(ValueError, match="the source has 3 images"):
        Refinement(images_of(truth, 3), start_from(truth))


def test_refinements_end_without_progress():
    """Once neither the halves' agreement nor the likelihood grows, of all images."""
    shells, likelihoods = (3.0, 5.0, 6.0, 6.05, 6.0), (60.0, 70.0, 72.0, 72.5, 72.5)
    history = [
        {"shells": s, "log_likelihood": x, "n_images": 10}
        for s, x in zip(shells, likelihoods, strict=True)
    ]
    assert settled(history)
    assert not settled(history[:4])
    assert not settled([*history[:4], history[4] | {"log_likelihood": 73.0}])
    assert not settled([*history[:4], history[4] | {"shells": 6.2}])
    assert not settled([*history, history[-1] | {"n_images": 20}])


def test_premultiplied_images_say_the_same(truth):
    """Nearly: on rings of a cut image, CTFs are those of the rings beside, too."""
    filters = [RadialCTFFilter(defocus=d) for d in np.linspace(1.0e4, 2.0e4, 4)]
    source = images_of(truth, 200, 2.0, unique_filters=filters)
    seen = [
        image.filter(filters[i]).asnumpy()[0]
        for image, i in zip(source.images[:], source.filter_indices, strict=True)
    ]
    multiplied = ArrayImageSource(np.stack(seen), pixel_size=4.0)
    multiplied.unique_filters = filters
    multiplied.filter_indices = source.filter_indices
    options = {"n_rings": 9, "n_iterations": 2}
    start = start_from(low_pass(truth, 25.0))
    expected = Refinement(source, start, **options).estimate()
    corrections = CorrectionOptions(premultiplied=True)
    found = Refinement(multiplied, start, corrections=corrections, **options).estimate()
    assert compare(found.volume, truth).resolution_shells(0.5) > 6
    assert compare(found.volume, expected.volume).correlation > 0.95


def test_checkpoints_know_whether_phases_were_flipped(truth, tmp_path):
    filters = [RadialCTFFilter(defocus=1.0e4)]
    source = images_of(truth, 20, unique_filters=filters)
    start = start_from(low_pass(truth, 25.0))
    options = {"n_rings": 5, "n_iterations": 1, "checkpoint": tmp_path / "c.pt"}
    Refinement(source, start, **options).estimate()
    source.set_metadata("_rlnCtfDataArePhaseFlipped", 1)
    with pytest.raises(ValueError, match="phase_flipped"):
        Refinement(source, start, **options).estimate()


def polar_images(images):
    source = ArrayImageSource(images, pixel_size=4.0)
    return PolarImages(source, PolarBasis(L, 6), CorrectionOptions(), inverted=False)


def test_images_are_prepared_as_for_their_moments(truth):
    """Outliers tell nothing, backgrounds are subtracted."""
    images = images_of(truth, n=60, snr=0.1).images[:].asnumpy().copy()
    expected, _, _ = polar_images(images).batch(0, 60)
    images[[4, 40]] *= 1000
    parts = polar_images(images).batch(0, 60)
    assert not any(part[[4, 40]].any() for part in parts)
    others = np.delete(np.arange(60), [4, 40])
    np.testing.assert_array_equal(parts[0][others], expected[others])
    shifted, _, _ = polar_images(images + 10).batch(0, 60)
    change = (shifted - parts[0]).abs()[others][:, :, 2:]
    assert change.max() < 0.1 * expected[:, :, 2:].abs().max()


def test_any_scale_is_like_any_other(truth):
    images = images_of(truth, n=60).images[:].asnumpy()
    start = start_from(low_pass(truth, 25.0))
    found = [
        Refinement(
            ArrayImageSource(images * scale, pixel_size=4.0),
            replace(start, volume=start.volume * scale),
            n_rings=6,
            n_iterations=1,
        ).estimate()
        for scale in (np.float32(1), np.float32(2.0**-40))
    ]
    volume, small = (model.volume.asnumpy() for model in found)
    np.testing.assert_allclose(small * 2.0**40, volume, 1e-3, 1e-4 * volume.max())
    np.testing.assert_allclose(found[1].noise * 2.0**80, found[0].noise, 1e-4)
