"""What tells one source of images from another, without reading all of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from aspire.operators import Filter
from aspire.source import ImageSource

from aspire_mom.files import digest

# Images whose pixels count, spread over the source, the first and the last among them.
LOOKED_AT = 16


@dataclass(frozen=True, kw_only=True)
class SourceIdentity:
    """
    What identifies a source and the images selected from it: what is known of each
    image, the state of the files, and the pixels of a few images as the source gives
    them, thus after all that it does to them. Long values are digests.

    :param n_images: Number of images.
    :param kind: Type of the source.
    :param L: Pixels along an edge.
    :param dtype: Type of the pixels.
    :param pixel_size: Ångström per pixel, None where unknown.
    :param filters: Distinct filters (CTFs).
    :param filter_indices: The filter of each image.
    :param shifts: Known shift of each image.
    :param amplitudes: Known amplitude of each image.
    :param pixels: Pixels of 16 images.
    :param stacks: Names, sizes and times of last change of the stacks, if any.
    :param images_in_stacks: Stack of each image and its number there, if any.
    """

    n_images: int
    kind: str
    L: int
    dtype: str
    pixel_size: float | None
    filters: str
    filter_indices: str
    shifts: str
    amplitudes: str
    pixels: str
    stacks: str = ""
    images_in_stacks: str = ""

    @classmethod
    def of(cls, source: ImageSource) -> SourceIdentity:
        """
        :param source: ASPIRE `ImageSource`; 16 of its images are read.
        :return: Its identity.
        """
        looked_at = np.unique(np.linspace(0, source.n - 1, LOOKED_AT).astype(int))
        filter_indices = source.get_metadata("__filter_indices", default_value=-1)
        stacks = {}
        if source.has_metadata(["__mrc_filepath", "__mrc_index"]):
            paths, numbers = (
                np.atleast_1d(source.get_metadata(name))
                for name in ("__mrc_filepath", "__mrc_index")
            )
            names, which = np.unique(paths.astype(str), return_inverse=True)
            stacks = {
                "stacks": f"{len(names)}, {digest(*map(_state, names))}",
                "images_in_stacks": digest(which, numbers),
            }
        pixel_size = source.pixel_size
        return cls(
            kind=type(source).__name__,
            n_images=source.n,
            L=source.L,
            dtype=str(source.dtype),
            pixel_size=None if pixel_size is None else float(pixel_size),
            filters=digest(_parameters(source.unique_filters or [])),
            filter_indices=digest(filter_indices),
            shifts=digest(source.offsets),
            amplitudes=digest(source.amplitudes),
            pixels=digest(source.images[looked_at].asnumpy()),
            **stacks,
        )


def _state(path: str) -> str:
    """A file's name, size and time of last change; it may have moved as a whole."""
    state = Path(path).stat()
    return f"{Path(path).name} {state.st_size} {state.st_mtime_ns}"


def _parameters(value: object) -> object:
    """A filter's parameters by name, those of its components among them; numbers, text
    and arrays as they are, and the type of anything else."""
    if isinstance(value, Filter):
        fields = {name: _parameters(v) for name, v in sorted(vars(value).items())}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return dict(enumerate(map(_parameters, value)))
    if isinstance(value, bool | int | float | str | np.number | np.ndarray | None):
        return value
    return type(value).__name__
