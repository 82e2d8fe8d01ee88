"""Ab initio cryo-EM volumes from image moments, as a plugin for ASPIRE-Python."""

from aspire_mom.densities import (
    DiscreteDensity,
    MomentEncoder,
    VonMisesFisherMixture,
)
from aspire_mom.evaluation import Comparison, compare
from aspire_mom.inversion import MomentInversion, Reconstruction
from aspire_mom.moments import CartesianBasis, MomentEstimator, Moments, PolarBasis
from aspire_mom.quadrature import SO3Quadrature, SphericalDesign
from aspire_mom.volumes import BallHarmonics, FourierNet, GaussianMixture

__version__ = "0.1.0"

__all__ = [
    "BallHarmonics",
    "CartesianBasis",
    "Comparison",
    "DiscreteDensity",
    "FourierNet",
    "GaussianMixture",
    "MomentEncoder",
    "MomentEstimator",
    "MomentInversion",
    "Moments",
    "PolarBasis",
    "Reconstruction",
    "SO3Quadrature",
    "SphericalDesign",
    "VonMisesFisherMixture",
    "compare",
]
