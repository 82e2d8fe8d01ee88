"""Training of networks."""

from __future__ import annotations

import math

# Steps in which the learning rate rises, or a tenth of all.
WARM_UP = 200


def warm_cosine(step: int, n_steps: int) -> float:
    """
    :param step: Steps done.
    :param n_steps: Steps in all.
    :return: Factor of the learning rate: a linear rise, then half a cosine to 0.
    """
    warm = min(1.0, (step + 1) / min(WARM_UP, n_steps / 10))
    return warm * 0.5 * (1 + math.cos(math.pi * step / n_steps))
