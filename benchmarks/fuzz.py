"""
Damage STAR, .cs, MRC and .npz files at random, give each to a command, and count what
comes of it: results, or one sentence and exit status 2. Tracebacks, commands that hang,
earlier files that change and partial files that stay are printed as findings, and make
the exit status 1.

    python benchmarks/fuzz.py [--files 200] [--seed N]
"""

import argparse
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import mrcfile
import numpy as np
from click.testing import CliRunner, Result

from aspire_mom.cli.main import main as command
from aspire_mom.phantoms import gaussian_phantom

EDGE, EACH, SIZE, SECONDS = 16, 6, 2.0, 60
OLD = b"an earlier result"
# Words that end up in a STAR file.
ODD = ["0", "-1", "1", "nan", "inf", "-inf", "1e300", "1e-300", "9" * 22, "0x10", "1,5"]
ODD += ["1e", "", "@", "1@", "@one.mrcs", "0@one.mrcs", "7@one.mrcs", "1@two.mrcs", "_"]
ODD += ["'", '"', "#", ";", "é", "loop_", "data_", "1@one.mrcs:mrcs", "1@/dev/zero"]
TEXT = ["word", "word", "word", "drop", "twice", "swap", "cut", "join", "add", "end"]
BYTES = ["flip", "number", "cut", "end", "repeat", "insert", "zero"]
NUMBERS = [0, 1, -1, 2, 3, 4, 6, 12, 101, 401, EDGE, 4096, 2**31 - 1, -(2**31)]
# 4-byte words of an MRC header: sizes, mode, cell, axes, space group and so on.
FIELDS = [0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 16, 17, 18, 22, 23, 53]


def particles(folder: Path) -> None:
    """Write sound particles: two stacks, a STAR file and a .cs file."""
    rng = np.random.default_rng(0)
    for stack in ("one.mrcs", "two.mrcs"):
        images = rng.standard_normal((EACH, EDGE, EDGE)).astype(np.float32)
        with mrcfile.new(folder / stack) as mrc:
            mrc.set_data(images)
            mrc.set_image_stack()
    optics = "OpticsGroup OpticsGroupName Voltage SphericalAberration AmplitudeContrast"
    optics += " ImagePixelSize ImageSize"
    columns = "ImageName OpticsGroup DefocusU DefocusV DefocusAngle OriginXAngst"
    columns += " OriginYAngst RandomSubset ClassNumber"
    rows = [
        f"{i + 1}@{stack} 1 1{i}000 1{i}200 30 0.5 -0.5 {i % 2 + 1} 1"
        for stack in ("one.mrcs", "two.mrcs")
        for i in range(EACH)
    ]
    tables = {"optics": (optics, [f"1 first 300 2.7 0.1 {SIZE} {EDGE}"])}
    tables["particles"] = (columns, rows)
    text = ""
    for name, (tags, lines) in tables.items():
        heads = "".join(f"_rln{tag} #{i}\n" for i, tag in enumerate(tags.split(), 1))
        text += f"\ndata_{name}\n\nloop_\n{heads}" + "\n".join(lines) + "\n"
    (folder / "particles.star").write_text(text)
    fields = {
        "uid": np.arange(EACH, dtype="u8"),
        "blob/path": np.full(EACH, b"one.mrcs"),
        "blob/idx": np.arange(EACH, dtype="u4"),
        "blob/shape": np.full((EACH, 2), EDGE, "u4"),
        "blob/psize_A": np.full(EACH, SIZE, "f4"),
        "ctf/accel_kv": np.full(EACH, 300, "f4"),
        "ctf/cs_mm": np.full(EACH, 2.7, "f4"),
        "ctf/amp_contrast": np.full(EACH, 0.1, "f4"),
        "ctf/df1_A": np.linspace(1e4, 2e4, EACH, dtype="f4"),
        "ctf/df2_A": np.linspace(1e4, 2e4, EACH, dtype="f4"),
        "ctf/df_angle_rad": np.zeros(EACH, "f4"),
    }
    table = np.empty(EACH, [(k, v.dtype, v.shape[1:]) for k, v in fields.items()])
    for name, values in fields.items():
        table[name] = values
    with open(folder / "particles.cs", "wb") as file:
        np.save(file, table)


