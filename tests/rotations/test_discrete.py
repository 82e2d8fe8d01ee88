from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y

from aspire_mom.rotations import (
    DiscreteDensity,
    SO3Quadrature,
    SphericalDesign,
    VonMisesFisherMixture,
)


@pytest.fixture(scope="module")
def nodes():
    return SO3Quadrature.product(SphericalDesign(4), 5)


def test_starts_uniform(nodes):
    for density in (DiscreteDensity(nodes), DiscreteDensity(len(nodes))):
        assert density().shape == (len(nodes),)
        assert density().dtype == torch.get_default_dtype()
        np.testing.assert_allclose(density.probabilities, nodes.weights, rtol=1e-14)
        assert density.probabilities.dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_from_probabilities_gives_them_back(nodes, dtype):
    p = VonMisesFisherMixture.random(3, seed=1).on(nodes)
    density = DiscreteDensity.from_probabilities((3 * p).astype(dtype))
    assert density().detach().numpy().dtype == dtype
    rtol = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(density.probabilities, p, rtol=rtol)
    np.testing.assert_allclose(density().detach().numpy(), p, rtol=rtol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_are_allowed_and_have_finite_gradients(dtype):
    density = DiscreteDensity.from_probabilities(torch.tensor([0, 1, 3], dtype=dtype))
    np.testing.assert_allclose(density.probabilities, [0, 0.25, 0.75], atol=1e-7)
    density()[1].backward()
    gradient = density.logits.grad.numpy()
    np.testing.assert_allclose(gradient, [0, 0.1875, -0.1875], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_learns_a_density(nodes, dtype):
    target = torch.from_numpy(VonMisesFisherMixture.random(8, seed=0).on(nodes))
    density = DiscreteDensity(nodes).to(dtype)
    optimizer = torch.optim.LBFGS(density.parameters(), max_iter=100)

    def loss():
        optimizer.zero_grad()
        value = -(target.to(dtype) * density().log()).sum()
        value.backward()
        return value

    optimizer.step(loss)
    np.testing.assert_allclose(density.probabilities, target, atol=1e-4)
    assert density.probabilities.sum() == pytest.approx(1, abs=1e-14)
    assert target.max() > 4 * target.min()


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([0.5, -0.1], "minimum of -0.1"),
        ([0.5, np.nan], "minimum of nan"),
        ([0.0, 0.0], "sum of 0;"),
        ([[0.5, 0.5]], r"shape \(1, 2\)"),
        ([1, 2], "torch.int.* must be real and"),
    ],
)
def test_refuses_what_are_no_probabilities(probabilities, message):
    with pytest.raises(ValueError, match=message):
        DiscreteDensity.from_probabilities(np.array(probabilities))


@pytest.mark.parametrize("nodes", [0, 2.5, "x"])
def test_refuses_what_is_no_number_of_nodes(nodes):
    with pytest.raises(ValueError, match=f"nodes is {nodes!r}; it must be an integer"):
        DiscreteDensity(nodes)


def real_harmonics(degree, directions):
    """Columns √(4π) Y_lm, l = 1 … degree, m = -l (sines) … l (cosines), from SciPy."""
    x, y, z = directions.T
    polar, azimuth = np.arccos(z), np.arctan2(y, x)
    columns = []
    for l in range(1, degree + 1):
        for m in range(-l, l + 1):
            # SciPy's have the Condon-Shortley sign.
            wave = (-1) ** m * sph_harm_y(l, abs(m), polar, azimuth)
            part = wave.imag if m < 0 else wave.real
            columns.append(part * (np.sqrt(2) if m else 1))
    return np.sqrt(4 * np.pi) * np.stack(columns, -1)


def smooth_density(quadrature, degree, seed=0, dtype=torch.float32):
    density = DiscreteDensity(quadrature, degree=degree).to(dtype)
    values = 0.2 * np.random.default_rng(seed).standard_normal((degree + 1) ** 2 - 1)
    density.coefficients.data.copy_(torch.from_numpy(values))
    return density, values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degree", [1, 4, 6])
