"""Low-order moments of images, estimated in one pass over a source."""

from aspire_mom.moments.corrections import Corrections
from aspire_mom.moments.estimator import MomentEstimator
from aspire_mom.moments.moments import Moments
from aspire_mom.moments.options import CorrectionOptions, Noise, StreamingOptions
from aspire_mom.moments.third import ThirdMomentBasis

__all__ = [
    "CorrectionOptions",
    "Corrections",
    "MomentEstimator",
    "Moments",
    "Noise",
    "StreamingOptions",
    "ThirdMomentBasis",
]
