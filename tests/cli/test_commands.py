"""What each command writes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from aspire.source import RelionSource
from aspire.volume import Volume

from aspire_mom import (
    CartesianBasis,
    MomentEstimator,
    Moments,
    PolarBasis,
    Reconstruction,
    compare,
)
from aspire_mom.cli.main import COMMANDS
from aspire_mom.cli.reconstruct import WRITTEN, reconstruct
from aspire_mom.inversion.reconstruction import FILES
from aspire_mom.inversion.search import N_STARTS
from aspire_mom.moments import StreamingOptions
from aspire_mom.phantoms import gaussian_phantom
from aspire_mom.relion import ParticleSource
from aspire_mom.volumes.grid import mirror
from tests.cli.conftest import (
    IMAGES,
    PIXEL_SIZE,
    L,
    run,
    succeed,
)

# Checkpoints at once.
EVERY_BATCH = {**StreamingOptions.__init__.__kwdefaults__, "checkpoint_seconds": 0.0}


def test_moments_are_those_of_the_estimator(moments, star):
    found = Moments.load(moments)
    expected = MomentEstimator(RelionSource(star), PolarBasis(L)).estimate()
    assert found.n_images == IMAGES
    assert found.pixel_size == PIXEL_SIZE
    assert max(found.relative_error(expected)) < 1e-12
    assert np.abs(found.second).max() > 0


def test_batches_do_not_change_moments(tmp_path, moments, star):
    succeed("moments", star, "-o", tmp_path / "m.npz", "--batch-size", 7)
    errors = Moments.load(tmp_path / "m.npz").relative_error(Moments.load(moments))
    assert max(errors) < 1e-5


def test_some_of_the_particles_downsampled(tmp_path, star):
    options = ("--first", 100, "--downsample", 8, "--data-folder", star.parent)
    succeed("moments", star, "-o", tmp_path / "m.npz", *options)
    source = RelionSource(star)[:100].downsample(8)
    expected = MomentEstimator(source, PolarBasis(8)).estimate()
    found = Moments.load(tmp_path / "m.npz")
    assert (found.n_images, found.nyquist) == (100, False)
    assert found.pixel_size == pytest.approx(PIXEL_SIZE * L / 8)
    assert max(found.relative_error(expected)) < 1e-6


def test_half_sets_make_the_whole(tmp_path, moments, star):
    """Their moments merge into those of all particles."""
    text = star.read_text()
    rows = [line for line in text.splitlines() if "@" in line]
    tags = text.count("#", text.index("data_particles"))
    text = text.replace(rows[0], f"_rlnRandomSubset #{tags + 1}\n{rows[0]}")
    for i, row in enumerate(rows):
        text = text.replace(row, f"{row} {i % 2 + 1}")
    own = star.with_name("subsets.star")
    own.write_text(text)
    halves = []
    for subset in (1, 2):
        out = tmp_path / f"{subset}.npz"
        told = succeed("moments", own, "-o", out, "--random-subset", subset).stderr
        assert f"{IMAGES // 2} of {IMAGES}" in told
        halves.append(Moments.load(out))
    whole = halves[0].merge(halves[1])
    assert whole.n_images == IMAGES
    # Each half has a noise variance of its own.
    assert max(whole.relative_error(Moments.load(moments))) < 1e-4


def test_interrupted_moments_go_on(tmp_path, monkeypatch, moments, star):
    """Ctrl-C half-way; then the rest of the images, then none."""
    read, starts = ParticleSource._images, []

    def interrupted(self, indices):
        if len(indices) == 10:  # a batch, and no look at a sample
            starts.append(int(indices[0]))
            if starts[-1] >= IMAGES // 2 and not resumed:
                raise KeyboardInterrupt
        return read(self, indices)

    monkeypatch.setattr(ParticleSource, "_images", interrupted)
    monkeypatch.setattr(StreamingOptions.__init__, "__kwdefaults__", EVERY_BATCH)
    out = tmp_path / "new" / "m.npz"
    command = ("moments", star, "-o", out, "--batch-size", 10, "--resume")
    resumed = False
    stopped = run(*command)
    assert stopped.exit_code == 2
    assert stopped.stderr.endswith(f"command goes on from {out}.checkpoint\n")
    assert not out.exists()
    before, resumed = len(starts), True
    succeed(*command)
    assert min(starts[before:]) >= IMAGES // 2 - 10
    assert [path.name for path in out.parent.iterdir()] == ["m.npz"]
    assert max(Moments.load(out).relative_error(Moments.load(moments))) < 1e-5
    assert "is already complete" in succeed(*command).stdout
    # Of other particles it is not.
    refused = run(*command, "--first", 20)
    assert "n_images is 300, not 20" in refused.stderr
    assert "--overwrite" in refused.stderr
    succeed(*command, "--first", 20, "--overwrite")
    assert Moments.load(out).n_images == 20


@pytest.mark.usefixtures("quick")
def test_the_papers_configuration(tmp_path, star):
    """Cartesian moments, one epoch; moments of rings are refused."""
    path = tmp_path / "cartesian.npz"
    succeed("moments", star, "-o", path, "--basis", "cartesian")
    assert Moments.load(path).basis == CartesianBasis(L)
    out = tmp_path / "out"
    args = ("--prior", "paper", "--epochs", 1)
    succeed("reconstruct", path, "-o", out, *args)
    settings = Reconstruction.load(out).settings
    assert settings["learning_rates"] == [1e-5, 1e-6]
    assert settings["n_steps"] == 2
    assert settings["n_nodes"] == 1200
    refused = run("reconstruct", path, "-o", tmp_path / "b", *args, "--starts", 2)
    assert "no --starts" in refused.output


def test_the_papers_configuration_takes_cartesian_moments(tmp_path, moments):
    refused = run("reconstruct", moments, "-o", tmp_path / "out", "--prior", "paper")
    assert "CartesianBasis" in refused.output


def test_reconstruction_agrees_with_the_volume(result, volume):
    found, truth = (Volume.load(str(p)) for p in (result / "volume.mrc", volume))
    assert found.pixel_size == PIXEL_SIZE
    # 300 images at 12 pixels tell the shape, not more.
    assert compare(found, truth).correlation > 0.8


def test_reconstruction_files(result):
    # Of moments there is a picture where they lie in the folder.
    names = {*FILES, *WRITTEN} - {"moments.png"}
    assert {path.name for path in result.iterdir()} == names
    assert "<h1>result</h1>" in (result / "report.html").read_text(encoding="utf-8")
    found = Reconstruction.load(result)
    other = Volume.load(str(result / "volume_mirror.mrc"))
    assert np.array_equal(other.asnumpy(), mirror(found.volume).asnumpy())
    assert other.pixel_size == PIXEL_SIZE
    report = json.loads((result / "report.json").read_text())
    assert report["n_images"] == IMAGES
    assert report["seconds"] > 0
    assert report["seed"] == 0
    assert report["settings"]["n_starts"] == len(report["starts"]) == 1
    assert np.isfinite(report["starts"][0]["criterion"])
    for name in ("slices.png", "isosurfaces.png", "views.png"):
        assert (result / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("quick")
def test_interrupted_reconstruction_goes_on(
    tmp_path, monkeypatch, moments, counted_result
):
    """Ctrl-C half-way; the same command then takes only the steps that are left."""
    step, calls = torch.optim.LBFGS.step, []
    result, n_calls = counted_result
    half = n_calls // 2
    assert half > 2

    def interrupted(self, closure):
        calls.append(1)
        if len(calls) == half:
            raise KeyboardInterrupt
        return step(self, closure)

    monkeypatch.setattr(torch.optim.LBFGS, "step", interrupted)
    command = ("reconstruct", moments, "-o", tmp_path, "--starts", 1)
    stopped = run(*command)
    assert stopped.exit_code == 2
    assert stopped.stderr.splitlines()[-1].startswith("Error: interrupted; the same")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    succeed(*command)
    assert len(calls) == n_calls + 1
    assert not (tmp_path / "checkpoint.pt").exists()
    volumes = [Volume.load(str(p / "volume.mrc")).asnumpy() for p in (tmp_path, result)]
    assert np.allclose(*volumes, atol=1e-4 * volumes[1].max())


@pytest.mark.usefixtures("quick")
def test_overwrite_replaces_a_checkpoint_of_other_options(tmp_path, moments):
    (tmp_path / "checkpoint.pt").write_text("something else")
    command = ("reconstruct", moments, "-o", tmp_path, "--starts", 1)
    succeed(*command, "--overwrite")
    assert (tmp_path / "volume.mrc").exists()
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.usefixtures("quick")
def test_checkpoint_stays_until_the_results_are_written(tmp_path, monkeypatch, moments):
    """A failure after the inversion, a full disk say, costs no work."""

    def full(*arguments):
        raise OSError(28, "No space left on device")

    command = ("reconstruct", moments, "-o", tmp_path, "--starts", 1)
    with monkeypatch.context() as patch:
        patch.setattr("aspire_mom.cli.reconstruct.write_results", full)
        assert "No space left" in run(*command).stderr
    calls, step = [], torch.optim.LBFGS.step
    monkeypatch.setattr(
        torch.optim.LBFGS, "step", lambda *args: calls.append(1) or step(*args)
    )
    succeed(*command)
    assert not calls


@pytest.mark.usefixtures("quick")
def test_lowpass_removes_fine_shells(tmp_path, moments):
    out = tmp_path / "r"
    command = ("reconstruct", moments, "-o", out, "--starts", 1)
    told = succeed(*command, "--lowpass", 8, "--support-radius", 10, "--symmetry", "C2")
    assert "agrees with its symmetric copies to" in told.stdout
    assert json.loads((out / "report.json").read_text())["lowpass_angstrom"] == 8
    settings = json.loads((out / "report.json").read_text())["settings"]
    assert settings["support_radius"] == pytest.approx(10 / (L * PIXEL_SIZE))
    for name in ("volume.mrc", "volume_mirror.mrc"):
        power = np.abs(np.fft.fftn(Volume.load(str(out / name)).asnumpy()[0]))
        k = np.fft.fftfreq(L, 1 / L)
        shells = np.sqrt(sum(axis**2 for axis in np.ix_(k, k, k)))
        # Box 24 Å, so the cut is at shell 3 and ends at shell 4.
        assert power[shells > 4].max() < 1e-5 * power.max()
        assert power[(shells > 1.5) & (shells < 2.5)].max() > 1e-3 * power.max()


def test_priors_are_those_of_the_inversion():
    (option,) = (p for p in reconstruct.params if p.name == "prior")
    assert set(option.type.choices) == {*N_STARTS, "paper"}


@pytest.mark.parametrize("hand", [1, -1])
def test_evaluate_finds_a_moved_volume(tmp_path, hand):
    truth = gaussian_phantom(15, seed=2, pixel_size=3.0)
    moved = np.rot90(truth.asnumpy()[0], axes=(1, 2))[::hand]
    Volume(np.ascontiguousarray(moved), pixel_size=3.0).save(str(tmp_path / "a.mrc"))
    truth.save(str(tmp_path / "b.mrc"))
    plot = tmp_path / "new" / "fsc.png"
    args = (tmp_path / "a.mrc", tmp_path / "b.mrc", "--plot", plot)
    report = json.loads(succeed("evaluate", *args, "--json").stdout)
    assert report["mirrored"] is (hand == -1)
    assert report["correlation"] > 0.999
    assert min(report["fsc"]) > 0.98
    assert report["resolution_0.5_angstrom"] == pytest.approx(15 * 3 / 7)
    assert report["resolution_0.143_angstrom"] == pytest.approx(15 * 3 / 7)
    assert report["seconds"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    # And in words.
    words = succeed("evaluate", *args, "--overwrite").stdout
    assert "6.43 Å (7.0 shells)" in words
    assert f"hand: {'mirrored' if hand == -1 else 'same as the reference'}" in words


def test_pixel_size_option_stands_in_for_the_header(tmp_path):
    gaussian_phantom(15, pixel_size=None).save(str(tmp_path / "a.mrc"))
    args = (tmp_path / "a.mrc", tmp_path / "a.mrc", "--json", "--pixel-size", 2)
    report = json.loads(succeed("evaluate", *args).stdout)
    assert report["resolution_0.5_angstrom"] == pytest.approx(15 * 2 / 7)


def test_overwrite_replaces(tmp_path, star):
    out = tmp_path / "m.npz"
    out.write_text("old")
    succeed("moments", star, "-o", out, "--overwrite")
    assert Moments.load(out).n_images == IMAGES


def test_overwriting_particles_leaves_no_old_stack(tmp_path, volume):
    out, other = tmp_path / "p.star", tmp_path / "p_0_x.mrcs"
    other.write_text("not simulated")
    for n, flags in ((5, ()), (4, ("--overwrite",)), (4, ("--overwrite",))):
        args = ("--images", n, "--snr", 1, "-o", out, *flags)
        assert succeed("simulate", volume, *args).stderr == ""
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"p.star", "p_0_3.mrcs", "p_0_x.mrcs"}
    assert RelionSource(out).n == 4


def test_a_process_of_its_own(tmp_path, volume):
    """One for a sound command, then a bad one, as it takes seconds to import ASPIRE,
    whose logger is bound to the real stdout."""
    (tmp_path / "bad.mrc").write_bytes(b"")
    sound = ["evaluate", str(volume), str(volume), "--json"]
    code = f"from aspire_mom.cli.main import main; main({sound}); main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "evaluate", "bad.mrc", "bad.mrc"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["correlation"] == pytest.approx(1, abs=1e-3)
    assert done.stderr.splitlines()[-1].startswith("Error: bad.mrc")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.mrc"]


def test_help_imports_neither_torch_nor_aspire(tmp_path):
    """Nor NumPy, before a command is named."""
    commands = [*COMMANDS, "mra train", "mra solve", "mra benchmark"]
    code = f"""
