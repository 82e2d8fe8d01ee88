"""Image → coefficient maps whose moments are estimated and matched."""

from aspire_mom.bases.bases import Basis, CartesianBasis, PolarBasis

__all__ = ["Basis", "CartesianBasis", "PolarBasis"]
