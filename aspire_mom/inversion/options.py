"""Checks of what `MomentInversion` is given, before any work starts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from aspire_mom.bases import Basis, CartesianBasis
from aspire_mom.checks import check_integer, check_positive
from aspire_mom.moments import Moments
from aspire_mom.rotations import SO3Quadrature
from aspire_mom.volumes import FourierVolume

PRIORS = ("gaussians", "fouriernet", "harmonics")
OPTIMIZERS = ("lbfgs", "adam")
WEIGHTINGS = ("noise", "rings", "none")


def check_kinds(moments, volume, density, quadrature) -> None:
    """
    :param moments: Must be `Moments`.
    :param volume: A `FourierVolume` or the name of a prior.
    :param density: A module or None.
    :param quadrature: An `SO3Quadrature` or None.
    :raises TypeError: one of another kind.
    :raises ValueError: a name that is no prior's.
    """
    if not isinstance(moments, Moments):
        raise TypeError(f"moments is a {type(moments).__name__}, not a Moments")
    if isinstance(volume, str):
        check_choice("volume", volume, PRIORS)
    elif not isinstance(volume, FourierVolume):
        raise TypeError(
            f"volume is a {type(volume).__name__}; it must be a FourierVolume or"
            f" one of {', '.join(PRIORS)}"
        )
    for name, value, kind in (
        ("density", density, torch.nn.Module),
        ("quadrature", quadrature, SO3Quadrature),
    ):
        if not (value is None or isinstance(value, kind)):
            raise TypeError(
                f"{name} is a {type(value).__name__}; it must be a {kind.__name__}"
            )


def check_choice(name: str, value: str | None, accepted: Iterable[str]) -> None:
    """
    :param name: Name of the option.
    :param value: Its value; None where it is left to the default.
    :param accepted: All names it may have.
    :raises ValueError: another one.
    """
    if value is not None and value not in accepted:
        raise ValueError(f"{name} is {value!r}; it must be {' or '.join(accepted)}")


def check_counts(**counts: int | None) -> None:
    """
    :param counts: Options that are positive integers, or None for their defaults.
    :raises ValueError: one that is not.
    """
    for name, value in counts.items():
        if value is not None:
            check_integer(name, value, 1)


def check_numbers(
    lam: float, support_radius: float, learning_rates: tuple[float, ...], seed: int
) -> None:
    """
    :raises ValueError: λ or a learning rate not positive, no learning rate, a support
        radius outside (0, 0.5] boxes, or a seed that is no whole number ≥ 0.
    """
    check_positive("lam", lam)
    check_integer("seed", seed, 0)
    if not 0 < support_radius <= 0.5:
        raise ValueError(
            f"support_radius is {support_radius} boxes; it must lie in (0, 0.5]"
        )
    if not learning_rates or not all(0 < rate < np.inf for rate in learning_rates):
        raise ValueError(
            f"learning_rates are {learning_rates}; there must be at least one, and all"
            " must be positive"
        )


def check_rings(n_rings: int, basis: Basis) -> None:
    """
    :raises ValueError: more rings than a polar basis has.
    """
    if not isinstance(basis, CartesianBasis) and n_rings > basis.n_rings:
        raise ValueError(f"n_rings is {n_rings}; {basis} has 1 to {basis.n_rings}")
