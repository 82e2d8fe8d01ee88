"""cryoSPARC's .cs files against STAR files of the same particles."""

import numpy as np
import pytest
from aspire.source import RelionSource

from aspire_mom import Moments
from aspire_mom.relion import ParticleSource, read_particles, write_poses
from tests.cli.conftest import run, succeed
from tests.relion.files import EDGE, ctf, particles, write_stack, write_star
from tests.relion.test_particles import same_source

N, SIZE = 5, 1.5
NUMBERS = np.array([3, 0, 1, 1, 2])
DEFOCUS = ctf(N)
PATHS = np.array([b"J12/extract/a.mrc", b">J12/imported/b.mrc"])[[0, 1, 0, 1, 1]]
SHIFTS = np.array([[1, 0], [0.5, -1], [0, 0], [-2, 0.25], [1, 1.0]])

BLOB = {
    "blob/path": PATHS,
    "blob/idx": NUMBERS.astype("u4"),
    "blob/shape": np.full((N, 2), EDGE, "u4"),
    "blob/psize_A": np.full(N, SIZE, "f4"),
    "blob/sign": np.ones(N, "f4"),
}
CTF = {
    "ctf/exp_group_id": np.array([4, 4, 7, 7, 7], "u4"),
    "ctf/accel_kv": np.full(N, 300, "f4"),
    "ctf/cs_mm": np.full(N, 2.7, "f4"),
    "ctf/amp_contrast": np.full(N, 0.1, "f4"),
    "ctf/df1_A": DEFOCUS["_rlnDefocusU"].astype("f4"),
    "ctf/df2_A": DEFOCUS["_rlnDefocusV"].astype("f4"),
    "ctf/df_angle_rad": np.radians(DEFOCUS["_rlnDefocusAngle"]).astype("f4"),
    "ctf/phase_shift_rad": np.zeros(N, "f4"),
    "ctf/bfactor": np.zeros(N, "f4"),
    "ctf/tilt_A": np.zeros((N, 2), "f4"),
}
ALIGNED = {
    "alignments3D/shift": SHIFTS.astype("f4"),
    "alignments3D/psize_A": np.full(N, 2 * SIZE, "f4"),  # of binned images
    "alignments3D/split": np.array([0, 1, 0, 1, 1], "u4"),
    "alignments3D/pose": np.zeros((N, 3), "f4"),
}


def save(path, *groups, uids=None, **changes):
    fields = {"uid": np.arange(N, dtype="u8") * 977 if uids is None else uids}
    for group in groups:
        fields |= group
    fields |= changes
    dtype = [(name, v.dtype.str, v.shape[1:]) for name, v in fields.items()]
    table = np.empty(N, dtype)
    for name, values in fields.items():
        table[name] = values
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        np.save(file, table)
    return path


@pytest.fixture
def project(tmp_path):
    write_stack(tmp_path / "J12/extract/a.mrc")
    write_stack(tmp_path / "J12/imported/b.mrc", n=3, seed=1)
    return tmp_path


@pytest.fixture
def star(project):
    """The same particles as a STAR file."""
    names = [
        f"{number + 1}@{path.decode().removeprefix('>')}"
        for number, path in zip(NUMBERS, PATHS, strict=True)
    ]
    origins = dict(
        zip(("_rlnOriginXAngst", "_rlnOriginYAngst"), 2 * SIZE * SHIFTS.T, strict=True)
    )
    return write_star(project / "p.star", particles(names, **DEFOCUS, **origins))


def test_particles_are_those_of_the_star_file(project, star):
    found = read_particles(save(project / "J20/p.cs", BLOB, CTF, ALIGNED))
    ours, theirs = ParticleSource(found), ParticleSource(read_particles(star))
    np.testing.assert_allclose(ours.offsets, theirs.offsets, atol=1e-6)
    same_source(ours, theirs, atol=1e-6)  # .cs files have single precision
    assert "2 optics groups (opticsGroup1, opticsGroup2)" in found.summary()
    subset = read_particles(project / "J20/p.cs", random_subset=2)
    assert subset.table.rows.tolist() == [2, 4, 5]


