"""What a machine can do to a command: full disks, little memory, closed streams and
signals to stop. Each ends in one sentence, with exit status 2, and leaves what was."""

import os
import shutil
import signal
import subprocess
import sys

import matplotlib.font_manager  # noqa: F401, which writes a cache when it is imported
import numpy as np
import pytest

from aspire_mom import Moments, checks
from aspire_mom.relion import ParticleSource
from aspire_mom.simulation import FastSimulation
from tests.cli.conftest import run, succeed
from tests.cli.test_bad_input import contents

resource = pytest.importorskip("resource", reason="needs limits of POSIX")


@pytest.fixture
def observations(tmp_path_factory):
    path = tmp_path_factory.mktemp("mra") / "observations.npy"
    rng, signal = np.random.default_rng(0), np.exp(-((np.arange(16) - 5) ** 2) / 4)
    shifted = [np.roll(signal, shift) for shift in rng.integers(6, size=500)]
    np.save(path, shifted + 0.1 * rng.standard_normal((500, 16)))
    return path


@pytest.fixture
def commands(tmp_path, volume, star, moments, observations):
    """Commands by name, the last argument of each being what it writes."""
    return {
        "simulate": ("simulate", volume, "--images", 9, "--snr", 1, "-o", "p.star"),
        "moments": ("moments", star, "-o", "m.npz"),
        "halves": ("moments", star, "--halves", "-o", "m.npz"),
        "resumable": ("moments", star, "--resume", "-o", "m.npz"),
        "inspect": ("inspect", moments, "--plot", "m.png"),
        "reconstruct": ("reconstruct", moments, "--starts", 1, "-o", "result"),
        "evaluate": ("evaluate", volume, volume, "--plot", "fsc.svg"),
        "solve": ("mra", "solve", observations, "-o", "s.npz"),
        "train": ("mra", "train", "--steps", 2, "--batch-size", 8, "-o", "e.npz"),
    }


def failed(folder, command):
    """The sentence with which a command ends, and nothing changes in the folder."""
    before = contents(folder)
    result = run(*command)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert contents(folder) == before
    assert not list(folder.rglob(".partial-*"))
    sentence = result.stderr.splitlines()[-1]
    assert sentence.startswith("Error: ")
    return sentence


# mrcfile leaves a file open that it cannot write.
unclosed = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@unclosed
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "name",
    ["simulate", "moments", "halves", "resumable", "inspect"]
    + ["reconstruct", "evaluate", "solve", "train"],
)
def test_full_disk(tmp_path, monkeypatch, commands, name):
    """No file may be longer than some bytes: as on a full disk, writing fails."""
    monkeypatch.chdir(tmp_path)
    *command, out = commands[name]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        sentence = failed(tmp_path, [*command, out])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in sentence
    # Pillow removes a picture before it says that it cannot write it.
    assert out.split(".")[0] in sentence or sentence.endswith(f": {tmp_path}")


