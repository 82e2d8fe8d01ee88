"""Names and files that users give are taken as they are, or refused."""

import os
import shutil
import threading

import pytest

from aspire_mom import Moments
from tests.cli.conftest import IMAGES, run, succeed


def refused(*args):
    result = run(*args)
    assert result.exit_code == 2, result.output
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "name", ["a@b", "my particles", "a\tb", "a\nb", "a#b", "it's", 'a"b', "a\udcffb"]
)
def test_names_that_stacks_cannot_have(tmp_path, volume, name):
    (tmp_path / "a").write_text("precious")
    args = ("--images", 6, "--snr", 1, "-o", tmp_path / f"{name}.star")
    message = refused("simulate", volume, *args)
    assert "cannot be the name" in message
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["é=1,2+3", "x:mrcs", "_loop", "data_x", "$a", "a\\b"])
def test_other_names_are_kept(tmp_path, volume, name):
    folder = tmp_path / "odd @ folder"
    folder.mkdir()
    star = folder / f"{name}.star"
    succeed("simulate", volume, "--images", 6, "--snr", 1, "-o", star)
    names = {path.name for path in folder.iterdir()}
    assert names == {star.name, f"{name}_0_5.mrcs"}
    out = folder / "m @ 1.npz"
    succeed("moments", star, "-o", out)
    assert Moments.load(out).n_images == 6


def test_formats_after_names_of_stacks(tmp_path, star):
    stack = f"particles_0_{IMAGES - 1}"
    shutil.copy(star.with_name(f"{stack}.mrcs"), tmp_path / f"{stack}.mrc")
    text = star.read_text().replace(f"{stack}.mrcs", f"{stack}.mrc:mrcs")
    (tmp_path / "p.star").write_text(text)
    succeed("moments", tmp_path / "p.star", "-o", tmp_path / "m.npz")
    assert Moments.load(tmp_path / "m.npz").n_images == IMAGES


@pytest.fixture
def pipe(tmp_path, star):
    """A pipe in which the particles come."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    threading.Thread(
        target=lambda: path.write_bytes(star.read_bytes()), daemon=True
    ).start()
    return path


def test_particles_from_a_pipe(tmp_path, star, pipe):
    options = ("--data-folder", star.parent)
    succeed("moments", pipe, "-o", tmp_path / "m.npz", *options)
    assert Moments.load(tmp_path / "m.npz").n_images == IMAGES


@pytest.mark.parametrize("command", ["initial-model", "refine"])
def test_pipes_that_would_be_read_twice(tmp_path, pipe, command):
    result = (tmp_path,) if command == "refine" else ()
    message = refused(command, *result, pipe, "-o", tmp_path / "model")
    assert "pipe can be read only once" in message
    pipe.read_bytes()


@pytest.mark.parametrize("ignored", [False, True])
def test_origins_outside_of_images(tmp_path, star, ignored):
    stack = f"particles_0_{IMAGES - 1}.mrcs"
    shutil.copy(star.with_name(stack), tmp_path / stack)
    rows = "".join(f"{i}@{stack} 2.0 {99 * (i == 7)}\n" for i in range(1, 9))
    head = "_rlnImageName\n_rlnImagePixelSize\n_rlnOriginXAngst\n"
    (tmp_path / "p.star").write_text(f"data_\nloop_\n{head}{rows}")
    args = ("moments", tmp_path / "p.star", "-o", tmp_path / "m.npz")
    if ignored:
        succeed(*args, "--ignore-shifts")
    else:
        message = refused(*args)
        assert f"row 7 (image 7 of {stack}) has an origin of 49.5, 0 pixels" in message
        assert "pass --ignore-shifts" in message
