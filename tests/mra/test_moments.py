import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from aspire_mom.mra import (
    GaussianFamily,
    estimate_moments,
    forward_moments,
    observe,
    relative_errors,
    simulate_moments,
)
from aspire_mom.mra.moments import to_fourier, to_samples
from tests.references import alignment as reference

SIZES = [20, 21, 41]


def a_pair(n, seed=0, batch=()):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((*batch, n)), rng.dirichlet(np.ones(n), batch)


@settings(max_examples=20)
@given(n=st.integers(20, 101), seed=st.integers(0, 99))
def test_forward_moments_are_the_defining_sums(n, seed):
    v, rho = a_pair(n, seed)
    first, second = forward_moments(v, rho)
    expected = reference.moments(v, rho)
    np.testing.assert_allclose(first, expected[0], atol=1e-11)
    np.testing.assert_allclose(second, expected[1], atol=1e-11)


@pytest.mark.parametrize("n", SIZES)
def test_sign_and_order(n):
    """One shift s with certainty: phases exp(-2πi k s/n) in fftfreq's order."""
    v, _ = a_pair(n)
    first, _ = forward_moments(v, np.eye(n)[3])
    k = np.fft.fftfreq(n, 1 / n)
    v_hat = np.fft.fft(v) / np.sqrt(n)
    np.testing.assert_allclose(first, np.exp(-2j * np.pi * k * 3 / n) * v_hat)
    assert first[0] == pytest.approx(np.sqrt(n) * v.mean())


def test_batches_and_torch_agree_and_differentiate():
    v, rho = a_pair(21, batch=(2, 3))
    first, second = forward_moments(v, rho)
    one = forward_moments(v[1, 2], rho[1, 2])
    np.testing.assert_allclose(second[1, 2], one[1])
    tensors = [torch.tensor(x, requires_grad=True) for x in (v, rho)]
    for array, tensor in zip((first, second), forward_moments(*tensors), strict=True):
        np.testing.assert_allclose(tensor.detach().numpy(), array, atol=1e-12)
    small = [torch.tensor(x[0, 0, :6].copy(), requires_grad=True) for x in (v, rho)]
    assert torch.autograd.gradcheck(
        lambda *pair: [torch.view_as_real(m) for m in forward_moments(*pair)], small
    )


@pytest.mark.parametrize("n", SIZES)
def test_to_fourier_and_back(n):
    v, rho = a_pair(n, batch=(2,))
    moved = np.stack([np.roll(v, s, axis=1) for s in range(n)], axis=1)
    first = np.einsum("bs,bsj->bj", rho, moved)
    second = np.einsum("bs,bsj,bsk->bjk", rho, moved, moved)
    for values, expected in zip(
        to_fourier(first, second), forward_moments(v, rho), strict=True
    ):
        np.testing.assert_allclose(values, expected, atol=1e-12)
    for values, expected in zip(
        to_samples(*to_fourier(first, second)), (first, second), strict=True
    ):
        np.testing.assert_allclose(values, expected, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 1.5])
@pytest.mark.parametrize("given_sigma", [True, False])
def test_estimates_are_averages(sigma, given_sigma):
    rng = np.random.default_rng(1)
    v, rho = (x[0] for x in GaussianFamily(2, n=24).draw(1, rng))
    batches = list(observe(v, rho, 1000, sigma, rng, batch_size=170))
    m = estimate_moments(batches, sigma=sigma if given_sigma else None)
    y = np.concatenate(batches) @ reference.fourier_matrix(24)
    second = y.T @ y.conj() / 1000 - m.sigma**2 * np.eye(24)
    np.testing.assert_allclose(m.first, y.mean(0), atol=1e-10)
    np.testing.assert_allclose(m.second, second, atol=1e-10)
    assert m.n_observations == 1000
    assert m.sigma == pytest.approx(sigma, rel=0.06, abs=0.1)


def test_error_falls_as_one_over_root_n():
    """Relative errors (eq. 22) against exact moments at N and 100 N, 20 draws each."""
    rng = np.random.default_rng(2)
    v, rho = GaussianFamily(2).draw(20, rng)
    errors = [
        np.mean(relative_errors(v, rho, m.first, m.second), axis=1)
        for m in (simulate_moments(v, rho, N, 1.0, rng) for N in (10**4, 10**6))
    ]
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.3)
    assert (errors[1] > 1e-4).all()
    assert (errors[1] < 1e-2).all()


