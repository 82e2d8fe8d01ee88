"""Files of the command line: read with one clear sentence for each thing that can be
wrong with them, written whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
from aspire.volume import Volume

from aspire_mom.checks import PIXEL_SIZE_TOLERANCE, agreed_pixel_size
from aspire_mom.evaluation import plot_isosurfaces, plot_slices, plot_views
from aspire_mom.files import write_json
from aspire_mom.inversion import Reconstruction
from aspire_mom.inversion.reconstruction import FILES
from aspire_mom.moments import Moments
from aspire_mom.volumes.filters import low_pass, mirror

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
    with _open_mrc(path) as mrc:
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
    size = agreed_pixel_size(path, sizes[0] or None, pixel_size)
    return Volume(voxels.astype(np.float32), pixel_size=size)


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
        "shift_std": reconstruction.shift_std,
        "settings": reconstruction.settings,
        "starts": reconstruction.starts,
        "history": reconstruction.history,
    }
    write_json(folder / "report.json", report)


def _open_mrc(path: Path) -> mrcfile.mrcobject.MrcObject:
    """An MRC file as leniently as ASPIRE takes it, if only its data are there."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        mrc = mrcfile.open(path, mode="r", permissive=True)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as MRC: {error}") from error
    if mrc.data is None:
        mrc.close()
        raise ValueError(f"{path} is cut short, or no MRC file")
    return mrc
