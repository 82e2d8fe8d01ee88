"""Particles of a STAR file, each with the values of its optics group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gemmi import cif

from aspire_mom.relion.cryosparc import cryosparc_document
from aspire_mom.relion.star import read_star, unescaped

IMAGE, GROUP, GROUP_NAME = "_rlnImageName", "_rlnOpticsGroup", "_rlnOpticsGroupName"
PHASE_FLIPPED = "_rlnCtfDataArePhaseFlipped"
PREMULTIPLIED = "_rlnCtfDataAreCtfPremultiplied"
NO_CTF = "_aspireNoCTF"  # ASPIRE marks placeholder optics without a CTF
# In the order of `CTFFilter`'s arguments.
CTF_COLUMNS = (
    "_rlnVoltage",
    "_rlnDefocusU",
    "_rlnDefocusV",
    "_rlnDefocusAngle",
    "_rlnSphericalAberration",
    "_rlnAmplitudeContrast",
)
# B of exp(-B s² / 4) in Å², and the phase shift of a phase plate in degrees.
MORE_CTF_COLUMNS = B_FACTOR, PHASE_SHIFT = ("_rlnCtfBfactor", "_rlnPhaseShift")
# A value outside these ranges means a damaged file. Units are RELION's.
RANGES = {
    "_rlnVoltage": (1, 10_000),
    **dict.fromkeys(("_rlnDefocusU", "_rlnDefocusV"), (-1e6, 1e6)),
    "_rlnDefocusAngle": (-1e4, 1e4),
    "_rlnSphericalAberration": (-100, 100),
    "_rlnAmplitudeContrast": (0, 1),
    PHASE_SHIFT: (-1e4, 1e4),
    B_FACTOR: (-1e3, 1e4),
    "_rlnCtfScalefactor": (-1e4, 1e4),
    **dict.fromkeys(("_rlnBeamTiltX", "_rlnBeamTiltY"), (-1e3, 1e3)),
    **{f"_rlnMagMat{i}": (-10, 10) for i in ("00", "01", "10", "11")},
    **dict.fromkeys(("_rlnOriginX", "_rlnOriginY"), (-1e5, 1e5)),
    **dict.fromkeys(("_rlnOriginXAngst", "_rlnOriginYAngst"), (-1e6, 1e6)),
    "_rlnImagePixelSize": (0.01, 10_000),
    "_rlnDetectorPixelSize": (1e-3, 1e4),  # µm
    "_rlnMagnification": (1, 1e8),
    "_rlnImageSize": (1, 1e5),
    "_rlnImageDimensionality": (2, 2),
    "_aspireAmplitude": (-1e6, 1e6),
    **dict.fromkeys((GROUP, "_rlnRandomSubset", "_rlnClassNumber"), (-1e18, 1e18)),
    PHASE_FLIPPED: (0, 1),
    PREMULTIPLIED: (0, 1),
}


# Vectors, written as [1,-2,0]. Of these, the largest magnitude is kept.
VECTORS = ("_rlnOddZernike", "_rlnEvenZernike")


@dataclass(frozen=True, eq=False)
class Table:
    """
    Particles as a STAR file lists them.

    :param path: The file.
    :param rows: Row of each particle in the file's table, from 1, (n,).
    :param numbers: Position of each image in its stack, from 1, (n,).
    :param stack_indices: Index of each image's stack in `stacks`, (n,).
    :param stacks: Names of all stacks in the file.
    :param columns: Numbers (n,) by RELION's name of their column, from the particles'
        table, or else from each particle's row of the optics table.
    :param groups: Names of optics groups by number, empty without an optics table.
    :param passthrough: The passthrough file that the table was read with.
    """

    path: Path
    rows: np.ndarray
    numbers: np.ndarray
    stack_indices: np.ndarray
    stacks: tuple[str, ...]
    columns: dict[str, np.ndarray]
    groups: dict[int, str]
    passthrough: Path | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, i: int) -> str:
        """
        :param i: Index of a particle.
        :return: Its row in the file and its image's number in the stack, for messages.
        """
        stack = self.stacks[self.stack_indices[i]]
        return f"row {self.rows[i]} (image {self.numbers[i]} of {stack})"

    def chosen(self, which: np.ndarray | slice) -> Table:
        """
        :param which: Slice or mask of particles.
        :return: These particles.
        """
        return replace(
            self,
            rows=self.rows[which],
            numbers=self.numbers[which],
            stack_indices=self.stack_indices[which],
            columns={name: values[which] for name, values in self.columns.items()},
        )


def read_table(path: Path, passthrough: Path | None = None) -> Table:
    """
    Read the tables of particles and optics of a STAR file.

    :param path: A file of RELION 3.0 to 5, or of a program that writes the same format;
        or a .cs file of cryoSPARC.
    :param passthrough: The passthrough file of a .cs file.
    :return: Its particles.
    :raises OSError: The file cannot be read.
    :raises ValueError: Another or a damaged file, or no particles.
    """
    blocks = {block.name.strip(): block for block in read_document(path, passthrough)}
    particles = particle_block(path, blocks.values())
    optics = blocks.get("optics")
    try:
        numbers, indices, stacks = _images(_texts(particles, IMAGE))
        n, groups, columns = len(numbers), {}, _columns(particles)
        if n == 0:
            raise ValueError("it lists 0 particles; at least 1 is needed")
        if optics is not None:
            groups, own = _optics(optics, columns.get(GROUP), particles)
            columns = own | columns  # RELION, too, takes the particle's own value
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if any(_has(block, NO_CTF) for block in (particles, optics) if block is not None):
        columns = {k: v for k, v in columns.items() if k not in CTF_COLUMNS}
    elif "_rlnDefocusU" in columns:
        # If DefocusV is missing, RELION uses DefocusU for both, with angle 0.
        columns.setdefault("_rlnDefocusV", columns["_rlnDefocusU"])
        columns.setdefault("_rlnDefocusAngle", np.zeros(n))
    rows = np.arange(1, n + 1)
    return Table(path, rows, numbers, indices, stacks, columns, groups, passthrough)


def read_document(path: Path, passthrough: Path | None = None) -> cif.Document:
    """
    :param path: STAR file, or cryoSPARC's .cs file.
    :param passthrough: The passthrough file of a .cs file.
    :return: Its tables, as :func:`read_star` has them.
    :raises OSError: A file cannot be read.
    :raises ValueError: It is no such file, or has no table.
    """
    if path.suffix == ".cs":
        return cryosparc_document(path, passthrough)
    if passthrough is not None:
        raise ValueError(f"{path} is no .cs file; only these have a passthrough file")
    return read_star(path)


def particle_block(path: Path, blocks: Iterable[cif.Block]) -> cif.Block:
    """
    :param path: STAR file, for messages.
    :param blocks: Its tables.
    :return: The table of particles.
    :raises ValueError: None of them names images, or several do.
    """
    naming = {block.name.strip(): block for block in blocks if _has(block, IMAGE)}
    if not naming:
        raise ValueError(f"{path} has no column {IMAGE}, which names the images")
    if len(naming) > 1 and "particles" not in naming:
        raise ValueError(
            f"{path} names images in {len(naming)} tables, {', '.join(naming)}; the"
            " table of particles must be named data_particles"
        )
    return naming.get("particles") or next(iter(naming.values()))


def _has(block: cif.Block, column: str) -> bool:
    return bool(block.find_values(column))


def _texts(block: cif.Block, column: str) -> list[str]:
    """Values of a column without quotation marks and escapes."""
    return [unescaped(cif.as_string(v)) for v in block.find_values(column)]


def _columns(block: cif.Block) -> dict[str, np.ndarray]:
    """Values (n,) of all columns of `RANGES` and `VECTORS` that a table has."""
    _check_lengths(block)
    columns = {}
    for name, (low, high) in RANGES.items():
        texts = block.find_values(name)
        if not texts or (name in CTF_COLUMNS and _has(block, NO_CTF)):
            continue
        values = np.fromiter(map(cif.as_number, texts), np.float64, len(texts))
        for i in map(int, np.flatnonzero(~((values >= low) & (values <= high)))):
            values[i] = cif.as_number(texts.str(i))  # it may be quoted
            if not low <= values[i] <= high:
                image = (
                    f" (image {_texts(block, IMAGE)[i]})" if _has(block, IMAGE) else ""
                )
                span = f"a number from {low:g} to {high:g}" if low < high else f"{low}"
                raise ValueError(
                    f"in data_{block.name.strip()}, row {i + 1}{image} has"
                    f" {texts.str(i)!r} as {name}, which must be {span}"
                )
        columns[name] = values
    for name in VECTORS:
        if texts := _texts(block, name):
            columns[name] = np.array([_largest(name, text) for text in texts])
    return columns


def _check_lengths(block: cif.Block) -> None:
    """Check that columns have as many values, which those of several loops need not."""
    names = (IMAGE, *RANGES, *VECTORS)
    lengths = {
        name: len(block.find_values(name)) for name in names if _has(block, name)
    }
    first, n = next(iter(lengths.items()), ("", 0))
    for name, length in lengths.items():
        if length != n:
            raise ValueError(
                f"in data_{block.name.strip()}, {first} has {n} values and {name}"
                f" {length}; all columns must be of one loop"
            )


def _largest(name: str, text: str) -> float:
    """Return the largest magnitude of the numbers of a vector."""
    try:
        numbers = [float(number) for number in text.strip("[]").split(",") if number]
    except ValueError as error:
        raise ValueError(
            f"it has {text!r} as {name}, which must be numbers such as [1,-2,0]"
        ) from error
    return max(map(abs, numbers), default=0.0)


def _images(names: list[str]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Split names number@stack into numbers (n,), indices of stacks (n,), stacks."""
    numbers, indices, stacks = [], [], {}
    for name in names:
        number, _, stack = name.partition("@")
        stack = stack.removeprefix(">")  # cryoSPARC's mark of imported files
        if not (number.isdecimal() and len(number) < 19 and stack):
            raise ValueError(
                f"row {len(numbers) + 1} names an image {name!r}; it must be"
                " number@stack"
            )
        numbers.append(int(number))
        indices.append(stacks.setdefault(stack, len(stacks)))
    return np.array(numbers), np.array(indices), tuple(stacks)


