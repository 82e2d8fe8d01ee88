"""Options of an inversion, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from aspire_mom.checks import check_choice, check_integer, check_positive
from aspire_mom.inversion.loss import Weighting
from aspire_mom.inversion.optimise import Optimizer

# Default number of random starts of each volume model.
N_STARTS = {"gaussians": 16, "fouriernet": 1, "harmonics": 4}
STEPS = {"lbfgs": 400, "adam": 1000}


@dataclass(frozen=True)
class SearchOptions:
    """
    How to search for the best volume and density.

    :param n_starts: Number of starts; by default 16 for Gaussians, 4 for harmonics,
        else 1.
    :param n_steps: Steps of the last refinement of each start; by default 400 of L-BFGS
        or 1,000 of Adam.
    :param optimizer: "lbfgs" or "adam"; by default Adam for networks, else L-BFGS.
    :param learning_rates: Adam's learning rates, each for an equal share of the steps.
    :param max_gaussians: Largest number of Gaussians in a mixture.
    :param seed: Seed of the first start; the others have the seeds that follow.
    :raises ValueError: An option is out of range.
    """

    n_starts: int | None = None
    n_steps: int | None = None
    optimizer: Optimizer | None = None
    learning_rates: tuple[float, ...] = (2e-3, 2e-4)
    max_gaussians: int = 64
    seed: int = 0

    def __post_init__(self):
        for name in ("n_starts", "n_steps", "max_gaussians", "seed"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), int(name != "seed"))
        check_choice("optimizer", self.optimizer, STEPS)
        rates = self.learning_rates
        if not rates or not all(0 < rate < math.inf for rate in rates):
            raise ValueError(
                f"learning_rates are {rates}; there must be at least one, all positive"
            )


@dataclass(frozen=True)
class LossOptions:
    """
    How to measure the distance of moments (see `MomentLoss`).

    :param weighting: "noise", "rings" or "none"; by default "none" (eq. 28) for
        networks, else "noise".
    :param lam: λ of eq. 28, the weight of the second moment.
    :raises ValueError: An option is out of range.
    """

    weighting: Weighting | None = None
    lam: float = 1.0

    def __post_init__(self):
        check_choice("weighting", self.weighting, get_args(Weighting))
        check_positive("lam", self.lam)
