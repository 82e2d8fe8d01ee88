"""A hundred STAR files and stacks, damaged or odd: each gives moments, or one sentence
and exit status 2 with nothing written, as its kind of damage must."""

import shutil

import mrcfile
import numpy as np
import pytest

from aspire_mom import Moments
from tests.cli.conftest import run
from tests.cli.test_bad_input import refused

EDGE, EACH, SEEDS = 10, 4, (0, 1, 2)
STACKS = ("one.mrcs", "two.mrcs")
PARTICLES = """\
# version 30001

data_general

_rlnFinalResolution   8.1

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnAmplitudeContrast #3
_rlnSphericalAberration #4
_rlnVoltage #5
_rlnImagePixelSize #6
_rlnImageSize #7
1 first 0.1 2.7 300.0 1.50 10
2 second 0.1 2.7 200.0 1.50 10


# version 30001

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
_rlnDefocusV #4
_rlnDefocusAngle #5
_rlnOriginXAngst #6
_rlnOriginYAngst #7
_rlnRandomSubset #8
"""
N_COLUMNS, OPTICS_COLUMNS = 8, 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of sound particles."""
    folder, rng = tmp_path_factory.mktemp("fuzz"), np.random.default_rng(0)
    for stack in STACKS:
        images = rng.standard_normal((EACH, EDGE, EDGE)).astype(np.float32)
        mrcfile.write(folder / stack, images)
    rows = [
        f"{i + 1:06d}@{stack} {g} 10{i}00.5 10{i}20.5 45.0 0.5 -0.5 {i % 2 + 1}\n"
        for g, stack in enumerate(STACKS, 1)
        for i in range(EACH)
    ]
    (folder / "particles.star").write_text(PARTICLES + "".join(rows))
    return folder


def star_of(folder):
    return folder / "particles.star"


def table_lines(text, optics=False):
    """Numbers of the lines that hold rows of a table."""
    lines = text.splitlines()
    if optics:
        return [i for i, x in enumerate(lines) if x[:2] in ("1 ", "2 ")]
    return [i for i, x in enumerate(lines) if "@" in x]


def edit_cell(value, column, optics=False):
    """A value in a random row of the particles' or the optics groups' table."""

    def edit(folder, rng):
        lines = star_of(folder).read_text().splitlines()
        line = rng.choice(table_lines("\n".join(lines), optics))
        cells = lines[line].split()
        cells[column] = value(rng) if callable(value) else value
        lines[line] = " ".join(cells)
        star_of(folder).write_text("\n".join(lines) + "\n", encoding="utf-8")

    return edit


def edit_text(function):
    def edit(folder, rng):
        star = star_of(folder)
        star.write_bytes(function(star.read_bytes(), rng))

    return edit


def edit_header(field, value):
    def edit(folder, rng):
        with mrcfile.open(folder / rng.choice(STACKS), "r+") as mrc:
            mrc.header[field] = value(rng) if callable(value) else value

    return edit


def edit_stack(function):
    """Another content of a stack's file."""

    def edit(folder, rng):
        path = folder / rng.choice(STACKS)
        path.write_bytes(function(path.read_bytes(), rng))

    return edit


def edit_pixel(value):
    def edit(folder, rng):
        with mrcfile.open(folder / rng.choice(STACKS), "r+") as mrc:
            mrc.data[tuple(rng.integers(mrc.data.shape))] = value

    return edit


def write_stack(images):
    def edit(folder, rng):
        path = folder / rng.choice(STACKS)
        mrcfile.write(path, images(rng), overwrite=True)

    return edit


def drop_column(folder, rng):
    """The header's line only: rows then have a value too many."""
    lines = star_of(folder).read_text().splitlines()
    tags = [i for i, x in enumerate(lines) if x.startswith("_rln") and "#" in x]
    del lines[rng.choice(tags)]
    star_of(folder).write_text("\n".join(lines) + "\n")


def rename_column(name):
    return edit_text(lambda text, rng: text.replace(name, b"_rlnSomethingElse"))


