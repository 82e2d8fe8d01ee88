"""Files of the command line: read with one clear sentence for each thing that can be
wrong with them, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import mrcfile
import numpy as np
from aspire.source import RelionSource
from aspire.utils import RelionStarFile
from aspire.volume import Volume

from aspire_mom.evaluation import mirror, plot_isosurfaces, plot_slices, plot_views
from aspire_mom.evaluation.fsc import PIXEL_SIZE_TOLERANCE
from aspire_mom.filters import low_pass
from aspire_mom.inversion import Reconstruction
from aspire_mom.inversion.reconstruction import FILES
from aspire_mom.moments import Moments

# What ASPIRE reads of image stacks: int8, int16, float32, uint16.
STACK_MODES = (0, 1, 2, 6)
RECONSTRUCTION_FILES = (
    *FILES,
    "volume_mirror.mrc",
    "slices.png",
    "isosurfaces.png",
    "views.png",
    "report.json",
)


def read_volume(path: Path, pixel_size: float | None = None) -> Volume:
    """
    Read a volume.

    :param path: MRC file of one cubic volume.
    :param pixel_size: Ångström per voxel, where the header has none.
    :return: ASPIRE `Volume` [z, y, x], float32; its pixel size is None where neither
        the header nor `pixel_size` gives one.
    :raises FileNotFoundError: no such file.
    :raises ValueError: the file is damaged, its volume not cubic, not finite or the
        same in all voxels, or its header contradicts `pixel_size`.
    """
    with _open_mrc(path, mrcfile.open) as mrc:
        voxels, sizes = np.array(mrc.data), mrc.voxel_size.item()
    if voxels.ndim == 4 and len(voxels) == 1:  # as `Volume.save` has it
        voxels = voxels[0]
    if voxels.ndim != 3 or len(set(voxels.shape)) != 1:
        shape = " x ".join(map(str, voxels.shape))
        raise ValueError(f"{path} holds {shape} values; a volume must be cubic")
    if voxels.dtype.kind not in "iuf" or not np.isfinite(voxels).all():
        raise ValueError(f"{path} holds values that are NaN, infinite or complex")
    if np.ptp(voxels) == 0:
        raise ValueError(f"{path} is {voxels.flat[0]} in all its voxels")
    if not np.allclose(sizes, sizes[0], rtol=PIXEL_SIZE_TOLERANCE, atol=0):
        raise ValueError(f"{path} has voxels of {sizes} Å; they must be cubes")
    size = _agreed_pixel_size(path, sizes[0] or None, pixel_size)
    return Volume(voxels.astype(np.float32), pixel_size=size)


def read_particles(path: Path, pixel_size: float | None = None) -> RelionSource:
    """
    Open a RELION STAR file of particles. All stacks it names are looked at, their
    pixels are not read.

    :param path: STAR file, with or without an optics table; paths of its stacks are
        relative to its folder.
    :param pixel_size: Ångström per pixel, where the STAR file has none.
    :return: ASPIRE `RelionSource`.
    :raises FileNotFoundError: no such file, or a stack that it names is missing.
    :raises ValueError: no particles, a damaged file, images of several sizes or pixel
        sizes, no pixel size, or one that contradicts `pixel_size`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        table = RelionStarFile(path).get_merged_data_block()
    except Exception as error:  # ASPIRE and gemmi raise many kinds
        raise ValueError(
            f"{path} cannot be read as a STAR file of particles: {error}"
        ) from error
    if "_rlnImageName" not in table:
        raise ValueError(f"{path} has no column _rlnImageName, which names the images")
    names = np.atleast_1d(table["_rlnImageName"])
    if len(names) == 0:
        raise ValueError(f"{path} lists 0 particles; at least 1 is needed")
    size = _agreed_pixel_size(path, _star_pixel_size(path, table), pixel_size)
    if size is None:
        raise ValueError(f"{path} gives no pixel size; pass --pixel-size")
    _check_stacks(path, names)
    return RelionSource(path, pixel_size=size)


