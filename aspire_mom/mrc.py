"""What MRC headers say of values, axes and contents, beyond what mrcfile heeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

# Values by mode. Complex numbers and IMOD's packed 4-bit ones are not images.
MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}
# "IMOD" at byte 152 of a header; at byte 156 flags, of which the lowest is set if bytes
# are signed. Both lie in mrcfile's field `extra2`, which starts at byte 112.
IMOD, IMOD_OFFSET = 1146844873, 40


def value_type(path: Path, header: np.ndarray) -> np.dtype:
    """
    Find the type of a file's values. Bytes (mode 0) are signed by the standard of 2014,
    and unsigned in IMOD's files unless a flag says otherwise. Without IMOD's stamp, the
    largest value tells.

    :param path: The file, for messages.
    :param header: Its header, as mrcfile has it.
    :return: The values' type, in the header's byte order.
    :raises ValueError: The mode is none of `MODES`.
    """
    mode = int(header["mode"])
    if mode not in MODES:
        known = ", ".join(f"{number} ({name})" for number, name in MODES.items())
        raise ValueError(
            f"{path} is in MRC mode {mode}; modes {known} are read: convert it to"
            " float32"
        )
    integer = header.dtype["mode"]
    if mode == 0 and _bytes_are_unsigned(header, integer):
        return np.dtype(np.uint8)
    dtype = np.dtype(MODES[mode])
    return dtype if integer.isnative else dtype.newbyteorder()


def _bytes_are_unsigned(header: np.ndarray, integer: np.dtype) -> bool:
    extra = header["extra2"].tobytes()
    stamp, flags = np.frombuffer(extra, integer, 2, IMOD_OFFSET)
    if stamp == IMOD:
        return not flags & 1
    low, high = float(header["dmin"]), float(header["dmax"])
    return low <= high and high > 127 and -low <= high - 128


def check_axes(path: Path, header: np.ndarray) -> tuple[int, ...]:
    """
    :param path: The file, for messages.
    :param header: Its header.
    :return: Axes of sections, rows and columns (MAPS, MAPR, MAPC), 1 for X to 3 for Z;
        (3, 2, 1) where all are 0, as some programs leave them.
    :raises ValueError: They are no order of the three axes.
    """
    axes = tuple(int(header[name]) for name in ("maps", "mapr", "mapc"))
    if not any(axes):
        return 3, 2, 1
    if sorted(axes) != [1, 2, 3]:
        raise ValueError(
            f"{path} has its columns, rows and sections along axes"
            f" {', '.join(map(str, axes[::-1]))} (MAPC, MAPR, MAPS); each of 1, 2 and 3"
            " is needed once"
        )
    return axes


def is_image_stack(path: Path, header: np.ndarray) -> bool:
    """
    :param path: A file.
    :param header: Its header.
    :return: Whether it has images, by its name, or by a cell of one section.
    """
    one_section = int(header["mz"]) == 1 and int(header["nz"]) > 1
    return path.suffix == ".mrcs" or (int(header["ispg"]) == 0 and one_section)


def is_volume(header: np.ndarray) -> bool:
    """
    :param header: A file's header.
    :return: Whether it is that of one cubic volume. That of a stack may look the same:
        programs differ in what they write.
    """
    nx, ny, nz, mz = (int(header[name]) for name in ("nx", "ny", "nz", "mz"))
    return int(header["ispg"]) == 1 and nx == ny == nz == mz > 1
