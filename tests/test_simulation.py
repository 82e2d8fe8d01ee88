import numpy as np
import pytest
from aspire.image import Image
from aspire.noise import WhiteNoiseAdder
from aspire.operators import CTFFilter
from aspire.source import Simulation
from aspire.volume import Volume

from aspire_mom.simulation import NOISE_BLOCK, FastSimulation, WhiteNoise


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


def test_noise_has_the_variance_and_depends_on_the_image_only():
    n, L, variance = 4 * NOISE_BLOCK, 24, 0.04
    zeros = Image(np.zeros((n, L, L), np.float32), pixel_size=2.0)
    adder = WhiteNoise(variance, seed=3)
    noisy = adder.forward(zeros, np.arange(7, 7 + n))
    values = noisy.asnumpy()
    # Standard deviation of the sum of squares of N numbers: sqrt(2 / N) of it.
    assert abs(np.mean(values**2) / variance - 1) < 4 * np.sqrt(2 / values.size)
    # All images are independent: of N² correlations, none beyond 6 deviations.
    flat = values.reshape(n, -1) / np.sqrt(variance * L**2)
    assert np.abs(flat @ flat.T - np.eye(n)).max() < 6 / L * np.sqrt(2)
    some = np.array([60, 9, 33])
    again = adder.forward(zeros[:3], some).asnumpy()
    np.testing.assert_array_equal(again, values[some - 7])
    assert noisy.pixel_size == 2.0
    assert not zeros.asnumpy().any()


def test_noise_of_another_seed_is_other_noise():
    zeros, indices = Image(np.zeros((2, 25, 25), np.float32)), np.arange(2)
    first, second = (
        WhiteNoise(1.0, seed=seed).forward(zeros, indices).asnumpy() for seed in (0, 1)
    )
    assert np.abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / 35


def test_signal_to_noise_ratio():
    options = arguments(25)
    source = FastSimulation(**options, noise_adder=WhiteNoise.from_snr(0.1))
    power = source.true_signal_power()
    assert source.noise_adder.noise_var == pytest.approx(10 * power, rel=1e-5)