@pytest.mark.parametrize("n", [20, 41])
def test_estimated_noise_level(n):
    """Within 1 %: 6 standard errors σ/√(2 N n/8), and what signal leaks in."""
    rng = np.random.default_rng(3)
    v, rho = (x[0] for x in GaussianFamily(1, n=n).draw(1, rng))
    sigma = estimate_moments(observe(v, rho, 40_000, 1.0, rng, batch_size=5000)).sigma
    assert sigma == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("N", [12, 400])
def test_simulated_moments_have_the_distribution_of_streamed_ones(N):
    """
    Entries, their products with one another and the estimates of σ-free functionals
    are alike in distribution (Kolmogorov-Smirnov, 30 tests): also for N below n, where
    the Wishart matrix is singular.
    """
    n, draws, rng = 8, 2000, np.random.default_rng(4)
    v, rho = rng.standard_normal(n), rng.dirichlet(np.ones(n))
    rho[2] = 0
    rho /= rho.sum()
    many = [np.broadcast_to(x, (draws, n)) for x in (v, rho)]
    simulated = simulate_moments(*many, N, 0.7, rng)
    streamed = [
        estimate_moments(observe(v, rho, N, 0.7, rng), sigma=0.7) for _ in range(draws)
    ]
    a = to_samples(simulated.first, simulated.second)
    b = to_samples(
        np.stack([m.first for m in streamed]), np.stack([m.second for m in streamed])
    )
    directions = rng.standard_normal((10, n))
    for u in directions:
        values = [
            (first @ u, second @ u @ u, second @ u @ u - (first @ u) ** 2)
            for first, second in (a, b)
        ]
        for x, y in zip(*values, strict=True):
            assert ks_2samp(x, y).pvalue > 1e-4
    # A known matrix minus σ²I: its eigenvalues say that the rank is right.
    spectrum = np.linalg.eigvalsh(a[1] + 0.49 * np.eye(n))
    assert (spectrum > -1e-12).all()
    assert spectrum.max() > 0.1


@pytest.mark.parametrize("n", [8, 9])
def test_low_frequencies_simulated_alone(n):
    """As in a simulation of all of them (Kolmogorov-Smirnov); the others are 0."""
    rng = np.random.default_rng(5)
    v, rho = rng.standard_normal(n), rng.dirichlet(np.ones(n))
    many = [np.broadcast_to(x, (2000, n)) for x in (v, rho)]
    few, every = (
        simulate_moments(*many, 300, 0.7, rng, highest=highest) for highest in (2, None)
    )
    k = np.fft.fftfreq(n, 1 / n)
    assert np.abs(few.first[:, np.abs(k) > 2]).max() < 1e-12
    assert np.abs(few.second[:, np.abs(k) > 2]).max() < 1e-12
    pairs = [(few.first[:, 2], every.first[:, 2])]
    pairs += [
        (few.second[:, k, l], every.second[:, k, l]) for k, l in ((1, 0), (2, -1))
    ]
    pairs.append((few.second[:, 2, 2], every.second[:, 2, 2]))
    for a, b in pairs:
        assert ks_2samp(a.real, b.real).pvalue > 1e-4
        assert ks_2samp(a.imag, b.imag).pvalue > 1e-4 or np.abs(b.imag).max() < 1e-9


def test_relative_errors_are_equation_22():
    v, rho = a_pair(9)
    first, second = forward_moments(v, rho)
    errors = relative_errors(v, rho, 2 * first, second + 0.25)
    assert errors[0] == pytest.approx(0.5)
    assert errors[1] == pytest.approx(0.25 * 9 / np.linalg.norm(second + 0.25))


@pytest.mark.parametrize(
    ("batches", "sigma", "message"),
    [
        ([], 1.0, "there are no observations"),
        ([np.ones((3, 4)), np.ones((3, 5))], 1.0, r"batch 1 has shape \(3, 5\)"),
        ([np.ones(4)], 1.0, r"batch 0 has shape \(4,\)"),
        ([np.full((2, 4), np.inf)], 1.0, "batch 0 has values that are NaN or inf"),
        ([np.ones((9, 4))], None, "batches of 9 and 0 observations"),
    ],
)
def test_observations_without_moments(batches, sigma, message):
    with pytest.raises(ValueError, match=message):
        estimate_moments(batches, sigma=sigma)
