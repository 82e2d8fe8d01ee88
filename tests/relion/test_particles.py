"""Particles of many kinds of STAR files, against ASPIRE's reader where it can."""

import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from aspire.source import RelionSource

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.moments.ctf import PREMULTIPLIED, TransferFunctions
from aspire_mom.relion import ParticleSource, read_particles
from tests.relion.files import (
    EDGE,
    OPTICS,
    ctf,
    loop,
    particles,
    write_stack,
    write_star,
)

NAMES = [f"{i}@a.mrcs" for i in (1, 3, 2)]
REAL = Path(__file__).parents[3] / "shared" / "data" / "relion"


def same_source(ours, theirs, atol=1e-12):
    assert ours.n == theirs.n
    assert ours.L == theirs.L
    assert ours.pixel_size == pytest.approx(theirs.pixel_size)
    np.testing.assert_allclose(ours.offsets, theirs.offsets)
    assert len(ours.unique_filters) == len(theirs.unique_filters)
    for i in range(ours.n):
        a, b = (s.unique_filters[s.filter_indices[i]] for s in (ours, theirs))
        values = [f.evaluate_grid(ours.L, pixel_size=ours.pixel_size) for f in (a, b)]
        np.testing.assert_allclose(*values, atol=atol)
    np.testing.assert_array_equal(
        ours.images[:].asnumpy(), theirs.images[:].asnumpy().astype(np.float32)
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["relion31_optics.star", "rln_proj_65.star"])
def test_real_files_are_read_as_aspire_reads_them(name):
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is not there")
    size = None if "31" in name else 3.0
    ours = ParticleSource(read_particles(REAL / name, size))
    same_source(ours, RelionSource(REAL / name, pixel_size=size))


@pytest.mark.parametrize("with_ctf", [True, False])
def test_relion_31(tmp_path, with_ctf):
    write_stack(tmp_path / "a.mrcs")
    shifts = {"_rlnOriginXAngst": [0, 1.5, -3], "_rlnOriginYAngst": [0.75, 0, 0]}
    table = particles(NAMES, **shifts, **(ctf(3) if with_ctf else {}))
    optics = OPTICS
    if not with_ctf:
        optics = {k: v for k, v in OPTICS.items() if k != "_rlnVoltage"}
    star = write_star(tmp_path / "p.star", table, optics)
    found = read_particles(star)
    assert found.has_ctf == with_ctf
    assert not found.phase_flipped
    same = RelionSource(star)
    if not with_ctf:  # which ASPIRE leaves without any filter
        same.unique_filters = ParticleSource(found).unique_filters
        same.filter_indices = np.zeros(3, int)
    same_source(ParticleSource(found), same)


@pytest.mark.parametrize("block", ["", "images"])
def test_relion_30(tmp_path, block):
    """Optics with each particle, shifts in pixels, pixel size by the magnification."""
    write_stack(tmp_path / "a.mrcs")
    names = ("_rlnVoltage", "_rlnSphericalAberration", "_rlnAmplitudeContrast")
    table = {
        "_rlnImageName": NAMES,
        "_rlnDetectorPixelSize": [5.0] * 3,
        "_rlnMagnification": [25_000.0] * 3,
        "_rlnOriginX": [0.5, 1, -2],
        "_rlnOriginY": [0, 0, 1],
        **ctf(3),
        **{name: OPTICS[name] * 3 for name in names},
    }
    star = write_star(tmp_path / "p.star", table, None, block)
    found = read_particles(star)
    assert found.pixel_size == pytest.approx(2)
    np.testing.assert_allclose(found.shifts[:, 0], [0.5, 1, -2])
    assert "no optics table" in found.summary()
    same_source(ParticleSource(found), RelionSource(star))


def test_extra_tables_and_columns_in_any_order(tmp_path):
    values = write_stack(tmp_path / "a.mrcs")
    extra = "data_general\n\n_rlnJobType  5 # comment\n_rlnName 'a name'\n"
    job = loop("job", {"_rlnVoltage": ["none"], "_rlnX": ["x"]})
    table = loop("particles", particles(NAMES, _rlnComment=["'x y'"] * 3))
    star = tmp_path / "p.star"
    star.write_text(extra + table + job + loop("optics", OPTICS) + "\n\n")
    source = ParticleSource(read_particles(star))
    np.testing.assert_array_equal(source.images[:].asnumpy(), values[[0, 2, 1]])


