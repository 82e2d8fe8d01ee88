"""`aspire-mom simulate`: what it writes is what ASPIRE reads."""

import numpy as np
import pytest
from aspire.operators import CTFFilter
from aspire.source import RelionSource
from aspire.volume import Volume

from aspire_mom import VonMisesFisherMixture
from tests.cli.conftest import IMAGES, PIXEL_SIZE, L, run, succeed


def test_simulated_particles_are_read_back(star):
    source = RelionSource(star)
    density = VonMisesFisherMixture.random(seed=0)
    rotations = density.sample(IMAGES, seed=1).matrices
    assert source.n == IMAGES
    assert source.pixel_size == PIXEL_SIZE
    assert np.abs(source.rotations - rotations).max() < 1e-5
    assert not source.offsets.any()
    values = [f.evaluate_grid(L) for f in source.unique_filters]
    assert np.array_equal(values, np.ones((1, L, L)))


def test_simulated_images_have_the_angles_and_the_snr(star, volume):
    images = RelionSource(star).images[:].asnumpy()
    rotations = RelionSource(star).rotations
    clean = Volume.load(str(volume)).project(rotations.astype(np.float32)).asnumpy()
    noise = images - clean
    y, x = (np.mgrid[:L, :L] - L // 2) / (L // 2)
    signal = np.mean(clean[:, x**2 + y**2 < 1] ** 2)
    # 43,200 pixels: the variance is known to 0.7 %, ASPIRE's disc to a pixel's width.
    assert signal / noise.var() == pytest.approx(1, abs=0.1)
    # Right angles leave white noise: none of the signal correlates with it.
    assert abs(np.vdot(noise, clean)) < 0.02 * np.vdot(clean, clean)


def test_uniform_views(tmp_path, volume):
    args = ("--images", 400, "--snr", 1, "--views", "uniform", "--seed", 3)
    succeed("simulate", volume, *args, "-o", tmp_path / "p.star")
    views = RelionSource(tmp_path / "p.star").rotations[:, :, 2]
    # The mean of n uniform directions has length about 1 / sqrt(n) = 0.05; that of
    # the default density for this seed is 0.2 and more.
    assert np.linalg.norm(views.mean(0)) < 0.1


def test_seed_decides(tmp_path, volume):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        args = (
            "--images",
            3,
            "--snr",
            1,
            "--seed",
            seed,
            "-o",
            tmp_path / f"{name}.star",
        )
        succeed("simulate", volume, *args)
    a, b, c = (RelionSource(tmp_path / f"{n}.star").images[:].asnumpy() for n in "abc")
    assert np.array_equal(a, b)
    assert not np.isclose(a, c).any()


def test_ctfs_shifts_and_amplitudes(tmp_path, volume):
    """Images are projections with what the STAR file tells of them."""
    args = ("--images", 40, "--snr", 1e6, "--seed", 2, "-o", tmp_path / "p.star")
    changes = ("--defocus", 0.8, 3, "--shift-std", 0.5, "--amplitude-std", 0.2)
    succeed("simulate", volume, *args, *changes)
    source = RelionSource(tmp_path / "p.star")
    rotations = source.rotations.astype(np.float32)
    clean = Volume.load(str(volume)).project(rotations)
    filters = source.unique_filters
    assert all(isinstance(f, CTFFilter) for f in filters)
    mean = [(f.defocus_u + f.defocus_v) / 2 for f in filters]
    assert min(mean) >= 8e3 - 1
    assert max(mean) <= 3e4 + 1
    seen = [
        image.filter(filters[i]).asnumpy()[0]
        for image, i in zip(clean, source.filter_indices, strict=True)
    ]
    transforms = np.fft.fftshift(np.fft.fft2(seen), axes=(1, 2))
    k = np.arange(L) - L // 2
    x, y = source.offsets.T[:, :, None, None]
    transforms *= np.exp(2j * np.pi / L * (k * x + k[:, None] * y))
    transforms[:, 0] = transforms[:, :, 0] = 0  # the Nyquist frequency
    expected = np.fft.ifft2(np.fft.ifftshift(transforms, axes=(1, 2))).real
    images = source.images[:].asnumpy()
    squares = (images * images).sum((1, 2)), (expected * expected).sum((1, 2))
    factors = (images * expected).sum((1, 2)) / squares[1]
    remaining = squares[0] - factors * (images * expected).sum((1, 2))
    assert np.sqrt(remaining.sum() / squares[0].sum()) < 0.01
    assert np.std(source.offsets) == pytest.approx(0.5, rel=0.3)
    assert np.std(factors) == pytest.approx(0.2, rel=0.3)
    assert np.mean(factors) == pytest.approx(1, abs=0.15)


def test_amplitudes_are_not_those_of_views(tmp_path, volume):
    args = ("--images", 300, "--snr", 1e6, "--seed", 2, "-o", tmp_path / "p.star")
    succeed("simulate", volume, *args, "--amplitude-std", 0.2)
    source = RelionSource(tmp_path / "p.star")
    amplitudes = source.get_metadata("_aspireAmplitude").astype(float)
    assert np.std(amplitudes) == pytest.approx(0.2, rel=0.15)
    entries = source.rotations.reshape(300, 9).T
    # By chance they correlate by 1 / sqrt(300), 0.06.
    assert np.abs(np.corrcoef(amplitudes, entries)[0, 1:]).max() < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--defocus", 3, 0.8), "--defocus is 3 0.8 µm; the least comes first"),
        (("--defocus", 0.8, -1), "-1.0 is not in the range 0.05<=x<=100"),
        (("--defocus", 8000, 30000), "8000.0 is not in the range"),
        (("--shift-std", "nan"), "--shift-std is nan"),
        (("--amplitude-std", "nan"), "--amplitude-std is nan"),
    ],
)
def test_options_out_of_range(tmp_path, volume, options, message):
    args = ("simulate", volume, "--images", 2, "--snr", 1, "-o", tmp_path / "p.star")
    result = run(*args, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
