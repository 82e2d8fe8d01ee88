"""Quadrature on SO(3) by spherical designs, and densities of rotations."""

from aspire_mom.rotations.densities import (
    DiscreteDensity,
    VonMisesFisherMixture,
    log_density_harmonics,
)
from aspire_mom.rotations.so3 import SO3Quadrature, viewing_rotations
from aspire_mom.rotations.sphere import (
    SphericalDesign,
    real_spherical_harmonics,
    shipped_designs,
)

__all__ = [
    "DiscreteDensity",
    "SO3Quadrature",
    "SphericalDesign",
    "VonMisesFisherMixture",
    "log_density_harmonics",
    "real_spherical_harmonics",
    "shipped_designs",
    "viewing_rotations",
]
