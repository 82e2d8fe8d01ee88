"""Volumes of other programs: what their headers say is honoured, or refused."""

import bz2
import gzip

import mrcfile
import numpy as np
import pytest

from aspire_mom.cli.volumes import read_volume
from tests.cli.conftest import PIXEL_SIZE, run

VOXELS = np.random.default_rng(0).standard_normal((6, 6, 6), np.float32)


def save(path, voxels=VOXELS, **header):
    with mrcfile.new(path, np.ascontiguousarray(voxels)) as mrc:
        mrc.set_volume()
        mrc.voxel_size = PIXEL_SIZE
        for name, value in header.items():
            mrc.header[name] = value
    return path


def voxels(path):
    return read_volume(path).asnumpy()[0]


def refused(*args):
    result = run(*args)
    assert result.exit_code == 2
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "axes", [(1, 2, 3), (3, 2, 1), (2, 1, 3), (2, 3, 1), (3, 1, 2), (1, 3, 2)]
)
def test_axes_in_any_order(tmp_path, axes):
    """MAPC, MAPR and MAPS: the axes of columns, rows and sections."""
    sections, rows, columns = (3 - axis for axis in axes[::-1])  # as axes of [z, y, x]
    stored = np.transpose(VOXELS, (sections, rows, columns))
    names = ("mapc", "mapr", "maps")
    path = save(tmp_path / "v.mrc", stored, **dict(zip(names, axes, strict=True)))
    np.testing.assert_array_equal(voxels(path), VOXELS)


def test_axes_that_are_none(tmp_path):
    path = save(tmp_path / "v.mrc", mapc=2)
    assert "v.mrc has its columns, rows and sections along axes 2, 2, 3" in refused(
        "evaluate", path, path
    )
    path = save(tmp_path / "old.mrc", mapc=0, mapr=0, maps=0)
    np.testing.assert_array_equal(voxels(path), VOXELS)


def test_unsigned_bytes(tmp_path):
    stored = np.arange(216).astype(np.uint8).reshape(6, 6, 6)
    path = save(tmp_path / "v.mrc", stored.view(np.int8), dmin=0, dmax=215)
    np.testing.assert_array_equal(voxels(path), stored)


@pytest.mark.parametrize("name", ["s.mrc", "s.mrcs"])
def test_stacks_are_no_volumes(tmp_path, name):
    path = tmp_path / name
    with mrcfile.new(path, VOXELS) as mrc:
        mrc.set_image_stack()
        mrc.voxel_size = PIXEL_SIZE
    assert f"{name} holds a stack of 6 images" in refused("evaluate", path, path)


def test_volume_in_place_of_a_stack(tmp_path):
    save(tmp_path / "v.mrc")
    star = tmp_path / "p.star"
    star.write_text("data_\nloop_\n_rlnImageName\n_rlnImagePixelSize\n1@v.mrc 2.0\n")
    message = refused("moments", star, "-o", tmp_path / "m.npz")
    assert "v.mrc holds a volume by its header" in message


@pytest.mark.parametrize("field", ["cella", "mx"])
def test_voxel_sizes_of_zero_are_none(tmp_path, field):
    path = save(tmp_path / "v.mrc")
    with mrcfile.open(path, "r+") as mrc:
        if field == "mx":
            mrc.header.mx = mrc.header.my = mrc.header.mz = 0
        mrc.header.cella = (0, 0, 0)
    assert "no voxel size in" in refused("evaluate", path, path)
    assert read_volume(path, 2.0).pixel_size == 2


def test_cells_that_are_no_cubes(tmp_path):
    path = save(tmp_path / "v.mrc", cellb=(90, 90, 120))
    assert "120.0" in refused("evaluate", path, path)
    path = save(tmp_path / "rounded.mrc", cellb=(90, 90.00001, 89.99999))
    np.testing.assert_array_equal(voxels(path), VOXELS)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
@pytest.mark.parametrize("damage", ["none", "cut", "spoilt"])
def test_compressed_volumes(tmp_path, pack, damage):
    packed = pack(save(tmp_path / "v.mrc").read_bytes())
    path = tmp_path / "packed.mrc"
    if damage == "none":
        path.write_bytes(packed)
        np.testing.assert_array_equal(voxels(path), VOXELS)
        return
    cut = packed[: len(packed) // 2]
    path.write_bytes(cut if damage == "cut" else cut + b"x" * len(cut))
    assert "packed.mrc cannot be read as MRC: " in refused("evaluate", path, path)
