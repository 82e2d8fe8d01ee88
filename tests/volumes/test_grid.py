import mrcfile
import numpy as np
import pytest
from aspire.numeric import fft
from aspire.utils import Rotation
from aspire.volume import Volume

from aspire_mom.volumes import BallHarmonics, FourierNet, GaussianMixture
from aspire_mom.volumes.grid import save_map, volume_at
from tests.references.dft import volume_fourier_values


def random_volume(L, dtype=np.float64):
    rng = np.random.default_rng(L)
    return Volume(rng.standard_normal((L, L, L)).astype(dtype))


@pytest.mark.parametrize("L", [8, 9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_are_the_defining_sum(L, dtype):
    volume = random_volume(L, dtype)
    k = np.random.default_rng(4).uniform(-L / 2, L / 2, (5, 4, 3)).astype(dtype)
    expected = volume_fourier_values(volume.asnumpy()[0], k.reshape(-1, 3))
    values = volume_at(volume, k)
    assert values.dtype == np.complex128
    np.testing.assert_allclose(
        values.ravel(), expected, atol=1e-8 * np.abs(expected).max()
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
    k = frequencies @ rotations.matrices[:, :, :2].transpose(0, 2, 1)
    values = volume_at(volume, k).reshape(-1, L, L)
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
        lambda v: volume_at(v, np.ones((1, 3))),
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


@pytest.mark.parametrize("pixel_size", [None, 2.5])
def test_maps_are_3d_mrc_files(tmp_path, pixel_size):
    voxels = np.random.default_rng(0).normal(size=(9, 9, 9))
    volume = Volume(voxels, pixel_size=pixel_size)
    path = tmp_path / "map.mrc"
    save_map(volume, path)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert mrc.data.shape == (9, 9, 9)
        assert mrc.is_volume()
        assert int(mrc.header.ispg) == 1
        assert int(mrc.header.mz) == 9
        assert mrc.voxel_size.x == (pixel_size or 0)
        assert mrc.header.origin.tolist() == (0, 0, 0)
        np.testing.assert_array_equal(mrc.data, volume.asnumpy()[0].astype(np.float32))
    with pytest.raises(ValueError, match="already exists"):
        save_map(volume, path)
