"""Moments → volume and density of rotations."""

from aspire_mom.inversion.forward import forward_model
from aspire_mom.inversion.inversion import MomentInversion
from aspire_mom.inversion.loss import LossOptions, MomentLoss
from aspire_mom.inversion.optimise import OptimizerStatus, StoppedByUser
from aspire_mom.inversion.paper import paper_inversion
from aspire_mom.inversion.reconstruction import Reconstruction
from aspire_mom.inversion.search import SearchOptions
from aspire_mom.inversion.start import predict

__all__ = [
    "LossOptions",
    "MomentInversion",
    "MomentLoss",
    "OptimizerStatus",
    "Reconstruction",
    "SearchOptions",
    "StoppedByUser",
    "forward_model",
    "paper_inversion",
    "predict",
]
