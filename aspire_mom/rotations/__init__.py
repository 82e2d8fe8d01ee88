"""Quadrature on SO(3) by spherical designs, and densities of rotations."""

from aspire_mom.rotations.designs import SphericalDesign, shipped_designs
from aspire_mom.rotations.discrete import DiscreteDensity
from aspire_mom.rotations.harmonics import real_spherical_harmonics
from aspire_mom.rotations.so3 import SO3Quadrature, viewing_rotations
from aspire_mom.rotations.von_mises_fisher import VonMisesFisherMixture

__all__ = [
    "DiscreteDensity",
    "SO3Quadrature",
    "SphericalDesign",
    "VonMisesFisherMixture",
    "real_spherical_harmonics",
    "shipped_designs",
    "viewing_rotations",
]
