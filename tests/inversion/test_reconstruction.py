import json
from dataclasses import replace

import numpy as np
import pytest
from aspire.volume import Volume

from aspire_mom.inversion import Reconstruction
from aspire_mom.rotations import SO3Quadrature, SphericalDesign
from aspire_mom.volumes.grid import volume_transform

FILES = ["reconstruction.json", "reconstruction.npz", "volume.mrc"]


def reconstruction(L=7, seed=0, pixel_size=2.5):
    rng = np.random.default_rng(seed)
    quadrature = SO3Quadrature.product(SphericalDesign(3), 2)
    density = rng.exponential(size=len(quadrature))
    voxels = rng.standard_normal((L, L, L))
    return Reconstruction(
        volume=Volume(voxels.astype(np.float32), pixel_size=pixel_size),
        density=density / density.sum(),
        quadrature=quadrature,
        history=[{"stage": "start 3, 4 rings", "n_rings": 4, "loss": 2.5}],
        starts=[{"seed": 3, "criterion": 9.5, "loss": 2.5}],
        settings={"volume": "gaussians", "learning_rates": [1e-3, 1e-4], "lam": 1.0},
        seed=3,
    )


@pytest.mark.parametrize("L", [6, 7])
def test_saved_and_loaded(tmp_path, L):
    first = reconstruction(L)
    first.save(tmp_path / "new" / "folder")
    again = Reconstruction.load(tmp_path / "new" / "folder")
    np.testing.assert_array_equal(again.volume.asnumpy(), first.volume.asnumpy())
    assert again.volume.pixel_size == pytest.approx(2.5)
    np.testing.assert_array_equal(again.density, first.density)
    for name in ("degree", "n_inplane"):
        assert getattr(again.quadrature, name) == getattr(first.quadrature, name)
    np.testing.assert_array_equal(
        again.quadrature.rotations.matrices, first.quadrature.rotations.matrices
    )
    for name in ("history", "starts", "settings", "seed"):
        assert getattr(again, name) == getattr(first, name)
    assert again.start_volumes is None


def test_volumes_of_the_starts_are_kept(tmp_path):
    first = reconstruction()
    others = np.concatenate([reconstruction(seed=i).volume.asnumpy() for i in (0, 4)])
    first = replace(first, start_volumes=Volume(others, pixel_size=2.5))
    first.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES
    again = Reconstruction.load(tmp_path).start_volumes
    np.testing.assert_array_equal(again.asnumpy(), others)
    assert again.pixel_size == pytest.approx(2.5)


@pytest.mark.parametrize("existing", FILES)
def test_replaces_nothing_unless_told(tmp_path, existing):
    first, second = reconstruction(seed=1), reconstruction(seed=2)
    first.save(tmp_path)
    for name in set(FILES) - {existing}:
        (tmp_path / name).unlink()
    before = (tmp_path / existing).read_bytes()
    with pytest.raises(FileExistsError, match=f"{existing} exists"):
        second.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_bytes() == before
    second.save(tmp_path, overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES
    again = Reconstruction.load(tmp_path)
    np.testing.assert_array_equal(again.volume.asnumpy(), second.volume.asnumpy())


@pytest.mark.parametrize("missing", FILES)
def test_missing_file_is_named(tmp_path, missing):
    reconstruction().save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        Reconstruction.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("reconstruction.json", b"{"),
        ("reconstruction.json", b'{"loss": 3}'),
        ("reconstruction.npz", b"no arrays"),
        ("volume.mrc", b"no volume"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, content):
    reconstruction().save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="cannot be used|is damaged|is not an"):
        Reconstruction.load(tmp_path)


def test_nothing_is_written_of_what_cannot_be(tmp_path):
    first = reconstruction()
    first.settings["status"] = print
    with pytest.raises(TypeError, match="not JSON serializable"):
        first.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_file_is_plain_json(tmp_path):
    reconstruction().save(tmp_path)
    text = json.loads((tmp_path / "reconstruction.json").read_text())
    assert text["starts"][0]["criterion"] == 9.5


@pytest.mark.parametrize("L", [8, 9])
def test_mirror_is_z_to_minus_z(L):
    """V(kx, ky, kz) becomes V(kx, ky, -kz), twice nothing at all."""
    first = reconstruction(L)
    mirror = first.mirror
    assert mirror.pixel_size == 2.5
    before, after = volume_transform(first.volume), volume_transform(mirror)
    inner = slice(1 - L % 2, None)
    before, after = (v[inner, inner, inner] for v in (before, after))
    np.testing.assert_allclose(after, before[::-1], atol=1e-4)
    assert np.abs(after - before).max() > 1
    again = Reconstruction(mirror, *[None] * 5, seed=0).mirror
    np.testing.assert_array_equal(again.asnumpy(), first.volume.asnumpy())
