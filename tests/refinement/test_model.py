"""What a refined model keeps, writes and says; ASPIRE takes its orientations."""

import re
from dataclasses import replace

import numpy as np
import pytest
from aspire.basis import FFBBasis3D
from aspire.reconstruction import MeanEstimator
from aspire.source import OrientedSource, RelionSource, Simulation
from aspire.utils import Rotation
from aspire.volume import Volume

from aspire_mom import MomentOrientation, RefinedModel
from aspire_mom.evaluation import fourier_shell_correlation
from aspire_mom.phantoms import chain_phantom
from aspire_mom.relion import read_particles

L, N, PIXEL_SIZE = 25, 200, 4.0


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    """Clean, shifted images and their STAR file."""
    offsets = np.random.default_rng(0).normal(0, 1.5, (N, 2))
    source = Simulation(
        vols=chain_phantom(L, seed=3, pixel_size=PIXEL_SIZE),
        n=N,
        offsets=offsets,
        amplitudes=1,
        seed=4,
    )
    star = tmp_path_factory.mktemp("particles") / "p.star"
    source.save(star)
    return source, star


def model(source, size=L, **changes):
    """A model with the true poses of simulated images, downsampled to some size."""
    rng = np.random.default_rng(1)
    pixel_size = PIXEL_SIZE * L / size
    voxels = rng.standard_normal((3, size, size, size)).astype(np.float32)
    found = RefinedModel(
        volume=Volume(voxels[0], pixel_size=pixel_size),
        half_volumes=Volume(voxels[1:], pixel_size=pixel_size),
        directions=np.eye(3),
        density=np.array([0.5, 0.25, 0.25]),
        rotations=Rotation(source.rotations.astype(np.float64)),
        offsets=source.offsets * size / L,
        halves=np.arange(source.n) // 30 % 2 + 1,
        fsc=np.array([1, 1, 0.9, 0.7, 0.5, 0.1]),
        noise=np.ones(6),
        history=[{"n_rings": 6, "shells": 4.5}],
        settings={"n_rings": 6},
        held_out_log_likelihood=3.0,
        probabilities=np.linspace(0, 1, source.n),
        signal_share=np.linspace(1, 0.9, 8),
    )
    return replace(found, **changes)


def mean_volume(source):
    basis = FFBBasis3D(L, dtype=np.float32)
    return MeanEstimator(source, basis=basis, checkpoint_iterations=None).estimate()


@pytest.fixture(scope="module")
def mean_of_truth(particles):
    return mean_volume(particles[0])


