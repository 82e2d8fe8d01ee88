from types import SimpleNamespace

import numpy as np
import pytest
from aspire.volume import Volume
from scipy.spatial.transform import Rotation as Rotations

from aspire_mom.evaluation import agreement, starts_agreement
from tests.evaluation.blobs import blobs

L = 24
ROTATION = Rotations.from_euler("ZYZ", [0.4, 1.3, -2.1]).as_matrix()


@pytest.fixture
def agreement_of(monkeypatch):
    """The agreement of volumes, from moments with signal up to ring 7."""
    monkeypatch.setattr(agreement, "informative_rings", lambda moments: 8)

    def of(*volumes, n_rings=8, pixel_size=None, n_images=1000):
        stack = Volume(np.concatenate([v.asnumpy() for v in volumes]))
        basis = SimpleNamespace(L=L, n_rings=13)
        moments = SimpleNamespace(basis=basis, pixel_size=pixel_size, n_images=n_images)
        return starts_agreement(stack, n_rings, moments)

    return of


def test_one_turned_mirror_image_is_agreement_enough(agreement_of):
    mirrored = blobs(L, rotation=ROTATION, mirrored=True)
    found = agreement_of(blobs(L), blobs(L, seed=1), mirrored, pixel_size=2.0)
    assert found.shells > 7
    assert found.angstrom == pytest.approx(2 * L / found.shells)
    assert "no signal beyond ring 7" in found.verdict
    assert f"({found.angstrom:.0f} Å)" in found.verdict


def test_rings_in_use_limit_it(agreement_of):
    found = agreement_of(blobs(L), blobs(L), n_rings=5)
    assert found.angstrom is None
    assert "rings in use limit" in found.verdict
    assert found.failed is False


def test_disagreement_is_a_failure(agreement_of):
    noise = np.random.default_rng(0).normal(size=(2, 1, L, L, L))
    found = agreement_of(*(Volume(v) for v in noise))
    assert found.shells < agreement.FAILED_BELOW
    assert "failed" in found.verdict
    assert found.failed


def test_few_images_are_not_to_be_trusted(agreement_of):
    found = agreement_of(blobs(L), blobs(L), n_images=99)
    assert found.shells == 8
    assert "99 images are too few" in found.verdict
    assert found.failed
    assert "too few" not in agreement_of(blobs(L), blobs(L), n_images=0).verdict


def test_one_start_tells_nothing(agreement_of):
    found = agreement_of(blobs(L))
    assert found.shells is found.angstrom is None
    assert "one start only" in found.verdict
    assert found.failed is None
