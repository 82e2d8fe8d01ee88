"""Image stacks: checks by their headers and sizes, and reading."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mrcfile import utils
from mrcfile.dtypes import HEADER_DTYPE

from aspire_mom import mrc
from aspire_mom.relion.star import check_uncompressed
from aspire_mom.relion.table import Table

HEADERS = tuple(HEADER_DTYPE.newbyteorder(order) for order in "<>")
# RELION's way to say how a file of another name is to be read.
FORMAT = re.compile(":(mrcs?|st|map)$")


class Stack(NamedTuple):
    """
    Where the images of a file are.

    :param n: Number of images.
    :param L: Pixels along an image's edge.
    :param dtype: Type of the pixels.
    :param offset: Bytes before them.
    :param is_volume: Whether the header is that of a volume.
    """

    n: int
    L: int
    dtype: np.dtype
    offset: int
    is_volume: bool


def _stack(path: Path) -> Stack:
    """Read a stack's header; raise if its images cannot be read."""
    with open(path, "rb") as file:
        head = file.read(HEADER_DTYPE.itemsize)
    check_uncompressed(path, head)
    if len(head) < HEADER_DTYPE.itemsize:
        raise ValueError(
            f"{path} has {len(head)} bytes; a stack of images has a header of"
            f" {HEADER_DTYPE.itemsize} bytes"
        )
    # Read in the wrong byte order, a size below 2^16 is 2^16 or more.
    orders = (np.frombuffer(head, dtype)[0] for dtype in HEADERS)
    header = min(orders, key=lambda h: abs(int(h["nx"])))
    nx, ny, nz = (int(header[name]) for name in ("nx", "ny", "nz"))
    extended = int(header["nsymbt"])
    if min(nx, ny, nz) < 1 or extended < 0:
        raise ValueError(
            f"{path} is no MRC file, or damaged: its header gives {nz} images of"
            f" {nx} x {ny} pixels after {extended} bytes of extended header"
        )
    dtype, offset = mrc.value_type(path, header), len(head) + extended
    if utils.spacegroup_is_volume_stack(header["ispg"]):
        raise ValueError(f"{path} holds volumes; a stack of images is needed")
    axes = mrc.check_axes(path, header)
    if axes != (3, 2, 1):
        raise ValueError(
            f"{path} has its axes in the order {axes[2]}, {axes[1]}, {axes[0]} (MAPC,"
            " MAPR, MAPS); images must be in the order 1, 2, 3"
        )
    needed = offset + nx * ny * nz * dtype.itemsize
    if path.stat().st_size < needed:
        raise ValueError(
            f"{path} is truncated: its header gives {nz} images of {nx} x {ny} pixels"
            f" ({needed} bytes), but the file has {path.stat().st_size} bytes"
        )
    if nx != ny:
        raise ValueError(
            f"{path} has images of {nx} x {ny} pixels; they must be square"
        )
    return Stack(nz, nx, dtype, offset, mrc.is_volume(header))


def read_images(path: Path, numbers: np.ndarray) -> np.ndarray:
    """
    :param path: A stack.
    :param numbers: Positions of images in it, from 1, (n,).
    :return: The images (n, L, L), float32.
    :raises OSError: The stack cannot be read.
    :raises ValueError: It is no stack, or has become shorter.
    """
    stack = _stack(path)
    size, order = stack.L**2, np.argsort(numbers, kind="stable")
    images, done = np.empty((len(numbers), stack.L, stack.L), np.float32), 0
    # Images that follow one another are read at once.
    numbers = numbers[order]
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    with open(path, "rb") as file:
        for run in np.split(numbers, breaks):
            before = (int(run[0]) - 1) * size * stack.dtype.itemsize
            file.seek(stack.offset + before)
            own = images[done : done + len(run)]
            same = stack.dtype == own.dtype
            pixels = own if same else np.empty(own.shape, stack.dtype)
            if file.readinto(pixels.data) < pixels.nbytes:
                raise ValueError(f"{path} has become shorter while it was read")
            if not same:
                own[:] = pixels
            done += len(run)
    in_order = np.all(order[1:] > order[:-1])
    return images if in_order else images[np.argsort(order)]


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
    first = FORMAT.sub("", first)
    star = Path(os.path.abspath(table.path))
    folders = [*star.parents, Path.cwd(), *star.resolve().parents]
    if data_folder is not None:
        folders = [data_folder]
    # A broken symlink counts as a match; `check_stacks` reports it.
    base = next((f for f in folders if os.path.lexists(f / first)), folders[0])
    return tuple(base / FORMAT.sub("", stack) for stack in table.stacks)


def check_stacks(table: Table, stacks: tuple[Path, ...]) -> int:
    """
    Check that all images of particles can be read and have one size.

    :param table: Particles.
    :param stacks: Paths of their stacks.
    :return: Pixels along the edge of all their images.
    :raises OSError: A stack is missing, or may not be read.
    :raises ValueError: A stack cannot be read, or its images or sizes do not fit.
    """
    found, first = {}, None
    for index in np.unique(table.stack_indices):
        path = stacks[index]
        found[index] = stack = _listed_stack(table.path, path)
        if first is None:
            L, first = stack.L, path
        if stack.L != L:
            raise ValueError(
                f"{path} has images of {stack.L} x {stack.L} pixels, {first} of"
                f" {L} x {L}; only images of one size can be averaged together"
            )
    # One stack among many may have as many images as pixels along an edge.
    named = [table.stacks[index].endswith("mrcs") for index in found]
    if not any(named) and all(stack.is_volume for stack in found.values()):
        name = table.stacks[min(found)]
        raise ValueError(
            f"{first} holds a volume by its header, of {L} x {L} x {L} voxels; a stack"
            f" of images is needed (if it is one, name it {name}:mrcs)"
        )
    counts = np.zeros(len(stacks), dtype=np.int64)
    counts[list(found)] = [stack.n for stack in found.values()]
    available = counts[table.stack_indices]
    missing = (table.numbers < 1) | (table.numbers > available)
    if missing.any():
        i = int(np.argmax(missing))
        raise ValueError(
            f"{table.path}: row {table.rows[i]} names image {table.numbers[i]} of"
            f" {stacks[table.stack_indices[i]]}, which has images 1 to {available[i]}"
        )
    return L


def _listed_stack(star: Path, path: Path) -> Stack:
    try:
        return _stack(path)
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
