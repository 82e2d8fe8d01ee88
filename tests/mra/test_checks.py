import re

import numpy as np
import pytest

from aspire_mom.mra import (
    FourierMoments,
    GaussianFamily,
    MRAInversion,
    exact_moments,
    forward_moments,
    shift_error,
    simulate_moments,
    solve,
)


def a_problem(n=21, seed=0, N=10**5, sigma=1.0):
    rng = np.random.default_rng(seed)
    v, rho = (x[0] for x in GaussianFamily(2, n=n).draw(1, rng))
    return v, rho, exact_moments(v, rho), simulate_moments(v, rho, N, sigma, rng)


def check_each(first, second, N, sigma):
    for pair in zip(first, second, strict=True):
        MRAInversion(FourierMoments(*pair, N, sigma))


def refused(first, second, message, **settings):
    with pytest.raises(ValueError, match=message) as raised:
        solve(first, second, **settings)
    text = str(raised.value)
    # One sentence, which is not an empty one.
    assert len(text.split()) > 5
    assert not re.search(r"\.\s+[A-Z]", text)


def test_shapes_and_types():
    *_, m, _ = a_problem()
    refused(m.first[:20], m.second, r"shapes \(20,\) and \(21, 21\); they must")
    refused(m.first, m.second[0], r"shapes \(21,\) and \(21,\)")
    refused(m.first[:3], m.second[:3, :3], "n of at least 4")
    refused(m.first.astype(str), m.second, "first has dtype <U")
    refused(m.first, m.second, "method is 'best'; it must be", method="best")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["first", "second"])
def test_values_that_are_not_finite(name, value):
    *_, m, _ = a_problem()
    moments = {"first": m.first.copy(), "second": m.second.copy()}
    moments[name].flat[3] = value
    refused(**moments, message=f"{name} has values that are NaN or infinite")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_observations": 0}, "n_observations is 0"),
        ({"n_observations": 1e6}, "n_observations is 1000000.0"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"sigma": np.nan}, "sigma is nan"),
        ({"sigma": "1"}, "sigma is '1'; it must be a finite number"),
    ],
)
def test_noise_that_is_none(settings, message):
    *_, m, _ = a_problem()
    refused(m.first, m.second, message, **settings)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_signals(value, sigma):
    rho = np.random.default_rng(0).dirichlet(np.ones(20))
    m = simulate_moments(
        np.full(20, value), rho, 10**6, sigma, np.random.default_rng(1)
    )
    refused(
        m.first,
        m.second,
        "signal is constant to within noise",
        n_observations=10**6,
        sigma=sigma,
    )


@pytest.mark.parametrize("n", [20, 41])
def test_uniform_density(n):
    v, *_ = a_problem(n)
    m = exact_moments(v, np.full(n, 1 / n))
    message = "rho is uniform to within noise, or"
    refused(m.first, m.second, message)
    m = simulate_moments(v, np.full(n, 1 / n), 10**5, 3.0, np.random.default_rng(0))
    refused(m.first, m.second, message, n_observations=10**5, sigma=3.0)


@pytest.mark.parametrize("n", [40, 41])
@pytest.mark.parametrize(
    ("sigma", "N"),
    [(0.0, 10**6), (0.03, 10**6), (0.3, 10**6), (1.0, 10**6), (0.3, 999)],
)
def test_uniform_densities_are_told_from_others(n, sigma, N):
    """Even where what stands out of the noise are the shifts that happened to be
    drawn; and no density of the reference family is taken for uniform."""
    for k in (1, 2, 3):
        rng = np.random.default_rng(k)
        v, rho = GaussianFamily(k, n=n).draw(50, rng)
        m = simulate_moments(v, rho, N, sigma, rng)
        check_each(m.first, m.second, N, sigma)
        m = simulate_moments(v, np.full_like(rho, 1 / n), N, sigma, rng)
        for first, second in zip(m.first, m.second, strict=True):
            with pytest.raises(ValueError, match="rho is uniform"):
                MRAInversion(FourierMoments(first, second, N, sigma))


