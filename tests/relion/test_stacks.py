"""Stacks of many kinds: what their headers say is honoured, or refused."""

import mrcfile
import numpy as np
import pytest

from aspire_mom.bases import PolarBasis
from aspire_mom.moments import MomentEstimator
from aspire_mom.relion import ParticleSource, read_particles
from tests.relion.files import EDGE, images, particles, write_stack, write_star


def star_of(folder, stack, n=4):
    return write_star(
        folder / "p.star", particles([f"{i + 1}@{stack}" for i in range(n)])
    )


def pixels(folder, stack, n=4):
    source = ParticleSource(read_particles(star_of(folder, stack, n)))
    return source.images[:].asnumpy()


def save_bytes(path, values, **header):
    """Unsigned bytes in mode 0, of which mrcfile's header tells nothing."""
    with mrcfile.new(path, values.view(np.int8), overwrite=True) as mrc:
        for name, value in header.items():
            mrc.header[name] = value


def imod_flags(flags, order="<"):
    extra = np.zeros(21, f"{order}i4")
    extra[10:12] = 1146844873, flags
    return np.void(extra.tobytes())


@pytest.mark.parametrize(
    ("header", "unsigned"),
    [
        ({"extra2": imod_flags(0)}, True),
        ({"extra2": imod_flags(2)}, True),
        ({"extra2": imod_flags(1)}, False),
        ({"dmin": 0, "dmax": 255}, True),
        ({"dmin": -20, "dmax": 210}, True),
        ({"dmin": -128, "dmax": 127}, False),
        ({"dmin": 0, "dmax": -1}, False),  # not determined
    ],
)
def test_bytes_are_signed_as_the_header_says(tmp_path, header, unsigned):
    values = np.arange(4 * EDGE**2).astype(np.uint8).reshape(4, EDGE, EDGE)
    save_bytes(tmp_path / "a.mrcs", values, **header)
    expected = values if unsigned else values.view(np.int8)
    np.testing.assert_array_equal(pixels(tmp_path, "a.mrcs"), expected)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["f4", "f2", "i2", "u2"])
def test_types_and_byte_orders(tmp_path, dtype, order):
    values = (100 * images(4) + 500).astype(f"{order}{dtype}")
    mrcfile.write(tmp_path / "a.mrcs", values)
    np.testing.assert_array_equal(pixels(tmp_path, "a.mrcs"), values)


def test_images_in_any_order_and_after_an_extended_header(tmp_path):
    values = images(7)
    with mrcfile.new(tmp_path / "a.mrcs", values) as mrc:
        mrc.set_extended_header(np.zeros(300, "i1"))
    numbers = [7, 3, 4, 4, 1, 2, 6]
    table = particles([f"{number}@a.mrcs" for number in numbers])
    source = ParticleSource(read_particles(write_star(tmp_path / "p.star", table)))
    expected = values[np.array(numbers) - 1]
    np.testing.assert_array_equal(source.images[:].asnumpy(), expected)
    np.testing.assert_array_equal(source.images[[5, 0]].asnumpy(), expected[[5, 0]])


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ((2, 1, 3), "axes in the order 2, 1, 3"),
        ((1, 1, 3), "along axes 1, 1, 3"),
        ((0, 0, 0), None),
    ],
)
def test_axes(tmp_path, axes, words):
    values = write_stack(tmp_path / "a.mrcs")
    with mrcfile.open(tmp_path / "a.mrcs", "r+") as mrc:
        for name, axis in zip(("mapc", "mapr", "maps"), axes, strict=True):
            mrc.header[name] = axis
    if words is None:
        np.testing.assert_array_equal(pixels(tmp_path, "a.mrcs"), values)
        return
    with pytest.raises(ValueError, match=words):
        pixels(tmp_path, "a.mrcs")


def test_volumes_are_no_stacks(tmp_path):
    values = write_stack(tmp_path / "a.mrc", n=EDGE)
    with pytest.raises(ValueError, match=r"a\.mrc holds a volume.*name it a\.mrc:mrcs"):
        read_particles(star_of(tmp_path, "a.mrc"))
    found = pixels(tmp_path, "a.mrc:mrcs", EDGE)
    np.testing.assert_array_equal(found, values)
    # Among others, a stack may just have as many images as pixels along an edge.
    write_stack(tmp_path / "b.mrc", n=3)
    table = particles(["1@a.mrc", "2@b.mrc"])
    assert len(read_particles(write_star(tmp_path / "p.star", table))) == 2


@pytest.mark.parametrize("kind", ["mrc", "mrcs", "st"])
def test_names_with_a_format(tmp_path, kind):
    values = write_stack(tmp_path / "Extract" / "a.mrc")
    star = write_star(
        tmp_path / "job" / "p.star", particles([f"2@Extract/a.mrc:{kind}"])
    )
    source = ParticleSource(read_particles(star))
    np.testing.assert_array_equal(source.images[:].asnumpy(), values[[1]])


def test_compressed_files_are_named(tmp_path):
    for name, mark in (("a.mrcs", b"\x1f\x8b\x08"), ("p.star", b"BZh9")):
        star_of(tmp_path, "a.mrcs")
        (tmp_path / name).write_bytes(mark + b"0" * 2000)
        with pytest.raises(ValueError, match=f"{name} is compressed by .*unpack"):
            read_particles(tmp_path / "p.star")


def test_stack_that_becomes_shorter(tmp_path):
    write_stack(tmp_path / "a.mrcs")
    source = ParticleSource(read_particles(star_of(tmp_path, "a.mrcs")))
    whole = (tmp_path / "a.mrcs").read_bytes()
    (tmp_path / "a.mrcs").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"a\.mrcs is truncated"):
        source.images[:]


@pytest.mark.parametrize("downsampled", [False, True])
def test_image_that_is_not_finite(tmp_path, downsampled):
    """It is named by its row in the file and its number, whatever was selected."""
    write_stack(tmp_path / "a.mrcs", n=5)
    with mrcfile.open(tmp_path / "a.mrcs", "r+") as mrc:
        mrc.data[2, 1, 1] = np.nan
    names = [f"{number}@a.mrcs" for number in (5, 4, 3, 2, 1)]
    table = particles(names, _rlnRandomSubset=[1, 2, 2, 1, 2])
    star = write_star(tmp_path / "p.star", table)
    source = ParticleSource(read_particles(star, random_subset=2))
    source = source.downsample(4) if downsampled else source
    estimator = MomentEstimator(source[1:], PolarBasis(source.L))
    with pytest.raises(ValueError, match=r"image 3 of a\.mrcs \(row 3\) has values"):
        estimator.estimate()
