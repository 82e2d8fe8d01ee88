"""Ab initio cryo-EM volumes from image moments, as a plugin for ASPIRE-Python."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from aspire_mom.configuration import configure_aspire

if TYPE_CHECKING:
    from aspire_mom.bases import CartesianBasis, PolarBasis
    from aspire_mom.evaluation import Comparison, compare
    from aspire_mom.inversion import (
        LossOptions,
        MomentInversion,
        Reconstruction,
        SearchOptions,
        paper_inversion,
    )
    from aspire_mom.moments import (
        CorrectionOptions,
        MomentEstimator,
        Moments,
        Noise,
        StreamingOptions,
        ThirdMomentBasis,
    )
    from aspire_mom.networks import MomentEncoder
    from aspire_mom.refinement import MomentOrientation, RefinedModel, Refinement
    from aspire_mom.rotations import (
        DiscreteDensity,
        SO3Quadrature,
        SphericalDesign,
        VonMisesFisherMixture,
    )
    from aspire_mom.volumes import (
        BallHarmonics,
        FourierNet,
        GaussianMixture,
        PositiveGrid,
    )

__version__ = "0.1.0"

__all__ = [
    "BallHarmonics",
    "CartesianBasis",
    "Comparison",
    "CorrectionOptions",
    "DiscreteDensity",
    "FourierNet",
    "GaussianMixture",
    "LossOptions",
    "MomentEncoder",
    "MomentEstimator",
    "MomentInversion",
    "MomentOrientation",
    "Moments",
    "Noise",
    "PolarBasis",
    "PositiveGrid",
    "Reconstruction",
    "RefinedModel",
    "Refinement",
    "SO3Quadrature",
    "SearchOptions",
    "SphericalDesign",
    "StreamingOptions",
    "ThirdMomentBasis",
    "VonMisesFisherMixture",
    "compare",
    "paper_inversion",
]

MODULES = ["bases", "moments", "rotations", "volumes", "networks"]
MODULES += ["inversion", "evaluation", "refinement", "report", "mra", "relion"]
MODULES += ["checkpoints", "checks", "files", "phantoms", "processes", "simulation"]

configure_aspire()


# Modules and names are imported when first used (PEP 562), so that this package does
# not wait for PyTorch, nor import ASPIRE before its configuration is chosen.
def __getattr__(name: str):
    if name in MODULES:
        return import_module(f"{__name__}.{name}")
    if name in __all__:
        modules = (import_module(f"{__name__}.{module}") for module in MODULES)
        return next(getattr(m, name) for m in modules if hasattr(m, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
