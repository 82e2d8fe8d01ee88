import numpy as np
import pytest

from aspire_mom.mra import GaussianFamily, forward_moments, simulate_moments
from aspire_mom.mra.least_squares import least_squares
from aspire_mom.mra.misfit import Expansion, Observed, degrees_of_freedom, misfit
from aspire_mom.mra.moments import to_samples


@pytest.mark.parametrize("n", [20, 21])
@pytest.mark.parametrize(("N", "sigma"), [(10**4, 1.0), (10**6, 0.1), (10**5, 10.0)])
def test_misfit_of_the_truth_is_chi_squared(n, N, sigma):
    """200 draws: mean and variance to five standard errors. At the least noise most of
    it is that of the shifts drawn."""
    rng = np.random.default_rng(0)
    v, rho = (x[0] for x in GaussianFamily(2, n=n).draw(1, rng))
    many = [np.broadcast_to(x, (200, n)) for x in (v, rho)]
    m = simulate_moments(*many, N, sigma, rng)
    values = [
        misfit(Observed.from_samples(*pair, N, sigma), v, rho).value
        for pair in zip(*to_samples(m.first, m.second), strict=True)
    ]
    freedom = degrees_of_freedom(n)
    assert freedom == n + n * (n + 1) / 2
    assert np.mean(values) == pytest.approx(freedom, abs=5 * (2 * freedom / 200) ** 0.5)
    assert np.var(values) == pytest.approx(2 * freedom, rel=5 * (2 / 200) ** 0.5)


@pytest.mark.parametrize("n", [20, 21])
def test_expansion_has_the_misfits_slope(n):
    """Against differences, far from the solution, where the slope of what draws of
    shifts add, which is left out, is small beside it."""
    rng = np.random.default_rng(1)
    v, rho = (x[0] for x in GaussianFamily(2, n=n).draw(1, rng))
    m = simulate_moments(v, rho, 10**6, 10.0, rng)
    observed = Observed.from_samples(*to_samples(m.first, m.second), 10**6, 10.0)
    v, rho = 1.05 * v, 0.9 * rho + 0.1 / n
    for _ in range(5):
        step = 1e-5 * rng.standard_normal(2 * n)
        step[n:] -= step[n:].mean()
        at = misfit(observed, v, rho)
        ahead, behind = (
            misfit(observed, v + sign * step[:n], rho + sign * step[n:]).value
            for sign in (1, -1)
        )
        slope = at(at.at + step)[0] - at(at.at - step)[0]
        assert ahead - behind == pytest.approx(slope, rel=0.05)


def test_axes_and_weights():
    """The weights are the inverse variances that the module states, and in the axes the
    second moment about the mean is diagonal."""
    rng = np.random.default_rng(5)
    v, rho = (x[0] for x in GaussianFamily(2, n=20).draw(1, rng))
    first, second = to_samples(*forward_moments(v, rho))
    observed = Observed.from_samples(first, second, 10**6, 0.5)
    covariance = observed.axes.T @ (second - np.outer(first, first)) @ observed.axes
    np.testing.assert_allclose(covariance, np.diag(observed.powers), atol=1e-10)
    edge = 2 * 0.25 * np.sqrt(20 / 10**6)
    powers = np.where(observed.powers > edge, observed.powers, 0)
    variance = (0.25 * (powers[:, None] + powers) + 0.25**2) / 10**6
    np.testing.assert_allclose(observed.weights, 1 / (2 * variance), rtol=1e-9)
    made = observed.factors.T @ observed.factors
    np.testing.assert_allclose(made, observed.weights, rtol=1e-4)


