"""Symmetry imposed on reconstructions."""

import numpy as np
import pytest
from aspire.volume import CnSymmetricVolume, Volume

from aspire_mom import Reconstruction, SO3Quadrature, SphericalDesign
from aspire_mom.evaluation import symmetry_rotations
from tests.evaluation.test_symmetry import turned


@pytest.mark.parametrize("starts", [False, True])
def test_volume_and_density_have_it(tmp_path, starts):
    L = 17
    truth = CnSymmetricVolume(L, 1, 4, K=4, seed=1).generate()
    volume = turned(Volume(truth.asnumpy().astype(np.float32), pixel_size=4.0))
    quadrature = SO3Quadrature.product(SphericalDesign(13), 1)
    density = np.random.default_rng(0).random(len(quadrature))
    stack = Volume(np.repeat(volume.asnumpy(), 2, 0)) if starts else None
    plain = Reconstruction(
        volume, density / density.sum(), quadrature, [], [], {}, 0, start_volumes=stack
    )
    found = plain.with_symmetry("C4")
    assert found.settings["symmetry"] == "C4"
    assert "agrees with its symmetric copies" in found.settings["symmetry_verdict"]
    assert found.density.sum() == pytest.approx(1)
    # As far as views of the design are near those that the symmetry makes of them.
    views, p = quadrature.views, found.view_density
    other = p[np.argmax(views @ symmetry_rotations("C4")[1] @ views.T, axis=1)]
    assert np.corrcoef(p, other)[0, 1] > 0.3
    if starts:
        one, two = found.start_volumes.asnumpy()
        np.testing.assert_array_equal(one, found.volume.asnumpy()[0])
        np.testing.assert_array_equal(one, two)
    found.save(tmp_path)
    assert Reconstruction.load(tmp_path).settings == found.settings
