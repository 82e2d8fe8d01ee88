"""Particles of a RELION STAR file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from aspire_mom.checks import PIXEL_SIZE_TOLERANCE, agreed_pixel_size
from aspire_mom.relion.stacks import check_stacks, locate
from aspire_mom.relion.table import (
    CTF_COLUMNS,
    GROUP,
    MORE_CTF_COLUMNS,
    PHASE_FLIPPED,
    PHASE_SHIFT,
    PREMULTIPLIED,
    Table,
    read_table,
)

logger = logging.getLogger(__name__)

# Aberrations that are not corrected for. Columns with other values cause a warning.
NO_ABERRATION = {
    "beam tilt": {"_rlnBeamTiltX": 0.0, "_rlnBeamTiltY": 0.0},
    "anisotropic magnification": {
        **dict.fromkeys(("_rlnMagMat00", "_rlnMagMat11"), 1.0),
        **dict.fromkeys(("_rlnMagMat01", "_rlnMagMat10"), 0.0),
    },
    "higher-order aberrations": {"_rlnOddZernike": 0.0, "_rlnEvenZernike": 0.0},
    "CTF scale factors": {"_rlnCtfScalefactor": 1.0},
}
# In Å. Smaller values are in µm, and those outside the usual range perhaps in nm.
LEAST_DEFOCUS, USUAL_DEFOCUS = 100, (2500, 100_000)


@dataclass(frozen=True, eq=False)
class Particles:
    """
    Particles whose images can be read and averaged together.

    :param table: The particles that were chosen.
    :param stacks: Paths of the stacks that `table` numbers.
    :param n_listed: Number of particles in the file.
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
        """Whether the file has a defocus column."""
        return not {"_rlnDefocusU", "_rlnDefocusV"}.isdisjoint(self.table.columns)

    @cached_property
    def ctfs(self) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: Distinct CTFs (n_ctfs, 8), with `CTF_COLUMNS` and `MORE_CTF_COLUMNS`,
            and the index of each particle's CTF (n,). n_ctfs is 0 if the file lacks any
            of `CTF_COLUMNS`.
        """
        columns, zeros = self.table.columns, np.zeros(len(self))
        if not set(CTF_COLUMNS) <= set(columns):
            n_columns = len(CTF_COLUMNS) + len(MORE_CTF_COLUMNS)
            return np.empty((0, n_columns)), zeros.astype(int)
        known = [columns[name] for name in CTF_COLUMNS]
        more = [columns.get(name, zeros) for name in MORE_CTF_COLUMNS]
        return _distinct_rows([*known, *more])

    @property
    def phase_flipped(self) -> bool:
        """Whether the phases of any image have been flipped."""
        return bool(self._flags(PHASE_FLIPPED).any())

    @property
    def premultiplied(self) -> bool:
        """Whether any image has been multiplied by its CTF."""
        return bool(self._flags(PREMULTIPLIED).any())

    @cached_property
    def shifts(self) -> np.ndarray:
        """:return: Shifts (n, 2) as x, y in pixels that centre images (_rlnOriginX)."""
        columns, shifts = self.table.columns, np.zeros((len(self), 2))
        for axis, name in enumerate(("_rlnOriginX", "_rlnOriginY")):
            if f"{name}Angst" in columns:
                shifts[:, axis] = columns[f"{name}Angst"] / self.pixel_size
            elif name in columns:
                shifts[:, axis] = columns[name]
        return shifts

    def check_ctf(self) -> None:
        """
        Check that the CTF can be corrected for. Warn of unusual defocus.

        :raises ValueError: Columns are missing; images were phase-flipped or multiplied
            by the CTF in part, or both; defocus is in another unit than Å, or a CTF is
            zero.
        """
        if not self.has_ctf:
            return
        columns, problem = self.table.columns, ""
        missing = [name for name in CTF_COLUMNS if name not in columns]
        flipped = np.count_nonzero(self._flags(PHASE_FLIPPED))
        multiplied = np.count_nonzero(self._flags(PREMULTIPLIED))
        if missing:
            problem = f"defocus values but no {' and no '.join(missing)}"
        elif 0 < flipped < len(self):
            problem = f"{flipped} phase-flipped images among {len(self)}"
        elif 0 < multiplied < len(self):
            problem = f"{multiplied} images multiplied by their CTF among {len(self)}"
        elif flipped and multiplied:
            problem = "images that were phase-flipped and multiplied by their CTF"
        else:
            problem = self._defocus_problem()
        if problem:
            raise ValueError(
                f"{self.table.path} has {problem}, so its CTF cannot be corrected for;"
                " pass ignore_ctf=True to ignore it"
            )

    def _defocus_problem(self) -> str:
        """Say what is wrong with defocus, if anything; warn of unusual values."""
        _, u, v, _, Cs, contrast = (self.table.columns[name] for name in CTF_COLUMNS)
        defocus = np.maximum(np.abs(u), np.abs(v))
        phase = self.table.columns.get(PHASE_SHIFT, np.zeros(1))
        zero = (defocus == 0) & (Cs == 0) & (contrast == 0) & (phase == 0)
        if zero.any():
            where = self.table.where(int(np.argmax(zero)))
            return (
                f"a CTF that is zero in {where}, without defocus, spherical aberration"
                " and amplitude contrast"
            )
        low, high = USUAL_DEFOCUS
        listed = f"defocus values of {_span(np.stack((u, v)))} Å (_rlnDefocusU)"
        if 0 < defocus.max() < LEAST_DEFOCUS:
            return f"{listed}, which may be in µm; they must be in Å"
        if not low <= np.median(defocus) <= high and not phase.any():
            logger.warning(
                f"{self.table.path} has {listed}, most of them not between {low:,} and"
                f" {high:,}; they must be in Å"
            )
        return ""

    def check_shifts(self) -> None:
        """
        Check that shifts leave the centres of all particles within their images.

        :raises ValueError: One lies outside.
        """
        outside = (np.abs(self.shifts) > self.L / 2).any(axis=1)
        if outside.any():
            i = int(np.argmax(outside))
            x, y = self.shifts[i]
            raise ValueError(
                f"{self.table.path}: {self.table.where(i)} has an origin of {x:g},"
                f" {y:g} pixels, outside of {self.L} x {self.L} pixels; pass"
                " ignore_shifts=True to take images as centred"
            )

    def summary(self) -> str:
        """:return: Three lines on what was read: particles, CTF and shifts."""
        n, listed = f"{len(self):,}", f"{self.n_listed:,}"
        stacks = _counted(len(np.unique(self.table.stack_indices)), "stack")
        names, groups = self.table.groups, "no optics table"
        if names:
            used = [names[number] for number in np.unique(self.table.columns[GROUP])]
            groups = _counted(len(used), "optics group")
            if len(used) > 1:
                groups += f" ({', '.join(used[:6])}{', …' if used[6:] else ''})"
        rms = np.sqrt(np.mean(np.sum(self.shifts**2, axis=1)))
        return (
            f"Particles: {n if n == listed else f'{n} of {listed}'} in {stacks} of"
            f" {self.L} x {self.L} pixels of {self.pixel_size:.5g} Å, {groups}\n"
            f"CTF: {self._ctf_summary()}\n"
            f"Shifts: {f'{rms:.3g} pixels RMS' if rms > 0 else 'none'}"
        )

    def _ctf_summary(self) -> str:
        ctfs, _ = self.ctfs
        if len(ctfs) == 0:
            return "incomplete" if self.has_ctf else "none"
        voltage, u, v, _, cs, contrast, b_factor, phase = ctfs.T
        more = f", B factor {_span(b_factor)} Å²" if b_factor.any() else ""
        more += f", phase shift {_span(phase)}°" if phase.any() else ""
        return (
            f"{_span(voltage)} kV, Cs {_span(cs)} mm, amplitude contrast"
            f" {_span(contrast)}, defocus {_span((u + v) / 2e4)} µm, astigmatism"
            f" {_span(np.abs(u - v) / 1e4)} µm{more}, {len(ctfs):,} distinct,"
            f" {'' if self.phase_flipped else 'not '}phase-flipped"
            f"{', images multiplied by it' if self.premultiplied else ''}"
        )

    def _flags(self, column: str) -> np.ndarray:
        return self.table.columns.get(column, np.zeros(len(self))) != 0


def read_particles(
    path: Path,
    pixel_size: float | None = None,
    *,
    passthrough: Path | None = None,
    data_folder: Path | None = None,
    first: int | None = None,
    random_subset: int | None = None,
    class_number: int | None = None,
) -> Particles:
    """
    Read a RELION STAR file of particles, or a .cs file of cryoSPARC, and check the
    headers and sizes of its stacks, without reading pixels. Warn of aberrations that
    are not corrected for.

    :param path: STAR file of RELION 3.0 to 5, or .cs file.
    :param pixel_size: Ångström per pixel, where the file has none.
    :param passthrough: Passthrough file of a .cs file, for fields which that lacks.
    :param data_folder: Folder that paths of stacks are relative to. By default,
        the one with the first stack: the STAR file's, one above it or the current one.
    :param first: Take this many particles, or all where there are fewer.
    :param random_subset: Take the particles of this half set (_rlnRandomSubset).
    :param class_number: Take the particles of this class (_rlnClassNumber).
    :return: The particles.
    :raises FileNotFoundError: No such file, or a stack that it names is missing.
    :raises OSError: A file may not be read.
    :raises ValueError: No particles, a damaged file or stack, images of several sizes
        or pixel sizes, no pixel size, or one that contradicts `pixel_size`.
    """
    path = Path(path)
    table = read_table(path, passthrough)
    n_listed = len(table)
    table = _subset(table, "_rlnRandomSubset", random_subset)
    table = _subset(table, "_rlnClassNumber", class_number)
    table = table.chosen(slice(first))
    size = agreed_pixel_size(path, _pixel_size(table), pixel_size)
    if size is None:
        raise ValueError(f"{path} gives no pixel size; pass pixel_size")
    stacks = locate(table, data_folder)
    L = check_stacks(table, stacks)
    if "_rlnImageSize" in table.columns:
        listed = _common(table, table.columns["_rlnImageSize"], "sizes", "pixels")
        if listed != L:
            raise ValueError(
                f"{path} gives {listed:g} pixels along an edge as _rlnImageSize, but"
                f" the images in its stacks have {L}"
            )
    _warn_of_uncorrected(table)
    return Particles(table, stacks, n_listed, L, size)


def _subset(table: Table, column: str, value: int | None) -> Table:
    """Choose the particles with a value in a column; all if it is None."""
    if value is None:
        return table
    if column not in table.columns:
        raise ValueError(
            f"{table.path} has no column {column}, which selecting {value} needs"
        )
    values = table.columns[column]
    if not (values == value).any():
        there = ", ".join(f"{v:g}" for v in np.unique(values)[:8])
        raise ValueError(
            f"{table.path} has no particle with {column} = {value}; its values are"
            f" {there}"
        )
    return table.chosen(values == value)


def _common(table: Table, values: np.ndarray, name: str, unit: str) -> float:
    """Return the one value of all particles, values (n,); raise if they differ."""
    if np.ptp(values) <= PIXEL_SIZE_TOLERANCE * values.max():
        return float(values[0])
    other = int(np.argmax(values != values[0]))
    several = ", ".join(f"{values[i]:g} {unit} in {table.where(i)}" for i in (0, other))
    numbers = table.columns.get(GROUP, np.zeros(len(table)))
    _, first = np.unique(numbers, return_index=True)
    if np.ptp(values[first]) > 0:  # or else they differ within groups
        several = ", ".join(
            f"{value:g} {unit} (optics group {table.groups[number]})"
            for number, value in zip(numbers[first], values[first], strict=True)
        )
    raise ValueError(
        f"{table.path} has images of different {name}, {several}; all images must have"
        " the same"
    )


def _distinct_rows(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Find the distinct rows of columns (n,), and the index of each row among them,
    many times faster than `numpy.unique` of whole rows."""
    index = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        values, own = np.unique(column, return_inverse=True)
        both = index * len(values) + own
        _, first, index = np.unique(both, return_index=True, return_inverse=True)
    return np.stack([column[first] for column in columns], axis=1), index


def _warn_of_uncorrected(table: Table) -> None:
    for what, columns in NO_ABERRATION.items():
        spans = ", ".join(
            f"{name} {_span(table.columns[name])}"
            for name, neutral in columns.items()
            if np.any(table.columns.get(name, neutral) != neutral)
        )
        if spans:
            logger.warning(f"{table.path} lists {what} ({spans}), not corrected for")


def _pixel_size(table: Table) -> float | None:
    """Pixel size of all particles, as RELION ≥ 3.1 or older versions write it."""
    columns = table.columns
    if "_rlnImagePixelSize" in columns:
        sizes = columns["_rlnImagePixelSize"]
    elif {"_rlnDetectorPixelSize", "_rlnMagnification"} <= set(columns):
        # Micrometres on the detector.
        sizes = 1e4 * columns["_rlnDetectorPixelSize"] / columns["_rlnMagnification"]
    else:
        return None
    return _common(table, sizes, "pixel sizes", "Å")


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _span(values: np.ndarray) -> str:
    low, high = f"{values.min():.4g}", f"{values.max():.4g}"
    return low if low == high else f"{low} to {high}"
