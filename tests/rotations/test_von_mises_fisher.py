from __future__ import annotations

import numpy as np
import pytest
from aspire.source import Simulation
from aspire.utils import Rotation
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation as ScipyRotation
from scipy.special import sph_harm_y
from scipy.stats import vonmises_fisher

from aspire_mom.rotations import SO3Quadrature, SphericalDesign, VonMisesFisherMixture


@pytest.fixture(scope="module")
def mixture():
    return VonMisesFisherMixture.random(8, seed=3)


@pytest.fixture(scope="module")
def nodes():
    return SO3Quadrature.product(SphericalDesign(13, n_points=100), 12)


def single(kappa):
    return VonMisesFisherMixture([[1, -2, 2]], [kappa], [1])


def resultant(kappa):
    """Closed form of the mean of μ·x, coth κ - 1/κ, and its limit κ/3 near 0."""
    return 1 / np.tanh(kappa) - 1 / kappa if kappa > 1e-3 else kappa / 3


def test_pdf_is_scipys(mixture):
    x = SphericalDesign(13).points
    expected = sum(
        w * vonmises_fisher(m, k).pdf(x)
        for m, k, w in zip(
            mixture.means, mixture.concentrations, mixture.weights, strict=True
        )
    )
    np.testing.assert_allclose(mixture.pdf(x), expected, rtol=1e-12)
    assert mixture.pdf(x.reshape(2, 47, 3)).shape == (2, 47)


@pytest.mark.parametrize("kappa", [1e-9, 1e-3, 0.1, 30.0, 1e4])
def test_pdf_is_scipys_at_all_concentrations(kappa):
    x = vonmises_fisher(np.array([1, -2, 2]) / 3, kappa).rvs(20, random_state=0)
    expected = vonmises_fisher(np.array([1, -2, 2]) / 3, kappa).pdf(x)
    np.testing.assert_allclose(single(kappa).pdf(x), expected, rtol=1e-8)


def test_concentration_zero_is_uniform(nodes):
    density = single(0)
    np.testing.assert_allclose(density.pdf(nodes.views), 1 / (4 * np.pi), rtol=1e-14)
    np.testing.assert_allclose(density.on(nodes), nodes.weights, rtol=1e-13)


def test_pdf_integrates_to_one(mixture):
    """Concentrations up to 10 have no harmonics of note above degree 41."""
    pdf = mixture.pdf(SphericalDesign(41).points)
    assert 4 * np.pi * pdf.mean() == pytest.approx(1, abs=1e-10)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100))
def test_pdf_turns_with_the_means_and_ignores_scale_and_order(mixture, seed, scale):
    rng = np.random.default_rng(seed)
    R = ScipyRotation.random(rng=rng).as_matrix()
    order = rng.permutation(8)
    turned = VonMisesFisherMixture(
        scale * mixture.means[order] @ R.T,
        mixture.concentrations[order],
        scale * mixture.weights[order],
    )
    x = SphericalDesign(5).points
    np.testing.assert_allclose(turned.pdf(x @ R.T), mixture.pdf(x), rtol=1e-10)


@pytest.mark.parametrize("kappa", [0, 1e-8, 1e-5, 0.3, 4.0, 1e3, 1e7])
def test_samples_have_the_closed_form_resultant(kappa):
    """Mean direction and its second moment, to five standard errors."""
    n = 20_000
    directions = single(kappa).sample(n, seed=1).matrices[:, :, 2]
    cosines = directions @ np.array([1, -2, 2]) / 3
    mean = resultant(kappa) if kappa else 0
    square = 1 - 2 * mean / kappa if kappa > 1e-3 else 1 / 3
    # The variance 1 - mean² - 2 mean/κ is its limit 1/κ² where that cancels.
    deviation = 1 / kappa if kappa > 1e2 else np.sqrt(square - mean**2)
    assert abs(np.mean(cosines) - mean) < 5 * deviation / np.sqrt(n)
    if kappa <= 1e2:
        error = np.std(cosines**2) / np.sqrt(n)
        assert abs(np.mean(cosines**2) - square) < 5 * error
    # Around the mean, the azimuth is uniform: the sideways mean vanishes.
    sideways = directions @ (np.array([[2, 2, 1], [2, -1, -2]]) / 3).T
    assert np.all(np.abs(sideways.mean(0)) < 5 * sideways.std(0) / np.sqrt(n))


def test_samples_of_a_mixture_have_the_closed_form_resultant(mixture):
    n = 50_000
    directions = mixture.sample(n, seed=2).matrices[:, :, 2]
    lengths = np.array([resultant(kappa) for kappa in mixture.concentrations])
    expected = (mixture.weights * lengths) @ mixture.means
    error = directions.std(axis=0) / np.sqrt(n)
    assert np.linalg.norm(expected) > 0.05
    assert np.all(np.abs(directions.mean(axis=0) - expected) < 5 * error)


