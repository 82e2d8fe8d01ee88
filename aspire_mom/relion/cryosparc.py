"""cryoSPARC's .cs files as tables of a STAR file, as csparc2star.py of pyem does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from gemmi import cif

from aspire_mom.relion.star import escaped

logger = logging.getLogger(__name__)

# RELION's columns by cryoSPARC's fields: those of optics groups, and of particles.
OPTICS = {
    "ctf/accel_kv": "_rlnVoltage",
    "ctf/cs_mm": "_rlnSphericalAberration",
    "ctf/amp_contrast": "_rlnAmplitudeContrast",
    "blob/psize_A": "_rlnImagePixelSize",
    "blob/shape": "_rlnImageSize",
}
PARTICLES = {
    "ctf/df1_A": "_rlnDefocusU",
    "ctf/df2_A": "_rlnDefocusV",
    "ctf/df_angle_rad": "_rlnDefocusAngle",
    "ctf/phase_shift_rad": "_rlnPhaseShift",
    "ctf/bfactor": "_rlnCtfBfactor",
}
RADIANS = ("ctf/df_angle_rad", "ctf/phase_shift_rad")
# Shifts are those of the first of these slots that has any.
SLOTS = ("alignments3D", "alignments2D")
ORIGINS = ("_rlnOriginXAngst", "_rlnOriginYAngst")
# Zero where there are none.
ABERRATIONS = ("tilt_A", "shift_A", "trefoil_A", "tetra_A", "anisomag")
PAIRS = {"blob/shape", *(f"{slot}/shift" for slot in SLOTS)}
NUMBERS = {"uid", "blob/idx", "blob/sign", "ctf/exp_group_id"}
NUMBERS |= {*OPTICS, *PARTICLES, *PAIRS}
NUMBERS |= {
    f"{slot}/{name}" for slot in SLOTS for name in ("psize_A", "split", "class")
}


def cryosparc_document(path: Path, passthrough: Path | None = None) -> cif.Document:
    """
    Make tables of a .cs file. Warn of aberrations, which are not corrected for.

    :param path: A .cs file of particles.
    :param passthrough: A .cs file of the same particles that has more fields.
    :return: Tables of optics groups and particles, as `read_star` has them.
    :raises OSError: A file cannot be read.
    :raises ValueError: It is no .cs file of particles, or the passthrough file of other
        ones.
    """
    fields = _fields(path, passthrough)
    for name in ("blob/path", "blob/idx"):
        if name not in fields:
            raise ValueError(
                f"{path} has no field {name}, which names the images; pass passthrough"
                " if the passthrough file has it"
            )
    found = [name for name in ABERRATIONS if np.any(fields.get(f"ctf/{name}", 0))]
    if found:
        names = ", ".join(f"ctf/{name}" for name in found)
        logger.warning(f"{path} lists aberrations ({names}), not corrected for")
    if np.ptp(fields.get("blob/sign", np.ones(1))) > 0:
        raise ValueError(f"{path} has images of both contrasts (blob/sign)")
    optics = {column: fields[name] for name, column in OPTICS.items() if name in fields}
    if "_rlnImageSize" in optics:
        optics["_rlnImageSize"] = optics["_rlnImageSize"][:, 0]
    exposures = fields.get("ctf/exp_group_id", np.zeros(len(fields["blob/idx"])))
    rows, groups = np.unique(
        np.column_stack((exposures, *optics.values())), axis=0, return_inverse=True
    )
    numbers = 1 + np.arange(len(rows))
    names = [f"opticsGroup{number}" for number in numbers]
    group_table = {"_rlnOpticsGroup": numbers, "_rlnOpticsGroupName": names}
    group_table |= dict(zip(optics, rows[:, 1:].T, strict=True))
    table = {"_rlnImageName": _image_names(fields), "_rlnOpticsGroup": 1 + groups}
    document = cif.Document()
    _add_table(document, "optics", group_table)
    _add_table(document, "particles", table | _particle_columns(fields))
    return document


def _fields(path: Path, passthrough: Path | None) -> dict[str, np.ndarray]:
    """Fields of particles by name, with those that only the passthrough file has."""
    fields = _load(path)
    if passthrough is None:
        return fields
    more = _load(passthrough)
    for file, own in ((path, fields), (passthrough, more)):
        if "uid" not in own:
            raise ValueError(f"{file} has no field uid, which tells particles apart")
    order = np.argsort(more["uid"], kind="stable")
    at = np.searchsorted(more["uid"], fields["uid"], sorter=order)
    rows = order[at.clip(max=len(order) - 1)]
    missing = more["uid"][rows] != fields["uid"]
    if missing.any():
        row = int(np.argmax(missing))
        raise ValueError(
            f"{passthrough} is no passthrough file of {path}: it lacks the particle of"
            f" row {row + 1}, uid {fields['uid'][row]}"
        )
    return {name: values[rows] for name, values in more.items()} | fields


def _load(path: Path) -> dict[str, np.ndarray]:
    """Open a structured array (n,) whose fields are what they should be."""
    try:
        table = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # NumPy raises many kinds of them for damaged headers
        raise ValueError(f"{path} cannot be read as a .cs file: {error}") from error
    names = table.dtype.names
    if names is None or table.ndim != 1 or len(table) == 0:
        raise ValueError(f"{path} is no table of particles with named fields")
    for name in names:
        dtype, shape = table.dtype[name], (2,) if name in PAIRS else ()
        numbers = dtype.base.kind in "iuf" and dtype.shape == shape
        text = dtype.kind in "SU"
        if (name in NUMBERS and not numbers) or (name == "blob/path" and not text):
            raise ValueError(f"{path} has values of another kind ({dtype}) as {name}")
    return {name: table[name] for name in names}


def _particle_columns(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All columns of particles but names and groups, in RELION's units."""
    columns = {}
    for name, column in PARTICLES.items():
        if name in fields:
            value = fields[name]
            columns[column] = np.degrees(value) if name in RADIANS else value
    slot = next((slot for slot in SLOTS if f"{slot}/shift" in fields), None)
    if slot is None:
        return columns
    # In pixels of the images that were aligned, which may have been binned.
    size = fields.get(f"{slot}/psize_A", fields.get("blob/psize_A"))
    if size is not None:
        columns |= zip(
            ORIGINS, (fields[f"{slot}/shift"] * size[:, None]).T, strict=True
        )
    for name, column in (("split", "_rlnRandomSubset"), ("class", "_rlnClassNumber")):
        if f"{slot}/{name}" in fields:
            columns[column] = fields[f"{slot}/{name}"] + 1.0
    return columns


def _image_names(fields: dict[str, np.ndarray]) -> list[str]:
    """Names number@stack, numbers from 1, escaped."""
    paths, which = np.unique(fields["blob/path"], return_inverse=True)
    if paths.dtype.kind == "S":
        paths = [path.decode("utf-8", "surrogateescape") for path in paths]
    numbers = fields["blob/idx"] + 1
    pairs = zip(numbers.tolist(), which.tolist(), strict=True)
    return [escaped(f"{number:06.0f}@{paths[i]}") for number, i in pairs]


def _add_table(document: cif.Document, name: str, columns: dict[str, Any]) -> None:
    """Add columns of texts and of numbers to a document."""
    loop = document.add_new_block(name).init_loop("", [*columns])
    texts = (
        values if isinstance(values, list) else [f"{v:.9g}" for v in values.tolist()]
        for values in columns.values()
    )
    loop.set_all_values([*texts])
