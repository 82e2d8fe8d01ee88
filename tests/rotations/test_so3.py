from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from aspire.utils import Rotation
from aspire.volume import Volume
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation as ScipyRotation
from scipy.special import sph_harm_y

from aspire_mom.rotations import SO3Quadrature, SphericalDesign, viewing_rotations
from tests.references.wigner import wigner_D

EXACT, WRONG = 1e-12, 1e-2


@pytest.fixture(scope="module")
def paper():
    """The paper's 1200 nodes."""
    return SO3Quadrature.product(SphericalDesign(13, n_points=100), 12)


def integral_error(quadrature, l, left=None):
    """Largest |Σ w D^l_mm'| of a degree l > 0, whose true value is 0."""
    matrices = quadrature.rotations.matrices
    if left is not None:
        matrices = left @ matrices
    values = wigner_D(l, matrices)
    return np.abs(np.einsum("n,nij->ij", quadrature.weights, values)).max()


def test_wigner_reference_rotates_harmonics():
    """Y_lm(Rᵀx) = Σ_m' D_m'm(R) Y_lm'(x), which fixes every sign of the reference."""
    rng = np.random.default_rng(0)
    R = ScipyRotation.random(rng=rng).as_matrix()
    x = rng.normal(size=3)
    x /= np.linalg.norm(x)

    def harmonics(l, x):
        return sph_harm_y(
            l, np.arange(-l, l + 1), np.arccos(x[2]), np.arctan2(*x[1::-1])
        )

    for l in (1, 2, 7, 14):
        rotated = wigner_D(l, R[None])[0].T @ harmonics(l, x)
        np.testing.assert_allclose(harmonics(l, R.T @ x), rotated, atol=1e-13)


@pytest.mark.parametrize(
    ("design_degree", "n_inplane", "degree"),
    [(13, 12, 11), (5, 20, 5), (5, 6, 5), (9, 5, 4), (1, 1, 0)],
)
def test_product_is_exact_to_its_degree_only(design_degree, n_inplane, degree):
    n_points = 100 if design_degree == 13 else None
    design = SphericalDesign(design_degree, n_points=n_points)
    quadrature = SO3Quadrature.product(design, n_inplane)
    assert quadrature.degree == degree
    assert quadrature.weights.sum() == pytest.approx(1, abs=1e-14)
    for l in range(1, degree + 1):
        assert integral_error(quadrature, l) < EXACT
    assert integral_error(quadrature, degree + 1) > WRONG


@pytest.mark.parametrize("degree", [0, 1, 4, 7, 12])
def test_band_limit_is_exact_to_its_degree_only(degree):
    quadrature = SO3Quadrature.product(SphericalDesign(degree), degree + 1)
    assert quadrature.degree == degree
    assert quadrature.n_inplane == degree + 1
    for l in range(1, degree + 1):
        assert integral_error(quadrature, l) < EXACT
    assert integral_error(quadrature, degree + 1) > WRONG


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), l=st.integers(1, 11))
def test_integrate_SO3_is_invariant_under_rotations(paper, seed, l):
    left = ScipyRotation.random(rng=np.random.default_rng(seed)).as_matrix()
    assert integral_error(paper, l, left) < EXACT


def test_nodes_follow_the_conventions(paper):
    design = SphericalDesign(13, n_points=100)
    matrices = paper.rotations.matrices
    assert isinstance(paper.rotations, Rotation)
    assert matrices.dtype == paper.weights.dtype == np.float64
    assert len(paper) == len(matrices) == 1200
    np.testing.assert_allclose(np.linalg.det(matrices), 1, rtol=1e-14)
    np.testing.assert_allclose(paper.views, design.points, atol=1e-15)
    np.testing.assert_allclose(paper.view_weights, np.full(100, 0.01), rtol=1e-14)
    view, j = 57, 5
    x, y, z = design.points[view]
    angles = np.array([[np.arctan2(y, x), np.arccos(z), 2 * np.pi * j / 12]])
    expected = Rotation.from_euler(angles, dtype=np.float64).matrices[0]
    np.testing.assert_allclose(matrices[view * 12 + j], expected, atol=1e-14)
    np.testing.assert_array_equal(matrices[::12], paper.view_rotations)