def test_quadratics():
    rng = np.random.default_rng(2)
    v, rho = (x[0] for x in GaussianFamily(2, n=20).draw(1, rng))
    m = simulate_moments(v, rho, 10**6, 1.0, rng)
    observed = Observed.from_samples(*to_samples(m.first, m.second), 10**6, 1.0)
    q = misfit(observed, v, rho)
    x = q.at + 1e-3 * rng.standard_normal((3, 40))
    value, slope = q(x)
    i = np.eye(40) * 1e-4
    numerical = [(q(x[0] + e)[0] - q(x[0] - e)[0]) / 2e-4 for e in i]
    np.testing.assert_allclose(-2 * slope[0], numerical, rtol=1e-5, atol=1e-4)
    # The least value over ρ's entries is below every other.
    least = q.minimised_over(np.eye(40)[20:], slice(0, 20), ridge=0.0)
    for _ in range(20):
        moved = x[0] + np.append(np.zeros(20), 1e-3 * rng.standard_normal(20))
        assert least(x[0, :20])[0] < q(moved)[0]
    assert value.min() > 0


def test_least_squares_reaches_the_noise_from_any_start():
    rng = np.random.default_rng(3)
    v, rho = 1 + rng.standard_normal(20), rng.dirichlet(np.full(20, 2.0))
    m = simulate_moments(v, rho, 10**6, 1.0, rng)
    start = v + 0.1 * rng.standard_normal(20), rng.dirichlet(np.full(20, 9.0))
    moments = to_samples(m.first, m.second)
    before = misfit(Observed.from_samples(*moments, 10**6, 1.0), *start).value
    found = least_squares(moments, *start, 10**6, 1.0)
    assert before > 20 * degrees_of_freedom(20)
    assert found.value < 1.5 * degrees_of_freedom(20)
    assert np.linalg.norm(found.at[:20] - v) < 0.2 * np.linalg.norm(start[0] - v)


@pytest.mark.parametrize("n", [20, 21])
def test_misfit_along_directions_is_part_of_the_whole(n):
    rng = np.random.default_rng(4)
    v, rho = (x[0] for x in GaussianFamily(2, n=n).draw(1, rng))
    m = simulate_moments(v, rho, 10**6, 1.0, rng)
    observed = Observed.from_samples(*to_samples(m.first, m.second), 10**6, 1.0)
    whole, moves = misfit(observed, 1.1 * v, rho), rng.standard_normal((5, n))
    part = Expansion(observed, 1.1 * v, rho).along(moves)
    directions = np.zeros((5 + n, 2 * n))
    directions[:5, :n], directions[5:, n:] = moves, np.eye(n)
    steps = rng.standard_normal((3, 5 + n))
    expected = whole(whole.at + steps @ directions)
    for other in (part.along(np.eye(5 + n)), whole.along(directions)):
        value, slope = other(steps)
        np.testing.assert_allclose(value, expected[0], rtol=1e-8)
        np.testing.assert_allclose(slope, expected[1] @ directions.T, rtol=1e-7)


@pytest.mark.parametrize("n", [20, 21])
def test_more_moves_are_expanded_as_the_first_are(n):
    rng = np.random.default_rng(5)
    v, rho = (x[0] for x in GaussianFamily(2, n=n).draw(1, rng))
    m = simulate_moments(v, rho, 10**6, 1.0, rng)
    observed = Observed.from_samples(*to_samples(m.first, m.second), 10**6, 1.0)
    moves = rng.standard_normal((7, n))
    whole = Expansion(observed, 1.1 * v, rho).along(moves)
    part = Expansion(observed, 1.1 * v, rho)
    value = part.along(moves[:4]).value
    bent, pull, curvature = part.of_others(moves[4:])
    kept = np.r_[:4, 7 : 7 + n]
    np.testing.assert_allclose(bent, whole.hessian[4:7][:, kept], rtol=1e-7, atol=1e-3)
    np.testing.assert_allclose(pull, whole.gradient[4:7], rtol=1e-7)
    np.testing.assert_allclose(curvature, whole.hessian.diagonal()[4:7], rtol=1e-7)
    assert value == pytest.approx(whole.value, rel=1e-12)
    assert value == pytest.approx(misfit(observed, 1.1 * v, rho).value, rel=1e-12)
    # Near by, and there itself, without an expansion of its own.
    assert part.value_near(part) == pytest.approx(value, rel=1e-12)
    near = Expansion(observed, 1.101 * v, rho)
    value = misfit(observed, 1.101 * v, rho).value
    assert near.value_near(part) == pytest.approx(value, rel=1e-3)