def sound(folder: Path) -> None:
    """Write one file of each kind."""
    particles(folder)
    for name in ("map.mrc", "truth.mrc"):
        gaussian_phantom(EDGE, seed=1, pixel_size=SIZE).save(str(folder / name))
    star, out = str(folder / "particles.star"), str(folder / "sums.npz")
    result = CliRunner().invoke(command, ["moments", star, "-o", out])
    if result.exit_code:
        raise RuntimeError(result.output)


def random_number(rng: random.Random) -> bytes:
    """Four bytes of an integer that headers may hold, in either order."""
    return rng.choice(NUMBERS).to_bytes(4, rng.choice(("little", "big")), signed=True)


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, replace, cut, repeat or insert bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        j = min(j, i + rng.choice((1, 4, 100, len(data))))
        how = rng.choice(BYTES)
        if how == "flip":
            data[i:j] = (
                bytes(b ^ (1 << rng.randrange(8)) for b in data[i:j][:8])
                + data[i + 8 : j]
            )
        elif how == "number":
            i -= i % 4
            data[i : i + 4] = random_number(rng)
        elif how == "cut":
            del data[i:j]
        elif how == "end":
            del data[i:]
        elif how == "repeat":
            data[i:i] = data[i:j]
        elif how == "insert":
            data[i:i] = rng.randbytes(rng.choice((1, 7, 1024)))
        else:
            data[i:j] = bytes(j - i)
    return bytes(data)


def damaged_text(content: bytes, rng: random.Random) -> bytes:
    """Change words and lines of a STAR file."""
    lines = content.decode().split("\n")
    for _ in range(rng.choice((1, 1, 2, 5))):
        i = rng.randrange(len(lines))
        words = lines[i].split() or [""]
        how = rng.choice(TEXT)
        if how == "word":
            words[rng.randrange(len(words))] = rng.choice(ODD)
            lines[i] = " ".join(words)
        elif how == "drop":
            del lines[i]
        elif how == "twice":
            lines.insert(i, lines[i])
        elif how == "swap":
            j = rng.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
        elif how == "cut":
            lines[i] = lines[i][: rng.randrange(len(lines[i]) + 1)]
        elif how == "join":
            lines[i : i + 2] = ["".join(lines[i : i + 2])]
        elif how == "add":
            lines[i] += " " + rng.choice(ODD)
        else:
            del lines[i + 1 :]
        lines = lines or [""]
    return rng.choice(("\n", "\n", "\r\n")).join(lines).encode()