def optics_of_two(**changes):
    two = {name: values * 2 for name, values in OPTICS.items()}
    names = {"_rlnOpticsGroup": [3, 1], "_rlnOpticsGroupName": ["late", "early"]}
    return two | names | changes


def test_several_optics_groups(tmp_path):
    write_stack(tmp_path / "a.mrcs")
    optics = optics_of_two(_rlnVoltage=[300.0, 200.0])
    table = particles(NAMES, **ctf(3, _rlnDefocusU=[1e4] * 3, _rlnDefocusV=[1e4] * 3))
    table["_rlnOpticsGroup"] = [3, 1, 3]
    table["_rlnDefocusAngle"] = [0.0] * 3
    star = write_star(tmp_path / "p.star", table, optics)
    found = read_particles(star)
    same_source(ParticleSource(found), RelionSource(star))
    summary = found.summary()
    assert "3 in 1 stack of 8 x 8 pixels of 1.5 Å, 2 optics groups (early, late)" in (
        summary
    )
    assert "200 to 300 kV, Cs 2.7 mm" in summary
    assert "defocus 1 µm, astigmatism 0 µm, 2 distinct, not phase-flipped" in summary


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("_rlnImagePixelSize", [1.5, 1.6], "1.6 Å (optics group early)"),
        ("_rlnImageSize", [8, 10], "10 pixels (optics group early)"),
    ],
)
def test_mixed_groups_are_refused_by_name(tmp_path, column, values, words):
    write_stack(tmp_path / "a.mrcs")
    table = particles(NAMES, _rlnRandomSubset=[1, 2, 1])
    table["_rlnOpticsGroup"] = [3, 1, 3]
    star = write_star(tmp_path / "p.star", table, optics_of_two(**{column: values}))
    with pytest.raises(ValueError, match="optics group late") as error:
        read_particles(star)
    assert words in str(error.value)
    # Only groups that are used count.
    assert len(read_particles(star, random_subset=1)) == 2


def test_paths_of_a_project(tmp_path, monkeypatch):
    """RELION's start from the project, wherever in it the STAR file and we are."""
    values = write_stack(tmp_path / "Extract/job012/Micrographs/x.mrcs")
    names = [f"00000{i}@Extract/job012/Micrographs/x.mrcs" for i in (2, 4)]
    inside = write_star(tmp_path / "Refine3D/job020/run_data.star", particles(names))
    outside = write_star(tmp_path.parent / "elsewhere" / "p.star", particles(names))
    for star in (inside, inside.relative_to(tmp_path)):
        monkeypatch.chdir(tmp_path)
        source = ParticleSource(read_particles(star))
        monkeypatch.chdir("/")  # a source stays where it is
        np.testing.assert_array_equal(source.images[:].asnumpy(), values[[1, 3]])
    with pytest.raises(FileNotFoundError, match="pass data_folder"):
        read_particles(outside)
    assert len(read_particles(outside, data_folder=tmp_path)) == 2
    monkeypatch.chdir(tmp_path)
    assert len(read_particles(outside)) == 2
    with pytest.raises(FileNotFoundError, match=r"elsewhere/Extract.*is missing"):
        read_particles(inside, data_folder=outside.parent)


def test_stacks_on_another_disk(tmp_path):
    values = write_stack(tmp_path / "disk/b.mrcs", seed=1)
    write_stack(tmp_path / "a.mrcs")
    (tmp_path / "c.mrcs").symlink_to(tmp_path / "disk/b.mrcs")
    names = ["1@a.mrcs", f"2@{tmp_path}/disk/b.mrcs", "3@c.mrcs"]
    star = write_star(tmp_path / "p.star", particles(names))
    source = ParticleSource(read_particles(star))
    np.testing.assert_array_equal(source.images[1:].asnumpy(), values[[1, 2]])


def test_cryosparc_by_csparc2star(tmp_path):
    """Paths from the project's folder, some marked as imported; stacks named .mrc."""
    values = write_stack(tmp_path / "J12/extract/x_particles.mrc")
    names = [
        "000002@>J12/extract/x_particles.mrc",
        "000001@J12/extract/x_particles.mrc",
    ]
    star = write_star(tmp_path / "J12/p.star", particles(names))
    source = ParticleSource(read_particles(star))
    np.testing.assert_array_equal(source.images[:].asnumpy(), values[[1, 0]])


