"""Volume models with a Fourier transform at any frequency."""

from aspire_mom.volumes.ball_harmonics import BallHarmonics
from aspire_mom.volumes.base import FourierVolume
from aspire_mom.volumes.fourier_net import FourierNet
from aspire_mom.volumes.gaussian_mixture import GaussianMixture
from aspire_mom.volumes.positive_grid import PositiveGrid

__all__ = [
    "BallHarmonics",
    "FourierNet",
    "FourierVolume",
    "GaussianMixture",
    "PositiveGrid",
]