import sys
from aspire_mom.cli.main import main
for command in ["", *{commands}]:
    main([*command.split(), "--help"], standalone_mode=False)
    slow = {{"aspire", "torch"}} | ({{"numpy"}} if not command else set())
    assert not slow & set(sys.modules), command
"""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert time.perf_counter() - start < 5
    assert all(name in succeed("--help").stdout for name in COMMANDS)


@pytest.mark.parametrize("command", ["", *(name for name in COMMANDS if name != "mra")])
def test_help_has_an_example(command):
    text = succeed(*command.split(), "--help").stdout
    assert f"aspire-mom {command}".strip() in text


# The stack lacks MRC's marks, of which mrcfile warns whenever ASPIRE opens it.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_real_particles(tmp_path):
    """Real RELION files: particles with a CTF and shifts, and projections with none."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "relion"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    out = tmp_path / "m.npz"
    star = folder / "relion31_optics.star"
    told = succeed("moments", star, "-o", out).stderr
    assert "5 in 1 stack of 256 x 256 pixels of 2.806 Å, 1 optics group" in told
    assert "300 kV, Cs 0.01 mm, amplitude contrast 0.1" in told
    assert "defocus 1.237 to 1.298 µm, astigmatism 0.02625 µm, 5 distinct" in told
    assert "Shifts: 0.192 pixels RMS" in told
    assert Moments.load(out).n_images == 5
    assert Moments.load(out).basis.L == 256
    corrections = str(Moments.load(out).corrections)
    assert corrections.startswith("corrected for 5 astigmatic filter(s); centred by")
    flags = ("--ignore-ctf", "--ignore-shifts", "--overwrite", "--downsample", 64)
    succeed("moments", star, "-o", out, *flags)
    corrections = str(Moments.load(out).corrections)
    assert corrections.startswith("CTFs ignored; known shifts ignored")
    assert not list(tmp_path.glob(".partial-*"))


