"""The particles of a STAR file, with what its optics table says of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aspire_mom.relion.star import Column, ImageNames, Numbers, Texts, read_tables

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
# What images may have that is not corrected for, by what it is: the columns that tell
# of it and their values where there is none.
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
    :param rows: Rows of its particle table, from 1, (n,).
    :param numbers: Numbers of images in their stacks, from 1, (n,).
    :param stack_indices: Indices of their stacks, (n,).
    :param stacks: Names of all stacks in the file.
    :param columns: Numbers that are known of the particles, by RELION's name, (n,)
        each; those of their optics groups among them.
    :param groups: Names of optics groups by number, empty without a table of them.
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
        :return: These.
        """
        return Table(
            path=self.path,
            rows=self.rows[which],
            numbers=self.numbers[which],
            stack_indices=self.stack_indices[which],
            stacks=self.stacks,
            columns={name: values[which] for name, values in self.columns.items()},
            groups=self.groups,
        )

    def subset(self, column: str, value: int) -> Table:
        """
        :param column: A column.
        :param value: A value of it.
        :return: The particles that have it.
        :raises ValueError: no such column, or no such particle.
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
        :raises ValueError: a number that makes no sense, and the row that has it.
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
        :param name: What the values are.
        :param unit: Their unit.
        :param values: One for each particle, (n,).
        :param tolerance: Relative differences that do not count.
        :return: The value that all have.
        :raises ValueError: they have several, and which optics groups have which.
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
    :param path: A STAR file of RELION 3.0 to 5, or one that imitates these. Other
        tables than those of particles and optics are not looked at.
    :return: Its particles.
    :raises OSError: no such file, or one that may not be read.
    :raises ValueError: another or a damaged file, or no particles.
    """
    try:
        tables = read_tables(path, _wanted)
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
    particles = dict(naming.get("particles") or next(iter(naming.values())))
    images = particles.pop(IMAGE)
    if images.n == 0:
        raise ValueError(f"{path} lists 0 particles; at least 1 is needed")
    optics = tables.get("optics", {})
    columns = _values(particles)
    groups = {}
    if optics:
        groups, shared = _joined(path, optics, columns, images.n)
        columns |= shared
    if NO_CTF in particles or NO_CTF in optics:
        columns = {k: v for k, v in columns.items() if k not in CTF_COLUMNS}
    elif "_rlnDefocusU" in columns:  # which RELION takes to be all there is to know
        columns.setdefault("_rlnDefocusV", columns["_rlnDefocusU"])
        columns.setdefault("_rlnDefocusAngle", np.zeros(images.n))
    numbers, indices = images.values.T
    rows = np.arange(1, images.n + 1)
    return Table(path, rows, numbers, indices, tuple(images.stacks), columns, groups)


def distinct_rows(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """
    As `numpy.unique` of rows, which takes many times longer.

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


def _wanted(name: str, columns: list[str]) -> dict[str, Column]:
    """What to read of a table."""
    if name != "optics" and IMAGE not in columns:
        return {}
    kinds = {IMAGE: ImageNames, GROUP_NAME: Texts, NO_CTF: Texts}
    kinds |= dict.fromkeys(NUMBERS, Numbers)
    return {column: kinds[column](column) for column in columns if column in kinds}


def _values(table: dict[str, Column]) -> dict[str, np.ndarray]:
    return {k: sink.values for k, sink in table.items() if isinstance(sink, Numbers)}


def _joined(
    path: Path, optics: dict[str, Column], particles: dict[str, np.ndarray], n: int
) -> tuple[dict[int, str], dict[str, np.ndarray]]:
    """Names of optics groups by number, and what they say of each of n particles."""
    table = _values(optics)
    if GROUP not in table or len(table[GROUP]) == 0:
        raise ValueError(f"{path} has an optics table without {GROUP}s")
    known, place = np.unique(table[GROUP], return_index=True)
    if len(known) < len(table[GROUP]):
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
    names = [f"{k:g}" for k in table[GROUP]]
    if GROUP_NAME in optics:
        names = optics[GROUP_NAME].values
    names = dict(zip(table[GROUP].tolist(), names, strict=True))
    return names, {name: values[place[at]] for name, values in table.items()}