def test_subsets(tmp_path):
    write_stack(tmp_path / "a.mrcs")
    names = [f"{i}@a.mrcs" for i in (1, 2, 3, 4, 4, 3)]
    columns = {"_rlnRandomSubset": [1, 2, 1, 2, 1, 2], "_rlnClassNumber": [1] * 5 + [2]}
    star = write_star(tmp_path / "p.star", particles(names, **columns))

    def numbers(**options):
        return read_particles(star, **options).table.numbers.tolist()

    assert numbers() == [1, 2, 3, 4, 4, 3]
    assert numbers(first=2) == [1, 2]
    assert numbers(first=99) == [1, 2, 3, 4, 4, 3]
    assert numbers(random_subset=2) == [2, 4, 3]
    assert numbers(random_subset=2, class_number=1, first=5) == [2, 4]
    assert "Particles: 3 of 6 in" in read_particles(star, random_subset=1).summary()
    with pytest.raises(ValueError, match="_rlnClassNumber = 7; its values are 1, 2"):
        numbers(class_number=7)
    star = write_star(tmp_path / "q.star", particles(names))
    with pytest.raises(ValueError, match="no column _rlnRandomSubset"):
        read_particles(star, random_subset=1)


def flagged(tmp_path, group=(1, 1, 1), optics=None, **columns):
    write_stack(tmp_path / "a.mrcs")
    table = particles(NAMES, **ctf(3), **columns) | {"_rlnOpticsGroup": group}
    return read_particles(write_star(tmp_path / "p.star", table, optics or OPTICS))


def test_phase_flipped_images_are_known(tmp_path):
    found = flagged(tmp_path, optics=OPTICS | {"_rlnCtfDataArePhaseFlipped": [1]})
    found.check_ctf()
    assert found.phase_flipped
    assert "3 distinct, phase-flipped" in found.summary()
    source = ParticleSource(found)
    for images in (source, source[1:], source.downsample(6)):
        assert TransferFunctions(images, PolarBasis(images.L)).phase_flipped
    aspires = RelionSource(found.table.path, pixel_size=source.pixel_size)
    assert TransferFunctions(aspires, PolarBasis(aspires.L)).phase_flipped
    again = source.phase_flip()
    assert not TransferFunctions(again, PolarBasis(source.L)).phase_flipped


def test_premultiplied_images_are_known(tmp_path):
    found = flagged(tmp_path, optics=OPTICS | {PREMULTIPLIED: [1]})
    found.check_ctf()
    assert "not phase-flipped, images multiplied by it" in found.summary()
    source = ParticleSource(found)
    for images in (source, source[1:], source.downsample(6)):
        assert TransferFunctions(images, PolarBasis(images.L)).premultiplied


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {
                "optics": optics_of_two(_rlnCtfDataAreCtfPremultiplied=[0, 1]),
                "group": (3, 3, 1),
            },
            "1 images multiplied by their CTF among 3",
        ),
        (
            {"_rlnCtfDataArePhaseFlipped": [1] * 3} | {PREMULTIPLIED: [1] * 3},
            "phase-flipped and multiplied by",
        ),
        (
            {
                "optics": optics_of_two(_rlnCtfDataArePhaseFlipped=[0, 1]),
                "group": (3, 3, 1),
            },
            "1 phase-flipped images among 3",
        ),
        (
            {"optics": {k: v for k, v in OPTICS.items() if k != "_rlnVoltage"}},
            "no _rlnVoltage",
        ),
    ],
)
def test_ctfs_that_cannot_be_corrected_for(tmp_path, options, words):
    found = flagged(tmp_path, **options)
    with pytest.raises(ValueError, match=words) as error:
        found.check_ctf()
    assert "pass ignore_ctf=True" in str(error.value)