def in_header(content: bytes, rng: random.Random) -> bytes:
    """Change 4 bytes among the fields of an MRC header that matter."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 3))):
        word = 4 * rng.choice(FIELDS)
        data[word : word + 4] = rng.choice((random_number(rng), rng.randbytes(4)))
    return bytes(data)


# Files, ways to damage them, and the words of a command, where OUT is what it writes.
MOMENTS = [
    ["moments", name, "-o", "OUT.npz"] for name in ("particles.star", "particles.cs")
]
SIMULATE = ["simulate", "map.mrc", "--images", "3", "--snr", "1", "-o", "OUT.star"]
EVALUATE = ["evaluate", "map.mrc", "truth.mrc", "--plot", "OUT.svg"]
KINDS = {
    "particles.star": ([damaged_text] * 3 + [damaged_bytes], MOMENTS[:1]),
    "particles.cs": ([damaged_bytes], MOMENTS[1:]),
    "one.mrcs": ([in_header, damaged_bytes], MOMENTS),
    "map.mrc": ([in_header, damaged_bytes], [SIMULATE] * 9 + [EVALUATE]),
    "sums.npz": ([damaged_bytes], [["inspect", "sums.npz", "--plot", "OUT.svg"]]),
}
FLAGS = [[], [], [], ["--ignore-ctf"], ["--ignore-shifts"], ["--downsample", "8"]]
FLAGS += [["--first", "4"], ["--random-subset", "2"], ["--halves"], ["--resume"]]
FLAGS += [["--batch-size", "2"], ["--pixel-size", str(SIZE)]]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def findings(
    result: Result, seconds: float, before: dict, after: dict, out: str, earlier: bool
) -> list[str]:
    """What should not have come of a command."""
    found = []
    if not isinstance(result.exception, SystemExit | None):
        found.append(f"traceback: {result.exception!r}")
    elif result.exit_code not in (0, 2):
        found.append(f"exit status {result.exit_code}")
    elif result.exit_code == 2 and not result.stderr.splitlines()[-1].startswith(
        "Error: "
    ):
        found.append(f"no sentence: {result.stderr[-100:]!r}")
    if seconds > SECONDS:
        found.append(f"hangs: {seconds:.0f} s")
    changed = [name for name in before if after.get(name) != before[name]]
    if changed and not (result.exit_code == 0 and earlier and changed == [out]):
        found.append(f"changed: {changed}")
    new = [name for name in after if name not in before]
    stem = Path(out).stem
    if result.exit_code == 0:
        new = [name for name in new if not name.startswith(stem) or ".part" in name]
    if new and new != [f"{out}.checkpoint"]:  # of a pass that may be resumed
        found.append(f"left behind: {new}")
    return found


def timed_out(*_) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


def damage_one(folder: Path, rng: random.Random) -> tuple[str, str, list[str]]:
    """Damage a file in a folder of sound ones: what was done, what came of it, and what
    should not have."""
    name = rng.choices(list(KINDS), weights=[4, 2, 3, 3, 1])[0]
    ways, commands = KINDS[name]
    way, words = rng.choice(ways), list(rng.choice(commands))
    (folder / name).write_bytes(way((folder / name).read_bytes(), rng))
    out = f"out{Path(words[-1]).suffix}"
    words[-1], overwrite = str(folder / out), rng.random() < 0.3
    if overwrite:
        (folder / out).write_bytes(OLD)
        words.append("--overwrite")
    if words[0] == "moments":
        words += rng.choice(FLAGS)
    words = [
        str(folder / word) if (folder / word).is_file() else word for word in words
    ]
    before, begun = contents(folder), time.perf_counter()
    signal.alarm(2 * SECONDS)
    result = CliRunner().invoke(command, words)
    signal.alarm(0)
    seconds, after = time.perf_counter() - begun, contents(folder)
    wrong = findings(result, seconds, before, after, out, overwrite)
    told = result.stderr.splitlines()[-1] if result.exit_code and result.stderr else ""
    what = f"{way.__name__} {name}: {' '.join(map(str, words[:1] + words[-2:]))}"
    return what, told.replace(str(folder), "…"), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(2**32)
    )
    parser.add_argument("--only", type=int, help="this file alone, with what is told")
    parser.add_argument("--verbose", action="store_true", help="print every sentence")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    logging.raiseExceptions = False
    signal.signal(signal.SIGALRM, timed_out)
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        whole.mkdir()
        sound(whole)
        for number in range(options.files):
            if options.only not in (None, number):
                continue
            folder = Path(name) / str(number)
            shutil.copytree(whole, folder)
            rng = random.Random(f"{options.seed} {number}")
            what, told, wrong = damage_one(folder, rng)
            counts["finding" if wrong else "sentence" if told else "result"] += 1
            if wrong or options.verbose:
                print(number, what, told, *wrong, sep="\n    ", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(", ".join(f"{n} {what}s" for what, n in sorted(counts.items())))
    sys.exit(bool(counts["finding"]))


if __name__ == "__main__":
    main()