def test_log_density_is_a_sum_of_harmonics(dtype, degree):
    quadrature = SO3Quadrature.product(SphericalDesign(13), 1)
    density, values = smooth_density(quadrature, degree, dtype=dtype)
    expected = np.exp(real_harmonics(degree, quadrature.views) @ values)
    expected /= expected.sum()
    assert expected.max() > 1.5 * expected.min()
    assert density().dtype == dtype
    np.testing.assert_allclose(density().detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(density.probabilities, expected, rtol=1e-5)
    assert density.probabilities.sum() == pytest.approx(1, abs=1e-14)


def test_in_plane_angles_are_uniform():
    design = SphericalDesign(9)
    density, _ = smooth_density(SO3Quadrature.product(design, 5), 3)
    views = density.probabilities.reshape(len(design), 5)
    assert (views == views[:, :1]).all()
    assert np.ptp(views[:, 0]) > 0.5 / len(density.probabilities)
    alone, _ = smooth_density(SO3Quadrature.product(design, 1), 3)
    np.testing.assert_allclose(views.sum(1), alone.probabilities, rtol=1e-5)


def test_smooth_whatever_the_coefficients():
    """No harmonics above the degree: the log-density is orthogonal to them."""
    quadrature = SO3Quadrature.product(SphericalDesign(13), 1)
    density, _ = smooth_density(quadrature, 4)
    spectrum = real_harmonics(8, quadrature.views).T @ np.log(density.probabilities)
    spectrum = np.abs(spectrum / len(quadrature))
    assert spectrum[24:].max() < 1e-6 < 0.1 < spectrum[:24].max()


@pytest.mark.parametrize("degree", [1, 5])
def test_penalty_is_minus_twice_the_log_prior(nodes, degree):
    """a_lm normal with variance 1 / (2 l (l + 1)), up to a constant."""
    density, values = smooth_density(nodes, degree)
    l = np.repeat(np.arange(1, degree + 1), 2 * np.arange(1, degree + 1) + 1)
    log_prior = -0.5 * values**2 / (1 / (2 * l * (l + 1)))
    assert log_prior.sum() < -0.01
    assert float(density.penalty().detach()) == pytest.approx(-2 * log_prior.sum())
    density.penalty().backward()
    np.testing.assert_allclose(
        density.coefficients.grad, 4 * l * (l + 1) * values, rtol=1e-5
    )


def test_no_penalty_without_degree(nodes):
    density = DiscreteDensity(nodes)
    density.logits.data.normal_(generator=torch.Generator().manual_seed(0))
    assert density.penalty() == 0


def test_gradient_of_smooth_density(nodes):
    density, _ = smooth_density(nodes, 2, dtype=torch.float64)

    def probabilities(coefficients):
        return torch.func.functional_call(density, {"coefficients": coefficients}, ())

    values = density.coefficients.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(probabilities, (values,))


def test_prior_spreads_log_densities_by_two():
    """As the class says: Σ (2l + 1) / (2l (l + 1)) = 2.02 at degree 6."""
    quadrature = SO3Quadrature.product(SphericalDesign(13), 1)
    density = DiscreteDensity(quadrature, degree=6)
    rng = np.random.default_rng(0)
    sigma = 1 / np.sqrt(density.precision.numpy())
    variances = []
    for _ in range(200):
        density.coefficients.data.copy_(
            torch.from_numpy(sigma * rng.standard_normal(len(sigma)))
        )
        variances.append(np.log(density.probabilities).var())
    # Standard error 0.07.
    assert np.mean(variances) == pytest.approx(2.02, abs=0.25)


@pytest.mark.parametrize("degree", [0, -1, 2.5])
def test_refuses_degrees_below_one(nodes, degree):
    with pytest.raises(ValueError, match=f"degree is {degree}; it must be an integer"):
        DiscreteDensity(nodes, degree=degree)


def test_refuses_a_degree_without_a_quadrature():
    with pytest.raises(ValueError, match="nodes is 10; a smooth density needs"):
        DiscreteDensity(10, degree=4)
