"""Small particle files, written as RELION and cryoSPARC do."""

from pathlib import Path

import mrcfile
import numpy as np

EDGE = 8
OPTICS = {
    "_rlnOpticsGroup": [1],
    "_rlnOpticsGroupName": ["opticsGroup1"],
    "_rlnVoltage": [300.0],
    "_rlnSphericalAberration": [2.7],
    "_rlnAmplitudeContrast": [0.1],
    "_rlnImagePixelSize": [1.5],
    "_rlnImageSize": [EDGE],
}


def images(n, seed=0, edge=EDGE):
    return np.random.default_rng(seed).standard_normal((n, edge, edge), np.float32)


def write_stack(path: Path, n=4, seed=0, edge=EDGE) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = images(n, seed, edge)
    mrcfile.write(path, values, overwrite=True)
    return values


def loop(name, columns) -> str:
    """A table of a STAR file."""
    head = "".join(f"{column} #{i}\n" for i, column in enumerate(columns, 1))
    rows = zip(*columns.values(), strict=True)
    return f"\n# version 30001\n\ndata_{name}\n\nloop_\n{head}" + "".join(
        " ".join(map(str, row)) + "\n" for row in rows
    )


def write_star(path: Path, particles, optics=OPTICS, name="particles") -> Path:
    """A STAR file of RELION 3.1 and later, or of 3.0 without optics."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tables = loop("optics", optics) if optics else ""
    path.write_text(tables + loop(name, particles))
    return path


def particles(names, **columns):
    """A particle table, of optics group 1."""
    n = len(names)
    return {"_rlnImageName": names, "_rlnOpticsGroup": [1] * n} | columns


def ctf(n, **changes):
    """Defoci of n particles, all different."""
    u = 10_000 + 137.5 * np.arange(n)
    return {
        "_rlnDefocusU": u,
        "_rlnDefocusV": u - 250,
        "_rlnDefocusAngle": 10.0 * np.arange(n),
    } | changes
