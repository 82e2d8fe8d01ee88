"""Axes of symmetric volumes are found, and none are in others."""

import numpy as np
import pytest
from aspire.utils import Rotation
from aspire.volume import CnSymmetricVolume, DnSymmetricVolume, Volume

from aspire_mom import compare
from aspire_mom.evaluation.symmetry import (
    mean_of_copies,
    symmetrised,
    symmetry_rotations,
)
from aspire_mom.phantoms import chain_phantom


def turned(volume, seed=0):
    """The volume in another orientation."""
    rotation = Rotation.generate_random_rotations(1, seed=seed).matrices
    return mean_of_copies(volume, rotation)


@pytest.mark.parametrize(
    ("make", "order", "symmetry", "L"),
    [(CnSymmetricVolume, 4, "C4", 24), (DnSymmetricVolume, 2, "D2", 25)],
)
def test_axes_are_found(make, order, symmetry, L):
    truth = Volume(make(L, 1, order, K=6, seed=1).generate().asnumpy(), pixel_size=4)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(L, L, L)) * truth.asnumpy().std() / 2
    moved = turned(truth)
    found = symmetrised(Volume(moved.asnumpy()[0] + noise, pixel_size=4), symmetry)
    assert found.shells > 4
    assert "does not show" not in found.verdict
    # Noise averages out.
    assert compare(found.volume, truth).correlation > 0.97
    for rotation in symmetry_rotations(symmetry):
        copy = mean_of_copies(found.volume, rotation[None])
        np.testing.assert_allclose(copy.asnumpy(), found.volume.asnumpy(), atol=1e-6)


def test_a_part_of_the_symmetry_is_shown():
    """Copies halfway between those of C2 are those of C4."""
    voxels = CnSymmetricVolume(24, 1, 4, K=6, seed=1).generate().asnumpy()
    assert symmetrised(Volume(voxels, pixel_size=4), "C2").shown


def test_volumes_without_symmetry_do_not_show_any():
    found = symmetrised(chain_phantom(25, seed=3, pixel_size=4.0), "C4")
    assert not found.shown
    assert "it does not show this symmetry" in found.verdict


def test_none_changes_nothing():
    volume = chain_phantom(9, seed=3)
    assert symmetrised(volume, "C1").volume is volume


@pytest.mark.parametrize("symmetry", ["C0", "c4", "D1", "K", "", None])
def test_unknown_groups_are_named(symmetry):
    with pytest.raises(ValueError, match="it must be C1, C2, …, D2, D3, …, T, O or I"):
        symmetry_rotations(symmetry)


@pytest.mark.parametrize(("name", "n"), [("C1", 1), ("C7", 7), ("D3", 6), ("T", 12)])
def test_groups(name, n):
    rotations = symmetry_rotations(name)
    assert len(rotations) == n
    np.testing.assert_allclose(rotations[0], np.eye(3), atol=1e-12)
