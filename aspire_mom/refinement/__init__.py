"""From moments back to images: refinement of volume, views and shifts."""

from aspire_mom.refinement.model import RefinedModel
from aspire_mom.refinement.orientation import MomentOrientation
from aspire_mom.refinement.refinement import Refinement

__all__ = ["MomentOrientation", "RefinedModel", "Refinement"]
