"""
Checks the rotation and axis conventions against RELION: its projections of a map,
through our slices of the same map at the Euler angles of its star file. RELION centres
projections of odd-sized maps one pixel further, and its images are rolled back.

    python benchmarks/relion_convention.py [folder with the data]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from aspire.numeric import fft
from aspire.source import RelionSource
from aspire.volume import Volume

from aspire_mom.volumes.grid import volume_at

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PIXEL_SIZE = 5.0  # Å; the map's header has none
LARGEST_ERROR = 0.03


def relion_errors(data: Path) -> dict[str, float]:
    """
    Relative errors of RELION's images against slices, after one common scale.

    :param data: Folder of `ribosome_70s_65.mrc` and `relion/rln_proj_65.star`.
    :return: Error by convention, the right one first.
    """
    volume = Volume.load(data / "ribosome_70s_65.mrc")
    folder = data / "relion"
    source = RelionSource(
        folder / "rln_proj_65.star", data_folder=folder, pixel_size=PIXEL_SIZE
    )
    original = source.images[:].asnumpy().astype(np.float64)
    images = np.roll(original, (-1, -1), (1, 2))
    rotations = source.rotations.astype(np.float64)
    inverses = rotations.transpose(0, 2, 1)
    return {
        "R (kx, ky, 0)": _error(volume, rotations, images),
        "R^T (kx, ky, 0)": _error(volume, inverses, images),
        "images transposed": _error(volume, rotations, images.transpose(0, 2, 1)),
        "images not rolled": _error(volume, rotations, original),
    }


def _error(volume: Volume, rotations: np.ndarray, images: np.ndarray) -> float:
    L = images.shape[-1]
    axis = np.arange(L) - L // 2
    ky, kx = np.meshgrid(axis, axis, indexing="ij")
    frequencies = np.stack((kx, ky), -1).reshape(-1, 2)
    k = frequencies @ rotations[:, :, :2].transpose(0, 2, 1)
    slices = volume_at(volume, k).ravel()
    observed = fft.centered_fft2(images).ravel()
    scale = np.vdot(slices, observed).real / np.vdot(slices, slices).real
    return float(np.linalg.norm(scale * slices - observed) / np.linalg.norm(observed))


def main() -> int:
    errors = relion_errors(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
    for convention, error in errors.items():
        print(f"{convention:20s} relative error {error:.4f}")
    return int(errors["R (kx, ky, 0)"] > LARGEST_ERROR)


if __name__ == "__main__":
    sys.exit(main())
