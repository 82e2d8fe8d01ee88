import numpy as np
import pytest
from aspire.numeric import fft
from aspire.utils import Rotation
from aspire.volume import Volume

from aspire_mom.volumes import BallHarmonics, FourierNet, GaussianMixture
from aspire_mom.volumes.grid import volume_on_rings, volume_slices
from tests.references.dft import volume_fourier_values


def random_volume(L, dtype=np.float64):
    rng = np.random.default_rng(L)
    return Volume(rng.standard_normal((L, L, L)).astype(dtype))


def random_directions(n):
    directions = np.random.default_rng(3).standard_normal((n, 3))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


@pytest.mark.parametrize("L", [8, 9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rings_are_the_defining_sum(L, dtype):
    volume, directions = random_volume(L, dtype), random_directions(5)
    radii = np.arange(L // 2 + 1)
    k = (radii[:, None] * directions[:, None, :]).reshape(-1, 3)
    expected = volume_fourier_values(volume.asnumpy()[0], k).reshape(5, -1)
    values = volume_on_rings(volume, directions.astype(dtype), radii.astype(dtype))
    assert values.dtype == np.complex128
    tolerance = 1e-8 if dtype == np.float64 else 1e-5  # that of the directions
    np.testing.assert_allclose(
        values, expected, atol=tolerance * np.abs(expected).max()
    )


@pytest.mark.parametrize("L", [8, 9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_slices_are_the_defining_sum(L, dtype):
    volume = random_volume(L, dtype)
    rotations = Rotation.generate_random_rotations(3, seed=1, dtype=np.float64).matrices
    frequencies = np.random.default_rng(4).uniform(-L / 2, L / 2, (6, 2))
    values = volume_slices(volume, rotations, frequencies)
    for R, values_of_view in zip(rotations, values, strict=True):
        k = [R @ (kx, ky, 0) for kx, ky in frequencies]
        expected = volume_fourier_values(volume.asnumpy()[0], k)
        np.testing.assert_allclose(
            values_of_view, expected, atol=1e-8 * np.abs(expected).max()
        )


@pytest.mark.parametrize("L", [14, 15])
def test_slices_are_aspire_projections(L):
    """centered_fft2(project)[ky, kx] = V(R (kx, ky, 0)ᵀ) / L."""
    volume = random_volume(L)
    rotations = Rotation.generate_random_rotations(4, seed=2, dtype=np.float64)
    images = volume.project(rotations, zero_nyquist=True).asnumpy()
    axis = np.arange(L) - L // 2
    ky, kx = np.meshgrid(axis, axis, indexing="ij")
    frequencies = np.stack((kx, ky), -1).reshape(-1, 2)
    values = volume_slices(volume, rotations.matrices, frequencies).reshape(-1, L, L)
    if L % 2 == 0:  # ASPIRE's images have no Nyquist row and column
        values[:, 0], values[:, :, 0] = 0, 0
    expected = L * fft.centered_fft2(images)
    np.testing.assert_allclose(values, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("volume", "error", "message"),
    [
        (Volume(np.ones((2, 5, 5, 5))), ValueError, r"not a stack \(2,\)"),
        (Volume(np.full((5, 5, 5), np.nan)), ValueError, "holds NaN or infinity"),
        (np.ones((5, 5, 5)), TypeError, "must be an ASPIRE Volume, not ndarray"),
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda v: volume_on_rings(v, random_directions(1), np.ones(1)),
        lambda v: BallHarmonics(2.0).fit(v),
        lambda v: GaussianMixture(2).fit(v),
        lambda v: FourierNet(2.0, hidden=2).fit(v),
    ],
)
def test_what_is_no_volume_is_named(call, volume, error, message):
    with pytest.raises(error, match=message):
        call(volume)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "L is 0; it must be an integer of at least 1"),
        ((2.5,), r"L is 2\.5; it must be an integer"),
        ((8, -1), "pixel_size is -1; it must be a positive number"),
        ((8, np.nan), "pixel_size is nan"),
    ],
)
def test_wrong_grids_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(2).to_volume(*arguments)
