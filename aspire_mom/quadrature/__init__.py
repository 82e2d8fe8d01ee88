"""Quadrature on the sphere of viewing directions and on SO(3)."""

from aspire_mom.quadrature.designs import SphericalDesign, shipped_designs
from aspire_mom.quadrature.harmonics import real_spherical_harmonics
from aspire_mom.quadrature.so3 import SO3Quadrature, viewing_rotations

__all__ = [
    "SO3Quadrature",
    "SphericalDesign",
    "real_spherical_harmonics",
    "shipped_designs",
    "viewing_rotations",
]