def simulated_stacks(star: Path) -> list[Path]:
    """
    :param star: A STAR file that may have been simulated before.
    :return: Stacks beside it that have the names of its simulated images.
    """
    name = re.compile(re.escape(star.stem) + r"_0_\d+\.mrcs")
    return [path for path in star.parent.iterdir() if name.fullmatch(path.name)]


def check_name(path: Path, *suffixes: str) -> None:
    """
    :param path: File to write.
    :param suffixes: Accepted endings of its name.
    :raises ValueError: it has another.
    """
    if path.suffix not in suffixes:
        raise ValueError(f"{path}: the name must end in {' or '.join(suffixes)}")


def check_outputs(paths: Iterable[Path], overwrite: bool) -> None:
    """
    To be called before any long work.

    :param paths: Files to write.
    :param overwrite: Whether existing ones may be replaced.
    :raises FileExistsError: one of them exists and may not be replaced.
    :raises OSError: one of them cannot be written where it is to be.
    """
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; a file is to be written")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; pass --overwrite to replace it")
        folder = next(parent for parent in path.parents if parent.exists())
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file; a folder is needed there")
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder}: no permission to write there")


def support_in_boxes(radius: float, L: int, pixel_size: float | None) -> float:
    """
    :param radius: Radius of a ball that holds the molecule, in Ångström.
    :param L: Pixels along an edge.
    :param pixel_size: Ångström per pixel.
    :return: The radius in boxes.
    :raises ValueError: no pixel size, or a ball that leaves the box.
    """
    if pixel_size is None:
        raise ValueError(
            f"--support-radius {radius:g} Å needs a pixel size; the moments have none"
        )
    if radius > L * pixel_size / 2:
        raise ValueError(
            f"--support-radius is {radius:g} Å; half the box is {L * pixel_size / 2:g}"
            " Å"
        )
    return radius / (L * pixel_size)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """
    Where to write files that shall appear in a folder all at once and whole: they move
    there at the end of the block, or vanish if it ends in an error.

    :param folder: The folder, made if need be.
    :return: Context of a temporary folder on the same file system.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        yield Path(partial)
        for path in sorted(Path(partial).iterdir()):
            os.replace(path, folder / path.name)


def write_json(path: Path, report: dict) -> None:
    """
    :param path: File to write.
    :param report: Plain numbers, strings, lists and dictionaries.
    """
    path.write_text(json.dumps(report, indent=2) + "\n")


def write_reconstruction(
    folder: Path,
    reconstruction: Reconstruction,
    moments: Moments,
    seconds: float,
    resolution: float | None = None,
) -> None:
    """
    Write `RECONSTRUCTION_FILES`: the reconstruction, its mirror, pictures and a report.

    :param folder: An existing folder without these files.
    :param reconstruction: What was found.
    :param moments: From which.
    :param seconds: In which time.
    :param resolution: Low-pass filter of both volumes in Ångström.
    """
    if resolution is not None:
        volume = low_pass(reconstruction.volume, resolution)
        reconstruction = replace(reconstruction, volume=volume)
    reconstruction.save(folder)
    volumes = [reconstruction.volume, mirror(reconstruction.volume)]
    volumes[1].save(str(folder / "volume_mirror.mrc"))
    titles = ["volume", "mirror"]
    plot_slices(volumes, titles, folder / "slices.png")
    plot_isosurfaces(volumes, titles, folder / "isosurfaces.png")
    quadrature = reconstruction.quadrature
    views = reconstruction.density.reshape(-1, quadrature.n_inplane).sum(1)
    plot_views([(quadrature.views, views)], ["recovered views"], folder / "views.png")
    report = {
        "seconds": round(seconds, 1),
        "n_images": moments.n_images,
        "noise_variance": moments.noise_variance,
        "box": moments.basis.L,
        "pixel_size": moments.pixel_size,
        "lowpass_angstrom": resolution,
        "seed": reconstruction.seed,
        "moment_errors": reconstruction.moment_errors,
        "settings": reconstruction.settings,
        "starts": reconstruction.starts,
        "history": reconstruction.history,
    }
    write_json(folder / "report.json", report)


def _open_mrc(path: Path, opener) -> mrcfile.mrcobject.MrcObject:
    """An MRC file as leniently as ASPIRE takes it, if only its data are there."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        mrc = opener(path, mode="r", permissive=True)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as MRC: {error}") from error
    if mrc.data is None:
        mrc.close()
        raise ValueError(f"{path} is cut short, or no MRC file")
    return mrc