@unclosed
def test_full_disk_keeps_earlier_results(tmp_path, monkeypatch, commands):
    monkeypatch.chdir(tmp_path)
    succeed(*commands["simulate"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        failed(tmp_path, [*commands["simulate"], "--seed", 1, "--overwrite"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_stacks_need_room(tmp_path, monkeypatch, commands):
    """A full disk kills a process that writes through a memory map, as ASPIRE does."""
    usage = checks.shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    sentence = failed(tmp_path, [*commands["simulate"][:-1], tmp_path / "p.star"])
    assert "0.00518 MB are to be written, 0.0001 MB are free" in sentence
    assert "p.star" in sentence


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "Error: there is not enough memory; a smaller"),
        (
            MemoryError("Unable to allocate 9 GiB"),
            "allocate 9 GiB; a smaller",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "; a smaller"),
        (RuntimeError("can't start new thread"), "new thread; a smaller"),
        (RuntimeError("CUDA out of memory. Tried to …"), "Tried to …; a smaller"),
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory; a smaller"),
    ],
)
def test_short_of_memory(tmp_path, monkeypatch, star, error, sentence):
    def short(self, indices):
        raise error

    monkeypatch.setattr(ParticleSource, "_images", short)
    told = failed(tmp_path, ("moments", star, "-o", tmp_path / "m.npz"))
    assert sentence in told
    assert told.endswith("a smaller --downsample or a smaller --batch-size needs less")


def test_memory_is_compared_with_what_moments_need(tmp_path, monkeypatch, star):
    """Before any image is read: 12^4 sums of 8 bytes, and as many complex numbers."""
    monkeypatch.setattr(ParticleSource, "_images", lambda *_: pytest.fail("too late"))
    monkeypatch.setattr(checks.psutil.Process, "rlimit", lambda *_: (24 * 12**4 - 1, 0))
    command = ("moments", star, "-o", tmp_path / "m.npz", "--basis", "cartesian")
    assert "; --basis polar or a smaller --downsample" in failed(tmp_path, command)
    monkeypatch.setattr(checks.psutil.Process, "rlimit", lambda *_: (-1, -1))
    checks.check_memory("anything", 1)
    with pytest.raises(MemoryError, match="anything takes 9.31e.08 GiB or more"):
        checks.check_memory("anything", 10**18)


@pytest.fixture
def default_handler(name):
    """The signal's own one, also where the tests run in the background."""
    number, default = getattr(signal, name), signal.SIG_DFL
    if name == "SIGINT":
        default = signal.default_int_handler
    before = signal.signal(number, default)
    yield default
    signal.signal(number, before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals(tmp_path, monkeypatch, commands, star, default_handler, name):
    """In the middle of a run: nothing is left, and no more is promised than is so."""
    number, of_particles = getattr(signal, name), ParticleSource._images
    of_simulation, stop = FastSimulation._images, [True]

    def stopped(self, indices, *args, **options):
        if stop[0]:
            os.kill(os.getpid(), number)
        original = of_particles if isinstance(self, ParticleSource) else of_simulation
        return original(self, indices, *args, **options)

    monkeypatch.setattr(ParticleSource, "_images", stopped)
    monkeypatch.setattr(FastSimulation, "_images", stopped)
    monkeypatch.chdir(tmp_path)
    assert failed(tmp_path, commands["simulate"]) == "Error: interrupted"
    keeping = "Error: interrupted; --resume would keep sums"
    assert failed(tmp_path, commands["moments"]) == keeping
    nothing = "there was no checkpoint yet, and nothing of this step is kept"
    assert nothing in failed(tmp_path, commands["resumable"])
    assert signal.getsignal(number) == default_handler
    stop[0] = False
    succeed(*commands["resumable"])
    assert Moments.load("m.npz").n_images == 300


def started(words, **streams):
    """A command in a process of its own, by its exit status."""
    code = "from aspire_mom.cli.main import main; main()"
    words = [sys.executable, "-c", code, *words]
    return subprocess.run(words, **streams).returncode


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_streams_that_cannot_be_written(tmp_path):
    with open("/dev/full", "w") as full:
        assert started(["--help"], stderr=full, stdout=subprocess.DEVNULL) == 0
        assert started(["polish"], stderr=full) == 2
        with open(tmp_path / "told", "w+") as told:
            assert started(["--help"], stdout=full, stderr=told) == 2
            told.seek(0)
            assert told.read() == "Error: No space left on device: standard output\n"


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams(tmp_path, closed):
    """A file that is opened then must not get a stream's number, and its messages."""
    code = "\n".join(
        [
            *(f"import os; os.close({number})" for number in closed),
            "import sys",
            *("sys.__stdout__ = sys.stdout = None" for n in closed if n == 1),
            *("sys.__stderr__ = sys.stderr = None" for n in closed if n == 2),
            "from aspire_mom.cli.terminal import open_standard_streams",
            "open_standard_streams()",
            "import click",
            "with open(sys.argv[1], 'w') as file:",
            "    click.echo('result'); click.echo('message', err=True)",
            "    os.write(2, b'message of a library')",
            "    sys.exit(int(file.fileno() < 3))",
        ]
    )
    path = tmp_path / "file"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert path.read_text() == ""
    assert done.stdout == ("" if 1 in closed else "result\n")
    assert "Traceback" not in done.stderr


def test_a_stack_that_shrinks(tmp_path, monkeypatch, star):
    """Half of it is gone when the second batch is read."""
    for path in star.parent.glob("particles*"):
        shutil.copy(path, tmp_path)
    stack, read = next(tmp_path.glob("*.mrcs")), ParticleSource._images

    def shrinking(self, indices):
        images = read(self, indices)
        os.truncate(stack, stack.stat().st_size // 2)
        return images

    monkeypatch.setattr(ParticleSource, "_images", shrinking)
    command = ("moments", tmp_path / star.name, "-o", tmp_path / "m.npz")
    result = run(*command, "--batch-size", 50)
    assert result.exit_code == 2
    assert f"Error: {stack} is truncated" in result.stderr
    assert not list(tmp_path.glob("m.npz*"))
