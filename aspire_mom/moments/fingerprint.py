"""What tells one source of images from another, without reading all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from aspire.operators import Filter
from aspire.source import ImageSource

# Images whose pixels count, spread over the source, the first and the last among them.
LOOKED_AT = 16


def fingerprint_source(source: ImageSource) -> dict[str, str]:
    """
    What a checkpoint remembers of a source, by name, so that one that shrank or changed
    is noticed: its size and type, what is known of each image, the sizes and times of
    last change of the files that it reads, and the pixels of a few images as it gives
    them, thus after all that it does to them.

    :param source: ASPIRE `ImageSource`.
    :return: Values for people to compare, long ones as digests.
    """
    looked_at = np.unique(np.linspace(0, source.n - 1, LOOKED_AT).astype(int))
    filter_of_each = source.get_metadata("__filter_indices", default_value=-1)
    found = {
        "source": type(source).__name__,
        "images": str(source.n),
        "pixels along an edge": str(source.L),
        "type of pixels": str(source.dtype),
        "pixel size": str(source.pixel_size),
        "filters": _digest(map(_plain, source.unique_filters or [])),
        "filter of each image": _digest([_plain(filter_of_each)]),
        "shifts": _digest([_plain(source.offsets)]),
        "amplitudes": _digest([_plain(source.amplitudes)]),
        f"pixels of {len(looked_at)} images": _digest(
            [_plain(source.images[looked_at].asnumpy())]
        ),
    }
    if source.has_metadata(["__mrc_filepath", "__mrc_index"]):
        paths, numbers = (
            np.atleast_1d(source.get_metadata(name))
            for name in ("__mrc_filepath", "__mrc_index")
        )
        stacks, which = np.unique(paths.astype(str), return_inverse=True)
        found["stacks"] = f"{len(stacks)}, {_digest(map(_state, stacks))}"
        found["images in stacks"] = _digest([_plain(which), _plain(numbers)])
    return found


def digest(arrays: dict[str, np.ndarray]) -> str:
    """
    :param arrays: Arrays by name.
    :return: A short text that is another for other arrays.
    """
    return _digest(name + _plain(np.asarray(array)) for name, array in arrays.items())


def _state(path: str) -> str:
    """A file's name, size and time of last change; it may have moved as a whole."""
    state = Path(path).stat()
    return f"{Path(path).name} {state.st_size} {state.st_mtime_ns}"


def _plain(value: object) -> str:
    """A value as text, the same in every run: filters by their parameters."""
    if isinstance(value, np.ndarray) and value.ndim:
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype}{value.shape}{digest}"
    if isinstance(value, Filter):
        fields = {name: _plain(v) for name, v in sorted(vars(value).items())}
        return f"{type(value).__name__}{fields}"
    if isinstance(value, list | tuple):
        return str([_plain(v) for v in value])
    if isinstance(value, bool | int | float | str | np.number | np.ndarray | None):
        return repr(value)
    return type(value).__name__


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()[:16]