def test_fields_of_the_passthrough_file(project):
    """Its particles are in another order; the file's own fields come first."""
    path = save(project / "J20/p.cs", BLOB, ALIGNED)
    order = np.array([4, 2, 0, 1, 3])
    more = {name: values[order] for name, values in CTF.items()}
    uids = (order * 977).astype("u8")
    wrong = np.full(N, 9.0, "f4")
    save(project / "J20/more.cs", more, uids=uids, **{"blob/psize_A": wrong})
    found = read_particles(path, passthrough=project / "J20/more.cs")
    assert found.pixel_size == SIZE
    ctfs, which = found.ctfs
    np.testing.assert_allclose(ctfs[which, 1], DEFOCUS["_rlnDefocusU"])
    save(project / "J20/more.cs", more, uids=uids + np.uint64(1))
    with pytest.raises(ValueError, match="lacks the particle of row 1, uid 0"):
        read_particles(path, passthrough=project / "J20/more.cs")
    with pytest.raises(ValueError, match=r"p\.star is no \.cs file"):
        read_particles(project / "p.star", passthrough=path)


def test_command(project):
    path = save(project / "J20/p.cs", ALIGNED)
    more = save(project / "J20/more.cs", BLOB, CTF)
    succeed("moments", path, "--passthrough", more, "-o", project / "m.npz")
    assert Moments.load(project / "m.npz").n_images == N
    result = run("moments", path, "-o", project / "n.npz")
    assert result.exit_code == 2
    assert "pass --passthrough if the passthrough file has it" in result.stderr


def test_poses_are_written_for_relion(project, star):
    more = save(project / "J20/more.cs", BLOB, CTF)
    path = save(project / "J20/p.cs", ALIGNED)
    with pytest.raises(ValueError, match="no field blob/path, .* pass passthrough"):
        read_particles(path)
    found = read_particles(path, passthrough=more, random_subset=2)
    zeros = np.zeros((3, 3))
    write_poses(project / "poses.star", found, zeros, zeros[:, :2], np.array([1, 2, 1]))
    source = RelionSource(project / "poses.star")
    before = ParticleSource(found)
    np.testing.assert_array_equal(
        source.images[:].asnumpy(), before.images[:].asnumpy()
    )
    assert source.pixel_size == SIZE
    assert len(source.unique_filters) == 3


def test_what_cannot_be_corrected_for(project, caplog):
    tilt = np.array([[0, 0]] * 4 + [[0, 0.1]], "f4")
    path = save(project / "p.cs", BLOB, CTF, **{"ctf/tilt_A": tilt})
    read_particles(path)
    assert "lists aberrations (ctf/tilt_A)" in caplog.text
    phase = np.array([0, 0, 0, np.pi / 2, 0], "f4")
    save(path, BLOB, CTF, **{"ctf/phase_shift_rad": phase})
    assert "phase shift 0 to 90°" in read_particles(path).summary()
    save(path, BLOB, CTF, **{"blob/sign": np.array([1, 1, -1, 1, 1], "f4")})
    with pytest.raises(ValueError, match="both contrasts"):
        read_particles(path)
    defocus = np.where(np.arange(N) == 2, np.nan, CTF["ctf/df1_A"])
    save(path, BLOB, CTF, **{"ctf/df1_A": defocus})
    with pytest.raises(
        ValueError, match=r"row 3 .image 000002@J12/extract/a\.mrc. has"
    ):
        read_particles(path)
    save(path, BLOB, CTF, **{"blob/idx": NUMBERS + 3})
    with pytest.raises(ValueError, match=r"row 1 names image 7 of .*a\.mrc"):
        read_particles(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros(3), "no table of particles"),
        (np.zeros(0, [("uid", "u8")]), "no table of particles"),
        (np.zeros(2, [("blob/path", "f4")]), "another kind .float32. as blob/path"),
        (np.zeros(2, [("blob/idx", "S4")]), "another kind .*as blob/idx"),
        (np.zeros(2, [("alignments3D/shift", "f4", 3)]), "another kind .*3D/shift"),
        (np.zeros(2, [("blob/path", object)]), r"cannot be read as a \.cs file"),
    ],
)
def test_other_arrays(tmp_path, content, words):
    with open(tmp_path / "p.cs", "wb") as file:
        np.save(file, content, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"p\.cs .*{words}"):
        read_particles(tmp_path / "p.cs")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files(project, seed):
    """A sentence, whatever bytes are wrong; never a pickle."""
    rng = np.random.default_rng(seed)
    path = save(project / "p.cs", BLOB, CTF, ALIGNED)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    region = 300 if seed % 2 else len(data)
    places = rng.integers(0, region, rng.integers(1, 20))
    data[places] = rng.integers(0, 256, len(places))
    path.write_bytes(data[: rng.integers(1, len(data)) if seed % 4 == 3 else None])
    told = "p.cs"
    try:
        read_particles(path)
    except (ValueError, OSError) as error:
        told = str(error)
    assert "p.cs" in told or "J12" in told
