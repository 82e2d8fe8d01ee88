"""Whether molecules are bright or dark, without CTFs; those with CTFs: `test_ctf`."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from aspire.utils import Rotation
from aspire.volume import Volume

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.moments import CorrectionOptions, MomentEstimator
from aspire_mom.moments.amplitudes import with_bright_molecules
from aspire_mom.phantoms import chain_phantom
from aspire_mom.simulation import FastSimulation, WhiteNoise
from tests.moments.sources import array_source, noise_images


@cache
def images(kind, L=16, n=400, snr=0.2):
    """Of a chain, or of an uneven shell that fills the box: hollow in the middle."""
    volume = chain_phantom(L, seed=1, pixel_size=4.0)
    if kind == "shell":
        x = np.mgrid[:L, :L, :L] - L // 2
        thin = np.abs(np.sqrt((x**2).sum(0)) / (L / 2) - 0.82) < 0.1
        shell = thin * (1 + 0.5 * np.sign(x[0]) * (x[1] > 0))
        volume = Volume(shell.astype(np.float32), pixel_size=4.0)
    rotations = Rotation.generate_random_rotations(n, seed=L, dtype=np.float64)
    source = FastSimulation(
        vols=volume,
        n=n,
        angles=rotations.angles.astype(np.float32),
        noise_adder=WhiteNoise.from_snr(snr),
        offsets=0,
        amplitudes=1,
        seed=0,
    )
    return source.images[:].asnumpy()


def high_passed(pixels):
    """Without what is slower than two cycles per box: the middle is hardly brighter."""
    L = pixels.shape[-1]
    k = np.fft.fftfreq(L, 1 / L)
    kept = 1 - np.exp(-(k**2 + k[:, None] ** 2) / 2)
    return np.fft.ifft2(np.fft.fft2(pixels) * kept).real.astype(np.float32)


def as_it_is(pixels):
    return pixels


def of_mean_zero(pixels):
    return pixels - pixels.mean((1, 2), keepdims=True)


def estimate(pixels, basis=PolarBasis, third="auto", **corrections):
    return MomentEstimator(
        array_source(pixels),
        basis(pixels.shape[-1]),
        third=third,
        corrections=CorrectionOptions(**corrections),
    ).estimate()


@pytest.mark.parametrize("prepare", [as_it_is, of_mean_zero, high_passed])
@pytest.mark.parametrize(
    ("L", "options"),
    [
        (16, {}),
        (17, {"third": None}),
        (12, {"basis": CartesianBasis, "third": None}),
    ],
)
def test_dark_molecules_become_bright_and_bright_ones_stay(L, options, prepare, caplog):
    pixels = prepare(images("chain", L))
    bright = estimate(pixels, **options)
    assert bright.corrections.inverted is False
    assert "inverted" not in caplog.text
    dark = estimate(-pixels, **options)
    assert dark.corrections.inverted is True
    assert "contrast inverted" in str(dark.corrections)
    assert "Molecules are dark in the images: their contrast is inverted" in caplog.text
    np.testing.assert_array_equal(dark.first, bright.first)
    if bright.third is not None:
        np.testing.assert_array_equal(dark.third, bright.third)
    kept = estimate(-pixels, unchecked=True, **options)
    assert kept.corrections.inverted is False


def test_the_third_moment_counts_where_both_are_certain(caplog):
    """A shell, high-passed, has a middle that is darker than its surroundings."""
    pixels = high_passed(images("shell", 25, n=1000))
    for sign in (1, -1):
        moments = estimate(sign * pixels, unchecked=True)
        (found,) = with_bright_molecules([moments])
        assert found.corrections.inverted is (sign < 0)
        assert "is not certain" in caplog.text
        caplog.clear()
        first = replace(moments, third=None, third_error=None, third_basis=None)
        (found,) = with_bright_molecules([first])
        assert found.corrections.inverted is (sign > 0)
        assert "is not certain" not in caplog.text


def test_noise_alone_has_no_contrast(caplog):
    found = estimate(noise_images(300, 12))
    assert found.corrections.inverted is False
    assert "Whether molecules are bright or dark is not certain" in caplog.text


def test_one_image_has_no_certain_contrast(caplog):
    noise = noise_images(12, 16, seed=2)
    for image in noise:
        moments = estimate(image[None])
        assert not moments.corrections.inverted
    assert "contrast is inverted" not in caplog.text
