"""What an inversion returns."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from aspire.volume import Volume

from aspire_mom.checks import check_new
from aspire_mom.evaluation.symmetry import symmetrised, symmetry_rotations
from aspire_mom.files import contents_of, load_arrays, save_arrays, staged, write_json
from aspire_mom.rotations import SO3Quadrature
from aspire_mom.volumes.grid import mirror, save_map

FILES = ("volume.mrc", "reconstruction.npz", "reconstruction.json")
FORMAT = "aspire_mom.Reconstruction.1"
# Fields in the .json file.
TEXT = ("history", "starts", "settings", "seed", "moment_errors", "shift_std")


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """
    A volume and density of rotations, known up to a common rotation and the handedness.

    :param volume: ASPIRE `Volume` [z, y, x], float32, at the moments' size.
    :param density: Probabilities (n,) of the quadrature's nodes, float64, sum one.
    :param quadrature: The nodes.
    :param history: Stages of the start that was chosen: dicts of stage, n_rings, loss
        and criterion.
    :param starts: All starts that reached the last level, best first: dicts of seed,
        criterion and loss, and shift_std where it was unknown.
    :param settings: Options of the inversion.
    :param seed: Seed of the search.
    :param moment_errors: Relative differences of its first and second moment from the
        estimates (eq. 22), which include the noise of these.
    :param shift_std: Standard deviation of the images' shifts along each axis, pixels.
    :param start_volumes: Volumes of `starts`, a stack in the same order.
    :param second_residual: Root mean squares of its second moment's differences from
        the estimate, in standard errors, on each order and ring, (n_orders, n_rings).
    :param signal_power: Power of the images' signal on each ring, if moments are polar:
        Σ E|c[m, r]|² over all ±m (n_rings,).
    """

    volume: Volume
    density: np.ndarray
    quadrature: SO3Quadrature
    history: list[dict]
    starts: list[dict]
    settings: dict
    seed: int
    moment_errors: tuple[float, float] | None = None
    shift_std: float = 0.0
    start_volumes: Volume | None = None
    second_residual: np.ndarray | None = None
    signal_power: np.ndarray | None = None

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """
        Write volume.mrc, reconstruction.npz (density, quadrature, volumes of the starts
        and what moments tell) and reconstruction.json (the rest), all together or none.

        :param folder: Folder, made if it does not exist.
        :param overwrite: Replace files that exist.
        :raises FileExistsError: One of the files exists and `overwrite` is False.
        """
        folder = Path(folder)
        for name in FILES:
            check_new(folder / name, overwrite)
        arrays: dict[str, np.ndarray | None] = dict(self.quadrature.arrays)
        names = "density", "second_residual", "signal_power"
        arrays |= {name: getattr(self, name) for name in names}
        if self.start_volumes is not None:
            arrays["start_volumes"] = self.start_volumes.asnumpy()
        with staged(folder) as stage:
            save_map(self.volume, stage / FILES[0])
            save_arrays(stage / FILES[1], FORMAT, arrays)
            write_json(stage / FILES[2], {name: getattr(self, name) for name in TEXT})

    @classmethod
    def load(cls, folder: str | Path) -> Reconstruction:
        """
        Read what :meth:`save` wrote.

        :param folder: The folder.
        :return: The reconstruction.
        :raises ValueError: A file is damaged, or not one of a reconstruction.
        """
        folder = Path(folder)
        arrays, _ = load_arrays(folder / FILES[1], FORMAT)
        with contents_of(folder):
            text = json.loads((folder / FILES[2]).read_text())
            if text.get("moment_errors") is not None:
                text["moment_errors"] = tuple(text["moment_errors"])
            volume = Volume.load(str(folder / FILES[0]))
            starts = arrays.pop("start_volumes", None)
            if starts is not None:
                starts = Volume(starts, pixel_size=volume.pixel_size)
            quadrature = SO3Quadrature.from_arrays(arrays)
            return cls(
                volume,
                arrays["density"],
                quadrature,
                **text,
                start_volumes=starts,
                second_residual=arrays.get("second_residual"),
                signal_power=arrays.get("signal_power"),
            )

    @property
    def view_density(self) -> np.ndarray:
        """Probabilities (n_views,) of the viewing directions `quadrature.views`, summed
        over in-plane angles, float64."""
        return self.density.reshape(-1, self.quadrature.n_inplane).sum(1)

    def with_symmetry(self, symmetry: str) -> Reconstruction:
        """
        Impose a symmetry, whose axes are looked for in each start's volume.

        :param symmetry: As for `evaluation.symmetry.symmetry_rotations`.
        :return: The reconstruction in the symmetry's orientation. Its settings hold the
            symmetry, and whether the volume shows it, in words. In-plane angles become
            equally likely.
        :raises ValueError: There is no such symmetry.
        """
        volumes = [self.volume]
        if self.start_volumes is not None:
            size = self.volume.pixel_size
            voxels = self.start_volumes.asnumpy()[1:]
            volumes += [Volume(v, pixel_size=size) for v in voxels]
        found = [symmetrised(volume, symmetry) for volume in volumes]
        best, views, density = found[0], self.quadrature.views, self.view_density
        # A view v of the new volume is one of the old one at Q g v, any g.
        turned = (
            density[np.argmax(views @ (views @ (best.rotation @ g).T).T, axis=0)]
            for g in symmetry_rotations(symmetry)
        )
        density = np.repeat(sum(turned), self.quadrature.n_inplane)
        settings = {"symmetry": symmetry, "symmetry_verdict": best.verdict}
        stack = np.concatenate([one.volume.asnumpy() for one in found])
        return replace(
            self,
            volume=best.volume,
            density=density / density.sum(),
            settings=self.settings | settings,
            # Those of the volume without symmetry.
            moment_errors=None,
            second_residual=None,
            start_volumes=None
            if self.start_volumes is None
            else Volume(stack, pixel_size=self.volume.pixel_size),
        )

    @property
    def mirror(self) -> Volume:
        """The volume of the other hand, which has the same moments."""
        return mirror(self.volume)
