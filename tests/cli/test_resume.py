"""`aspire-mom moments --resume` takes an output for complete only if it answers the
same request: of the same images, selected and corrected in the same way."""

import re

import pytest

from aspire_mom.moments import Moments
from tests.cli.conftest import IMAGES, PIXEL_SIZE, run, succeed


@pytest.fixture
def finished(star, tmp_path):
    """A command of a finished pass with halves, and its output."""
    out = tmp_path / "m.npz"
    command = ("moments", star, "-o", out, "--first", 100, "--halves", "--resume")
    succeed(*command)
    return command, out


def assert_complete(command):
    before = {path: path.stat().st_mtime_ns for path in _outputs(command)}
    assert "is already complete" in succeed(*command).stdout
    assert {path: path.stat().st_mtime_ns for path in _outputs(command)} == before


def assert_stale(command, name):
    """One sentence names what differs, nothing is written, and --overwrite helps."""
    before = {path: path.stat().st_mtime_ns for path in _outputs(command)}
    refused = run(*command)
    assert refused.exit_code == 2
    assert (
        "moments were estimated with other settings or from other images"
        in refused.stderr
    )
    assert name in refused.stderr
    assert "pass --overwrite to replace" in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in _outputs(command)} == before
    succeed(*command, "--overwrite")
    assert_complete(command)


def _outputs(command):
    return sorted(command[3].parent.glob("*.npz"))


def with_columns(star, name, **columns):
    """A STAR file of the same images, with these columns."""
    images = re.findall(r"\S+@\S+", star.read_text())
    columns = {"ImageName": images, "ImagePixelSize": [PIXEL_SIZE] * IMAGES, **columns}
    rows = [" ".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path = star.with_name(name)
    heads = [f"_rln{column}" for column in columns]
    path.write_text("\n".join(["data_particles", "loop_", *heads, *rows, ""]))
    return path


def test_outputs_of_the_same_settings_are_complete(finished):
    command, out = finished
    assert_complete(command)
    # Neither the batch size of the whole nor what the pass finds counts.
    for flags in (["--noise", "coloured"], ["--amplitude-std", "auto"]):
        single = ("moments", command[1], "-o", out.with_name(f"{flags[0]}.npz"))
        single = (*single, *flags, "--resume")
        succeed(*single)
        assert_complete(single)
        assert_complete((*single, "--batch-size", 50))


def test_another_file_with_as_many_images(finished, volume, tmp_path):
    command, _ = finished
    other = tmp_path / "others" / "particles.star"
    other.parent.mkdir()
    simulate = ("simulate", volume, "--images", IMAGES, "--snr", 1, "-o", other)
    succeed(*simulate, "--seed", 1)
    assert_stale((command[0], other, *command[2:]), "pixels is ")


@pytest.mark.parametrize("other", [0.2, "auto"])
def test_another_amplitude(finished, other):
    command, _ = finished
    assert_stale((*command, "--amplitude-std", other), "amplitude_std_given is 0.0")


def test_another_selection_of_as_many_images(star, tmp_path):
    subsets = [1, 2] * (IMAGES // 2)
    halves = with_columns(star, "subsets.star", RandomSubset=subsets)
    out = tmp_path / "m.npz"
    command = ("moments", halves, "-o", out, "--resume", "--random-subset")
    succeed(*command, 1)
    assert Moments.load(out).n_images == IMAGES // 2
    assert_complete((*command, 1))
    assert_stale((*command, 2), "pixels is ")


def test_fewer_images(finished):
    command, _ = finished
    assert_stale((*command, "--first", 90), "n_images is 100, not 90")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--shift-std", 2], "shift_std is 0.0, not 2.0"),
        (["--shift-std", "auto"], "shift_std is 0.0, not None"),
        (["--noise", "coloured"], "noise is white, not corners"),
        (["--no-third"], "third moments: ThirdMomentBasis of 56 numbers"),
        (["--basis", "cartesian"], "the basis is PolarBasis"),
        (["--downsample", 8], "the basis is PolarBasis"),
    ],
)
def test_other_corrections(finished, flags, name):
    command, _ = finished
    assert_stale((*command, *flags), name)


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--ignore-ctf", "ctf is corrected, not ignored"),
        ("--ignore-shifts", "shifts is centred, not ignored"),
    ],
)
def test_ctfs_and_shifts_that_are_ignored(star, tmp_path, flag, name):
    optics = {"Voltage": 300, "SphericalAberration": 2.7, "AmplitudeContrast": 0.1}
    defocus = {"DefocusU": 12_000, "DefocusV": 12_000, "DefocusAngle": 0}
    origin = {"OriginXAngst": 1.0, "OriginYAngst": -2.0}
    columns = {k: [v] * IMAGES for k, v in (optics | defocus | origin).items()}
    star = with_columns(star, "ctfs.star", **columns)
    out = tmp_path / "m.npz"
    command = ("moments", star, "-o", out, "--first", 50, "--resume")
    succeed(*command)
    assert_complete(command)
    assert_stale((*command, flag), name)


def test_other_halves(finished):
    """Other batches are other halves, and one stale half is enough."""
    command, out = finished
    assert_stale((*command, "--batch-size", 10), "half_batch is 50, not 10")
    half = out.with_stem("m_half2")
    half.write_bytes(out.with_stem("m_half1").read_bytes())
    refused = run(*command, "--batch-size", 10)
    assert "half is 1, not 2" in refused.stderr
    assert str(half) in refused.stderr


def test_one_output_of_other_settings_is_not_replaced(finished):
    """A run that was killed between the files goes on; others' files stay."""
    command, out = finished
    half = out.with_stem("m_half2")
    half.unlink()
    before = out.read_bytes()
    refused = run(*command, "--shift-std", 1)
    assert "shift_std is 0.0, not 1.0" in refused.stderr
    assert out.read_bytes() == before
    assert not half.exists()
    assert "in " in succeed(*command).stdout
    assert half.is_file()
    assert_complete(command)


def test_an_output_that_cannot_be_read(finished):
    command, out = finished
    out.write_bytes(out.read_bytes()[:-10])
    refused = run(*command)
    assert refused.exit_code == 2
    assert "pass --overwrite to replace" in refused.stderr
    succeed(*command, "--overwrite")
    assert_complete(command)
