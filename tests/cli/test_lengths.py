"""Lengths in Å where options count pixels or rings."""

import click
import pytest

import aspire_mom
from aspire_mom import Moments, Reconstruction
from aspire_mom.cli.particles import Angstrom, OrAngstrom
from tests.cli.conftest import PIXEL_SIZE, L, run, succeed

BOX = L * PIXEL_SIZE


@pytest.mark.parametrize("text", ["8A", "8Å", "8.0 Å"])
def test_lengths_and_numbers(text):
    kind = OrAngstrom(click.IntRange(4))
    length = kind.convert(text, None, None)
    assert isinstance(length, Angstrom)
    assert length == 8
    assert not isinstance(kind.convert("8", None, None), Angstrom)
    for wrong in ("-8A", "A", "nanA", "8B", "8nm", "3"):
        with pytest.raises(click.BadParameter):
            kind.convert(wrong, None, None)


@pytest.mark.parametrize("resolution", [BOX / 4, BOX / 3.5])
def test_pixels_that_a_resolution_takes(tmp_path, star, resolution):
    """Eight pixels have Nyquist at a fourth of the box."""
    out = tmp_path / "m.npz"
    shift = ("--shift-std", f"{PIXEL_SIZE}A")
    succeed("moments", star, "-o", out, "--downsample", f"{resolution}A", *shift)
    moments = Moments.load(out)
    assert moments.basis.L == 8
    # A pixel of the images is less than one of fewer pixels.
    assert moments.corrections.shift_std == pytest.approx(8 / L)


def test_a_resolution_beyond_the_images(tmp_path, star):
    result = run("moments", star, "-o", tmp_path / "m.npz", "--downsample", "3A")
    assert result.exit_code == 2
    assert f"16 pixels; the images have {L} pixels" in result.stderr


@pytest.mark.parametrize(
    ("rings", "n"),
    [("6", 6), (f"{BOX / 5}\N{ANGSTROM SIGN}", 6), (f"{BOX / 4.5}A", 6), ("1A", 25)],
)
def test_rings_up_to_a_resolution(tmp_path, monkeypatch, star, result, rings, n):
    """Ring 5 of rings 0 to 5 is at a fifth of the box."""

    def stop(source, found, *, n_rings, **options):
        assert isinstance(found, Reconstruction)
        raise ValueError(f"{n_rings} rings")

    monkeypatch.setattr(aspire_mom, "Refinement", stop)
    told = run("refine", result, star, "-o", tmp_path, "--rings", rings).stderr
    assert f"Error: {n} rings" in told
