"""Particles of a RELION STAR file: checked, chosen, summed up."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from aspire_mom.checks import PIXEL_SIZE_TOLERANCE, agreed_pixel_size
from aspire_mom.relion.stacks import check_stacks, locate
from aspire_mom.relion.table import (
    B_FACTOR,
    CTF_COLUMNS,
    GROUP,
    UNCORRECTED,
    Table,
    distinct_rows,
    read_table,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Particles:
    """
    Particles whose images can be read and averaged together.

    :param table: What the STAR file says of them.
    :param stacks: Paths of the stacks that `table` numbers.
    :param n_listed: Particles in the file, of which these have been chosen.
    :param L: Pixels along an image's edge.
    :param pixel_size: Ångström per pixel.
    """

    table: Table
    stacks: tuple[Path, ...]
    n_listed: int
    L: int
    pixel_size: float

    def __len__(self) -> int:
        return len(self.table)

    @property
    def has_ctf(self) -> bool:
        """Whether there are defoci: voltage and the like alone make no CTF."""
        return not {"_rlnDefocusU", "_rlnDefocusV"}.isdisjoint(self.table.columns)

    @cached_property
    def ctfs(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct CTFs (n_ctfs, 7), columns as in `CTF_COLUMNS` and the B factor, and
        the index of each particle's (n,): no CTF where the file does not tell all of
        it."""
        columns, none = self.table.columns, np.zeros(len(self))
        if not set(CTF_COLUMNS) <= set(columns):
            return np.empty((0, len(CTF_COLUMNS) + 1)), none.astype(int)
        known = [columns[name] for name in CTF_COLUMNS]
        return distinct_rows([*known, columns.get(B_FACTOR, none)])

    @property
    def phase_flipped(self) -> bool:
        """Whether the images' phases have been flipped."""
        return bool(self._flags("_rlnCtfDataArePhaseFlipped").any())

    @cached_property
    def shifts(self) -> np.ndarray:
        """Shifts (n, 2) as x, y in pixels, with RELION's sign."""
        columns, shifts = self.table.columns, np.zeros((len(self), 2))
        for axis, name in enumerate(("_rlnOriginX", "_rlnOriginY")):
            if f"{name}Angst" in columns:
                shifts[:, axis] = columns[f"{name}Angst"] / self.pixel_size
            elif name in columns:
                shifts[:, axis] = columns[name]
        return shifts

    def check_ctf(self) -> None:
        """
        :raises ValueError: the CTF cannot be corrected for: columns of it are missing,
            the images were multiplied by it, some but not all of them were
            phase-flipped, or there was a phase plate.
        """
        if not self.has_ctf:
            return
        path, columns = self.table.path, self.table.columns
        missing = [name for name in CTF_COLUMNS if name not in columns]
        if missing:
            raise ValueError(
                f"{path} has defoci but no {' and no '.join(missing)}, without which"
                " there is no CTF; complete it, or pass ctf=False"
            )
        if self._flags("_rlnCtfDataAreCtfPremultiplied").any():
            raise ValueError(
                f"{path} has images that were multiplied by their CTF, which is not"
                " corrected for; extract them as they were, or pass ctf=False"
            )
        flipped = np.count_nonzero(self._flags("_rlnCtfDataArePhaseFlipped"))
        if 0 < flipped < len(self):
            raise ValueError(
                f"{path} has {flipped} phase-flipped images among {len(self)}; all must"
                " be or none, or pass ctf=False"
            )
        phase = np.abs(columns.get("_rlnPhaseShift", np.zeros(1))).max()
        if phase > 0:
            raise ValueError(
                f"{path} has phase shifts of up to {phase:g}° (_rlnPhaseShift), which"
                " are not corrected for; pass ctf=False to ignore it"
            )

    def summary(self) -> str:
        """Three lines on what was read."""
        n, listed = f"{len(self):,}", f"{self.n_listed:,}"
        groups = self._groups()
        parts = [
            f"{n} of {listed}" if n != listed else n,
            f"in {_counted(len(np.unique(self.table.stack_indices)), 'stack')}",
            f"of {self.L} x {self.L} pixels of {self.pixel_size:.5g} Å,",
            f"{_counted(len(groups), 'optics group')}" if groups else "no optics table",
        ]
        if len(groups) > 1:
            parts.append(f"({', '.join(groups[:6])}{', …' if groups[6:] else ''})")
        rms = np.sqrt(np.mean(np.sum(self.shifts**2, axis=1)))
        return (
            f"Particles: {' '.join(parts)}\nCTF: {self._ctf_summary()}\nShifts:"
            f" {f'{rms:.3g} pixels RMS' if rms > 0 else 'none'}"
        )

    def _ctf_summary(self) -> str:
        ctfs, _ = self.ctfs
        if len(ctfs) == 0:
            return "incomplete" if self.has_ctf else "none"
        voltage, u, v, _, cs, contrast, b_factor = ctfs.T
        damped = f", B factor {_span(b_factor)} Å²" if b_factor.any() else ""
        defocus = _span((u + v) / 2e4)
        flipped = "" if self.phase_flipped else "not "
        astigmatism = _span(np.abs(u - v) / 1e4)
        return (
            f"{_span(voltage)} kV, Cs {_span(cs)} mm, amplitude contrast"
            f" {_span(contrast)}, defocus {defocus} µm, astigmatism"
            f" {astigmatism} µm{damped}, {len(ctfs):,} distinct, {flipped}"
            "phase-flipped"
        )

    def _groups(self) -> list[str]:
        """Names of the optics groups that these particles have."""
        names = self.table.groups
        used = self.table.columns[GROUP] if names else ()
        return [names[number] for number in np.unique(used)]

    def _flags(self, column: str) -> np.ndarray:
        return self.table.columns.get(column, np.zeros(len(self))) != 0


