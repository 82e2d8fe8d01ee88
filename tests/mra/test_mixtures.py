import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from aspire_mom.mra import GaussianFamily, exact_moments, shift, shift_error
from aspire_mom.mra.curves import NO_CUT, Curves, at_windows, in_all_windows
from aspire_mom.mra.density import density_of_shifts
from aspire_mom.mra.gauge import fix_gauge, shift_pair, to_distribution
from aspire_mom.mra.misfit import Quadratic
from aspire_mom.mra.mixtures import grow, single_gaussians
from aspire_mom.mra.prior import jumps


def some_curves(n=24, density=False, offset=0.3):
    """Two Gaussians in each of: no cut, cut at 0, cut between them."""
    parameters = [
        [c, c + 7, np.log(2.0), np.log(3.0), 0.2, -0.5, offset * (w != NO_CUT)]
        for c, w in ((20.2, NO_CUT), (1.5, 0), (10.0, 9))
    ]
    return Curves(np.array(parameters), np.array([NO_CUT, 0, 9]), n, density)


@pytest.mark.parametrize("density", [False, True])
@pytest.mark.parametrize("n", [24, 25])
def test_curves_are_gaussians_on_a_window(n, density):
    curves = some_curves(n, density)
    values, _ = curves.values()
    for value, p, window in zip(values, curves.parameters, curves.windows, strict=True):
        expected = np.zeros(n)
        for j in range(n):
            if window == NO_CUT:
                x = j + n * np.arange(-2, 3)
            else:
                x = np.array([j if j >= window else j + n])
            for centre, width, height in p[:-1].reshape(3, 2).T:
                spread = np.exp(width)
                peak = np.exp(height) * np.sqrt(2 * np.pi) * spread
                expected[j] += peak * norm.pdf(x, centre, spread).sum()
        if density:
            expected /= expected.sum()
        expected = shift(expected, p[-1])
        # Without a cut only the nearest of the images is taken.
        np.testing.assert_allclose(value, expected, atol=2e-3 * expected.max())
        if window != NO_CUT:
            np.testing.assert_allclose(value, expected, atol=1e-12)


@pytest.mark.parametrize("density", [False, True])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_derivatives(density, offset):
    curves = some_curves(density=density, offset=offset)
    _, by = curves.values()
    for i in range(curves.parameters.shape[1]):
        step = np.zeros_like(curves.parameters)
        step[:, i] = 1e-6
        ahead, behind = (
            curves.with_parameters(curves.parameters + s * step).values()[0]
            for s in (1, -1)
        )
        np.testing.assert_allclose(by[:, i], (ahead - behind) / 2e-6, atol=1e-6)


@pytest.mark.parametrize("cut", [NO_CUT, 30])
@pytest.mark.parametrize("density", [False, True])
def test_grow_finds_the_curve(cut, density):
    """Two well separated Gaussians in noise, at a window not given away: as many, and
    better than the noise by √(41/6)."""
    n, rng = 41, np.random.default_rng(0)
    p = [[35.0, 55.0, np.log(2.2), np.log(3.8), 0.0, 0.3, 0.0]]
    truth = Curves(np.array(p), np.array([cut]), n, density).values()[0][0]
    size = 0.01 * truth.max()
    data = truth + size * rng.standard_normal(n)
    target = Quadratic(data, np.eye(n) / size**2, np.zeros(n), 0.0)
    windows = np.arange(-1, n)
    starts = single_gaussians(data, windows, np.zeros(n + 1), density)
    found = grow(target, starts, offset=False)
    scores = [score for score, _ in found]
    assert (np.diff(scores) > -2e-3).all()
    best = found[0][1]
    assert best.k == 2
    error = np.linalg.norm(best.values()[0][0] - truth)
    assert error < 0.7 * np.linalg.norm(data - truth)


@pytest.mark.parametrize("by", [0.0, 0.375])
def test_jumps_are_found_between_samples(by):
    v = GaussianFamily(1, n=40).draw(200, np.random.default_rng(0))[0]
    v = v[np.argmax(np.abs(v[:, 0] - v[:, -1]))]
    windows, offsets = jumps(shift(v, 7 + by), 3)
    assert len(windows) == 3
    assert windows[0] + offsets[0] == pytest.approx(7 + by, abs=0.13)


@settings(max_examples=30)
@given(n=st.integers(5, 60), seed=st.integers(0, 999))
def test_nearest_distributions(n, seed):
    """The projection's optimality: x - p is the same where p > 0, and not more where
    p = 0."""
    x = np.random.default_rng(seed).normal(1 / n, 1, (3, n))
    p = to_distribution(x)
    assert p.min() >= 0
    np.testing.assert_allclose(p.sum(1), 1)
    for excess, q in zip(x - p, p, strict=True):
        level = excess[q > 0]
        np.testing.assert_allclose(level, level[0], atol=1e-9)
        assert (excess[q == 0] <= level[0] + 1e-9).all()


