import numpy as np
import pytest
from aspire.image import Image
from aspire.noise import WhiteNoiseAdder
from aspire.operators import CTFFilter
from aspire.source import Simulation
from aspire.volume import Volume

from aspire_mom.simulation import FastSimulation, WhiteNoise


def arguments(L, dtype=np.float32):
    """Two volumes, astigmatic CTFs, shifts and amplitudes."""
    voxels = np.random.default_rng(0).standard_normal((2, L, L, L)).astype(dtype)
    defoci = np.linspace(8e3, 3e4, 5)
    return {
        "vols": Volume(voxels, pixel_size=4.0),
        "n": 40,
        "seed": 1,
        "unique_filters": [
            CTFFilter(300, u + 900, u - 900, 0.3, 2.7, 0.1) for u in defoci
        ],
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("L", [24, 25])
@pytest.mark.parametrize("kind", ["projections", "clean_images", "images"])
def test_images_are_those_of_aspire(L, dtype, kind):
    options = arguments(L, dtype)
    expected = getattr(Simulation(**options), kind)[3:30].asnumpy()
    found = getattr(FastSimulation(**options), kind)[3:30]
    # The accuracy of both; ASPIRE's own is 1e-8.
    tolerance = 2e-5 if dtype == np.float32 else 2e-6
    error = np.linalg.norm(found.asnumpy() - expected) / np.linalg.norm(expected)
    assert error < tolerance
    assert found.dtype == dtype
    assert found.pixel_size == 4.0


def test_no_shifts_and_amplitudes_by_one_number():
    options = arguments(25) | {"offsets": 0, "amplitudes": 2}
    expected = Simulation(**options).images[:].asnumpy()
    found = FastSimulation(**options).images[:].asnumpy()
    assert np.linalg.norm(found - expected) < 2e-5 * np.linalg.norm(expected)


def test_steps_of_a_pipeline_apply():
    """As to every source of ASPIRE's: noise, fewer pixels, a selection, and a cache."""
    options = arguments(25)
    noise = WhiteNoiseAdder.from_snr(0.5, seed=2)
    sources = [
        kind(**options, noise_adder=noise).downsample(16)[5:20:3].cache()
        for kind in (Simulation, FastSimulation)
    ]
    expected, found = (source.images[:].asnumpy() for source in sources)
    assert np.linalg.norm(found - expected) < 2e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("L", [24, 25])
@pytest.mark.parametrize("seed", [3, -191 * 6])
def test_white_noise_is_that_of_aspire(L, seed):
    """Also where the seed of an image is 0, for which ASPIRE takes another."""
    pixels = np.random.default_rng(0).standard_normal((5, L, L)).astype(np.float32)
    options = {"var": 0.04, "seed": seed}
    images, indices = Image(pixels, pixel_size=2.0), np.arange(5, 10)
    expected = WhiteNoiseAdder(**options).forward(images, indices)
    noisy = WhiteNoise(**options).forward(images, indices)
    np.testing.assert_allclose(noisy.asnumpy(), expected.asnumpy(), atol=1e-6)
    assert noisy.dtype == np.float32
    assert noisy.pixel_size == 2.0
    np.testing.assert_array_equal(images.asnumpy(), pixels)


def test_signal_to_noise_ratio():
    options = arguments(25)
    source = FastSimulation(**options, noise_adder=WhiteNoise.from_snr(0.1))
    power = source.true_signal_power()
    assert source.noise_adder.noise_var == pytest.approx(10 * power, rel=1e-5)
