"""Image → coefficients → moments."""

from aspire_mom.moments.bases import Basis, CartesianBasis, PolarBasis
from aspire_mom.moments.checkpoint import discard_checkpoint
from aspire_mom.moments.estimator import MomentEstimator
from aspire_mom.moments.moments import Moments

__all__ = [
    "Basis",
    "CartesianBasis",
    "MomentEstimator",
    "Moments",
    "PolarBasis",
    "discard_checkpoint",
]
