"""The only place that reads private attributes of ASPIRE (of filters and caches)."""

from __future__ import annotations

from typing import Any

import aspire
import numpy as np
from aspire.image.xform import FilterXform, Xform
from aspire.operators import Filter, LambdaFilter, MultiplicativeFilter, ScaledFilter
from aspire.source import ArrayImageSource, ImageSource


def _private(thing: object, name: str) -> Any:
    try:
        return getattr(thing, name)
    except AttributeError as error:
        raise RuntimeError(
            f"{type(thing).__name__} of ASPIRE {aspire.__version__} has no {name!r}, as"
            " ASPIRE 0.14 has; aspire_mom.moments.aspire_internals must be adapted"
        ) from error


def unscaled(image_filter: Filter) -> tuple[Filter, float]:
    """
    :param image_filter: A filter, perhaps wrapped by `source.downsample`.
    :return: The filter inside, and the factor by which its frequencies are divided.
    """
    scale = 1.0
    while isinstance(image_filter, ScaledFilter):
        scale *= _private(image_filter, "_scale")
        image_filter = _private(image_filter, "_filter")
    return image_filter, scale


def factors(image_filter: MultiplicativeFilter) -> tuple[Filter, ...]:
    """
    :param image_filter: A product of filters.
    :return: Its factors.
    """
    return tuple(_private(image_filter, "_components"))


def flipping_filter(xform: Xform) -> Filter | None:
    """
    :param xform: An operation on images.
    :return: The filter by whose signs it multiplies, None if it does something else.
    """
    image_filter = xform.filter if isinstance(xform, FilterXform) else None
    if not isinstance(image_filter, LambdaFilter):
        return None
    is_sign = _private(image_filter, "_f") is np.sign
    return _private(image_filter, "_filter") if is_sign else None


def is_cached(source: ImageSource) -> bool:
    """
    :param source: A source.
    :return: Whether `source.cache()` was called, which forgets earlier operations.
    """
    cached = _private(source, "_cached_im") is not None
    return cached and not isinstance(source, ArrayImageSource)
