"""Multireference alignment: signals, moments, solvers and errors."""

from aspire_mom.mra.errors import align, best_shift, shift_error
from aspire_mom.mra.expectation import EMStatus, expectation_maximisation
from aspire_mom.mra.moments import (
    FourierMoments,
    estimate_moments,
    exact_moments,
    forward_moments,
    relative_errors,
    simulate_moments,
)
from aspire_mom.mra.signals import GaussianFamily, observe, shift
from aspire_mom.mra.solve import Method, solve

__all__ = [
    "EMStatus",
    "FourierMoments",
    "GaussianFamily",
    "Method",
    "align",
    "best_shift",
    "estimate_moments",
    "exact_moments",
    "expectation_maximisation",
    "forward_moments",
    "observe",
    "relative_errors",
    "shift",
    "shift_error",
    "simulate_moments",
    "solve",
]
