"""Poses that are written are those that ASPIRE and this package read back."""

import numpy as np
import pytest
from aspire.source import RelionSource
from aspire.utils import Rotation

from aspire_mom.relion import ParticleSource, read_particles, write_poses
from aspire_mom.relion.table import read_document
from tests.relion.files import EDGE, OPTICS, ctf, particles, write_stack, write_star

NAMES = ["000002@sub/a.mrcs", "1@b.mrcs", "1@sub/a.mrcs", "3@b.mrcs"]
N = len(NAMES)


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("sub/a.mrcs", "b.mrcs")):
        write_stack(tmp_path / name, seed=i)
    return tmp_path


def poses(n, seed=0):
    rng = np.random.default_rng(seed)
    angles = Rotation.generate_random_rotations(n, seed=seed, dtype=np.float64).angles
    return np.degrees(angles), rng.normal(0, 5, (n, 2)), rng.integers(1, 3, n)


def assert_read_back(path, angles, origins, halves):
    source = RelionSource(path)
    expected = Rotation.from_euler(np.radians(angles)).matrices
    np.testing.assert_allclose(source.rotations, expected, atol=1e-6)
    np.testing.assert_allclose(source.offsets * source.pixel_size, origins, atol=1e-6)
    assert source.get_metadata("_rlnRandomSubset").tolist() == halves.tolist()
    return source


@pytest.mark.parametrize("first", [None, 3])
def test_read_back_from_another_folder(folder, first):
    table = particles(NAMES, **ctf(N), _rlnMicrographName=[f"m{i}" for i in range(N)])
    table["_rlnOriginXAngst"] = [9.0] * N
    star = write_star(folder / "p.star", table)
    read = read_particles(star, first=first)
    path = folder / "other" / "poses.star"
    path.parent.mkdir()
    write_poses(path, read, *poses(len(read)))
    source = assert_read_back(path, *poses(len(read)))
    ours = ParticleSource(read_particles(path))
    before = ParticleSource(read)
    for one in (source, ours):
        images = one.images[:].asnumpy().astype(np.float32)
        np.testing.assert_array_equal(images, before.images[:].asnumpy())
        assert one.pixel_size == OPTICS["_rlnImagePixelSize"][0]
    assert source.get_metadata("_rlnMicrographName").tolist() == [
        f"m{i}" for i in range(len(read))
    ]
    np.testing.assert_array_equal(read_particles(path).ctfs[0], read.ctfs[0])


def test_other_tables_and_columns_are_kept(folder):
    """Quoted, escaped and foreign characters too."""
    table = particles(NAMES, _rlnHelicalTrackName=["'a b'", "é", r"c\d", "x"])
    star = write_star(folder / "p.star", table)
    text = star.read_text()
    star.write_text(f"data_general\n\n_rlnTitle 'two words'\n\n{text}")
    path = folder / "poses.star"
    write_poses(path, read_particles(star), *poses(N))
    written = path.read_text()
    for kept in ("_rlnTitle 'two words'", " 'a b' ", " é ", r" c\d ", "opticsGroup1"):
        assert kept in written
    names = [block.name for block in read_document(path)]
    assert names == ["general", "optics", "particles"]
    assert written.count("# version 30001\n") == 3
    assert str(folder / "sub" / "a.mrcs") in written


@pytest.mark.parametrize("block", ["", "images"])
def test_origins_of_relion_30_are_replaced(folder, block):
    sizes = {"_rlnDetectorPixelSize": [5.0] * N, "_rlnMagnification": [25_000.0] * N}
    table = {"_rlnImageName": NAMES, **sizes, "_rlnOriginX": [2] * N}
    star = write_star(folder / "p.star", table, optics=None, name=block)
    read = read_particles(star)
    path = folder / "poses.star"
    angles, origins, halves = poses(N)
    write_poses(path, read, angles, origins, halves)
    assert "_rlnOriginX\n" not in path.read_text()
    again = read_particles(path)
    assert again.pixel_size == read.pixel_size == 2.0
    np.testing.assert_allclose(again.shifts * 2.0, origins, atol=1e-6)
    source = RelionSource(path, pixel_size=2.0)
    np.testing.assert_allclose(source.offsets * 2.0, origins, atol=1e-6)
    assert source.L == EDGE


def test_one_particle_without_a_loop(folder):
    (folder / "p.star").write_text(
        "data_particles\n\n_rlnImageName 1@b.mrcs\n_rlnImagePixelSize 1.5\n"
    )
    read = read_particles(folder / "p.star")
    write_poses(folder / "poses.star", read, *poses(1))
    assert_read_back(folder / "poses.star", *poses(1))


def test_nothing_is_replaced_unless_told(folder):
    star = write_star(folder / "p.star", particles(NAMES))
    read = read_particles(star)
    before = star.read_bytes()
    with pytest.raises(FileExistsError, match="p.star exists"):
        write_poses(star, read, *poses(N))
    assert star.read_bytes() == before
    write_poses(star, read, *poses(N), overwrite=True)
    assert_read_back(star, *poses(N))


def test_wrong_input_is_refused(folder):
    star = write_star(folder / "p.star", particles(NAMES))
    read = read_particles(star)
    angles, origins, halves = poses(N)
    with pytest.raises(ValueError, match="there are 3 origins and 4 particles"):
        write_poses(folder / "q.star", read, angles, origins[:3], halves)
    for rows, reason in ((3, "it has 3 rows"), (4, "its rows name other images")):
        write_star(star, particles(NAMES[::-1][:rows]))
        with pytest.raises(ValueError, match=f"has changed: {reason}"):
            write_poses(folder / "q.star", read, angles, origins, halves)
    assert not (folder / "q.star").exists()


def test_formats_of_stacks_are_kept(folder):
    """RELION takes a name that does not end in .mrcs for that of a volume."""
    (folder / "b.mrcs").rename(folder / "b.mrc")
    star = write_star(folder / "p.star", particles(["2@b.mrc:mrcs", "1@sub/a.mrcs"]))
    write_poses(folder / "poses.star", read_particles(star), *poses(2))
    text = (folder / "poses.star").read_text()
    assert f"000002@{folder}/b.mrc:mrcs" in text
    assert f"000001@{folder}/sub/a.mrcs " in text
    assert len(read_particles(folder / "poses.star")) == 2


def test_columns_are_found_in_any_case(folder):
    star = write_star(folder / "p.star", particles(NAMES))
    star.write_text(star.read_text().replace("_rlnImageName", "_rlnImageNAme"))
    write_poses(folder / "poses.star", read_particles(star), *poses(N))
    assert_read_back(folder / "poses.star", *poses(N))