@pytest.mark.slow
def test_from_volume_to_resolution(tmp_path):
    """The whole pipeline at 25³ and the SNR of the paper's third volume."""
    gaussian_phantom(25, seed=1).save(str(tmp_path / "truth.mrc"))
    star, npz, out = (tmp_path / name for name in ("p.star", "m.npz", "result"))
    succeed(
        "simulate", tmp_path / "truth.mrc", "--images", 5000, "--snr", 0.1, "-o", star
    )
    succeed("moments", star, "-o", npz)
    succeed("reconstruct", npz, "-o", out)
    args = (out / "volume.mrc", tmp_path / "truth.mrc", "--json")
    report = json.loads(succeed("evaluate", *args).stdout)
    assert report["correlation"] > 0.9
    assert report["resolution_0.5_angstrom"] < 6


def test_halves_and_options_of_a_finished_output(tmp_path, star):
    """Halves beside the whole; a finished output is one of the same options only."""
    out = tmp_path / "m.npz"
    words = ("moments", star, "-o", out, "--halves", "--resume")
    succeed(*words)
    whole = Moments.load(out)
    halves = [Moments.load(tmp_path / f"m_half{i}.npz") for i in (1, 2)]
    assert sum(half.n_images for half in halves) == whole.n_images
    merged = halves[0].merge(halves[1])
    assert np.abs(merged.second - whole.second).max() < 1e-9 * abs(whole.second).max()
    assert "is already complete" in succeed(*words).stdout
    for option in ("--shift-std", "--amplitude-std"):
        refused = run(*words, option, "wide")
        assert f"'{option}': 'wide' is neither a number nor auto" in refused.stderr
    for other in (
        ("--shift-std", 2),
        ("--shift-std", "auto"),
        ("--no-third",),
        ("--noise", "coloured"),
    ):
        refused = run(*words, *other)
        assert refused.exit_code == 2
        assert "pass --overwrite to" in refused.stderr
    coloured = tmp_path / "coloured.npz"
    succeed("moments", star, "-o", coloured, "--noise", "coloured", "--downsample", 8)
    assert Moments.load(coloured).corrections.noise == "corners"
    # Killed between the files.
    (tmp_path / "m_half2.npz").unlink()
    assert "in " in succeed(*words).stdout
    assert (tmp_path / "m_half2.npz").is_file()
