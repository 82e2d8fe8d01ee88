"""Which volume an inversion looks for where none is asked for."""

from dataclasses import replace

import numpy as np
import pytest

from aspire_mom import PolarBasis, ThirdMomentBasis
from aspire_mom.inversion.start import default_volume
from tests.inversion.models import (
    exact_moments,
    mixture,
    quadrature_of,
    random_probabilities,
    random_rotations,
)


def moments_of(n_rings):
    """Of a non-negative mixture in vacuum, with all of a basis's rings in use."""
    basis, quadrature = (
        PolarBasis(31, n_rings=n_rings),
        quadrature_of(random_rotations(5), 2),
    )
    moments = exact_moments(mixture(), random_probabilities(10), quadrature, basis)
    third = ThirdMomentBasis.rings(basis, 4)
    return replace(moments, third=np.zeros(third.size, complex), third_basis=third)


@pytest.mark.parametrize(("n_rings", "volume"), [(9, "gaussians"), (10, "grid")])
def test_signal_on_many_rings_asks_for_the_grid(n_rings, volume):
    assert default_volume(moments_of(n_rings)) == volume
