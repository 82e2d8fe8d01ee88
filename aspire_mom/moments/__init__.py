"""Image → coefficients → moments."""

from aspire_mom.moments.bases import Basis, CartesianBasis, PolarBasis
from aspire_mom.moments.checkpoint import discard_checkpoint
from aspire_mom.moments.estimator import MomentEstimator
from aspire_mom.moments.moments import Moments
from aspire_mom.moments.third import ThirdMomentBasis

__all__ = [
    "Basis",
    "CartesianBasis",
    "MomentEstimator",
    "Moments",
    "PolarBasis",
    "ThirdMomentBasis",
    "discard_checkpoint",
]
