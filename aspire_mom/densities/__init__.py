"""Densities of rotations."""

from aspire_mom.densities.discrete import DiscreteDensity
from aspire_mom.densities.encoder import LatentEncoder, MomentEncoder
from aspire_mom.densities.von_mises_fisher import VonMisesFisherMixture

__all__ = [
    "DiscreteDensity",
    "LatentEncoder",
    "MomentEncoder",
    "VonMisesFisherMixture",
]