def test_saved_and_loaded(tmp_path, particles):
    first = model(particles[0])
    first.save(tmp_path / "new" / "folder")
    again = RefinedModel.load(tmp_path / "new" / "folder")
    names = "directions", "density", "offsets", "halves", "fsc", "noise"
    for name in (*names, "probabilities", "signal_share"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    for name in ("volume", "half_volumes"):
        ours, theirs = getattr(again, name), getattr(first, name)
        np.testing.assert_array_equal(ours.asnumpy(), theirs.asnumpy())
        assert ours.pixel_size == pytest.approx(PIXEL_SIZE)
    np.testing.assert_array_equal(again.rotations.matrices, first.rotations.matrices)
    assert (again.history, again.settings) == (first.history, first.settings)
    with pytest.raises(FileExistsError, match="volume.mrc exists"):
        first.save(tmp_path / "new" / "folder")
    first.save(tmp_path / "new" / "folder", overwrite=True)


def test_models_of_earlier_versions_are_read(tmp_path, particles):
    model(particles[0], probabilities=None, signal_share=None).save(tmp_path)
    found = RefinedModel.load(tmp_path)
    assert found.probabilities is None
    assert found.typical_share() is None
    assert found.fsc[2] == 0.9


@pytest.mark.parametrize("name", ["refinement.npz", "refinement.json", "half2.mrc"])
def test_damaged_files_are_refused(tmp_path, particles, name):
    model(particles[0]).save(tmp_path)
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(ValueError, match="cannot be used|is damaged|is not an"):
        RefinedModel.load(tmp_path)


@pytest.mark.parametrize("size", [L, 20])
def test_star_file_has_the_poses(tmp_path, particles, mean_of_truth, size):
    """From images downsampled or not; ASPIRE makes of them what it makes of the true
    poses."""
    source, star = particles
    path = tmp_path / "poses.star"
    model(source, size).save_star(path, read_particles(star))
    found = RelionSource(path)
    np.testing.assert_allclose(found.rotations, source.rotations, atol=1e-5)
    np.testing.assert_allclose(found.offsets, source.offsets, atol=1e-5)
    subsets = found.get_metadata("_rlnRandomSubset")
    assert subsets.tolist() == [i // 30 % 2 + 1 for i in range(N)]
    probabilities = found.get_metadata("_rlnMaxValueProbDistribution")
    np.testing.assert_allclose(probabilities, np.linspace(0, 1, N), atol=1e-6)
    fsc = fourier_shell_correlation(mean_volume(found), mean_of_truth)
    assert fsc[1:10].min() > 0.99
    with pytest.raises(FileExistsError, match="poses.star exists"):
        model(source).save_star(path, read_particles(star))


def test_star_file_of_other_particles(tmp_path, particles):
    few = read_particles(particles[1], first=50)
    with pytest.raises(ValueError, match="200 angles and 50 particles"):
        model(particles[0]).save_star(tmp_path / "poses.star", few)


def test_orientations_for_aspire(particles, mean_of_truth):
    """They replace those that a source had."""
    source, star = particles
    oriented = OrientedSource(RelionSource(star), MomentOrientation(model(source)))
    np.testing.assert_allclose(oriented.rotations, source.rotations, atol=1e-5)
    np.testing.assert_allclose(oriented.offsets, source.offsets, atol=1e-9)
    fsc = fourier_shell_correlation(mean_volume(oriented), mean_of_truth)
    assert fsc[1:10].min() > 0.99


def test_orientation_of_something_else(particles):
    with pytest.raises(TypeError, match="found is a Simulation, not a RefinedModel"):
        MomentOrientation(particles[0])


def test_resolution(particles):
    found = model(particles[0])
    shells = 4 + (0.5 - 0.143) / 0.4
    assert found.resolution_shells() == pytest.approx(shells)
    assert found.resolution_shells(0.5) == pytest.approx(4)
    assert found.resolution() == pytest.approx(L * PIXEL_SIZE / shells)
    bare = replace(found, volume=Volume(found.volume.asnumpy()))
    with pytest.raises(ValueError, match="no pixel size"):
        bare.resolution()
    assert "shells." in bare.verdict()


@pytest.mark.parametrize(
    ("fsc", "start", "words"),
    [
        ([1, 1, 0.9, 0.7, 0.5, 0.1], 4.0, r"agree to 4.9 shells \(20.4 Å\)\.$"),
        ([1, 1, 0.9, 0.7, 0.5, 0.1], None, r"agree to 4.9 shells \(20.4 Å\)\.$"),
        ([1, 1, 0.9, 0.7, 0.5, 0.4], 9.0, "5.0 shells .*, as far as the rings in use"),
        ([1, 1, 0.9, 0.0, 0.0, 0.0], None, "2.8 shells .* only.* support no model"),
        ([1, 1, 0.9, 0.7, 0.5, 0.1], 5.5, "less than the starts.* 5.5.* no model"),
    ],
)
def test_verdict(particles, fsc, start, words):
    found = model(particles[0], fsc=np.array(fsc))
    assert re.search(words, found.verdict(start))
    assert found.failed(start) == ("no model" in words)
    several = replace(
        found, fsc=np.full(6, 0.9), signal_share=np.array([1, 1, 1, 1, 0.7, 0.6])
    )
    assert several.typical_share() == pytest.approx(0.65)
    assert re.search(
        "explains 65% of the images. signal only: .* no model",
        several.verdict(),
    )
    assert several.failed(start)
    unexplained = replace(found, held_out_log_likelihood=0.02)
    assert re.search("better than noise does.* no model", unexplained.verdict(start))
    assert unexplained.failed(start)