def test_samples_follow_the_pdf(mixture):
    """Harmonics to degree 4 averaged over samples and integrated over the pdf."""
    n = 50_000
    l, m = np.tril_indices(5)

    def harmonics(x):
        polar, azimuth = np.arccos(x[:, 2]), np.arctan2(x[:, 1], x[:, 0])
        return sph_harm_y(l[:, None], m[:, None], polar, azimuth)

    design = SphericalDesign(41).points
    expected = 4 * np.pi * (harmonics(design) * mixture.pdf(design)).mean(axis=1)
    values = harmonics(mixture.sample(n, seed=5).matrices[:, :, 2])
    error = values.std(axis=1) / np.sqrt(n)
    assert np.all(np.abs(values.mean(axis=1) - expected) < 5 * error + 1e-12)
    assert np.abs(expected[1:]).max() > 0.1


def test_inplane_angles_are_uniform_and_independent(mixture):
    """E exp(isα) and E exp(isα) x vanish, to five standard errors."""
    n = 20_000
    rotations = mixture.sample(n, seed=4)
    angles = rotations.angles[:, 2]
    phases = np.exp(1j * np.outer([1, 2, 3], angles))
    assert np.all(np.abs(phases.mean(axis=1)) < 5 / np.sqrt(n))
    products = phases @ rotations.matrices[:, :, 2] / n
    assert np.all(np.abs(products) < 5 / np.sqrt(n))
    assert np.std(angles) == pytest.approx(np.pi / np.sqrt(3), rel=0.05)


def test_samples_are_seeded_proper_rotations(mixture):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    a, b, c = (mixture.sample(50, seed=seed) for seed in (7, 7, 8))
    assert isinstance(a, Rotation)
    assert a.matrices.dtype == np.float64
    np.testing.assert_array_equal(a.matrices, b.matrices)
    assert np.abs(a.matrices - c.matrices).max() > 0.1
    np.testing.assert_allclose(np.linalg.det(a.matrices), 1, rtol=1e-13)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_aspires_simulation_takes_the_samples(mixture, dtype):
    rotations = mixture.sample(10, seed=0)
    source = Simulation(
        L=8, n=10, angles=rotations.angles, offsets=0, amplitudes=1, dtype=dtype
    )
    np.testing.assert_allclose(source.rotations, rotations.matrices, atol=1e-6)


def test_on_is_the_pdf_on_the_nodes(mixture, nodes):
    probabilities = mixture.on(nodes)
    assert probabilities.dtype == np.float64
    assert probabilities.shape == (1200,)
    assert probabilities.sum() == pytest.approx(1, abs=1e-14)
    pdf = mixture.pdf(nodes.rotations.matrices[:, :, 2])
    np.testing.assert_allclose(probabilities, pdf / pdf.sum(), rtol=1e-12)
    assert probabilities.max() > 4 * probabilities.min()


def test_on_honours_the_quadratures_weights(mixture, nodes):
    w = np.repeat(np.random.default_rng(0).uniform(1, 2, 100), 12)
    weighted = SO3Quadrature(nodes.rotations, w / w.sum(), 0, 12)
    expected = w * mixture.on(nodes)
    np.testing.assert_allclose(mixture.on(weighted), expected / expected.sum())


def test_random_is_seeded_and_clearly_not_uniform():
    x = SphericalDesign(21).points
    for seed in range(5):
        a, b = (VonMisesFisherMixture.random(8, seed=seed) for _ in range(2))
        np.testing.assert_array_equal(a.means, b.means)
        assert a.means.shape == (8, 3)
        assert np.all((a.concentrations >= 2) & (a.concentrations <= 10))
        assert a.weights.sum() == pytest.approx(1)
        assert a.pdf(x).max() > 2 / (4 * np.pi)
    assert np.abs(a.means - VonMisesFisherMixture.random(8, seed=9).means).max() > 0.1


@pytest.mark.parametrize(
    ("means", "concentrations", "weights", "message"),
    [
        ([[0, 0, 0]], [1], [1], "not zero"),
        ([[np.nan, 0, 1]], [1], [1], "finite"),
        ([[0, 0, 1]], [-1], [1], r"not negative, got \[-1.0\]"),
        ([[0, 0, 1]], [np.nan], [1], "concentrations must be finite"),
        ([[0, 0, 1]], [np.inf], [1], "concentrations must be finite"),
        ([[0, 0, 1]], [1], [0], "weights must be finite and positive"),
        ([[0, 0, 1]], [1], [np.inf], "weights must be finite and positive"),
        ([[0, 0, 1]], [1, 2], [1], r"got \(1, 3\), \(2,\) and \(1,\)"),
        ([0, 0, 1], [1], [1], "must have shapes"),
        ([[0, 0, 1]], [1], 1, "must have shapes"),
    ],
)
def test_refuses_bad_parameters(means, concentrations, weights, message):
    with pytest.raises(ValueError, match=message):
        VonMisesFisherMixture(means, concentrations, weights)


def test_refuses_bad_questions(mixture, nodes):
    with pytest.raises(ValueError, match=r"must be \(..., 3\), got \(4,\)"):
        mixture.pdf(np.ones(4))
    with pytest.raises(ValueError, match="unit vectors"):
        mixture.pdf(np.ones((4, 3)))
    with pytest.raises(ValueError, match="is zero at all 1200 nodes"):
        single(1e9).on(nodes)
    with pytest.raises(ValueError, match="n_components is 0; it must be an integer"):
        VonMisesFisherMixture.random(0)
