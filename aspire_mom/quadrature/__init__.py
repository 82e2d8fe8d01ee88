"""Quadrature rules on the sphere of viewing directions and on SO(3)."""

from aspire_mom.quadrature.designs import SphericalDesign, shipped_designs
from aspire_mom.quadrature.so3 import SO3Quadrature, viewing_rotations

__all__ = ["SO3Quadrature", "SphericalDesign", "shipped_designs", "viewing_rotations"]
