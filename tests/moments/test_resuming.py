"""An estimator's checkpoint: it goes on from there, with the same images alone."""

import os

import numpy as np
import pytest
from aspire.operators import CTFFilter, ScalarFilter
from aspire.source import RelionSource

from aspire_mom.bases import PolarBasis
from aspire_mom.moments import (
    CorrectionOptions,
    MomentEstimator,
    Noise,
    StreamingOptions,
    ThirdMomentBasis,
)
from tests.moments.sources import array_source, noise_images, simulation
from tests.moments.streams import Killed


def estimate(source, path, **options):
    streaming = StreamingOptions(checkpoint=path, checkpoint_seconds=0, batch_size=16)
    estimator = MomentEstimator(
        source, PolarBasis(source.L), streaming=streaming, **options
    )
    return estimator.estimate()


def test_estimates_resume(tmp_path):
    source = simulation(12, n=60)
    expected = estimate(source, None)
    path = tmp_path / "sums"
    killed = simulation(12, n=60)
    read = killed._images

    def until_killed(indices):
        if len(indices) == 12:
            raise Killed
        return read(indices)

    killed._img_accessor.fun = until_killed
    with pytest.raises(Killed):
        estimate(killed, path)
    assert path.exists()
    read_again = []
    killed._img_accessor.fun = lambda i: read_again.append(len(i)) or read(i)
    found = estimate(killed, path)
    assert read_again == [32, 28, 16, 12]  # a sample first
    for name in ("first", "second", "first_error", "second_error"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.fixture
def stacks(tmp_path):
    """A STAR file of 30 images in three stacks, and a finished checkpoint of it."""
    star = tmp_path / "particles.star"
    simulation(12, n=30).save(star, batch_size=10)
    estimate(RelionSource(star), tmp_path / "sums")
    return star


def test_stacks_that_changed_are_noticed(stacks):
    star, path = stacks, stacks.with_name("sums")
    estimate(RelionSource(star), path)
    stack = sorted(star.parent.glob("*.mrcs"))[1]
    data, times = stack.read_bytes(), (stack.stat().st_atime, stack.stat().st_mtime)
    stack.write_bytes(data)
    with pytest.raises(ValueError, match=r"other data or settings \(stacks: 3, "):
        estimate(RelionSource(star), path)
    os.utime(stack, times)
    lines = star.read_text().splitlines()
    rows = [i for i, line in enumerate(lines) if "@" in line]
    lines[rows[3]], lines[rows[4]] = lines[rows[4]], lines[rows[3]]
    star.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"\((images_in_stacks|pixels): "):
        estimate(RelionSource(star), path)
    star.write_text("\n".join(lines[:-5]) + "\n")
    with pytest.raises(ValueError, match=r"\(images: 30 then, 25 now\)"):
        estimate(RelionSource(star), path)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda s: s[:20], "images"),
        (lambda s: s.downsample(8), "basis"),
        (lambda s: s.normalize_background(), "pixels"),
        (lambda s: s.whiten(), "pixels"),
    ],
)
def test_sources_that_changed_are_noticed(tmp_path, change, name):
    source = simulation(12, n=30)
    estimate(source, tmp_path / "sums")
    estimate(simulation(12, n=30), tmp_path / "sums")
    with pytest.raises(ValueError, match=rf"other data or settings \({name}: "):
        estimate(change(source), tmp_path / "sums")


def test_sums_serve_what_they_do_not_depend_on(tmp_path):
    """Other shifts to be modelled, amplitudes and noise; not another way of reading."""
    offsets = np.random.default_rng(0).standard_normal((30, 2))
    source = simulation(12, n=30, offsets=offsets, unique_filters=[CTFFilter()])
    path = tmp_path / "sums"
    estimate(source, path)
    read_again = []
    read = source._images
    source._img_accessor.fun = lambda i: read_again.append(len(i)) or read(i)
    for serves in (
        {"corrections": CorrectionOptions(shift_std=1.5)},
        {"corrections": CorrectionOptions(shift_std=None)},
        {"corrections": CorrectionOptions(amplitude_std=0.2)},
        {"noise": Noise(variance=0.1)},
        {"noise": Noise(spectrum=ScalarFilter(dim=2, value=0.1))},
    ):
        found = estimate(source, path, **serves)
        wanted = serves.get("corrections", CorrectionOptions())
        assert found.shift_std == wanted.shift_std
    # The few that are looked at, and never the rest.
    assert set(read_again) == {16, 30}
    for other, name in (
        ({"corrections": CorrectionOptions(ignore_shifts=True)}, "shifts undone"),
        ({"corrections": CorrectionOptions(ignore_ctf=True)}, "CTFs corrected"),
        ({"corrections": CorrectionOptions(phase_flipped=True)}, "phases flipped"),
        ({"noise": Noise(spectrum="corners")}, "spectrum of corners"),
        ({"third": ThirdMomentBasis.rings(PolarBasis(12), 2)}, "third"),
        ({"third": None}, "third"),
    ):
        with pytest.raises(ValueError, match=rf"data or settings \({name}: "):
            estimate(source, path, **other)


def test_arrays_that_changed_are_noticed(tmp_path):
    images = noise_images(30, 12)
    estimate(array_source(images), tmp_path / "sums")
    estimate(array_source(images.copy()), tmp_path / "sums")
    images[-1, 3, 3] += 1
    with pytest.raises(ValueError, match="pixels: "):
        estimate(array_source(images), tmp_path / "sums")
