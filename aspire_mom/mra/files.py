"""Moments and observations on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aspire_mom.files import load_npz
from aspire_mom.mra.moments import FourierMoments, estimate_moments

BATCH_SIZE = 20_000


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
        raise ValueError(f"{path}: its name must end in .npz (moments) or .npy")
    arrays = load_npz(path)
    for name in ("first", "second"):
        if name not in arrays:
            raise ValueError(f"{path} has no array {name}")
        if (dtype := arrays[name].dtype).kind not in "fiuc":
            raise ValueError(f"{path}: {name} holds {dtype}; it must be numbers")
    N, known = (_number(path, arrays, name) for name in ("n_observations", "sigma"))
    if sigma is not None and known not in (None, sigma):
        raise ValueError(f"sigma is {sigma:g}, but {path} has a sigma of {known:g}")
    # An N that is no integer is refused later.
    N = int(N) if N is not None and N.is_integer() else N
    return FourierMoments(arrays["first"], arrays["second"], N, known or sigma or 0.0)


def _number(path: Path, arrays: dict, name: str) -> float | None:
    value = arrays.get(name)
    if value is None:
        return None
    if value.shape != () or value.dtype.kind not in "iuf" or not np.isfinite(value):
        raise ValueError(f"{path}: {name} is {value!r}; it must be a finite number")
    return float(value)


def _from_observations(path: Path, sigma: float | None) -> FourierMoments:
    try:
        observations = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an array: {error}") from error
    if observations.ndim != 2 or observations.dtype.kind not in "iuf":
        found = f"{observations.dtype} of shape {observations.shape}"
        raise ValueError(f"{path} holds {found}; observations are real, (N, n)")
    # At least two batches, between which the noise level is found.
    size = min(BATCH_SIZE, max(1, len(observations) // 2))
    starts = range(0, len(observations), size)
    return estimate_moments((observations[i : i + size] for i in starts), sigma=sigma)
