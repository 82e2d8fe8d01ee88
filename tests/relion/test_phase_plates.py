"""CTFs of phase plates, by RELION's formula, and moments of images behind them."""

import numpy as np
import pytest
from aspire.operators import CTFFilter
from aspire.source import ArrayImageSource, Simulation

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.moments import MomentEstimator, Noise
from aspire_mom.moments.ctf import TransferFunctions
from aspire_mom.phantoms import gaussian_phantom
from aspire_mom.relion import ParticleSource, read_particles
from aspire_mom.relion.source import PhasePlateFilter
from tests.relion.files import EDGE, OPTICS, ctf, particles, write_stack, write_star

SHIFTS = [0.0, 70.0, 90.0, 125.0]  # degrees; with the amplitude contrast, beyond 90
PIXEL_SIZE = 4.0


def relions(kx, ky, u, v, angle, phase):
    """RELION's CTF with ASPIRE's sign, and its own constants; Å and radians."""
    wavelength = 12.2643247 / np.sqrt(3e5 * (1 + 3e5 * 0.978466e-6))
    squares = kx**2 + ky**2
    turned = np.arctan2(ky, kx) - angle
    defocus = u * np.cos(turned) ** 2 + v * np.sin(turned) ** 2
    gamma = -np.pi * wavelength * defocus * squares
    gamma += np.pi / 2 * 2.7e7 * wavelength**3 * squares**2
    return np.sin(gamma - phase - np.arctan(0.1 / np.sqrt(1 - 0.1**2)))


@pytest.mark.parametrize("fast", [False, True])
def test_ctfs_are_those_of_relion(tmp_path, fast):
    write_stack(tmp_path / "a.mrcs")
    names = [f"{i}@a.mrcs" for i in (1, 2, 3, 4)]
    table = particles(names, **ctf(4), _rlnPhaseShift=SHIFTS)
    read = read_particles(write_star(tmp_path / "p.star", table))
    read.check_ctf()
    assert "phase shift 0 to 125°" in read.summary()
    source, size = ParticleSource(read), OPTICS["_rlnImagePixelSize"][0]
    axis = np.fft.fftshift(np.fft.fftfreq(EDGE, size))
    kx, ky = np.meshgrid(axis, axis)
    if fast:
        values = TransferFunctions(source, CartesianBasis(EDGE)).of_images(np.arange(4))
    for i in range(4):
        own = source.unique_filters[source.filter_indices[i]]
        assert isinstance(own, PhasePlateFilter) == (i > 0)
        found = own.evaluate_grid(EDGE, pixel_size=size, dtype=np.float64)
        u, v, angle = (values_[i] for values_ in ctf(4).values())
        expected = relions(kx, ky, u, v, np.radians(angle), np.radians(SHIFTS[i]))
        np.testing.assert_allclose(values[i] if fast else found, expected, atol=5e-3)


def test_moments_behind_a_phase_plate_are_those_without():
    """To what views leave open, which differ from phase shift to phase shift."""
    volume = gaussian_phantom(16, pixel_size=PIXEL_SIZE).astype(np.float64)
    options = {"vols": volume, "offsets": 0, "amplitudes": 1, "seed": 1, "n": 400}
    optics = (300, 4e3, 4e3, 0, 2.7, 0.1)
    behind = [
        PhasePlateFilter(phase, *optics) for phase in np.radians(range(0, 180, 40))
    ]

    def estimate(source):
        options = {"noise": Noise(variance=0), "third": None}
        return MomentEstimator(source, PolarBasis(16), **options).estimate()

    expected = estimate(Simulation(**options))
    source = Simulation(unique_filters=behind, **options)
    assert max(estimate(source).relative_error(expected)) < 0.05
    images = ArrayImageSource(source.images[:])
    images.unique_filters = [CTFFilter(*optics)] * len(behind)
    images.filter_indices = source.filter_indices
    assert min(estimate(images).relative_error(expected)) > 1