def swap_bytes(folder, rng):
    """The other byte order, as other machines write it."""
    path = folder / rng.choice(STACKS)
    with mrcfile.open(path) as mrc:
        images = mrc.data.copy()
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(images.astype(images.dtype.newbyteorder(">")))
    assert mrc_is_big_endian(path)


def mrc_is_big_endian(path):
    return path.read_bytes()[12:16] == b"\0\0\0\2"


def garble(text, rng):
    """Some bytes at random."""
    text = np.frombuffer(text, np.uint8).copy()
    where = rng.integers(len(text), size=5)
    text[where] = rng.integers(256, size=5)
    return text.tobytes()


def folder_for_stack(folder, rng):
    path = folder / rng.choice(STACKS)
    path.unlink()
    path.mkdir()


def link_for_stack(target):
    def edit(folder, rng):
        path = folder / rng.choice(STACKS)
        path.unlink()
        path.symlink_to(path.name if target is None else target)

    return edit


def quoted(text, rng):
    return text.replace(b" first ", b" 'the first one' ").replace(b"45.0", b'"45.0"')


GOOD, BAD, EITHER = "moments", "a sentence", "either"
KINDS = {
    "sound": (lambda folder, rng: None, GOOD),
    "star cut": (edit_text(lambda t, rng: t[: rng.integers(len(t))]), EITHER),
    "star garbled": (edit_text(garble), EITHER),
    "star binary": (edit_text(lambda t, rng: rng.bytes(3000)), BAD),
    "star empty": (edit_text(lambda t, rng: b""), BAD),
    "Latin-1": (edit_text(lambda t, rng: "# Ångström é\n".encode("latin-1") + t), GOOD),
    "CRLF": (edit_text(lambda t, rng: t.replace(b"\n", b"\r\n")), GOOD),
    "byte order mark": (edit_text(lambda t, rng: b"\xef\xbb\xbf" + t), GOOD),
    "quoted": (edit_text(quoted), GOOD),
    "unclosed quote": (edit_text(lambda t, rng: t.replace(b"45.0", b'"45.0')), BAD),
    "no rows": (edit_text(lambda t, rng: t[: t.index(b"000001@")]), BAD),
    "column dropped": (drop_column, BAD),
    "column twice": (
        edit_text(lambda t, rng: t.replace(b"_rlnDefocusV #", b"_rlnDefocusU #")),
        BAD,
    ),
    "no image names": (rename_column(b"_rlnImageName"), BAD),
    "no group numbers": (rename_column(b"_rlnOpticsGroup #2"), BAD),
    "no pixel sizes": (rename_column(b"_rlnImagePixelSize"), BAD),
    "no voltages": (rename_column(b"_rlnVoltage"), GOOD),  # the CTF is ignored
    "unknown group": (edit_cell("3", 1), BAD),
    "group no number": (edit_cell("second", 1), BAD),
    "image without stack": (edit_cell("000001@", 0), BAD),
    "image without number": (edit_cell("one.mrcs", 0), BAD),
    "image number": (
        edit_cell(lambda rng: f"{rng.choice([0, -1, 5, 10**18, 10**30])}@one.mrcs", 0),
        BAD,
    ),
    "image in words": (edit_cell("first@one.mrcs", 0), BAD),
    "no such stack": (edit_cell("000001@thrée.mrcs", 0), BAD),
    "defocus": (
        edit_cell(lambda rng: rng.choice(["nan", "inf", "1e300", "12,5", "?"]), 2),
        BAD,
    ),
    "overfocus": (edit_cell(lambda rng: rng.choice(["0", "-12000.5"]), 2), GOOD),
    "shift": (edit_cell(lambda rng: rng.choice(["nan", "1e200", "x"]), 5), BAD),
    "pixel size": (
        edit_cell(lambda rng: rng.choice(["0", "-1.5", "nan", "1e99", "."]), 5, True),
        BAD,
    ),
    "another pixel size": (edit_cell("1.6", 5, True), BAD),
    "another image size": (edit_cell("12", 6, True), BAD),
    "voltage": (
        edit_cell(lambda rng: rng.choice(["0", "-300", "nan", "kV"]), 4, True),
        BAD,
    ),
    "value too many": (edit_cell("45.0 45.0", 4), BAD),
    "stack cut": (edit_stack(lambda t, rng: t[: rng.integers(len(t))]), BAD),
    "stack empty": (edit_stack(lambda t, rng: b""), BAD),
    "stack garbage": (edit_stack(lambda t, rng: rng.bytes(len(t))), BAD),
    "stack in words": (edit_stack(lambda t, rng: b"not an image " * 300), BAD),
    "stack with a tail": (edit_stack(lambda t, rng: t + bytes(100)), GOOD),
    "stack compressed": (edit_stack(lambda t, rng: b"\x1f\x8b" + t), BAD),
    "stack's mode": (
        edit_header("mode", lambda rng: rng.choice([3, 4, 12, 101, -1])),
        BAD,
    ),
    "stack's length": (edit_header("nz", lambda rng: rng.choice([-1, 0, 3, 5])), BAD),
    "stack's width": (
        edit_header("nx", lambda rng: rng.choice([-9, 0, 9, 2**30])),
        BAD,
    ),
    "stack's extended header": (
        edit_header("nsymbt", lambda rng: rng.choice([-4, 4, 2**31 - 1])),
        BAD,
    ),
    "stack of volumes": (edit_header("ispg", 401), BAD),
    "stack without marks": (edit_header("map", b"\0\0\0\0"), GOOD),
    "stack's byte order": (edit_header("machst", [0x11, 0x11, 0, 0]), GOOD),
    "other byte order": (swap_bytes, GOOD),
    "integers": (
        write_stack(lambda rng: rng.integers(-99, 99, (EACH, EDGE, EDGE), np.int16)),
        GOOD,
    ),
    "float16": (
        write_stack(lambda rng: rng.standard_normal((EACH, EDGE, EDGE)).astype("f2")),
        GOOD,
    ),
    "larger images": (
        write_stack(lambda rng: np.ones((EACH, EDGE + 1, EDGE + 1), np.float32)),
        BAD,
    ),
    "NaN": (edit_pixel(np.nan), BAD),
    "infinity": (edit_pixel(-np.inf), BAD),
    "folder": (folder_for_stack, BAD),
    "link to nowhere": (link_for_stack("nowhere.mrcs"), BAD),
    "link to itself": (link_for_stack(None), BAD),
    "link elsewhere": (
        lambda folder, rng: link_elsewhere(folder, folder.parent / "disk"),
        GOOD,
    ),
}
CASES = [(kind, seed) for kind in KINDS for seed in SEEDS][:-1]


def link_elsewhere(folder, disk):
    """A stack on another disk."""
    disk.mkdir(exist_ok=True)
    path = folder / STACKS[0]
    shutil.move(path, disk / path.name)
    path.symlink_to(disk / path.name)


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_moments_or_one_sentence(tmp_path, whole, kind, seed):
    folder = tmp_path / "particles"
    shutil.copytree(whole, folder)
    damage, outcome = KINDS[kind]
    damage(folder, np.random.default_rng([seed, list(KINDS).index(kind)]))
    out = folder / "m.npz"
    flags = ("--ignore-ctf", "--ignore-shifts")
    command = ("moments", star_of(folder), "-o", out, *flags)
    if outcome == EITHER:
        result = run(*command)
        outcome = GOOD if result.exit_code == 0 else BAD
        out.unlink(missing_ok=outcome == BAD)
    if outcome == BAD:
        sentence = refused(folder, *command)
        assert len(sentence) > len("Error: ") + 20
        return
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert 1 <= Moments.load(out).n_images <= 2 * EACH
    assert not list(folder.glob(".partial-*"))


def test_there_are_a_hundred():
    assert len(CASES) >= 100
