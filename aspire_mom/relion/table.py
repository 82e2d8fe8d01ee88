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
