"""What a refinement returns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from aspire.utils import Rotation
from aspire.volume import Volume

from aspire_mom.checks import check_new
from aspire_mom.evaluation.fsc import resolution_in_shells
from aspire_mom.files import contents_of, load_arrays, save_arrays, staged, write_json
from aspire_mom.relion import Particles, write_poses
from aspire_mom.volumes.grid import save_map

FORMAT = "aspire_mom.RefinedModel.2"
MAPS = ("volume.mrc", "half1.mrc", "half2.mrc")
# Models without relation agree to about 3 shells, by their overall shape.
LEAST_SHELLS = 4.0
# Of held-out images. With noise alone it is near 0 or below.
LEAST_LOG_LIKELIHOOD = 0.05
# First and last ring on which the share of the signal that is explained tells whether
# the model is right (further in, any two are alike), and the least share: right models
# explain 1.0, those of two molecules 0.6, and wrong ones, in which the halves agree
# since they started from it, 0.75.
SHARE_RINGS, LEAST_SHARE = (4, 11), 0.85
FILES = (*MAPS, "refinement.npz", "refinement.json")


@dataclass(frozen=True, eq=False)
class RefinedModel:
    """
    A volume refined against images, with the images' poses.

    :param volume: Volume of all images, ASPIRE `Volume` [z, y, x], float32, smoothed
        where it varies no more than its noise does.
    :param half_volumes: Stack (2, L, L, L): volumes of the images of half 1 and half 2,
        not smoothed.
    :param directions: Viewing directions (n_views, 3), xyz order.
    :param density: Their probabilities (n_views,), float64, sum one.
    :param rotations: Most probable rotation of each image, ASPIRE `Rotation`.
    :param offsets: Most probable shift of each image (n, 2), x and y in pixels, as
        ASPIRE's `source.offsets`, with those that the source knew unless ignored.
    :param halves: Half to which each image belongs (n,), 1 or 2.
    :param fsc: Fourier shell correlation of the half volumes on shells 0, 1, …
        (n_rings,).
    :param noise: Variance of the noise at a Fourier pixel of each ring in use, mean of
        both halves (n_rings,).
    :param history: One dict per iteration: n_rings, shells (at FSC 0.143 of the
        halves), log_likelihood (per image, less that of noise alone) and seconds.
    :param settings: Options of the refinement, and n_tries, how many starts were
        refined.
    :param held_out_log_likelihood: Mean log-likelihood of the images of each half on up
        to 8 rings, given the volume of the other half, less that of noise alone.
    :param probabilities: Of the most probable pose of each image, among those that were
        tried (n,); None in models of earlier versions.
    :param signal_share: By how much the model's images in the poses found reduce the
        images' power on each ring, as a share of the power of their signal, as second
        moments have it, where these are known (n_rings,).
    """

    volume: Volume
    half_volumes: Volume
    directions: np.ndarray
    density: np.ndarray
    rotations: Rotation
    offsets: np.ndarray
    halves: np.ndarray
    fsc: np.ndarray
    noise: np.ndarray
    history: list[dict]
    settings: dict
    held_out_log_likelihood: float
    probabilities: np.ndarray | None = None
    signal_share: np.ndarray | None = None

    def resolution_shells(self, cutoff: float = 0.143) -> float:
        """
        :param cutoff: FSC of the half volumes.
        :return: Fractional shell at which it falls below the cutoff.
        """
        return resolution_in_shells(self.fsc, cutoff)

    def resolution(self, cutoff: float = 0.143) -> float:
        """
        :param cutoff: FSC of the half volumes.
        :return: Resolution in Ångström at which it falls below the cutoff.
        :raises ValueError: The volume has no pixel size.
        """
        if self.volume.pixel_size is None:
            raise ValueError("the volume has no pixel size; use resolution_shells")
        box = self.volume.resolution * self.volume.pixel_size
        return box / self.resolution_shells(cutoff)

    def verdict(self, start_shells: float | None = None) -> str:
        """
        Put into words whether the images support the model.

        :param start_shells: Shells to which the starts agree, where this is known.
        :return: One or two sentences.
        """
        return self._judged(start_shells)[0]

    def typical_share(self) -> float | None:
        """
        :return: Median of `signal_share` on rings 4 to 11 on which the halves agree;
            None if it is unknown.
        """
        if self.signal_share is None:
            return None
        first, last = SHARE_RINGS
        rings = zip(self.signal_share, self.fsc, strict=False)
        shares = [
            share
            for share, fsc in [*rings][first : last + 1]
            if fsc > 0.5 and np.isfinite(share)
        ]
        return float(np.median(shares)) if shares else None

    def leaves_signal(self) -> bool:
        """
        :return: Whether the images have signal that the model does not explain, as far
            as that is known: their moments tell how much there is.
        """
        share = self.typical_share()
        return share is not None and share < LEAST_SHARE

    def failed(self, start_shells: float | None = None) -> bool:
        """
        :param start_shells: Shells to which the starts agree, where this is known.
        :return: Whether the images support no model, as :meth:`verdict` says.
        """
        return self._judged(start_shells)[1]

    def _judged(self, start_shells: float | None) -> tuple[str, bool]:
        shells = self.resolution_shells()
        where = f"{shells:.1f} shells"
        if self.volume.pixel_size is not None:
            where += f" ({self.resolution():.3g} Å)"
        head = f"The halves of the images agree to {where}"
        if not self.held_out_log_likelihood >= LEAST_LOG_LIKELIHOOD:
            # They agree all the same, since they share their start. NaN counts as less.
            return (
                f"{head}, but neither explains the images of the other half better than"
                " noise does: the images support no model. Take more images, or more"
                " starts."
            ), True
        if shells < LEAST_SHELLS:
            return (
                f"{head} only: the images support no model. Take more images, or more"
                " starts."
            ), True
        if self.leaves_signal():
            share = f"{self.typical_share():.0%}"
            return (
                f"{head}, but the model explains {share} of the images' signal only:"
                " they support no model, or not this one. The start was wrong, or they"
                " show several molecules, or their noise is not as assumed when their"
                " moments were estimated."
            ), True
        if shells >= len(self.fsc) - 1:
            return f"{head}, as far as the rings in use.", False
        if start_shells is not None and shells < start_shells:
            return (
                f"{head}, less than the starts, which agree to {start_shells:.1f}: the"
                " images support no model, or not this one. Take more starts."
            ), True
        return f"{head}.", False

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """
        Write volume.mrc, half1.mrc, half2.mrc, refinement.npz and refinement.json, all
        together or none.

        :param folder: Folder, made if it does not exist.
        :param overwrite: Replace files that exist.
        :raises FileExistsError: One of the files exists and `overwrite` is False.
        """
        folder = Path(folder)
        for name in FILES:
            check_new(folder / name, overwrite)
        names = "directions", "density", "offsets", "halves", "fsc", "noise"
        names += "probabilities", "signal_share"
        arrays = {name: getattr(self, name) for name in names}
        arrays["rotations"] = self.rotations.matrices
        size = self.volume.pixel_size
        halves = [Volume(v, pixel_size=size) for v in self.half_volumes.asnumpy()]
        with staged(folder) as stage:
            for name, volume in zip(MAPS, (self.volume, *halves), strict=True):
                save_map(volume, stage / name)
            save_arrays(stage / FILES[3], FORMAT, arrays)
            names = "history", "settings", "held_out_log_likelihood"
            text = {name: getattr(self, name) for name in names}
            write_json(stage / FILES[4], text)

    def save_star(
        self, path: str | Path, particles: Particles, *, overwrite: bool = False
    ) -> None:
        """
        Write the images' poses to a STAR file that RELION, cryoSPARC and ASPIRE read:
        the particles with angles, origins in Ångström, half sets and probabilities.

        :param path: STAR file to write.
        :param particles: The particles of all images, in the same order; images may
            have been downsampled since.
        :param overwrite: Replace an existing file.
        :raises FileExistsError: The file exists and `overwrite` is False.
        :raises ValueError: Another number of particles, or their file has changed.
        """
        angles = np.degrees(self.rotations.angles)
        pixel_size = particles.L * particles.pixel_size / self.volume.resolution
        origins = self.offsets * pixel_size
        poses = angles, origins, self.halves, self.probabilities
        write_poses(path, particles, *poses, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> RefinedModel:
        """
        Read what :meth:`save` wrote.

        :param folder: The folder.
        :return: The model.
        :raises ValueError: A file is damaged, or not one of a refined model.
        """
        folder = Path(folder)
        arrays, _ = load_arrays(folder / FILES[3], FORMAT)
        with contents_of(folder):
            text = json.loads((folder / FILES[4]).read_text())
            volume, *halves = (Volume.load(str(folder / name)) for name in MAPS)
            halves = Volume(
                np.concatenate([half.asnumpy() for half in halves]),
                pixel_size=volume.pixel_size,
            )
            rotations = Rotation(arrays.pop("rotations"), gimble_lock_warnings=False)
            fields: dict[str, Any] = {**arrays, **text}
            return cls(volume, halves, rotations=rotations, **fields)
