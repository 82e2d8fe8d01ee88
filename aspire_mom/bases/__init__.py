"""Maps from images to the coefficients whose moments are estimated and matched."""

from aspire_mom.bases.base import Basis
from aspire_mom.bases.cartesian import CartesianBasis
from aspire_mom.bases.information import (
    LEAST_SHARE,
    divide,
    multiply,
    solve_entries,
    standard_error,
)
from aspire_mom.bases.polar import PolarBasis

__all__ = [
    "LEAST_SHARE",
    "Basis",
    "CartesianBasis",
    "PolarBasis",
    "divide",
    "multiply",
    "solve_entries",
    "standard_error",
]
