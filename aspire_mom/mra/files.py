"""Files of moments, observations and solutions of multireference alignment."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from aspire_mom.mra.moments import FourierMoments, estimate_moments

BATCH_SIZE = 20_000
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)


def read_moments(path: Path, sigma: float | None = None) -> FourierMoments:
    """
    :param path: Moments (.npz) with `first`, `second` and maybe `n_observations` and
        `sigma`; or raw observations (.npy), real, (N, n).
    :param sigma: Standard deviation of the noise, where the file does not say;
        observations without it have it estimated.
    :return: The moments, noise bias removed.
    :raises FileNotFoundError: no such file.
    :raises ValueError: the file cannot be read, or its arrays are of another kind.
    """
    if path.suffix == ".npy":
        return _from_observations(path, sigma)
    if path.suffix != ".npz":
        raise ValueError(
            f"{path}: the name must end in .npz (moments) or .npy (observations)"
        )
    arrays = _read(path)
    missing = [name for name in ("first", "second") if name not in arrays]
    if missing:
        raise ValueError(f"{path} has no array {' and no array '.join(missing)}")
    for name in ("first", "second"):
        if arrays[name].dtype.kind not in "fiuc":
            raise ValueError(
                f"{path}: {name} holds {arrays[name].dtype}; it must be numbers"
            )
    known = {name: _number(path, arrays, name) for name in ("n_observations", "sigma")}
    if sigma is not None and known["sigma"] not in (None, sigma):
        raise ValueError(
            f"sigma is {sigma:g}, but {path} has a sigma of {known['sigma']:g}"
        )
    count, sigma = known["n_observations"], known["sigma"] or sigma or 0.0
    if count is not None and count != round(count):
        raise ValueError(f"{path} has n_observations = {count}; it must be an integer")
    count = None if count is None else round(count)
    return FourierMoments(arrays["first"], arrays["second"], count, sigma)


def _from_observations(path: Path, sigma: float | None) -> FourierMoments:
    try:
        observations = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as an array: {error}") from error
    if observations.ndim != 2 or observations.dtype.kind not in "iuf":
        raise ValueError(
            f"{path} holds {observations.dtype} of shape {observations.shape};"
            " observations are real, (N, n)"
        )
    # At least two batches, between which the noise level is found.
    size = min(BATCH_SIZE, max(1, len(observations) // 2))
    starts = range(0, len(observations), size)
    return estimate_moments((observations[i : i + size] for i in starts), sigma=sigma)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, since np.load leaves damaged files open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise
    except (*UNREADABLE, AttributeError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from error


def _number(path: Path, arrays: dict, name: str) -> float | None:
    value = arrays.get(name)
    if value is None:
        return None
    if value.shape != () or value.dtype.kind not in "iuf" or not np.isfinite(value):
        raise ValueError(f"{path}: {name} is {value!r}; it must be a finite number")
    return float(value)


def plot_solution(v: np.ndarray, rho: np.ndarray, path: Path) -> None:
    """
    :param v: Signal (n,).
    :param rho: Density of shifts (n,).
    :param path: Picture to write.
    """
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(v, "o-", ms=3)
    left.set(title="signal v", xlabel="sample")
    right.bar(np.arange(len(rho)), rho)
    right.set(title="density ρ of shifts", xlabel="shift in samples")
    figure.savefig(path, dpi=120)
