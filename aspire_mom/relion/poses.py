"""Particles with angles, origins and half sets, written as RELION expects them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from gemmi import cif

from aspire_mom.checks import check_new
from aspire_mom.files import atomic
from aspire_mom.relion.particles import Particles
from aspire_mom.relion.stacks import FORMAT
from aspire_mom.relion.star import escaped, unescaped
from aspire_mom.relion.table import IMAGE, particle_block, read_document

ANGLES = ("_rlnAngleRot", "_rlnAngleTilt", "_rlnAnglePsi")
ORIGINS = ("_rlnOriginXAngst", "_rlnOriginYAngst")
# Of RELION 3.0, in pixels: ORIGINS replace them.
OLD_ORIGINS = ("_rlnOriginX", "_rlnOriginY")
SUBSET, PROBABILITY = "_rlnRandomSubset", "_rlnMaxValueProbDistribution"
# As gemmi finds columns in any case, which are then written as RELION knows them.
WRITTEN = (IMAGE, *ANGLES, *ORIGINS, *OLD_ORIGINS, SUBSET, PROBABILITY)
SPELLINGS = {name.lower(): name for name in WRITTEN}


def write_poses(
    path: str | Path,
    particles: Particles,
    angles: np.ndarray,
    origins: np.ndarray,
    halves: np.ndarray,
    probabilities: np.ndarray | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """
    Write particles with poses to a STAR file: their rows of the file that they were
    read from, with all of its columns and tables. Stacks are named by absolute paths,
    so that images are found from any folder.

    :param path: STAR file to write.
    :param particles: The particles.
    :param angles: Angles rot, tilt and psi in degrees, intrinsic ZYZ (n, 3).
    :param origins: Shifts x and y in Ångström that centre images (n, 2).
    :param halves: Half set of each particle, 1 or 2 (n,).
    :param probabilities: Probability of each pose (n,), where it is known.
    :param overwrite: Replace an existing file.
    :raises FileExistsError: The file exists and `overwrite` is False.
    :raises OSError: The particles' file cannot be read any more.
    :raises ValueError: Arrays of other lengths, or the particles' file has changed.
    """
    path, n = Path(path), len(particles)
    check_new(path, overwrite)
    arrays = {"angles": angles, "origins": origins, "halves": halves}
    if probabilities is not None:
        arrays["probabilities"] = probabilities
    for name, array in arrays.items():
        if len(array) != n:
            raise ValueError(f"there are {len(array)} {name} and {n} particles")
    document = read_document(particles.table.path, particles.table.passthrough)
    columns = _columns(particle_block(particles.table.path, document), particles)
    for name in (*OLD_ORIGINS, PROBABILITY):
        columns.pop(name, None)
    columns[IMAGE] = _image_names(particles)
    numbers = np.concatenate((angles, origins), axis=1).T
    for name, values in zip((*ANGLES, *ORIGINS), numbers, strict=True):
        columns[name] = [f"{value:.6f}" for value in values]
    columns[SUBSET] = [str(int(half)) for half in halves]
    if probabilities is not None:
        columns[PROBABILITY] = [f"{value:.6f}" for value in probabilities]
    text = unescaped(_text(document, particles, columns))
    with atomic(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def _columns(block: cif.Block, particles: Particles) -> dict[str, list[str]]:
    """Columns of the particles as they stand in the file, escaped and quoted."""
    table = particles.table
    rows = (table.rows - 1).tolist()
    columns = {}
    for tag in _tags(block):
        values = [*block.find_values(tag)]
        if rows[-1] >= len(values):
            raise ValueError(f"{table.path} has changed: it has {len(values)} rows")
        name = SPELLINGS.get(tag.lower(), tag)
        columns[name] = [values[row] for row in rows]
    names = (cif.as_string(name).partition("@")[0] for name in columns[IMAGE])
    if [int(number) for number in names] != table.numbers.tolist():
        raise ValueError(f"{table.path} has changed: its rows name other images")
    return columns


def _tags(block: cif.Block) -> list[str]:
    """Names of the columns of a table of particles, also of one without `loop_`."""
    loop = block.find_values(IMAGE).get_loop()
    if loop is not None:
        return loop.tags
    return [item.pair[0] for item in block if item.pair is not None]


def _image_names(particles: Particles) -> list[str]:
    """Names number@stack, as :func:`read_document` escapes and quotes them."""
    table, stacks = particles.table, []
    for stack, listed in zip(particles.stacks, table.stacks, strict=True):
        kind = FORMAT.search(listed)
        stacks.append(os.path.abspath(stack) + (kind.group() if kind else ""))
    pairs = zip(table.numbers, table.stack_indices, strict=True)
    return [escaped(f"{number:06d}@{stacks[index]}") for number, index in pairs]


def _text(
    document: cif.Document, particles: Particles, columns: dict[str, list[str]]
) -> str:
    """All tables, that of particles with other columns."""
    found = particle_block(particles.table.path, document)
    # As RELION marks files since 3.1, which have a table of optics.
    optics = any(block.name.strip() == "optics" for block in document)
    mark = "# version 30001\n\n" if optics else ""
    parts = []
    for block in document:
        head = f"{mark}data_{block.name.strip()}\n\n"
        if block.name == found.name:
            block = cif.Document().add_new_block("particles")
            block.init_loop("", [*columns]).set_all_values([*columns.values()])
        parts.append(head + block.as_string().partition("\n")[2].strip("\n") + "\n")
    return "\n\n".join(parts)
