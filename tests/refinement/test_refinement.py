from dataclasses import replace

import numpy as np
import pytest
from aspire.noise import WhiteNoiseAdder
from aspire.operators import RadialCTFFilter
from aspire.source import Simulation
from aspire.volume import Volume

from aspire_mom import (
    CorrectionOptions,
    Reconstruction,
    Refinement,
    SO3Quadrature,
    SphericalDesign,
    VonMisesFisherMixture,
    compare,
)
from aspire_mom.phantoms import chain_phantom
from aspire_mom.refinement.refinement import State
from aspire_mom.volumes.grid import low_pass

L = 25


@pytest.fixture(scope="module")
def truth():
    return chain_phantom(L, seed=3, pixel_size=4.0)


def images_of(volume, n=600, snr=1.0, **options):
    rotations = VonMisesFisherMixture.random(seed=1).sample(n, seed=2)
    options = {"offsets": 0, "amplitudes": 1, **options}
    return Simulation(
        vols=volume,
        n=n,
        angles=rotations.angles.astype(np.float32),
        noise_adder=WhiteNoiseAdder.from_snr(snr),
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
    return Refinement(images_of(truth), start, checkpoint=path).estimate(), path


def view_errors(model, comparison, source):
    """Angles in degrees between true and found viewing directions."""
    found = comparison.align_views(model.rotations.matrices[:, :, 2])
    true = source.rotations.matrices[:, :, 2]
    return np.degrees(np.arccos(np.clip(np.abs((found * true).sum(1)), -1, 1)))


def test_resolution_and_poses(truth, refined):
    model, _ = refined
    comparison = compare(model.volume, truth)
    assert comparison.resolution_shells(0.5) > 8
    assert comparison.resolution_shells(0.5) > 1.5 * compare(
        low_pass(truth, 25.0), truth
    ).resolution_shells(0.5)
    assert np.median(view_errors(model, comparison, images_of(truth))) < 8
    assert abs(model.density.sum() - 1) < 1e-9
    assert model.volume.pixel_size == 4.0
    assert len(model.rotations.matrices) == len(model.offsets) == 600


def test_projections_have_the_images_poses(truth, refined):
    model, _ = refined
    projections = model.volume.project(model.rotations).asnumpy()
    clean = images_of(truth).projections[:].asnumpy()
    own = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(projections, clean)]
    assert np.median(own) > 0.9


def test_another_run_goes_on_where_one_stopped(truth, refined, monkeypatch, tmp_path):
    model, _ = refined
    source, start = images_of(truth), start_from(low_pass(truth, 25.0))
    path = tmp_path / "checkpoint.pt"
    first = Refinement(source, start, checkpoint=path, n_iterations=2).estimate()
    assert len(first.history) == 2
    again = Refinement(source, start, checkpoint=path).estimate()
    np.testing.assert_array_equal(again.volume.asnumpy(), model.volume.asnumpy())
    np.testing.assert_array_equal(again.offsets, model.offsets)


def test_the_start_that_suits_the_images_is_chosen(truth):
    good, bad = (
        low_pass(truth, 25.0),
        low_pass(chain_phantom(L, seed=9, pixel_size=4.0), 25.0),
    )
    stack = Volume(np.concatenate((bad.asnumpy(), good.asnumpy())), pixel_size=4.0)
    start = replace(start_from(bad), start_volumes=stack)
    found = Refinement(images_of(truth, 300), start, n_iterations=4).estimate()
    assert compare(found.volume, truth).resolution_shells(0.5) > 6


def test_ctfs_and_shifts(truth):
    rng = np.random.default_rng(5)
    filters = [RadialCTFFilter(defocus=d) for d in np.linspace(1.0e4, 2.0e4, 4)]
    offsets = rng.normal(scale=1.0, size=(600, 2))
    source = images_of(truth, snr=2.0, unique_filters=filters, offsets=offsets)
    start = start_from(low_pass(truth, 25.0), shift_std=1.0)
    corrections = CorrectionOptions(ignore_shifts=True)
    model = Refinement(source, start, corrections=corrections).estimate()
    assert compare(model.volume, truth).resolution_shells(0.5) > 6
    # Shifts along a common direction move the volume in place of the images.
    assert np.median(np.linalg.norm(model.offsets - offsets, axis=1)) < 0.8


def test_dark_molecules(truth):
    dark = Volume(-truth.asnumpy(), pixel_size=4.0)
    start = start_from(low_pass(truth, 25.0), inverted=True)
    model = Refinement(images_of(dark, 300), start, n_iterations=4).estimate()
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
    history = [{"shells": s} for s in (3.0, 5.0, 6.0, 6.05, 6.0, 6.02)]
    refinement = Refinement.__new__(Refinement)
    refinement.n_iterations = 25
    assert not refinement._finished(history[:5])
    assert refinement._finished(history)
    assert "halves" in State.__annotations__