def _agreed_pixel_size(
    path: Path, found: float | None, given: float | None
) -> float | None:
    """The pixel size of a file, or the one on the command line where it has none."""
    if found is not None and not 0 < found < math.inf:
        raise ValueError(f"{path} has a pixel size of {found:g} Å; it must be positive")
    if found is None or given is None:
        return given if found is None else found
    if not math.isclose(found, given, rel_tol=PIXEL_SIZE_TOLERANCE):
        raise ValueError(
            f"--pixel-size is {given:g} Å, but {path} has one of {found:g} Å"
        )
    return found


def _star_pixel_size(path: Path, table: dict) -> float | None:
    """The pixel size of all particles, as RELION ≥ 3.1 or older versions have it."""
    if "_rlnImagePixelSize" in table:
        sizes = np.unique(table["_rlnImagePixelSize"])
    elif {"_rlnDetectorPixelSize", "_rlnMagnification"} <= set(table):
        # Micrometres on the detector.
        sizes = 1e4 * table["_rlnDetectorPixelSize"] / table["_rlnMagnification"]
        sizes = np.unique(sizes)
    else:
        return None
    if not np.allclose(sizes, sizes[0], rtol=PIXEL_SIZE_TOLERANCE, atol=0):
        raise ValueError(
            f"{path} has images of different pixel sizes, {sizes.min():g} to"
            f" {sizes.max():g} Å; only images of one pixel size can be averaged"
        )
    return float(sizes[0])


def _check_stacks(star: Path, names: np.ndarray) -> None:
    """Raise for the first stack of a STAR file that ASPIRE could not read."""
    parts = np.char.partition(names.astype(str), "@")
    if not np.char.isdecimal(parts[:, 0]).all() or (parts[:, 2] == "").any():
        bad = names[~np.char.isdecimal(parts[:, 0]) | (parts[:, 2] == "")][0]
        raise ValueError(f"{star} names an image {bad!r}; number@file is needed")
    stacks, which = np.unique(parts[:, 2], return_inverse=True)
    first, last = np.full(len(stacks), np.iinfo(int).max), np.zeros(len(stacks), int)
    numbers = parts[:, 0].astype(int)
    np.minimum.at(first, which, numbers)
    np.maximum.at(last, which, numbers)
    L = None
    for stack, low, high in zip(stacks, first, last, strict=True):
        path = star.parent / stack
        if not path.is_file():
            raise FileNotFoundError(f"{path}, a stack that {star} names, is missing")
        with _open_mrc(path, mrcfile.mmap) as mrc:
            shape, mode = mrc.data.shape, int(mrc.header.mode)
        n = shape[0] if len(shape) == 3 else 1
        L = L or shape[-1]
        if shape[-2:] != (L, L) or mode not in STACK_MODES:
            raise ValueError(
                f"{path} has images of {shape[-1]} x {shape[-2]} pixels in MRC mode"
                f" {mode}; all must be square, of one size, in mode 0, 1, 2 or 6"
            )
        if low < 1 or high > n:
            raise ValueError(
                f"{star} names images {low} to {high} of {path}, which has {n}"
            )
