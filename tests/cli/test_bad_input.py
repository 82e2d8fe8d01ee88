"""Bad input: exit status 2, one sentence that names the thing, nothing written over."""

import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from aspire.source import Simulation

from aspire_mom import Moments, PolarBasis
from aspire_mom.files import load_arrays, save_arrays
from aspire_mom.moments.moments import FORMAT
from aspire_mom.phantoms import gaussian_phantom
from aspire_mom.simulation import FastSimulation
from tests.cli.conftest import IMAGES, PIXEL_SIZE, L, run

STACK = f"particles_0_{IMAGES - 1}.mrcs"

# What `moments` tells of particles before it reads them.
SUMMARY = ("Particles: ", "CTF: ", "Shifts: ")

CUBE = np.arange(216).reshape(6, 6, 6)


def contents(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def refused(folder, *args):
    """Run a command that must fail in `folder`, and return its sentence."""
    before = contents(folder)
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    *told, last = result.stderr.splitlines()
    assert all(line.startswith(SUMMARY) for line in told), result.stderr
    assert last.startswith("Error: ")
    assert contents(folder) == before
    return last


@pytest.fixture
def here(tmp_path, star):
    """A folder with the particles, to be damaged."""
    for path in (star, star.with_name(STACK)):
        shutil.copy(path, tmp_path)
    return tmp_path


def save_volume(path, voxels, pixel_size=PIXEL_SIZE):
    with mrcfile.new(path) as mrc:
        voxels = np.asarray(voxels, dtype=np.float32)
        mrc.set_data(np.zeros_like(voxels))
        mrc.data[:] = voxels  # without the header's statistics, which NaN upsets
        if pixel_size is not None:
            mrc.voxel_size = pixel_size
    return path


def cut_short(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])
    return path


def spoil_pixel(here, value):
    with mrcfile.open(here / STACK, "r+") as mrc:
        mrc.data[17, 3, 4] = value


def edit_star(here, old, new):
    star = here / "particles.star"
    text = star.read_text()
    assert old in text
    star.write_text(text.replace(old, new))


def without_rows(here):
    lines = (here / "particles.star").read_text().splitlines(keepends=True)
    rows = [line for line in lines if "@" in line]
    (here / "particles.star").write_text("".join(x for x in lines if x not in rows))


DAMAGED_STARS = {
    "empty file": (lambda f: (f / "particles.star").write_text(""), "cannot be read"),
    "binary": (
        lambda f: shutil.copy(f / STACK, f / "particles.star"),
        "cannot be read",
    ),
    "no particles": (without_rows, "lists 0 particles"),
    "no image names": (
        lambda f: edit_star(f, "_rlnImageName", "_rlnMicrographName"),
        "_rlnImageName",
    ),
    "odd image name": (lambda f: edit_star(f, "000002@", "second@"), "second@"),
    "image beyond the stack": (lambda f: edit_star(f, "000002@", "000999@"), "999"),
    "image 0": (lambda f: edit_star(f, "000002@", "000000@"), "image 0 of"),
    "no stack": (lambda f: (f / STACK).unlink(), "missing; pass --data-folder if"),
    "stack cut short": (lambda f: cut_short(f / STACK, 5000), "truncated"),
    "stack's header cut short": (lambda f: cut_short(f / STACK, 500), STACK),
    "empty stack": (lambda f: cut_short(f / STACK, 0), STACK),
    "NaN": (lambda f: spoil_pixel(f, np.nan), f"image 18 of {STACK} (row 18) has"),
    "infinity": (lambda f: spoil_pixel(f, np.inf), f"image 18 of {STACK} (row 18) has"),
    "negative pixel size": (lambda f: edit_star(f, " 2.0 ", " -2.0 "), "'-2.0' as"),
    "zero pixel size": (lambda f: edit_star(f, " 2.0 ", " 0.0 "), "'0.0' as"),
    "no pixel size": (
        lambda f: edit_star(f, "_rlnImagePixelSize", "_rlnVoid"),
        "--pixel-size",
    ),
    "odd-shaped stack": (
        lambda f: mrcfile.write(
            f / STACK, np.ones((IMAGES, L, L + 1), np.float32), overwrite=True
        ),
        "square",
    ),
}