def test_aspire_reads_the_same_rotations_from_the_angles(paper):
    again = Rotation.from_euler(paper.rotations.angles).matrices
    np.testing.assert_allclose(again, paper.rotations.matrices, atol=1e-14)


def test_inplane_angle_turns_the_image():
    """A quarter turn in plane is a quarter turn of ASPIRE's projection."""
    quadrature = SO3Quadrature.product(SphericalDesign(1), 4)
    volume = Volume(np.random.default_rng(0).normal(size=(9, 9, 9)))
    images = volume.project(quadrature.rotations).asnumpy()
    assert np.abs(images[0]).max() > 0.1
    for j in range(4):
        np.testing.assert_allclose(images[j], np.rot90(images[0], j), atol=1e-6)


@pytest.mark.parametrize("z", [1.0, -1.0])
def test_viewing_rotations_at_the_poles(z):
    matrix = viewing_rotations(np.array([[0, 0, z]]))[0]
    np.testing.assert_allclose(matrix, np.diag([z, 1, z]), atol=1e-15)


def test_no_gimbal_lock_warning_at_the_poles():
    matrices = viewing_rotations(np.array([[0, 0, 1.0]]))
    rotations = Rotation(matrices, gimble_lock_warnings=False)
    quadrature = SO3Quadrature(rotations, np.ones(1), 0, 1)
    np.testing.assert_allclose(quadrature.rotations.angles, 0, atol=1e-15)


def test_save_and_load(paper, tmp_path):
    paper.save(tmp_path / "nodes.npz")
    loaded = SO3Quadrature.load(tmp_path / "nodes.npz")
    np.testing.assert_array_equal(loaded.rotations.matrices, paper.rotations.matrices)
    np.testing.assert_array_equal(loaded.weights, paper.weights)
    with pytest.raises(FileExistsError, match=r"nodes\.npz exists; pass"):
        paper.save(tmp_path / "nodes.npz")
    paper.save(tmp_path / "nodes.npz", overwrite=True)
    assert (loaded.degree, loaded.n_inplane) == (11, 12)
    assert not loaded.rotations.gimble_lock_warnings


def test_load_refuses_other_files(tmp_path):
    np.savez(tmp_path / "other.npz", weights=np.ones(1))
    with pytest.raises(ValueError, match="holds unknown contents"):
        SO3Quadrature.load(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("not a quadrature")
    with pytest.raises(ValueError, match="is not an .npz file"):
        SO3Quadrature.load(tmp_path / "text.npz")


def test_refuses_bad_fields(paper):
    R = paper.rotations.matrices
    with pytest.raises(ValueError, match="1200 nodes are no multiple of"):
        replace(paper, n_inplane=7)
    with pytest.raises(ValueError, match=r"weights .* not \(1200,\)"):
        replace(paper, weights=np.full(100, 0.01))
    with pytest.raises(ValueError, match="of sum one"):
        replace(paper, weights=2 * paper.weights)
    with pytest.raises(ValueError, match="orthogonal matrices of determinant 1"):
        replace(paper, rotations=Rotation(R * [1, 1, -1]))
    with pytest.raises(ValueError, match="orthogonal matrices of determinant 1"):
        replace(paper, rotations=Rotation(1.1 * R))
    with pytest.raises(ValueError, match="j fastest"):
        replace(paper, rotations=Rotation(R[::-1]))
    with pytest.raises(ValueError, match="n_inplane is 0; it must be an integer"):
        SO3Quadrature.product(SphericalDesign(3), 0)
    with pytest.raises(TypeError, match="design is a str, not a SphericalDesign"):
        SO3Quadrature.product("x", 3)
