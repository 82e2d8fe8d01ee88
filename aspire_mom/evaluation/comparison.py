"""How well a reconstruction agrees with a reference."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from aspire.utils import Rotation
from aspire.volume import Volume
from matplotlib.figure import Figure

from aspire_mom.checks import check_new
from aspire_mom.evaluation.fsc import (
    check_pair,
    fourier_shell_correlation,
    resolution_in_shells,
    without_nyquist_planes,
)
from aspire_mom.evaluation.plots import plot_fsc
from aspire_mom.evaluation.registration import Registration, register
from aspire_mom.files import contents_of, write_json
from aspire_mom.volumes.grid import save_map

# Fields that are saved as they are.
SAVED = ("correlation", "relative_error", "mirrored", "pixel_size")
J = np.diag((1.0, 1.0, -1.0))


@dataclass(frozen=True, eq=False)
class Comparison(Registration):
    """
    The registration of a volume to a reference, and how well the two agree.

    :param fsc: Fourier shell correlation of shells 0 to (L - 1)//2, float64.
    :param correlation: ⟨u, v⟩ / (|u| |v|) of the aligned volume u and the reference v,
        without the Nyquist planes of even sizes.
    :param relative_error: |v - u| / |v| (eq. 27), without scaling u.
    :param aligned: ASPIRE `Volume` mirrored, rotated and shifted onto the reference.
    :param pixel_size: Ångström per voxel, or None.
    """

    fsc: np.ndarray
    correlation: float
    relative_error: float
    aligned: Volume
    pixel_size: float | None

    @property
    def box(self) -> float | None:
        """Edge of the box in Ångström, None without a pixel size."""
        return self.pixel_size and self.aligned.resolution * self.pixel_size

    def resolution_shells(self, cutoff: float = 0.5) -> float:
        """
        :param cutoff: FSC at the resolution, between 0 and 1.
        :return: A fractional shell, as :func:`resolution_in_shells` finds it.
        """
        return resolution_in_shells(self.fsc, cutoff)

    def resolution(self, cutoff: float = 0.5) -> float:
        """
        :param cutoff: FSC at the resolution, between 0 and 1.
        :return: Resolution in Ångström, the box / :meth:`resolution_shells`.
        :raises ValueError: There is no pixel size, or the cutoff is not in (0, 1).
        """
        if self.box is None:
            raise ValueError("neither volume has a pixel size; one of them needs it")
        return self.box / self.resolution_shells(cutoff)

    def align_rotations(self, rotations: np.ndarray) -> np.ndarray:
        """
        :param rotations: Orientations Q (n, 3, 3) in the volume's frame.
        :return: Those in the reference's frame: R Q, or R J Q J if mirrored, float64.
        """
        rotations = J @ rotations @ J if self.mirrored else rotations
        return self.rotation.matrices[0].astype(np.float64) @ rotations

    def align_views(self, views: np.ndarray) -> np.ndarray:
        """
        :param views: Viewing directions (n, 3) in the volume's frame, xyz order.
        :return: The same in the reference's frame, (n, 3), float64.
        """
        views = -views @ J if self.mirrored else views
        return views @ self.rotation.matrices[0].T.astype(np.float64)

    def summary(self) -> dict:
        """
        :return: All fields but `aligned`, and the resolutions at 0.5 and 0.143, as
            plain numbers and lists. Resolutions in Å are None without a pixel size.
        """
        cutoffs, box = (0.5, 0.143), self.box
        shells = {c: self.resolution_shells(c) for c in cutoffs}
        return {
            **{f"resolution_{c}_angstrom": box and box / shells[c] for c in cutoffs},
            **{f"resolution_{c}_shells": shells[c] for c in cutoffs},
            "fsc": self.fsc.tolist(),
            **{name: getattr(self, name) for name in SAVED},
            "rotation": self.rotation.matrices[0].tolist(),
            "shift": self.shift.tolist(),
        }

    def save(self, path: str | PathLike, *, overwrite: bool = False) -> None:
        """
        Write the summary as JSON and the aligned volume beside it as MRC.

        :param path: File to write, its name ending in .json; the volume's ends in .mrc.
        :param overwrite: Replace existing files.
        :raises ValueError: The name does not end in .json.
        """
        path = Path(path)
        if path.suffix != ".json":
            raise ValueError(f"{path}: the file's name must end in .json")
        for file in (path, path.with_suffix(".mrc")):
            check_new(file, overwrite)
        save_map(self.aligned, path.with_suffix(".mrc"), overwrite=overwrite)
        write_json(path, self.summary())

    @classmethod
    def load(cls, path: str | PathLike) -> Comparison:
        """
        :param path: A .json file that :meth:`save` has written.
        :return: The comparison, its aligned volume in MRC's float32.
        """
        path = Path(path)
        with contents_of(path):
            saved = json.loads(path.read_text())
            fields = {name: saved[name] for name in SAVED}
            fields |= {name: np.array(saved[name]) for name in ("fsc", "shift")}
            fields["rotation"] = Rotation(np.array(saved["rotation"]))
        voxels = Volume.load(str(path.with_suffix(".mrc"))).asnumpy()
        return cls(**fields, aligned=Volume(voxels, pixel_size=fields["pixel_size"]))

    def plot(self, path: str | PathLike | None = None) -> Figure:
        """
        :param path: Image file to write, if any.
        :return: The FSC curve, as :func:`plot_fsc` draws it.
        """
        return plot_fsc(self.fsc, self.box, path)


def compare(volume: Volume, reference: Volume, *, translate: bool = True) -> Comparison:
    """
    Register a volume to a reference, and measure the agreement.

    :param volume: One ASPIRE `Volume`, such as a reconstruction, [z, y, x].
    :param reference: One ASPIRE `Volume` of the same size L and pixel size, if known.
    :param translate: Whether to shift the volume too, see :func:`register`.
    :return: The :class:`Comparison`. For even L it is of both volumes without their
        Nyquist planes, which no rotation keeps.
    """
    pixel_size = check_pair(volume, reference)
    found = register(volume, reference, translate=translate)
    aligned = found.apply(volume)
    aligned.pixel_size = pixel_size
    u = aligned.asnumpy()[0].astype(np.float64)
    v = without_nyquist_planes(reference)
    norm = np.linalg.norm(v)
    return Comparison(
        fsc=fourier_shell_correlation(aligned, reference),
        correlation=float(np.vdot(u, v) / (np.linalg.norm(u) * norm)),
        relative_error=float(np.linalg.norm(v - u) / norm),
        **vars(found),
        aligned=aligned,
        pixel_size=pixel_size,
    )
