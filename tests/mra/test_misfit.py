import numpy as np
import pytest

from aspire_mom.mra import GaussianFamily, forward_moments, simulate_moments
from aspire_mom.mra.least_squares import least_squares
from aspire_mom.mra.misfit import degrees_of_freedom, misfit
from aspire_mom.mra.moments import to_fourier, to_samples


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
        misfit(pair, v, rho, N, sigma).value
        for pair in zip(*to_samples(m.first, m.second), strict=True)
    ]
    freedom = degrees_of_freedom(n)
    assert freedom == n + n * (n + 1) / 2
    assert np.mean(values) == pytest.approx(freedom, abs=5 * (2 * freedom / 200) ** 0.5)
    assert np.var(values) == pytest.approx(2 * freedom, rel=5 * (2 / 200) ** 0.5)


def test_expansion_has_the_misfits_slope():
    """Against differences, weights being held by evaluating close by. The slope of the
    weights themselves is of the order of the residual and small beside it far off."""
    rng = np.random.default_rng(1)
    v, rho = (x[0] for x in GaussianFamily(2, n=20).draw(1, rng))
    m = simulate_moments(v, rho, 10**6, 1.0, rng)
    moments = to_samples(m.first, m.second)
    # Data move instead of the point: weights stay the same.
    at = misfit(moments, v, rho, 10**6, 1.0)
    step = 1e-6 * rng.standard_normal(40)
    step[20:] -= step[20:].mean()
    changed = [
        misfit(
            to_samples(*_moments_moved(moments, v, rho, sign * step)),
            v,
            rho,
            10**6,
            1.0,
        ).value
        for sign in (1, -1)
    ]
    expected = [at(at.at + sign * step)[0] for sign in (1, -1)]
    np.testing.assert_allclose(
        changed[0] - changed[1], expected[0] - expected[1], rtol=1e-4
    )


def _moments_moved(moments, v, rho, step):
    first, second = to_fourier(*moments)
    old, new = forward_moments(v, rho), forward_moments(v + step[:20], rho + step[20:])
    return first - (new[0] - old[0]), second - (new[1] - old[1])


def test_quadratics():
    rng = np.random.default_rng(2)
    v, rho = (x[0] for x in GaussianFamily(2, n=20).draw(1, rng))
    m = simulate_moments(v, rho, 10**6, 1.0, rng)
    q = misfit(to_samples(m.first, m.second), v, rho, 10**6, 1.0)
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
    before = misfit(moments, *start, 10**6, 1.0).value
    found = least_squares(moments, *start, 10**6, 1.0)
    assert before > 20 * degrees_of_freedom(20)
    assert found.value < 1.5 * degrees_of_freedom(20)
    assert np.linalg.norm(found.at[:20] - v) < 0.2 * np.linalg.norm(start[0] - v)


def test_misfit_along_directions_is_part_of_the_whole():
    rng = np.random.default_rng(4)
    v, rho = (x[0] for x in GaussianFamily(2, n=21).draw(1, rng))
    m = simulate_moments(v, rho, 10**6, 1.0, rng)
    data = to_samples(m.first, m.second), 1.1 * v, rho, 10**6, 1.0
    whole, moves = misfit(*data), rng.standard_normal((5, 42))
    part, steps = misfit(*data, moves), rng.standard_normal((3, 5))
    for a, b in zip(part(steps), whole(whole.at + steps @ moves), strict=True):
        expected = b if b.ndim == 1 else b @ moves.T
        np.testing.assert_allclose(a, expected, rtol=1e-9)