@pytest.mark.parametrize("case", DAMAGED_STARS)
def test_damaged_particles(here, case):
    damage, word = DAMAGED_STARS[case]
    damage(here)
    star = here / "particles.star"
    assert word in refused(here, "moments", star, "-o", here / "m.npz")


def test_images_of_several_pixel_sizes(here):
    columns = "_rlnImageName\n_rlnImagePixelSize\n"
    rows = f"1@{STACK} 2.0\n2@{STACK} 2.5\n"
    (here / "particles.star").write_text(f"data_\nloop_\n{columns}{rows}")
    message = refused(here, "moments", here / "particles.star", "-o", here / "m.npz")
    assert f"2 Å in row 1 (image 1 of {STACK}), 2.5 Å in row 2 (image 2" in message


def test_contradicting_pixel_size_names_both(here):
    args = ("moments", here / "particles.star", "-o", here / "m.npz")
    message = refused(here, *args, "--pixel-size", 3)
    assert "--pixel-size is 3 Å" in message
    assert "particles.star has one of 2 Å" in message


@pytest.mark.parametrize("size", ["-1", "0", "nan", "inf", "two"])
def test_pixel_size_must_be_positive(here, size):
    args = ("moments", here / "particles.star", "-o", here / "m.npz")
    message = refused(here, *args, "--pixel-size", size)
    assert f"{size} is not a positive number" in message


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--first", 0), "--first"),
        (("--random-subset", 3), "--random-subset"),
        (("--random-subset", 1), "no column _rlnRandomSubset"),
        (("--class", 2), "_rlnClassNumber = 2; its values are 1"),
        (("--downsample", L + 1), f"--downsample is {L + 1}; the images have {L}"),
        (("--downsample", 3), "--downsample"),
        (("--data-folder", "nowhere"), "nowhere"),
        (
            ("--device", "abacus"),
            "--device is abacus, which cannot be used; cpu always can",
        ),
    ],
)
def test_choices_of_particles(here, options, word):
    args = ("moments", here / "particles.star", "-o", here / "m.npz", *options)
    assert word in refused(here, *args)


def rest(tmp_path):
    return ("--images", 5, "--snr", 1, "-o", tmp_path / "p.star")


DAMAGED_VOLUMES = {
    "not cubic": (lambda p: save_volume(p, np.ones((6, 6, 5))), "cubic"),
    "an image": (lambda p: save_volume(p, np.eye(6)), "cubic"),
    "NaN": (lambda p: save_volume(p, np.full((6, 6, 6), np.nan)), "NaN"),
    "too large": (lambda p: save_volume(p, CUBE * 1e36), "1e+15 or more"),
    "constant": (lambda p: save_volume(p, np.ones((6, 6, 6))), "in all its voxels"),
    "no voxel size": (
        lambda p: save_volume(p, CUBE, None),
        "--pixel-size",
    ),
    "long voxels": (
        lambda p: save_volume(p, CUBE, (1, 1, 2)),
        "cubes",
    ),
    "negative voxel size": (
        lambda p: save_volume(p, CUBE, -1),
        "positive",
    ),
    "cut short": (
        lambda p: cut_short(save_volume(p, CUBE), 1200),
        "cut short",
    ),
    "sizes beyond all files": (
        lambda p: p.write_bytes(b"\xff\xff\xff\x7f" * 3 + b"\2" + bytes(1011)),
        "cannot be read",
    ),
    "empty": (lambda p: p.write_bytes(b""), "cannot be read"),
    "text": (lambda p: p.write_text("not a map " * 200), "no MRC file"),
    "a folder": (lambda p: p.mkdir(), "directory"),
    "absent": (lambda p: None, "does not exist"),
}


@pytest.mark.parametrize("case", DAMAGED_VOLUMES)
@pytest.mark.parametrize("command", ["simulate", "evaluate"])
def test_damaged_volume(tmp_path, case, command):
    damage, word = DAMAGED_VOLUMES[case]
    path = tmp_path / "bad.mrc"
    damage(path)
    args = rest(tmp_path) if command == "simulate" else (path, "--json")
    message = refused(tmp_path, command, path, *args)
    assert word in message
    assert "bad.mrc" in message


