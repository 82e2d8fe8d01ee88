"""Small ASPIRE sources that the tests of this folder share."""

from functools import cache

import numpy as np
import torch
from aspire.image import Image
from aspire.noise import CustomNoiseAdder, WhiteNoiseAdder
from aspire.operators import FunctionFilter
from aspire.source import ArrayImageSource, Simulation
from aspire.utils import Rotation

from aspire_mom.phantoms import gaussian_phantom

VARIANCE = (0.5 / 25) ** 2
# Falls by a factor of 11 from zero frequency to Nyquist.
COLOURED = FunctionFilter(lambda x, y: 1 / (0.1 + (x**2 + y**2) / np.pi**2))
# Where torch computes sums: what a GPU does is tested without one, too.
DEVICES = [torch.device("cpu")]
if torch.cuda.is_available():
    DEVICES.append(torch.device("cuda"))


def simulation(L, *, n=100, dtype=np.float32, noise=VARIANCE, **options):
    """ASPIRE's own noisy projections of the four-Gaussian phantom."""
    angles = Rotation.generate_random_rotations(n, seed=L, dtype=np.float64).angles
    options = {"offsets": 0, "amplitudes": 1, "angles": angles} | options
    options["angles"] = options["angles"].astype(dtype)
    return Simulation(
        vols=gaussian_phantom(L, pixel_size=2.0).astype(dtype),
        n=n,
        seed=L,
        noise_adder=WhiteNoiseAdder(noise, seed=L) if noise else None,
        **options,
    )


def array_source(images):
    return ArrayImageSource(images, pixel_size=2.0)


def noise_images(n, L, variance=1.0, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return (np.sqrt(variance) * rng.standard_normal((n, L, L))).astype(dtype)


@cache
def coloured_source(n, L):
    """ASPIRE's own coloured noise, drawn once: it is slow."""
    empty = Image(np.zeros((n, L, L)))
    noise = CustomNoiseAdder(COLOURED, seed=1).forward(empty, indices=np.arange(n))
    return array_source(noise.asnumpy())


def largest_difference(values, expected):
    """Relative to the largest expected value."""
    return np.abs(values - expected).max() / np.abs(expected).max()
