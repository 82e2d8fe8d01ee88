"""Compare a reconstruction with a reference: registration, FSC, pictures."""

from aspire_mom.evaluation.agreement import Agreement, starts_agreement
from aspire_mom.evaluation.comparison import Comparison, compare
from aspire_mom.evaluation.fsc import fourier_shell_correlation
from aspire_mom.evaluation.plots import (
    plot_fsc,
    plot_isosurfaces,
    plot_moments,
    plot_slices,
    plot_views,
)
from aspire_mom.evaluation.registration import Registration, register
from aspire_mom.evaluation.symmetry import (
    Symmetrised,
    mean_of_copies,
    symmetrised,
    symmetry_rotations,
)
from aspire_mom.evaluation.views import (
    fourier_coverage,
    sampling_compensation_factor,
)

__all__ = [
    "Agreement",
    "Comparison",
    "Registration",
    "Symmetrised",
    "compare",
    "fourier_coverage",
    "fourier_shell_correlation",
    "mean_of_copies",
    "plot_fsc",
    "plot_isosurfaces",
    "plot_moments",
    "plot_slices",
    "plot_views",
    "register",
    "sampling_compensation_factor",
    "starts_agreement",
    "symmetrised",
    "symmetry_rotations",
]