def test_b_factors_damp_ctfs_as_in_relion(tmp_path):
    """By exp(-B s² / 4), s in cycles per Ångström, one by one and all at once."""
    b = np.array([0.0, 40.0, 80.0])
    source = ParticleSource(flagged(tmp_path, _rlnCtfBfactor=b))
    plain = ParticleSource(flagged(tmp_path))
    axis = np.fft.fftshift(np.fft.fftfreq(EDGE, source.pixel_size))
    squares = axis[:, None] ** 2 + axis**2
    basis, expected = CartesianBasis(EDGE), []
    for i in range(3):
        damped, full = (
            s.unique_filters[s.filter_indices[i]].evaluate_grid(
                EDGE, pixel_size=s.pixel_size
            )
            for s in (source, plain)
        )
        expected.append(full * np.exp(-b[i] * squares / 4))
        np.testing.assert_allclose(damped, expected[i], atol=1e-7)  # float32's grid
    transfer = TransferFunctions(source, basis).of_images(np.arange(3))
    np.testing.assert_allclose(transfer, expected, atol=3e-5)
    assert "B factor 0 to 80 Å²" in flagged(tmp_path, _rlnCtfBfactor=b).summary()


@pytest.mark.parametrize(
    ("optics", "columns", "words"),
    [
        (
            {"_rlnBeamTiltX": [0.0], "_rlnBeamTiltY": [-0.3]},
            {},
            "beam tilt (_rlnBeamTiltY -0.3)",
        ),
        (
            {"_rlnMagMat00": [1.01], "_rlnMagMat10": [0.0], "_rlnMagMat11": [1.0]},
            {},
            "anisotropic magnification (_rlnMagMat00 1.01)",
        ),
        (
            {},
            {"_rlnCtfScalefactor": [1.0, 0.9, 1.0]},
            "CTF scale factors (_rlnCtfScalefactor 0.9 to 1)",
        ),
    ],
)
def test_what_is_not_corrected_for_is_told(tmp_path, caplog, optics, columns, words):
    flagged(tmp_path, optics=OPTICS | optics, **columns)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'p.star'} lists {words}, not corrected for"
    ]
    caplog.clear()
    none = {
        name: np.round(np.array(values), 0).tolist()
        for name, values in (optics | columns).items()
    }
    flagged(
        tmp_path,
        optics=OPTICS | {name: none[name] for name in optics},
        **{name: none[name] for name in columns},
    )
    assert not caplog.records


def test_defocus_u_alone_is_without_astigmatism(tmp_path):
    write_stack(tmp_path / "a.mrcs")
    table = particles(NAMES, _rlnDefocusU=[1e4, 2e4, 1e4])
    ctfs, which = read_particles(write_star(tmp_path / "p.star", table)).ctfs
    np.testing.assert_array_equal(ctfs[which, 1], [1e4, 2e4, 1e4])
    np.testing.assert_array_equal(ctfs[:, 1], ctfs[:, 2])


def test_stacks_of_several_modes(tmp_path):
    """The first stack's mode is not the others'."""
    mrcfile.write(tmp_path / "a.mrcs", np.ones((2, EDGE, EDGE), np.int16))
    values = write_stack(tmp_path / "b.mrcs")
    star = write_star(tmp_path / "p.star", particles(["1@a.mrcs", "2@b.mrcs"]))
    source = ParticleSource(read_particles(star))
    assert source.dtype == np.float32
    np.testing.assert_array_equal(source.images[1].asnumpy()[0], values[1])
    half = source.downsample(4)
    assert (half.L, half.pixel_size) == (4, 3)
    assert np.isfinite(half.images[:].asnumpy()).all()


def test_contradicting_sizes(tmp_path):
    write_stack(tmp_path / "a.mrcs")
    write_stack(tmp_path / "b.mrcs", edge=6)
    star = write_star(
        tmp_path / "p.star", particles(NAMES), OPTICS | {"_rlnImageSize": [16]}
    )
    with pytest.raises(ValueError, match="16 pixels .* in its stacks have 8"):
        read_particles(star)
    star = write_star(tmp_path / "p.star", particles([*NAMES, "1@b.mrcs"]))
    with pytest.raises(ValueError, match=r"b.mrcs has images of 6 x 6 .* 8 x 8"):
        read_particles(star)