def read_particles(
    path: Path,
    pixel_size: float | None = None,
    *,
    data_folder: Path | None = None,
    first: int | None = None,
    random_subset: int | None = None,
    class_number: int | None = None,
) -> Particles:
    """
    Read a RELION STAR file of particles. Headers and sizes of the stacks it names are
    checked; their pixels are not read.

    :param path: STAR file of RELION 3.0 to 5.
    :param pixel_size: Ångström per pixel, where the STAR file has none.
    :param data_folder: Folder that paths of stacks are relative to. By default the
        first that has the first stack: the STAR file's, those above, the current one.
    :param first: Take this many particles, or all where there are fewer.
    :param random_subset: Take those of this half set (_rlnRandomSubset).
    :param class_number: Take those of this class (_rlnClassNumber).
    :return: The particles. A warning tells what their images have, as the file says,
        that is not corrected for.
    :raises OSError: no such file, or a stack that it names is missing.
    :raises ValueError: no particles, a damaged file or stack, images of several sizes
        or pixel sizes, no pixel size, or one that contradicts `pixel_size`.
    """
    path = Path(path)
    _check_file(path)
    table = read_table(path)
    n_listed = len(table)
    if random_subset is not None:
        table = table.subset("_rlnRandomSubset", random_subset)
    if class_number is not None:
        table = table.subset("_rlnClassNumber", class_number)
    table = table.chosen(slice(first))
    table.check_ranges()
    size = agreed_pixel_size(path, _pixel_size(table), pixel_size)
    if size is None:
        raise ValueError(f"{path} gives no pixel size; pass pixel_size")
    stacks = locate(table, data_folder)
    L = check_stacks(table, stacks)
    if "_rlnImageSize" in table.columns:
        listed = table.common("sizes", "pixels", table.columns["_rlnImageSize"], 0)
        if listed != L:
            raise ValueError(
                f"{path} tells of images of {listed:g} pixels along an edge"
                f" (_rlnImageSize), but those in its stacks have {L}"
            )
    _mention_uncorrected(table)
    return Particles(table, stacks, n_listed, L, size)


def _mention_uncorrected(table: Table) -> None:
    """Warn of what the images have that nothing here corrects for."""
    for what, columns in UNCORRECTED.items():
        there = {
            name: values
            for name, none in columns.items()
            if ((values := table.columns.get(name, np.full(1, none))) != none).any()
        }
        if there:
            spans = ", ".join(f"{name} {_span(v)}" for name, v in there.items())
            logger.warning(f"{table.path} tells of {what}, not corrected for: {spans}")


def _check_file(path: Path) -> None:
    """Raise for what is no STAR file at first sight."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        numpy_array = file.read(6) == b"\x93NUMPY"
    if path.suffix == ".cs" or numpy_array:
        raise ValueError(
            f"{path} is a cryoSPARC file; convert it to a STAR file by pyem's"
            f" csparc2star.py {path.name} particles.star"
        )


def _pixel_size(table: Table) -> float | None:
    """The pixel size of all particles, as RELION ≥ 3.1 or older versions have it."""
    columns = table.columns
    if "_rlnImagePixelSize" in columns:
        sizes = columns["_rlnImagePixelSize"]
    elif {"_rlnDetectorPixelSize", "_rlnMagnification"} <= set(columns):
        # Micrometres on the detector.
        sizes = 1e4 * columns["_rlnDetectorPixelSize"] / columns["_rlnMagnification"]
    else:
        return None
    return table.common("pixel sizes", "Å", sizes, PIXEL_SIZE_TOLERANCE)


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _span(values: np.ndarray) -> str:
    low, high = f"{values.min():.4g}", f"{values.max():.4g}"
    return low if low == high else f"{low} to {high}"
