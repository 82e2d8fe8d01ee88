"""Multireference alignment, section 5.1 of the paper: the problem in one dimension."""

from aspire_mom.mra.em import expectation_maximisation
from aspire_mom.mra.inversion import Method, MRAInversion, MRASolution, solve
from aspire_mom.mra.mixture_encoder import MixtureEncoder
from aspire_mom.mra.moments import (
    FourierMoments,
    estimate_moments,
    exact_moments,
    forward_moments,
    relative_errors,
    simulate_moments,
)
from aspire_mom.mra.paper_encoder import PaperEncoder
from aspire_mom.mra.refine import predict, refine_directly, refine_weights
from aspire_mom.mra.shift_ambiguity import best_shift, shift_error
from aspire_mom.mra.signals import GaussianFamily, observe, shift
from aspire_mom.mra.training import Training, train
from aspire_mom.mra.weights import load_weights, pretrained, save_weights

__all__ = [
    "FourierMoments",
    "GaussianFamily",
    "MRAInversion",
    "MRASolution",
    "Method",
    "MixtureEncoder",
    "PaperEncoder",
    "Training",
    "best_shift",
    "estimate_moments",
    "exact_moments",
    "expectation_maximisation",
    "forward_moments",
    "load_weights",
    "observe",
    "predict",
    "pretrained",
    "refine_directly",
    "refine_weights",
    "relative_errors",
    "save_weights",
    "shift",
    "shift_error",
    "simulate_moments",
    "solve",
    "train",
]