@pytest.mark.parametrize(("n", "p"), [(24, 3), (24, 4), (24, 6), (25, 5), (45, 9)])
@pytest.mark.parametrize("noise", [{}, {"n_observations": 10**6, "sigma": 1.0}])
def test_periodic_densities(n, p, noise):
    rng = np.random.default_rng(0)
    v = 1 + rng.standard_normal(n)
    rho = np.tile(rng.dirichlet(np.ones(n // p)), p) / p
    m = simulate_moments(v, rho, rng=rng, **noise) if noise else exact_moments(v, rho)
    refused(m.first, m.second, "or has a period of", **noise)


def test_what_periodic_densities_leave_open():
    """Period n/3: another v with the same moments. Period n/2: none, so it is not
    refused."""
    rng = np.random.default_rng(0)
    n = 24
    v, k = 1 + rng.standard_normal(n), np.arange(n)
    rho = np.tile(rng.dirichlet(np.ones(8)), 3) / 3
    turned = np.exp(1j * np.array([0, 1, -1]))[k % 3] * np.fft.fft(v)
    other = np.fft.ifft(turned).real
    assert shift_error(v, other) > 0.1
    for a, b in zip(forward_moments(v, rho), forward_moments(other, rho), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)

    rho = np.tile(rng.dirichlet(np.ones(12)), 2) / 2
    m = simulate_moments(v, rho, 10**6, 1.0, rng)
    found, density = solve(m.first, m.second, n_observations=10**6, sigma=1.0)
    assert shift_error(v, found) < 0.01
    assert shift_error(rho, density) < 0.01


def test_densities_just_off_uniform_are_solved():
    v, *_ = a_problem()
    rho = np.full(21, 1 / 21)
    rho[:3] += [1e-4, -2e-4, 1e-4]
    m = exact_moments(v, rho)
    found, density = solve(m.first, m.second)
    assert np.linalg.norm(density - density.mean()) == pytest.approx(
        np.linalg.norm(rho - rho.mean()), rel=1e-3
    )


def test_negative_power():
    *_, m, noisy = a_problem()
    refused(m.first, -m.second, "second has negative power")
    broken = m.second.copy()
    broken[5, 5] = broken[-5, -5] = -0.1
    refused(m.first, broken, "second has negative power, -")
    # Noise is no reason to refuse.
    solve(noisy.first, noisy.second, n_observations=10**5, sigma=1.0, method="marching")


@pytest.mark.parametrize("n", [20, 41, 101])
@pytest.mark.parametrize("excess", [0.05, 1.0])
def test_sigma_larger_than_the_data_allow(n, excess):
    """Noise bias subtracted for a σ² too large by a share."""
    *_, noisy = a_problem(n, N=10**6)
    second = noisy.second - excess * np.eye(n)
    sigma = np.sqrt(1 + excess)
    message = f"sigma = {sigma:.5g}.* is larger than the data allow"
    refused(noisy.first, second, message, n_observations=10**6, sigma=sigma)


@pytest.mark.parametrize("noise", [{}, {"n_observations": 10**5, "sigma": 1.0}])
def test_moments_that_do_not_belong_together(noise):
    *_, exact, noisy = a_problem()
    m = noisy if noise else exact
    for first in (0 * m.first, 2 * m.first, m.first * 21**0.5):
        refused(first, m.second, "first and second do not belong together", **noise)


@pytest.mark.parametrize("given", [{}, {"n_observations": 10**5}])
def test_noise_bias_left_in_exact_moments(given):
    *_, m, _ = a_problem()
    for bias in (0.01, 1.0):
        refused(
            m.first,
            m.second + bias * np.eye(21),
            "sigma² subtracted from the diagonal",
            **given,
        )


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_noise_bias_left_in_noisy_moments(k, sigma):
    rng = np.random.default_rng(0)
    v, rho = GaussianFamily(k).draw(50, rng)
    m = simulate_moments(v, rho, 10**6, sigma, rng)
    check_each(m.first, m.second, 10**6, sigma)
    for first, second in zip(m.first, m.second + sigma**2 * np.eye(41), strict=True):
        with pytest.raises(ValueError, match="sigma² subtracted from the diagonal"):
            MRAInversion(FourierMoments(first, second, 10**6, sigma))


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**60])
@pytest.mark.parametrize("method", ["auto", "spectral", "marching", "least-squares"])
def test_any_scale(scale, method):
    v, rho, exact, noisy = a_problem()
    if method == "spectral":
        # With entries of smooth signals that underflow its answer is another.
        rng = np.random.default_rng(0)
        v = 1 + rng.standard_normal(21)
        exact, noisy = exact_moments(v, rho), simulate_moments(v, rho, 10**5, 1.0, rng)
    for m, noise in ((exact, {}), (noisy, {"n_observations": 10**5, "sigma": 1.0})):
        found, density = solve(m.first, m.second, **noise, method=method)
        noise |= {"sigma": scale} if noise else {}
        v, rho = solve(
            scale * m.first, scale * (scale * m.second), **noise, method=method
        )
        np.testing.assert_allclose(v / scale, found, atol=1e-9)
        np.testing.assert_allclose(rho, density, atol=1e-9)


def test_single_precision():
    v, rho, m, _ = a_problem(n=41)
    first, second = m.first.astype(np.complex64), m.second.astype(np.complex64)
    found = solve(first, second)
    assert shift_error(v, found[0]) < 1e-4
    assert shift_error(rho, found[1]) < 1e-2


def test_moments_of_no_real_signal():
    *_, m, _ = a_problem()
    refused(m.first, m.second + 0.1j, "not those of real signals")
    k = np.fft.fftshift(np.arange(21))
    refused(m.first[k], m.second[k][:, k], "not those of real signals in numpy.fft")
