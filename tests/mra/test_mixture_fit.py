"""The fit of Gaussians that a network starts."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from aspire_mom.mra import (
    FourierMoments,
    GaussianFamily,
    shift_error,
    simulate_moments,
    solve,
)
from aspire_mom.mra.chi_squared import ShiftSampling, WhitenedMoments
from aspire_mom.mra.mixture_fit import PERIODIC, _Mixture, fit_mixture

NOISE = {"n_observations": 10**6, "sigma": 1.0}
GOALS = {1: (0.0032, 0.006), 2: (0.0065, 0.011), 3: (0.010, 0.016)}


def two_gaussians(n, window=0, density=False):
    """Of standard deviations 2 and 2.5, and masses √2π and 2√2π."""
    parameters = np.array([[9.0, 13.0], np.log([2.0, 2.5]), np.log([1.0, 2.0])])
    return _Mixture(parameters, 0, n, density).in_window(window)


@pytest.mark.parametrize("density", [False, True])
@pytest.mark.parametrize("window", [PERIODIC, 0, 3, 11, 20])
@pytest.mark.parametrize("n", [24, 25])
def test_mixtures_are_gaussians_on_a_window(n, window, density):
    mixture = two_gaussians(n, window, density)
    expected = np.zeros(n)
    for centre, width, mass in ((9, 2, 1), (13, 2.5, 2)):
        for j in range(n):
            if window == PERIODIC:
                x = j + n * np.arange(-2, 3)
            else:
                # In the window [window - 1/2, window - 1/2 + n).
                centre = centre if centre >= window - 0.5 else centre + n
                x = np.array([j if j >= window else j + n])
            expected[j] += mass * np.sqrt(2 * np.pi) * norm.pdf(x, centre, width).sum()
    if density:
        expected /= expected.sum()
    tolerance = 1e-5 if window == PERIODIC else 1e-12
    np.testing.assert_allclose(mixture.curve, expected, atol=tolerance)


@pytest.mark.parametrize("density", [False, True])
@pytest.mark.parametrize("window", [PERIODIC, 0, 11])
def test_derivatives(window, density):
    mixture = two_gaussians(24, window, density)
    for i, by in enumerate(mixture.derivatives()):
        step = np.zeros(6)
        step[i] = 1e-6
        ahead, behind = (
            replace(mixture, parameters=mixture.parameters + s * step.reshape(3, 2))
            for s in (1, -1)
        )
        np.testing.assert_allclose(by, (ahead.curve - behind.curve) / 2e-6, atol=2e-5)


def noisy(k, count, seed, n=41):
    rng = np.random.default_rng(seed)
    v, rho = GaussianFamily(k, n).draw(count, rng)
    return v, rho, simulate_moments(v, rho, 10**6, 1.0, rng)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_fits_are_good_and_close(k):
    """Most of 8 fresh problems; in these, v and ρ to the goals for medians."""
    v, rho, m = noisy(k, 8, seed=20 + k)
    problems = [
        FourierMoments(*pair, **NOISE) for pair in zip(m.first, m.second, strict=True)
    ]
    fits = [fit_mixture(problem) for problem in problems]
    good = [i for i, (*_, fit) in enumerate(fits) if fit.good]
    assert len(good) >= 7
    for i in good:
        found, density, fit = fits[i]
        assert shift_error(v[i], found) < 3 * GOALS[k][0]
        assert shift_error(rho[i], density) < 3 * GOALS[k][1]
        data = WhitenedMoments(problems[i])
        value = ShiftSampling(data, found, density).chi_squared
        assert fit.sampling.chi_squared == pytest.approx(value)
        expected = len(data.values)
        assert abs(value - expected) < 5 * np.sqrt(2 * expected)
        # Centres, widths and a window of each, and v's mass.
        n_parameters = (fit.bic - value) / np.log(expected)
        assert round(n_parameters) in [4 * count + 2 for count in (1, 2, 3)]


@pytest.mark.parametrize("n", [20, 41])
def test_shifting_reversing_and_turning_the_data_over(n):
    _, _, m = noisy(2, 2, seed=1, n=n)
    found, density = solve(m.first, m.second, **NOISE, method="mixture")
    turn = np.exp(-2j * np.pi / n * 7 * np.fft.fftfreq(n, 1 / n))
    back = -np.arange(n) % n
    for first, second, expected in (
        (
            m.first * turn,
            m.second * turn[:, None] * turn.conj(),
            (np.roll(found, 7, -1), density),
        ),
        (m.first.conj(), m.second.conj(), (found[:, back], density[:, back])),
        (-m.first, m.second, (-found, density)),
    ):
        other = solve(first, second, **NOISE, method="mixture")
        for a, b in zip(other, expected, strict=True):
            assert np.linalg.norm(a - b) < 1e-8 * np.linalg.norm(b)


def test_few_samples_are_left_to_least_squares():
    v, rho, m = noisy(1, 1, seed=2, n=18)
    assert fit_mixture(FourierMoments(m.first[0], m.second[0], **NOISE)) is None
    found, density = solve(m.first, m.second, **NOISE)
    assert shift_error(v, found) < 0.01
    assert shift_error(rho, density) < 0.02


def test_signals_of_another_kind_are_left_to_least_squares():
    """Four Gaussians and a base line: no fit of three at most is good."""
    rng = np.random.default_rng(3)
    v, rho = (x[0] for x in GaussianFamily(4).draw(1, rng))
    m = simulate_moments(v + 1, rho, 10**6, 1.0, rng)
    assert not fit_mixture(m)[2].good
    best = solve(m.first, m.second, **NOISE)
    other = solve(m.first, m.second, **NOISE, method="least-squares")
    assert shift_error(v + 1, best[0]) < 1.01 * shift_error(v + 1, other[0])
    assert shift_error(rho, best[1]) < 1.01 * shift_error(rho, other[1])


def test_numbers_of_gaussians_may_differ():
    """One in v and three in ρ."""
    rng = np.random.default_rng(4)
    v, rho = GaussianFamily(1).draw(4, rng)[0], GaussianFamily(3).draw(4, rng)[1]
    m = simulate_moments(v, rho, 10**6, 1.0, rng)
    found, density = solve(m.first, m.second, **NOISE)
    assert np.median(shift_error(v, found)) < 0.001
    assert np.median(shift_error(rho, density)) < 0.005
