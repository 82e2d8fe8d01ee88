import numpy as np
import pytest

from aspire_mom.mra import (
    GaussianFamily,
    em,
    expectation_maximisation,
    observe,
    shift_error,
)


def data(n=20, N=4000, sigma=1.0, seed=0):
    rng = np.random.default_rng(seed)
    v, rho = (x[0] for x in GaussianFamily(1, n=n).draw(1, rng))
    return v, rho, np.concatenate(list(observe(v, rho, N, sigma, rng))), rng


def log_likelihood(y, v, rho, sigma):
    """Up to a constant, shift by shift."""
    terms = [
        np.log(p + 1e-300) - ((y - np.roll(v, s)) ** 2).sum(1) / (2 * sigma**2)
        for s, p in enumerate(rho)
    ]
    return np.logaddexp.reduce(terms, axis=0).sum()


def test_every_step_raises_the_likelihood():
    v, rho, y, rng = data()
    pair, values = (1 + rng.standard_normal(20), np.full(20, 1 / 20)), []
    for _ in range(8):
        pair = expectation_maximisation(y, 1.0, *pair, n_steps=1)
        values.append(log_likelihood(y, *pair, 1.0))
    assert (np.diff(values) > 0).all()


@pytest.mark.parametrize("n", [20, 21])
def test_converges_near_the_truth(n, monkeypatch):
    """v's error is that of averaging aligned data, √(n/N) σ/‖v‖ = 0.01, and ρ's that
    of counting, to a factor of 3."""
    v, rho, y, rng = data(n)
    start = v + 0.3 * rng.standard_normal(n)
    monkeypatch.setattr(em, "BATCH_SIZE", 999)
    found, density = expectation_maximisation(y, 1.0, start)
    assert shift_error(v, found) < 3 * np.sqrt(n / 4000) / np.linalg.norm(v)
    assert shift_error(rho, density) < 3 / np.sqrt(4000) / np.linalg.norm(rho)
    assert density.sum() == pytest.approx(1)
    one_more, _ = expectation_maximisation(y, 1.0, found, density, n_steps=1)
    assert np.linalg.norm(one_more - found) < 1e-5 * np.linalg.norm(found)


def test_refusals():
    v, rho, y, _ = data()
    with pytest.raises(ValueError, match=r"shapes \(4000, 20\) and \(19,\)"):
        expectation_maximisation(y, 1.0, v[1:])
    with pytest.raises(ValueError, match="sigma is 0.0; it must be a positive number"):
        expectation_maximisation(y, 0.0, v)
    with pytest.raises(ValueError, match=r"shapes \(4000, 20\) and \(2, 20\)"):
        expectation_maximisation(y, 1.0, np.ones((2, 20)))
    with pytest.raises(ValueError, match=r"shapes \(20,\) and \(19,\)"):
        expectation_maximisation(y, 1.0, v, rho[1:])
    with pytest.raises(ValueError, match="it must be 0 or more and sum to one"):
        expectation_maximisation(y, 1.0, v, 2 * rho)
    with pytest.raises(ValueError, match=r"shapes \(0, 20\)"):
        expectation_maximisation(y[:0], 1.0, v)
    with pytest.raises(ValueError, match="observations have values that are NaN"):
        expectation_maximisation(np.where(y > 2, np.nan, y), 1.0, v)
    with pytest.raises(ValueError, match="v or rho has values that are NaN"):
        expectation_maximisation(y, 1.0, v * np.nan)