@pytest.mark.parametrize("snr", ["0", "-0.1", "nan", "many"])
def test_snr_must_be_positive(tmp_path, volume, snr):
    args = ("simulate", volume, "--images", 5, "--snr", snr, "-o", tmp_path / "p.star")
    assert "--snr" in refused(tmp_path, *args)


@pytest.mark.parametrize("images", ["0", "-3", "1.5"])
def test_images_must_be_counted(tmp_path, volume, images):
    args = ("--images", images, "--snr", 1, "-o", tmp_path / "p.star")
    assert "--images" in refused(tmp_path, "simulate", volume, *args)


def test_contradicting_voxel_size_names_both(tmp_path, volume):
    message = refused(
        tmp_path, "simulate", volume, *rest(tmp_path), "--pixel-size", 2.5
    )
    assert "--pixel-size is 2.5 Å" in message
    assert "map.mrc has one of 2 Å" in message


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (gaussian_phantom(L + 1, pixel_size=PIXEL_SIZE), "must be the same"),
        (gaussian_phantom(L, pixel_size=1.5), "1.5 Å"),
    ],
)
def test_volumes_that_cannot_be_compared(tmp_path, volume, other, word):
    other.save(str(tmp_path / "other.mrc"))
    assert word in refused(tmp_path, "evaluate", volume, tmp_path / "other.mrc")


def test_foreign_npz(tmp_path):
    path, out = tmp_path / "m.npz", tmp_path / "r"
    np.savez(path, first=np.ones(3))
    assert "m.npz" in refused(tmp_path, "reconstruct", path, "-o", out)
    path.write_text("moments")
    assert "m.npz" in refused(tmp_path, "reconstruct", path, "-o", out)
    path.unlink()
    assert "m.npz" in refused(tmp_path, "reconstruct", path, "-o", out)


@pytest.mark.parametrize("change", [{"L": 8}, {"n_rings": 4}, {"kind": "ZernikeBasis"}])
def test_moments_of_another_basis(tmp_path, moments, change):
    arrays, settings = load_arrays(moments, FORMAT)
    settings["basis"] |= change
    save_arrays(tmp_path / "m.npz", FORMAT, arrays, settings)
    message = refused(tmp_path, "reconstruct", tmp_path / "m.npz", "-o", tmp_path / "r")
    assert "m.npz cannot be used" in message


def test_moments_cut_short(tmp_path, moments):
    path = tmp_path / "m.npz"
    shutil.copy(moments, path)
    cut_short(path, path.stat().st_size // 2)
    message = refused(tmp_path, "reconstruct", path, "-o", tmp_path / "r")
    assert "m.npz" in message


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--device", "abacus"), "abacus"),
        (("--device", "meta"), "--device is meta, which cannot be used"),
        (("--support-radius", 13), "half the box"),
        (("--support-radius", -1), "not a positive number"),
        (("--lowpass", 3.9), "two voxels, 4 Å"),
        (("--symmetry", "H3"), "--symmetry is 'H3'; it must be C1, C2, …, D2, D3, …"),
        (("--lowpass", 25), "the box, 24 Å"),
        (("--prior", "hope"), "hope"),
        (("--starts", 0), "--starts"),
        (("--seed", -1), "--seed"),
    ],
)
def test_reconstruction_options(tmp_path, moments, options, word):
    args = ("reconstruct", moments, "-o", tmp_path / "r", *options)
    assert word in refused(tmp_path, *args)
    assert not (tmp_path / "r").exists()


def test_lengths_need_a_pixel_size(tmp_path):
    basis = PolarBasis(8, n_rings=4)
    first = np.ones(basis.first_shape, complex)
    moments = Moments(first, np.ones(basis.second_shape, complex), basis)
    moments.save(tmp_path / "m.npz")
    for option in ("--support-radius", "--lowpass"):
        args = ("reconstruct", tmp_path / "m.npz", "-o", tmp_path / "r", option, 5)
        assert "pixel size" in refused(tmp_path, *args)


