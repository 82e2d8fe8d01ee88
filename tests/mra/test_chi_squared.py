import numpy as np
import pytest

from aspire_mom.mra import FourierMoments, GaussianFamily, simulate_moments
from aspire_mom.mra.chi_squared import (
    ShiftSampling,
    WhitenedMoments,
    least_squares,
)


@pytest.mark.parametrize("n", [20, 21])
@pytest.mark.parametrize(("N", "sigma"), [(10**4, 1.0), (10**6, 0.1), (10**5, 10.0)])
def test_chi_squared_of_the_truth(n, N, sigma):
    """200 draws: mean and variance to five standard errors. At the least noise most of
    it is that of the shifts drawn."""
    rng = np.random.default_rng(0)
    v, rho = (x[0] for x in GaussianFamily(2, n=n).draw(1, rng))
    many = [np.broadcast_to(x, (200, n)) for x in (v, rho)]
    m = simulate_moments(*many, N, sigma, rng)
    values = [
        ShiftSampling(
            WhitenedMoments(FourierMoments(*pair, N, sigma)), v, rho
        ).chi_squared
        for pair in zip(m.first, m.second, strict=True)
    ]
    freedom = n + n * (n + 1) / 2
    assert np.mean(values) == pytest.approx(freedom, abs=5 * (2 * freedom / 200) ** 0.5)
    assert np.var(values) == pytest.approx(2 * freedom, rel=5 * (2 / 200) ** 0.5)


@pytest.mark.parametrize("n", [20, 21])
def test_jacobian(n):
    rng = np.random.default_rng(1)
    v, rho = (x[0] for x in GaussianFamily(2, n=n).draw(1, rng))
    m = simulate_moments(v, rho, 10**6, 1.0, rng)
    data = WhitenedMoments(m)
    by_v, by_rho = rng.standard_normal((2, 3, n))
    by_rho -= by_rho.mean(-1, keepdims=True)
    found = data.jacobian(v, rho, by_v, by_rho)
    moves = [(x, 0 * x) for x in by_v] + [(0 * x, x) for x in by_rho]
    for row, (dv, drho) in zip(found, moves, strict=True):
        ahead, behind = (
            data.residuals(v + h * dv, rho + h * drho) for h in (1e-5, -1e-5)
        )
        np.testing.assert_allclose(row, (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-3)


def test_whitening_is_that_of_the_covariance():
    rng = np.random.default_rng(2)
    v, rho = (x[0] for x in GaussianFamily(2, n=8).draw(1, rng))
    m = simulate_moments(v, rho, 10**5, 0.1, rng)
    data = WhitenedMoments(m)
    centred = data._shifts(v, rho)[1]
    each = data._joined(centred, centred[:, :, None] * centred[:, None])
    centred = each - rho @ each
    covariance = np.eye(44) + centred.T @ (rho[:, None] * centred) / 10**5
    r = rng.standard_normal((3, 44))
    whitened = ShiftSampling(data, v, rho).whiten(r)
    np.testing.assert_allclose(
        whitened @ whitened.T, r @ np.linalg.solve(covariance, r.T), rtol=1e-6
    )


def test_least_squares_reaches_the_noise_from_any_start():
    rng = np.random.default_rng(3)
    v, rho = 1 + rng.standard_normal(20), rng.dirichlet(np.full(20, 2.0))
    m = simulate_moments(v, rho, 10**6, 1.0, rng)
    start = v + 0.1 * rng.standard_normal(20), rng.dirichlet(np.full(20, 9.0))
    data = WhitenedMoments(m)
    assert np.sum(data.residuals(*start) ** 2) > 20 * len(data.values)
    found, density, squares = least_squares(data, *start)
    assert squares < 1.5 * len(data.values)
    assert squares == pytest.approx(np.sum(data.residuals(found, density) ** 2))
    assert density.sum() == pytest.approx(1)
    assert np.linalg.norm(found - v) < 0.2 * np.linalg.norm(start[0] - v)
