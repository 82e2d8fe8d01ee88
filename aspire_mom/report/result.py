"""What a folder of results holds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from aspire.volume import Volume

from aspire_mom.checks import PIXEL_SIZE_TOLERANCE
from aspire_mom.evaluation import Comparison, compare
from aspire_mom.files import contents_of
from aspire_mom.inversion import Reconstruction
from aspire_mom.moments import Moments
from aspire_mom.refinement import RefinedModel


@dataclass(frozen=True, eq=False)
class Result:
    """
    A model, and what is known of how it was found.

    :param folder: Where it was read from.
    :param summary: Contents of report.json; empty if there is none.
    :param reconstruction: The reconstruction from moments, or the start of a
        refinement, if it is in the folder.
    :param model: The refined model, if there is one.
    :param moments: Moments of the images, if they are in the folder.
    :param reference: A volume to compare the model with, if there is one.
    :param comparison: The comparison with it.
    """

    folder: Path
    summary: dict[str, Any]
    reconstruction: Reconstruction | None
    model: RefinedModel | None
    moments: Moments | None
    reference: Volume | None = None
    comparison: Comparison | None = None

    @classmethod
    def load(cls, folder: Path, reference: Volume | None = None) -> Result:
        """
        :param folder: A folder that holds a `Reconstruction` or a `RefinedModel`, as
            their methods `save` and the commands of aspire-mom write them.
        :param reference: A volume to compare the model with; by default the one in the
            folder that report.json names, as of what `demo` wrote.
        :return: What is there.
        :raises FileNotFoundError: There is no such folder, or it lacks a file.
        :raises ValueError: It holds neither; a file is damaged; or the reference has
            another size or pixel size than the model.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        model = reconstruction = moments = None
        where, summary = folder, _read_json(folder / "report.json")
        if (folder / "refinement.npz").exists():
            model, where = RefinedModel.load(folder), folder / "start"
        if (where / "reconstruction.npz").exists():
            reconstruction = Reconstruction.load(where)
        if model is None and reconstruction is None:
            raise ValueError(
                f"{folder} holds no results: there is neither reconstruction.npz nor"
                " refinement.npz, which reconstruct, refine, initial-model and demo"
                " write"
            )
        if (folder / "moments.npz").exists():
            moments = Moments.load(folder / "moments.npz")
        if reference is None and summary.get("reference"):
            known = folder / Path(str(summary["reference"])).name
            with contents_of(known):
                reference = Volume.load(str(known))
        found = cls(folder, summary, reconstruction, model, moments)
        if reference is None:
            return found
        reference = _at_size(reference, found.volume)
        comparison = compare(found.volume, reference)
        return cls(**{**vars(found), "reference": reference, "comparison": comparison})

    @property
    def volume(self) -> Volume:
        """The refined volume, or else that of the reconstruction."""
        found = self.model or self.reconstruction
        assert found is not None  # as `load` checks
        return found.volume

    @property
    def box(self) -> float | None:
        """Edge of the box in Ångström, None without a pixel size."""
        size = self.volume.pixel_size
        return size and self.volume.resolution * size

    @property
    def views(self) -> tuple[np.ndarray, np.ndarray]:
        """Viewing directions (n, 3), and their probabilities (n,)."""
        if self.model is not None:
            return self.model.directions, self.model.density
        assert self.reconstruction is not None  # as `load` checks
        views = self.reconstruction.quadrature.views
        return views, self.reconstruction.view_density

    @property
    def start_summary(self) -> dict[str, Any]:
        """What report.json says of the agreement of the starts."""
        return self.summary if self.model is None else self.summary.get("start") or {}

    @property
    def failed(self) -> bool | None:
        """Whether the data support no model; None if that is not known."""
        if self.model is not None:
            return self.model.failed(self.start_summary.get("agreement_shells"))
        return self.summary.get("failed")

    @property
    def verdict(self) -> str | None:
        """Whether to trust the model, and what limits it; None if not known."""
        if self.model is not None:
            return self.model.verdict(self.start_summary.get("agreement_shells"))
        return self.summary.get("verdict")


def _at_size(reference: Volume, volume: Volume) -> Volume:
    """The reference, downsampled if it is a finer map of the volume's box, as one
    without a pixel size is taken to be."""
    L, finer = volume.resolution, reference.resolution
    before, after = reference.pixel_size, volume.pixel_size
    known = before is not None and after is not None
    fits = not known or math.isclose(
        finer * before, L * after, rel_tol=PIXEL_SIZE_TOLERANCE
    )
    return reference.downsample(L) if finer > L and fits else reference


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with contents_of(path):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no dictionary")
        return found