def test_checkpoint_of_other_moments(tmp_path, moments):
    out = tmp_path / "r"
    out.mkdir()
    (out / "checkpoint.pt").write_text("something else")
    message = refused(tmp_path, "reconstruct", moments, "-o", out)
    assert "checkpoint.pt" in message
    assert "pass --overwrite" in message


OUTPUTS = {
    "simulate": ("p.star", "p_0_4.mrcs"),
    "moments": ("m.npz",),
    "reconstruct": ("r/volume.mrc", "r/volume_mirror.mrc", "r/report.json"),
    "demo": ("d/volume.mrc", "d/truth.mrc", "d/images.star", "d/moments.npz"),
    "evaluate": ("f.png",),
}


def command(name, folder, volume, star, moments):
    return (
        name,
        *{
            "simulate": (volume, *rest(folder)),
            "moments": (star, "-o", folder / "m.npz"),
            "reconstruct": (moments, "-o", folder / "r"),
            "demo": ("--out", folder / "d"),
            "evaluate": (volume, volume, "--plot", folder / "f.png"),
        }[name],
    )


@pytest.mark.parametrize(
    ("name", "output"), [(n, o) for n, outputs in OUTPUTS.items() for o in outputs]
)
def test_existing_results_are_kept(tmp_path, volume, star, moments, name, output):
    path = tmp_path / output
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    message = refused(tmp_path, *command(name, tmp_path, volume, star, moments))
    assert str(path) in message
    assert "--overwrite" in message


@pytest.mark.parametrize("name", OUTPUTS)
def test_results_do_not_replace_files_by_folders(tmp_path, volume, star, moments, name):
    """Nor the other way round, --overwrite or not."""
    path = tmp_path / OUTPUTS[name][0]
    if path.parent != tmp_path:
        path = path.parent
        path.write_text("precious")
    else:
        path.mkdir()
    args = (*command(name, tmp_path, volume, star, moments), "--overwrite")
    assert path.name in refused(tmp_path, *args)


@pytest.mark.parametrize("name", ["simulate", "moments", "evaluate"])
def test_names_must_have_their_endings(tmp_path, volume, star, moments, name):
    *args, out = command(name, tmp_path, volume, star, moments)
    message = refused(tmp_path, *args, out.with_suffix(".txt"))
    assert "must end in" in message


def test_failed_writing_leaves_nothing(tmp_path, monkeypatch, volume):
    """As on a full disk, half-way through the images."""

    def fail(self, *args, **options):
        raise OSError(28, "No space left on device", "p.star")

    monkeypatch.setattr(Simulation, "save_images", fail)
    result = run("simulate", volume, *rest(tmp_path))
    assert result.exit_code == 2
    # After ASPIRE's warnings that a STAR file without CTF has no optics.
    message = result.stderr.splitlines()[-1]
    assert message == "Error: No space left on device: p.star"
    assert list(tmp_path.iterdir()) == []


def test_bugs_keep_their_traceback(tmp_path, monkeypatch, volume):
    def bug(self, *args, **options):
        raise KeyError("bug")

    monkeypatch.setattr(FastSimulation, "_transforms", bug)
    result = run("simulate", volume, *rest(tmp_path))
    assert isinstance(result.exception, KeyError)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("pixel_size is 3", "--pixel-size is 3"),
        ("p.star exists; pass ignore_ctf=True", "p.star exists; pass --ignore-ctf"),
        ("pass a smaller batch_size or none", "pass a smaller --batch-size or none"),
        ("p.star has no class_number", "p.star has no class_number"),
        ("first has shape (3,)", "first has shape (3,)"),
        ("pass nyquist=True", "pass nyquist=True"),
    ],
)
def test_errors_of_the_library_name_options(tmp_path, monkeypatch, message, sentence):
    """Those of the command in place of arguments, and nothing else."""

    def fail(*args, **options):
        raise ValueError(message)

    monkeypatch.setattr("aspire_mom.relion.read_particles", fail)
    (tmp_path / "p.star").touch()
    args = ("moments", tmp_path / "p.star", "-o", tmp_path / "m.npz")
    assert refused(tmp_path, *args) == f"Error: {sentence}"


def test_unknown_command_and_option(tmp_path):
    assert "No such command" in refused(tmp_path, "polish")
    assert "--loud" in refused(tmp_path, "demo", "--loud")