@settings(max_examples=30)
@given(n=st.integers(20, 60), by=st.integers(-99, 99), seed=st.integers(0, 999))
def test_gauge_is_one_of_the_orbit(n, by, seed):
    rng = np.random.default_rng(seed)
    v, rho = rng.standard_normal(n), rng.dirichlet(np.ones(n))
    fixed = fix_gauge(v, rho)
    again = fix_gauge(np.roll(v, by), np.roll(rho, -by))
    for a, b in zip(fixed, again, strict=True):
        np.testing.assert_array_equal(a, b)
    m, same = exact_moments(v, rho), exact_moments(*fixed)
    np.testing.assert_allclose(m.second, same.second, atol=1e-12)
    mean = np.angle(np.fft.fft(fixed[1])[1]) * n / (2 * np.pi)
    assert abs(mean) < 0.5 + 1e-5
    whole = shift_pair(v, rho, 3)
    np.testing.assert_allclose(exact_moments(*whole).second, m.second, atol=1e-9)


def half_off(n, rng):
    """A density symmetric about 1/2, and one that is not, with the same mean."""
    j = np.arange(n)
    even = np.exp(rng.uniform(1, 5) * np.cos(2 * np.pi * (j - 0.5) / n))
    even /= even.sum()
    lean = 0.2 / n * np.sin(4 * np.pi * (j - 0.5) / n)
    return even, even + lean


@settings(max_examples=40)
@given(n=st.integers(20, 60), by=st.integers(-99, 99), seed=st.integers(0, 999))
def test_gauge_of_means_half_a_sample_off(n, by, seed):
    """Shifting and reversing, where rounding would decide."""
    rng = np.random.default_rng(seed)
    back = -np.arange(n) % n
    v = rng.standard_normal(n)
    even = np.cos(2 * np.pi * np.arange(n) / n)
    symmetric, leaning = half_off(n, rng)
    for v_, rho in ((v, symmetric), (v, leaning), (even, leaning)):
        rho = rho + 1e-12 * rng.standard_normal(n)
        fixed = fix_gauge(v_, rho)
        mean = -np.angle(np.fft.fft(fixed[1])[1]) * n / (2 * np.pi)
        assert abs(abs(mean) - 0.5) < 1e-6
        moved = fix_gauge(np.roll(v_, by), np.roll(rho, -by))
        reversed_ = fix_gauge(v_[back], rho[back])
        shifted = fix_gauge(np.roll(v_, by), rho)
        for a, b, c in zip(fixed, moved, reversed_, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a[back], c)
        np.testing.assert_array_equal(shifted[0], np.roll(fixed[0], by))
        np.testing.assert_array_equal(shifted[1], fixed[1])


@pytest.mark.parametrize("n", [20, 21])
def test_gauge_where_everything_is_symmetric(n):
    """What is documented: the mean is 1/2, in either direction."""
    back = -np.arange(n) % n
    v = np.cos(2 * np.pi * np.arange(n) / n)
    rho = half_off(n, np.random.default_rng(0))[0]
    for pair in ((v, rho), (v, rho[back]), (np.roll(v, 3), rho)):
        mean = -np.angle(np.fft.fft(fix_gauge(*pair)[1])[1]) * n / (2 * np.pi)
        assert mean == pytest.approx(0.5)


@pytest.mark.parametrize("n", [20, 21])
def test_density_for_a_known_signal(n):
    rng = np.random.default_rng(0)
    v, rho = 1 + rng.standard_normal((2, n)), rng.dirichlet(np.full(n, 0.3), 2)
    m = exact_moments(v, rho)
    np.testing.assert_allclose(density_of_shifts(v, m.first, m.second), rho, atol=1e-6)
    # With other moments it is better than any neighbour.
    second = m.second + 0.05 * np.abs(m.second).max() * rng.standard_normal((n, n))
    second = (second + second.conj().swapaxes(-1, -2)) / 2
    k = -np.arange(n) % n
    second = (second + second.conj()[..., k[:, None], k]) / 2
    best = density_of_shifts(v, m.first, second)
    assert shift_error(rho, best).min() > 1e-3

    def distance(rho):
        other = exact_moments(v, rho)
        return np.sqrt(
            np.linalg.norm(other.first - m.first, axis=-1) ** 2
            + np.linalg.norm(other.second - second, axis=(-1, -2)) ** 2
        )

    for _ in range(50):
        mixed = 0.99 * best + 0.01 * rng.dirichlet(np.full(n, 0.3), 2)
        assert (distance(mixed) > distance(best)).all()


@pytest.mark.parametrize("n", [20, 41])
@pytest.mark.parametrize("density", [False, True])
def test_all_windows_at_once_are_those_one_by_one(n, density):
    """Of Gaussians some of which lie beyond their window's ends."""
    p = np.array([[-0.7, 3.2, n - 0.4, *np.log([1.0, 2.0, 3.0]), 0.1, 0.0, -0.2, 0.0]])
    curve = Curves(p, np.array([0]), n, density)
    expected = at_windows(curve, np.arange(n)).curves
    np.testing.assert_allclose(in_all_windows(curve), expected, atol=1e-12)
