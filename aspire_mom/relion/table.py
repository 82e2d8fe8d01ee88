"""Particles of a STAR file, each with the values of its optics group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from aspire_mom.relion.star import Converter, image_names, numbers, read_tables

IMAGE, GROUP, GROUP_NAME = "_rlnImageName", "_rlnOpticsGroup", "_rlnOpticsGroupName"
NO_CTF = "_aspireNoCTF"  # ASPIRE's mark of optics that it made up
# In ASPIRE's order.
CTF_COLUMNS = (
    "_rlnVoltage",
    "_rlnDefocusU",
    "_rlnDefocusV",
    "_rlnDefocusAngle",
    "_rlnSphericalAberration",
    "_rlnAmplitudeContrast",
)
B_FACTOR = "_rlnCtfBfactor"  # Å², of exp(-B s² / 4)
# What is not corrected for: the columns that tell of it, and their values without it.
UNCORRECTED = {
    "beam tilt": {"_rlnBeamTiltX": 0.0, "_rlnBeamTiltY": 0.0},
    "anisotropic magnification": {
        "_rlnMagMat00": 1.0,
        "_rlnMagMat01": 0.0,
        "_rlnMagMat10": 0.0,
        "_rlnMagMat11": 1.0,
    },
    "scales of CTFs": {"_rlnCtfScalefactor": 1.0},
}
# Numbers beyond these are damage: kV, Å, degrees, mm, pixels, Å², mrad.
RANGES = {
    "_rlnVoltage": (1, 10_000),
    "_rlnDefocusU": (-1e6, 1e6),
    "_rlnDefocusV": (-1e6, 1e6),
    "_rlnDefocusAngle": (-1e4, 1e4),
    "_rlnSphericalAberration": (-100, 100),
    "_rlnAmplitudeContrast": (0, 1),
    "_rlnPhaseShift": (-1e4, 1e4),
    B_FACTOR: (-1e3, 1e4),
    "_rlnCtfScalefactor": (-1e4, 1e4),
    "_rlnBeamTiltX": (-1e3, 1e3),
    "_rlnBeamTiltY": (-1e3, 1e3),
    **{f"_rlnMagMat{i}": (-10, 10) for i in ("00", "01", "10", "11")},
    "_rlnOriginX": (-1e5, 1e5),
    "_rlnOriginY": (-1e5, 1e5),
    "_rlnOriginXAngst": (-1e6, 1e6),
    "_rlnOriginYAngst": (-1e6, 1e6),
    "_rlnImagePixelSize": (0.01, 10_000),
    "_rlnDetectorPixelSize": (1e-3, 1e4),  # µm
    "_rlnMagnification": (1, 1e8),
    "_rlnImageSize": (1, 1e5),
    "_aspireAmplitude": (-1e6, 1e6),
}
NUMBERS = {
    *RANGES,
    GROUP,
    "_rlnRandomSubset",
    "_rlnClassNumber",
    "_rlnCtfDataArePhaseFlipped",
    "_rlnCtfDataAreCtfPremultiplied",
}


@dataclass(frozen=True, eq=False)
class Table:
    """
    Particles as a STAR file lists them.

    :param path: The file.
    :param rows: Row of each particle in the file's table, from 1, (n,).
    :param numbers: Number of each image in its stack, from 1, (n,).
    :param stack_indices: Index of each image's stack in `stacks`, (n,).
    :param stacks: Names of all stacks in the file.
    :param columns: Columns of the file by RELION's name, (n,) each, and of the optics
        table, with each particle's values.
    :param groups: Names of optics groups by number, empty without an optics table.
    """

    path: Path
    rows: np.ndarray
    numbers: np.ndarray
    stack_indices: np.ndarray
    stacks: tuple[str, ...]
    columns: dict[str, np.ndarray]
    groups: dict[int, str]

    def __len__(self) -> int:
        return len(self.rows)

    def chosen(self, which: np.ndarray | slice) -> Table:
        """
        :param which: Slice or mask of particles.
        :return: These particles.
        """
        return replace(
            self,
            rows=self.rows[which],
            numbers=self.numbers[which],
            stack_indices=self.stack_indices[which],
            columns={name: values[which] for name, values in self.columns.items()},
        )

    def subset(self, column: str, value: int) -> Table:
        """
        :param column: A column.
        :param value: A value of it.
        :return: The particles that have this value.
        :raises ValueError: No such column, or no such particle.
        """
        if column not in self.columns:
            raise ValueError(f"{self.path} has no column {column} to choose {value} by")
        values = self.columns[column]
        if not (values == value).any():
            there = ", ".join(f"{v:g}" for v in np.unique(values)[:8])
            raise ValueError(
                f"{self.path} has no particle whose {column} is {value}; it is {there}"
            )
        return self.chosen(values == value)

    def check_ranges(self) -> None:
        """
        :raises ValueError: A number is outside its range; the row that has it.
        """
        for column, (low, high) in RANGES.items():
            values = self.columns.get(column, np.empty(0))
            bad = (values < low) | (values > high)
            if bad.any():
                first = int(np.argmax(bad))
                raise ValueError(
                    f"{self.path}: row {self.rows[first]} has {values[first]:g} as"
                    f" {column}; it must be {low:g} to {high:g}"
                )

    def common(
        self, name: str, unit: str, values: np.ndarray, tolerance: float
    ) -> float:
        """
        Return a value that all particles must have.

        :param name: What the values are, for errors.
        :param unit: Their unit.
        :param values: One for each particle, (n,).
        :param tolerance: Relative difference up to which values are the same.
        :return: The value.
        :raises ValueError: There are several; which optics groups have which.
        """
        if np.ptp(values) <= tolerance * values.max():
            return float(values[0])
        several = f"{values.min():g} to {values.max():g} {unit}"
        numbers = self.columns.get(GROUP)
        if self.groups and numbers is not None:
            found = {
                group: values[numbers == number][0]
                for number, group in self.groups.items()
                if (numbers == number).any()
            }
            if len(set(found.values())) > 1:  # or else they differ within groups
                several = ", ".join(
                    f"{value:g} {unit} (optics group {group})"
                    for group, value in found.items()
                )
        raise ValueError(
            f"{self.path} has images of different {name}, {several}; only images of one"
            " can be averaged together"
        )


def read_table(path: Path) -> Table:
    """
    Read the tables of particles and optics of a STAR file.

    :param path: A file of RELION 3.0 to 5, or of a program that imitates it.
    :return: Its particles.
    :raises OSError: No such file, or one that may not be read.
    :raises ValueError: Another or a damaged file, or no particles.
    """
    stacks: dict[str, int] = {}
    try:
        tables = read_tables(path, partial(_wanted, stacks))
        if not tables:
            raise ValueError("it has no table")
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read as a STAR file of particles: {error}"
        ) from error
    naming = {name: table for name, table in tables.items() if IMAGE in table}
    if not naming:
        raise ValueError(f"{path} has no column {IMAGE}, which names the images")
    if len(naming) > 1 and "particles" not in naming:
        raise ValueError(
            f"{path} names images in {len(naming)} tables, {', '.join(naming)}; the one"
            " of particles must be named data_particles"
        )
    columns = naming.get("particles") or next(iter(naming.values()))
    images, optics = columns.pop(IMAGE), tables.get("optics", {})
    n, groups = len(images), {}
    if n == 0:
        raise ValueError(f"{path} lists 0 particles; at least 1 is needed")
    if optics:
        groups, place = _groups(path, optics, columns, n)
        columns |= {name: values[place] for name, values in optics.items()}
    if NO_CTF in columns:
        columns = {k: v for k, v in columns.items() if k not in CTF_COLUMNS}
    elif "_rlnDefocusU" in columns:  # without V and an angle, RELION takes it for both
        columns.setdefault("_rlnDefocusV", columns["_rlnDefocusU"])
        columns.setdefault("_rlnDefocusAngle", np.zeros(n))
    return Table(
        path=path,
        rows=np.arange(1, n + 1),
        numbers=images[:, 0],
        stack_indices=images[:, 1],
        stacks=tuple(stacks),
        columns={name: columns[name] for name in columns if name in NUMBERS},
        groups=groups,
    )


def distinct_rows(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """
    Find distinct rows, many times faster than `numpy.unique` does with an axis.

    :param columns: Columns of a table, (n,) each.
    :return: Its distinct rows (k, n_columns), and the index of each row's among them.
    """
    index = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        values, own = np.unique(column, return_inverse=True)
        _, first, index = np.unique(
            index * len(values) + own, return_index=True, return_inverse=True
        )
    return np.stack([column[first] for column in columns], axis=1), index


def _wanted(
    stacks: dict[str, int], name: str, columns: list[str]
) -> dict[str, Converter]:
    """What to read of a table."""
    if name != "optics" and IMAGE not in columns:
        return {}
    known = {column: numbers(column) for column in NUMBERS}
    known |= {IMAGE: image_names(stacks), GROUP_NAME: _texts, NO_CTF: _texts}
    return {column: known[column] for column in columns if column in known}


def _texts(texts: Sequence[str], row: int) -> np.ndarray:
    return np.array(texts, dtype=object)


def _groups(
    path: Path,
    optics: dict[str, np.ndarray],
    particles: dict[str, np.ndarray],
    n: int,
) -> tuple[dict[int, str], np.ndarray]:
    """Names of optics groups by number, and the row of the optics table that holds for
    each of n particles."""
    listed = optics.get(GROUP, np.empty(0))
    if len(listed) == 0:
        raise ValueError(f"{path} has an optics table without {GROUP}s")
    known, place = np.unique(listed, return_index=True)
    if len(known) < len(listed):
        raise ValueError(f"{path} has an optics table that lists an {GROUP} twice")
    if GROUP not in particles and len(known) > 1:
        raise ValueError(
            f"{path} has {len(known)} optics groups, but its particles have no {GROUP}"
        )
    group = particles.get(GROUP, np.full(n, known[0]))
    at = np.searchsorted(known, group).clip(max=len(known) - 1)
    lost = known[at] != group
    if lost.any():
        row = int(np.argmax(lost))
        raise ValueError(
            f"{path}: row {row + 1} is of optics group {group[row]:g}, which is not in"
            f" the optics table; there are {', '.join(f'{k:g}' for k in known[:8])}"
        )
    names = optics.get(GROUP_NAME, [f"{number:g}" for number in listed])
    return dict(zip(listed.tolist(), names, strict=True)), place[at]