def _optics(
    block: cif.Block, group: np.ndarray | None, particles: cif.Block
) -> tuple[dict[int, str], dict[str, np.ndarray]]:
    """Names of optics groups by number, and each particle's values of columns (n,)."""
    columns = _columns(block)
    if not len(columns.get(GROUP, ())):
        raise ValueError(f"its optics table has no {GROUP}s")
    listed, images = columns[GROUP], particles.find_values(IMAGE)
    known, rows = np.unique(listed, return_index=True)
    if len(known) < len(listed):
        raise ValueError(f"its optics table lists an {GROUP} twice")
    if group is None:
        if len(known) > 1:
            raise ValueError(
                f"it has {len(known)} optics groups, but its particles have no {GROUP}"
            )
        group = np.full(len(images), known[0])
    at = np.searchsorted(known, group).clip(max=len(known) - 1)
    missing = known[at] != group
    if missing.any():
        row = int(np.argmax(missing))
        raise ValueError(
            f"row {row + 1} (image {images.str(row)}) is of optics group"
            f" {group[row]:g}, which is not in the optics table; there are"
            f" {', '.join(f'{k:g}' for k in known[:8])}"
        )
    names = _texts(block, GROUP_NAME) or [f"{number:g}" for number in listed]
    groups = dict(zip(listed.tolist(), names, strict=True))
    return groups, {name: values[rows[at]] for name, values in columns.items()}
