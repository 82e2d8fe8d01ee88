import logging
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aspire_mom.mra import (
    GaussianFamily,
    estimate_moments,
    exact_moments,
    observe,
    relative_errors,
    shift_error,
    simulate_moments,
    solve,
)
from aspire_mom.mra.inversion import NO_FIT
from tests.references import alignment as reference

NOISE = {"n_observations": 10**6, "sigma": 1.0}


def noisy(k, count, seed, **family):
    rng = np.random.default_rng(seed)
    v, rho = GaussianFamily(k, **family).draw(count, rng)
    return v, rho, simulate_moments(v, rho, 10**6, 1.0, rng)


@settings(max_examples=20)
@given(
    n=st.integers(20, 101),
    k=st.integers(1, 3),
    periodic=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_exact_moments_of_the_family(n, k, periodic, seed):
    rng = np.random.default_rng(seed)
    if periodic:
        v, rho = reference.periodic_pairs(k, n, 5, rng)
    else:
        v, rho = GaussianFamily(k, n).draw(5, rng)
    m = exact_moments(v, rho)
    found, density = solve(m.first, m.second)
    assert shift_error(v, found).max() < 1e-6
    # ρ is seen through |v̂|², which one Gaussian of σ = n/10 takes below rounding at
    # frequency 10, where a ρ of σ = n/20 still has a coefficient of 0.007.
    assert np.median(shift_error(rho, density)) < (1e-3 if k == 1 else 1e-6)
    assert (
        max(e.max() for e in relative_errors(found, density, m.first, m.second)) < 1e-5
    )
    check_conventions(found, density, m.first)


def check_conventions(v, rho, first):
    n = v.shape[-1]
    assert v.dtype == rho.dtype == np.float64
    assert rho.min() >= 0
    np.testing.assert_allclose(rho.sum(-1), 1)
    np.testing.assert_allclose(v.mean(-1), first[..., 0].real / np.sqrt(n), atol=1e-9)
    mean = np.angle(np.fft.fft(rho)[..., 1]) * n / (2 * np.pi)
    assert np.abs(mean).max() < 0.5 + 1e-5


@settings(max_examples=40)
@given(
    n=st.integers(20, 60),
    kind=st.sampled_from(
        ["rough", "zero mean", "gap", "no first", "sparse", "half period"]
    ),
    seed=st.integers(0, 10**6),
)
def test_exact_moments_of_any_signal(n, kind, seed):
    """Moments from the defining sums; signals and densities of no family, with what
    marching cannot pass: a spectrum without its mean or its lowest frequency, a ρ
    without its odd ones."""
    rng = np.random.default_rng(seed)
    n += n % 2 if kind == "half period" else 0
    v = rng.standard_normal(n) + 1
    rho = rng.dirichlet(np.full(n, 0.2 if kind == "sparse" else 1.0))
    if kind == "half period":
        rho = (rho + np.roll(rho, n // 2)) / 2
    elif kind != "rough":
        v_hat = np.fft.rfft(v)
        v_hat[{"zero mean": [0], "gap": [3, 4], "no first": [1]}.get(kind, [])] = 0
        v = np.fft.irfft(v_hat, n)
    first, second = reference.moments(v, rho)
    found, density = solve(first, second)
    errors = relative_errors(found, density, first, second)
    assert max(errors) < 1e-6
    # What goes with these errors is larger where the path to v is indirect.
    tolerance = 1e-4 if kind in ("no first", "half period") else 1e-6
    assert shift_error(v, found) < tolerance
    assert shift_error(rho, density) < tolerance


def test_answers_that_do_not_meet_exact_moments_are_warned_of(caplog, monkeypatch):
    """Said once where the answer does not meet them, and only there."""
    # Importing aspire, as other tests do, switches off the loggers there are.
    logger = logging.getLogger("aspire_mom.mra.inversion")
    monkeypatch.setattr(logger, "disabled", False)
    rng = np.random.default_rng(0)
    v, rho = GaussianFamily(2, n=20).draw(2, rng)
    m = exact_moments(v, rho)
    solve(m.first, m.second)
    assert not caplog.records
    # Half of the data are of one signal, half of another.
    solve(m.first.mean(0), m.second.mean(0))
    assert [r.message for r in caplog.records] == [NO_FIT]


@pytest.mark.parametrize("method", ["spectral", "marching", "least-squares"])
def test_flat_spectra_suit_every_method(method):
    """|v̂(k)| = 1, the case of section 4.1, in which eigenvalues are ρ's values."""
    rng = np.random.default_rng(0)
    for n in (20, 41):
        v = np.fft.ifft(np.exp(1j * np.angle(np.fft.fft(rng.standard_normal(n))))).real
        v *= np.sqrt(n)
        rho = rng.dirichlet(np.ones(n))
        found, density = solve(*reference.moments(v, rho), method=method)
        assert shift_error(v, found) < 1e-8
        assert shift_error(rho, density) < 1e-8


@pytest.mark.parametrize(
    ("k", "goals"), [(1, (0.0032, 0.006)), (2, (0.0065, 0.011)), (3, (0.010, 0.016))]
)
def test_noisy_moments(k, goals):
    """8 fresh instances; goals are those for medians of 200, which the benchmark
    passes by a factor of 4 and more. Marching must be worse."""
    v, rho, m = noisy(k, 8, seed=k)
    found, density = solve(m.first, m.second, **NOISE)
    errors = shift_error(v, found), shift_error(rho, density)
    assert np.median(errors[0]) < goals[0]
    assert np.median(errors[1]) < goals[1]
    assert (errors[0] > 1e-6).all()
    marched, marched_density = solve(m.first, m.second, **NOISE, method="marching")
    assert np.median(errors[0]) < np.median(shift_error(v, marched))
    assert np.median(errors[1]) < np.median(shift_error(rho, marched_density))
    assert np.median(shift_error(v, marched)) < 2 * goals[0]
    check_conventions(found, density, m.first)


def test_noisy_moments_of_another_kind_of_signal():
    """Rough signals are no mixtures of few Gaussians: as good as marching has them,
    whose errors at this noise are known to be near 2e-3."""
    rng = np.random.default_rng(0)
    v, rho = 1 + rng.standard_normal((3, 24)), rng.dirichlet(np.ones(24), 3)
    m = simulate_moments(v, rho, 10**6, 1.0, rng)
    found, density = solve(m.first, m.second, **NOISE)
    assert shift_error(v, found).max() < 0.02
    assert shift_error(rho, density).max() < 0.05


@pytest.mark.parametrize("scale", [-1.0, 10.0])
def test_units_of_noisy_data_do_not_matter(scale):
    """Nor does the sign: v, which Gaussians are fitted to, may be negative."""
    v, rho, m = noisy(2, 1, seed=3)
    noise = {"n_observations": m.n_observations}
    found = solve(m.first[0], m.second[0], sigma=m.sigma, **noise)
    assert shift_error(v[0], found[0]) < 0.01
    again = solve(
        scale * m.first[0], scale**2 * m.second[0], sigma=abs(scale) * m.sigma, **noise
    )
    np.testing.assert_allclose(again[0], scale * found[0], atol=1e-6 * abs(scale))
    np.testing.assert_allclose(again[1], found[1], atol=1e-6)


def test_noisy_signals_below_zero():
    """A base line is no Gaussian, but no reason to fail either."""
    rng = np.random.default_rng(1)
    v, rho = GaussianFamily(2).draw(1, rng)
    m = simulate_moments(-v[0] - 1, rho[0], 10**6, 1.0, rng)
    found = solve(m.first, m.second, n_observations=10**6, sigma=1.0)
    assert shift_error(-v[0] - 1, found[0]) < 0.01


def test_from_observations_to_answer():
    """Everything streamed, σ estimated."""
    rng = np.random.default_rng(0)
    v, rho = (x[0] for x in GaussianFamily(1, n=24).draw(1, rng))
    m = estimate_moments(observe(v, rho, 200_000, 1.0, rng))
    found, density = solve(
        m.first, m.second, n_observations=m.n_observations, sigma=m.sigma
    )
    assert shift_error(v, found) < 0.01
    assert shift_error(rho, density) < 0.01


def moved(m, by):
    """Moments of data shifted by `by` samples to the right."""
    n = m.first.shape[-1]
    phase = np.exp(-2j * np.pi / n * by * np.fft.fftfreq(n, 1 / n))
    return m.first * phase, m.second * phase[:, None] * phase.conj()


@settings(max_examples=15)
@given(
    n=st.integers(20, 101),
    by=st.integers(-60, 60),
    seed=st.integers(0, 999),
    method=st.sampled_from(["auto", "marching", "spectral"]),
)
def test_shifting_exact_data_shifts_the_answer(n, by, seed, method):
    rng = np.random.default_rng(seed)
    v, rho = 1 + rng.standard_normal(n), rng.dirichlet(np.ones(n))
    m = exact_moments(v, rho)
    found, density = solve(m.first, m.second, method=method)
    shifted = solve(*moved(m, by), method=method)
    np.testing.assert_allclose(shifted[0], np.roll(found, by), atol=1e-7)
    np.testing.assert_allclose(shifted[1], density, atol=1e-7)


@pytest.mark.parametrize("n", [24, 25])
def test_shifting_noisy_data_shifts_the_answer(n):
    _, _, m = noisy(2, 2, seed=1, n=n)
    found, density = solve(m.first, m.second, **NOISE)
    shifted = solve(*moved(m, 7), **NOISE)
    np.testing.assert_allclose(shifted[0], np.roll(found, 7, -1), atol=1e-3)
    np.testing.assert_allclose(shifted[1], density, atol=1e-4)


@settings(max_examples=15)
@given(
    n=st.integers(20, 101),
    seed=st.integers(0, 999),
    method=st.sampled_from(["auto", "marching", "spectral"]),
)
def test_reversing_the_data_reverses_the_answer(n, seed, method):
    rng = np.random.default_rng(seed)
    v, rho = 1 + rng.standard_normal(n), rng.dirichlet(np.ones(n))
    m = exact_moments(v, rho)
    found, density = solve(m.first, m.second, method=method)
    v_back, rho_back = solve(m.first.conj(), m.second.conj(), method=method)
    back = -np.arange(n) % n
    np.testing.assert_allclose(v_back, found[back], atol=1e-7)
    np.testing.assert_allclose(rho_back, density[back], atol=1e-7)


@settings(max_examples=5)
@given(n=st.integers(20, 40), seed=st.integers(0, 999))
def test_permuting_observations_changes_nothing(n, seed):
    rng = np.random.default_rng(seed)
    v, rho = (x[0] for x in GaussianFamily(2, n=n).draw(1, rng))
    y = np.concatenate(list(observe(v, rho, 20_000, 1.0, rng)))
    answers = []
    for data in (y, rng.permutation(y)):
        m = estimate_moments(np.array_split(data, 7), sigma=1.0)
        noise = {"n_observations": 20_000, "sigma": 1.0}
        answers.append(solve(m.first, m.second, **noise, method="marching"))
    np.testing.assert_allclose(answers[0][0], answers[1][0], atol=1e-7)
    np.testing.assert_allclose(answers[0][1], answers[1][1], atol=1e-7)


def test_batches_are_solved_one_by_one():
    v, rho, m = noisy(1, 4, seed=3, n=20)
    together = solve(m.first.reshape(2, 2, 20), m.second.reshape(2, 2, 20, 20), **NOISE)
    for i in range(4):
        alone = solve(m.first[i], m.second[i], **NOISE)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i // 2, i % 2], b, atol=1e-8)


def test_warnings_outlive_an_import_of_aspire():
    """In a process of its own, where ASPIRE, which disables loggers that exist, is
    imported after the package."""
    code = (
        "import aspire_mom.mra, logging, aspire;"
        "assert not logging.getLogger('aspire_mom.mra.inversion').disabled"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