def test_pixels_are_not_read(tmp_path, monkeypatch):
    """A sparse file of a terabyte, and a pass over headers only."""
    write_stack(tmp_path / "a.mrcs")
    with mrcfile.open(tmp_path / "a.mrcs", "r+") as mrc:
        mrc.header["nx"] = mrc.header["ny"] = 512
        mrc.header["nz"] = 1_000_000
    os.truncate(tmp_path / "a.mrcs", 1024 + 4 * 512**2 * 1_000_000)
    star = write_star(
        tmp_path / "p.star",
        particles(["1000000@a.mrcs"]),
        OPTICS | {"_rlnImageSize": [512]},
    )
    assert read_particles(star).L == 512
    os.truncate(tmp_path / "a.mrcs", 1024 + 4 * 512**2 * 1_000_000 - 1)
    with pytest.raises(ValueError, match="1048576001024 bytes.*, but the file has"):
        read_particles(star)


def test_stack_that_may_not_be_read(tmp_path, monkeypatch):
    write_stack(tmp_path / "a.mrcs")
    star = write_star(tmp_path / "p.star", particles(NAMES))

    def denied(path, *args):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("aspire_mom.relion.stacks._stack", denied)
    with pytest.raises(OSError, match=r"a\.mrcs, a stack that .* Permission denied"):
        read_particles(star)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_paths_in_other_characters(tmp_path, encoding):
    path = os.fsdecode("thrée\\n.mrcs".encode(encoding))
    values = write_stack(tmp_path / "a.mrcs")
    os.rename(tmp_path / "a.mrcs", tmp_path / path)
    star = write_star(tmp_path / "p.star", particles(["2@a.mrcs"]))
    star.write_bytes(star.read_bytes().replace(b"a.mrcs", os.fsencode(path)))
    source = ParticleSource(read_particles(star))
    np.testing.assert_array_equal(source.images[:].asnumpy(), values[[1]])


@pytest.mark.parametrize("value", ["data_1.mrc", "save_1.mrc", "_1.mrc", "$1.mrc"])
def test_values_that_need_quotation_marks(tmp_path, value):
    write_stack(tmp_path / "a.mrcs")
    table = particles(["2@a.mrcs"], _rlnMicrographName=[value])
    with pytest.raises(ValueError, match="line .* Wrong number .* needs quotation"):
        read_particles(write_star(tmp_path / "p.star", table))
    table["_rlnMicrographName"] = [f"'{value}'"]
    assert len(read_particles(write_star(tmp_path / "p.star", table))) == 1


def test_rows_are_named(tmp_path):
    write_stack(tmp_path / "a.mrcs")
    for column, value, words in (
        (
            "_rlnDefocusU",
            "2_5x",
            "in data_particles, row 2 .image 3@a.mrcs. has '2_5x' as _rlnDefocusU",
        ),
        ("_rlnDefocusV", "nan", "row 2 .* has 'nan' as _rlnDefocusV"),
        ("_rlnDefocusU", 1e9, "row 2 .* has '1000000000.0' as _rlnDefocusU"),
        ("_rlnImageName", "5@a.mrcs", "row 2 names image 5 of .* images 1 to 4"),
    ):
        table = particles(NAMES, **ctf(3))
        table[column] = [table[column][0], value, table[column][2]]
        with pytest.raises(ValueError, match=words):
            read_particles(write_star(tmp_path / "p.star", table))
    # Rows are the file's, whichever were chosen.
    table = particles([*NAMES, "9@a.mrcs"], _rlnRandomSubset=[1, 1, 1, 2])
    star = write_star(tmp_path / "p.star", table)
    with pytest.raises(ValueError, match="row 4 names image 9"):
        read_particles(star, random_subset=2)


def test_many_rows(tmp_path):
    n = 20_001
    values = write_stack(tmp_path / "a.mrcs", n=3)
    names = [f"{i % 3 + 1}@a.mrcs" for i in range(n)]
    star = write_star(
        tmp_path / "p.star", particles(names, _rlnOriginXAngst=np.arange(n) % 100)
    )
    found = read_particles(star)
    assert len(found) == n
    np.testing.assert_allclose(found.shifts[:, 0] * 1.5, np.arange(n) % 100)
    np.testing.assert_array_equal(found.table.numbers, np.arange(n) % 3 + 1)
    source = ParticleSource(found)
    np.testing.assert_array_equal(
        source.images[n - 1].asnumpy()[0], values[(n - 1) % 3]
    )
