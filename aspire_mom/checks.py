"""Checks of arguments: an error names the value and what is accepted."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import psutil
import torch
from aspire.volume import Volume

# Pixel sizes that differ by less than this fraction are the same: MRC headers hold
# float32, and calibrations are not known better.
PIXEL_SIZE_TOLERANCE = 1e-4


def check_integer(name: str, value: int, least: int) -> int:
    """
    :param name: The argument's name.
    :param value: Its value.
    :param least: Smallest one accepted.
    :return: The value as a plain integer.
    :raises ValueError: the value is no integer, or smaller than `least`.
    """
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(
            f"{name} is {value!r}; it must be an integer of at least {least}"
        )
    return int(value)


def check_positive(name: str, value: float) -> float:
    """
    :param name: The argument's name.
    :param value: Its value.
    :return: The value as a plain number.
    :raises ValueError: the value is no finite number above zero.
    """
    if not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}; it must be a positive number")
    return float(value)


def check_choice(name: str, value: str | None, accepted: Iterable[str]) -> None:
    """
    :param name: The argument's name.
    :param value: Its value, None for the default.
    :param accepted: The accepted values.
    :raises ValueError: The value is none of these.
    """
    if value is not None and value not in accepted:
        raise ValueError(f"{name} is {value!r}; it must be {' or '.join(accepted)}")


def check_kind(name: str, value: object, kind: type) -> None:
    """
    :param name: The argument's name.
    :param value: Its value.
    :param kind: The class it must have.
    :raises TypeError: It is of another class.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}, not a {kind.__name__}")


def checked_device(device: str | torch.device) -> torch.device:
    """
    :param device: A torch device or its name.
    :return: The device, with a GPU's number: plain "cuda" depends on the thread.
    :raises ValueError: the device does not exist here, or computes no values ("meta").
    """
    try:
        number = torch.zeros(1, device=device)
        number.item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device is {device}, which cannot be used; cpu always can, cuda where"
            " PyTorch finds a GPU"
        ) from error
    return number.device


def check_new(path: Path, overwrite: bool) -> None:
    """
    :param path: File to write.
    :param overwrite: Whether an existing one may be replaced.
    :raises FileExistsError: the file exists and may not be replaced.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")


def check_disk(path: Path, n_bytes: int) -> None:
    """
    :param path: File to write.
    :param n_bytes: Its size.
    :raises OSError: the disk has less room.
    """
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        reason = (
            f"{n_bytes / 1e6:.3g} MB are to be written, {free / 1e6:.3g} MB are free"
        )
        raise OSError(errno.ENOSPC, reason, str(path))


def check_memory(what: str, n_bytes: int) -> None:
    """
    :param what: What is to be computed.
    :param n_bytes: Memory that it takes at least.
    :raises MemoryError: less is available, or allowed to this process.
    """
    free = psutil.virtual_memory().available
    if hasattr(psutil, "RLIMIT_AS"):  # Linux
        limit, _ = psutil.Process().rlimit(psutil.RLIMIT_AS)
        free = min(free, limit if limit >= 0 else free)
    if free < n_bytes:
        raise MemoryError(
            f"{what} takes {n_bytes / 2**30:.3g} GiB or more, and"
            f" {free / 2**30:.3g} GiB are available"
        )


def check_volume(name: str, volume: Volume) -> np.ndarray:
    """
    :param name: The argument's name.
    :param volume: The argument's value.
    :return: Its voxels [z, y, x].
    :raises TypeError: it is no ASPIRE `Volume`, or holds complex numbers.
    :raises ValueError: it is a stack, or holds NaN or infinity.
    """
    if not isinstance(volume, Volume):
        raise TypeError(f"{name} must be an ASPIRE Volume, not {type(volume).__name__}")
    if volume.stack_shape != (1,):
        raise ValueError(f"{name} must be one volume, not a stack {volume.stack_shape}")
    voxels = volume.asnumpy()[0]
    if np.iscomplexobj(voxels):
        raise TypeError(f"{name} must be real, not {voxels.dtype}")
    if not np.isfinite(voxels).all():
        raise ValueError(f"{name} holds NaN or infinity: all voxels must be finite")
    return voxels


def agreed_pixel_size(
    path: Path, found: float | None, given: float | None
) -> float | None:
    """
    :param path: A file.
    :param found: Its pixel size in Ångström, None where it has none.
    :param given: The caller's `pixel_size`, None where it gives none.
    :return: The file's pixel size, or else the caller's.
    :raises ValueError: the file's is not positive, or the two differ.
    """
    if found is not None and not 0 < found < math.inf:
        raise ValueError(f"{path} has a pixel size of {found:g} Å; it must be positive")
    if found is None or given is None:
        return given if found is None else found
    if not math.isclose(found, given, rel_tol=PIXEL_SIZE_TOLERANCE):
        raise ValueError(
            f"pixel_size is {given:g} Å, but {path} has one of {found:g} Å"
        )
    return found


def check_images(
    images: np.ndarray, L: int, name: Callable[[int], str] = "image {}".format
) -> np.ndarray:
    """
    :param images: Images (n, L, L), n ≥ 1, real, [row = y, column = x].
    :param L: Pixels along an edge that the basis was made for.
    :param name: What to call an image by its number among the n, for the message.
    :return: The images as a contiguous float32 or float64 array.
    :raises ValueError: wrong shape, or a value that is not finite.
    :raises TypeError: values that are not real numbers.
    """
    images = np.asarray(images)
    if images.ndim != 3 or images.shape[1:] != (L, L) or len(images) == 0:
        raise ValueError(
            f"images have shape {images.shape}; this basis takes (n, {L}, {L}), n ≥ 1"
        )
    if images.dtype.kind not in "fiu":
        raise TypeError(f"images have dtype {images.dtype}; they must be real numbers")
    dtype = np.float64 if images.dtype.itemsize > 4 else np.float32
    images = np.ascontiguousarray(images, dtype=dtype)
    finite = np.isfinite(images).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(
            f"{name(int(np.argmin(finite)))} has values that are NaN or infinite; only"
            " finite images can be averaged"
        )
    return images


def describe_shift_std(shift_std: float | None) -> str:
    """
    :param shift_std: Standard deviation of shifts, pixels, None where not known.
    :return: Text for a message.
    """
    return "unknown spread" if shift_std is None else f"{shift_std:g} pixels"
