"""Checks of image stacks by their headers and sizes; no pixel is read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from mrcfile import utils
from mrcfile.dtypes import HEADER_DTYPE

from aspire_mom.relion.table import Table

# MRC modes that ASPIRE can read.
MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16"}
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\x28\xb5": "zstd", b"PK": "zip"}


def _stack_size(path: Path) -> tuple[int, int]:
    """Number and edge of a stack's images; raise if ASPIRE cannot read it."""
    with open(path, "rb") as file:
        head = file.read(HEADER_DTYPE.itemsize)
    for mark, program in COMPRESSED.items():
        if head.startswith(mark):
            raise ValueError(f"{path} is compressed by {program}; unpack it first")
    if len(head) < HEADER_DTYPE.itemsize:
        raise ValueError(
            f"{path} has {len(head)} bytes; a stack of images has a header of"
            f" {HEADER_DTYPE.itemsize} bytes"
        )
    # Read in the wrong byte order, a size below 2^16 is 2^16 or more.
    orders = (np.frombuffer(head, HEADER_DTYPE.newbyteorder(o))[0] for o in "<>")
    header = min(orders, key=lambda h: abs(int(h["nx"])))
    nx, ny, nz, mode = (int(header[name]) for name in ("nx", "ny", "nz", "mode"))
    extended = int(header["nsymbt"])
    if min(nx, ny, nz) < 1 or extended < 0:
        raise ValueError(
            f"{path} is no MRC file, or damaged: its header gives {nz} images of"
            f" {nx} x {ny} pixels after {extended} bytes of extended header"
        )
    if mode not in MODES:
        name = " (float16)" if mode == 12 else ""
        raise ValueError(
            f"{path} is in MRC mode {mode}{name}; ASPIRE reads modes"
            f" {', '.join(f'{k} ({v})' for k, v in MODES.items())}: convert it to"
            " float32"
        )
    if utils.spacegroup_is_volume_stack(header["ispg"]):
        raise ValueError(f"{path} holds volumes; a stack of images is needed")
    item = np.dtype(MODES[mode]).itemsize
    needed = len(head) + extended + nx * ny * nz * item
    if path.stat().st_size < needed:
        raise ValueError(
            f"{path} is truncated: its header gives {nz} images of {nx} x {ny} pixels"
            f" ({needed} bytes), but the file has {path.stat().st_size} bytes"
        )
    if nx != ny:
        raise ValueError(
            f"{path} has images of {nx} x {ny} pixels; they must be square"
        )
    return nz, nx


def locate(table: Table, data_folder: Path | None = None) -> tuple[Path, ...]:
    """
    Find the stacks that a STAR file names. RELION writes paths relative to the project
    directory; its STAR files usually are in subdirectories.

    :param table: The file's particles.
    :param data_folder: As for `read_particles`.
    :return: Paths of all stacks in the file, whether or not they exist.
    """
    names = (table.stacks[i] for i in np.unique(table.stack_indices))
    first = next((name for name in names if not os.path.isabs(name)), "")
    star = Path(os.path.abspath(table.path))
    folders = [*star.parents, Path.cwd(), *star.resolve().parents]
    if data_folder is not None:
        folders = [data_folder]
    # A broken symlink counts as a match; `check_stacks` reports it.
    base = next((f for f in folders if os.path.lexists(f / first)), folders[0])
    return tuple(base / stack for stack in table.stacks)


def check_stacks(table: Table, stacks: tuple[Path, ...]) -> int:
    """
    Check that all images of particles can be read and have one size.

    :param table: Particles.
    :param stacks: Paths of their stacks.
    :return: Pixels along the edge of all their images.
    :raises OSError: A stack is missing, or may not be read.
    :raises ValueError: ASPIRE cannot read a stack, or its images or sizes do not fit.
    """
    counts, L, model = np.zeros(len(stacks), dtype=np.int64), 0, None
    for index in np.unique(table.stack_indices):
        path = stacks[index]
        counts[index], size = _listed_stack_size(table.path, path)
        if model is None:
            L, model = size, path
        if size != L:
            raise ValueError(
                f"{path} has images of {size} x {size} pixels, {model} of {L} x {L};"
                " only images of one size can be averaged together"
            )
    available = counts[table.stack_indices]
    missing = (table.numbers < 1) | (table.numbers > available)
    if missing.any():
        first = int(np.argmax(missing))
        path = stacks[table.stack_indices[first]]
        raise ValueError(
            f"{table.path}: row {table.rows[first]} names image"
            f" {table.numbers[first]} of {path}, which has images 1 to"
            f" {available[first]}"
        )
    return L


def _listed_stack_size(star: Path, path: Path) -> tuple[int, int]:
    try:
        return _stack_size(path)
    except FileNotFoundError as error:
        where = "is missing"
        if path.is_symlink():
            where = f"is a link to {os.readlink(path)}, which is missing"
        raise FileNotFoundError(
            f"{path}, a stack that {star} names, {where}; pass data_folder if its"
            " paths start from another folder"
        ) from error
    except OSError as error:
        raise OSError(
            f"{path}, a stack that {star} names, cannot be read: {error.strerror}"
        ) from error
