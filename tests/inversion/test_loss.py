from dataclasses import replace

import numpy as np
import pytest
import torch
from aspire.source import ArrayImageSource
from hypothesis import given, settings
from hypothesis import strategies as st

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.inversion import MomentLoss, forward_model, loss
from aspire_mom.moments import MomentEstimator, Moments, Noise
from aspire_mom.moments.report import informative_rings, ring_rms
from tests.inversion.models import (
    closed_form,
    exact_moments,
    mixture,
    quadrature_of,
    random_probabilities,
    random_rotations,
)
from tests.references.moments import feature_products

QUADRATURE = quadrature_of(random_rotations(5), 2)
BASES = pytest.mark.parametrize(
    "basis",
    [
        PolarBasis(10),
        PolarBasis(11),
        PolarBasis(10, max_order=4, inplane_average=False),
        PolarBasis(11, n_rings=5, max_order=3, inplane_average=False),
        CartesianBasis(8),
        CartesianBasis(9),
    ],
    ids=repr,
)


def estimates(basis, seed=0, with_errors=False):
    p = random_probabilities(len(QUADRATURE))
    moments = exact_moments(mixture(seed=seed), p, QUADRATURE, basis)
    if not with_errors:
        return moments
    rng = np.random.default_rng(seed)
    errors = {
        f"{name}_error": np.abs(getattr(moments, name)).max()
        * rng.uniform(0.01, 0.1, getattr(basis, f"{name}_shape"))
        for name in ("first", "second")
    }
    return replace(moments, n_images=100, **errors)


def value_of(module, moments):
    parts = (moments.first, moments.second)
    return float(
        module(*(torch.from_numpy(part.astype(np.complex64)) for part in parts))
    )


@BASES
@pytest.mark.parametrize("lam", [1.0, 0.3])
def test_unweighted_is_eq_28(basis, lam):
    """Relative errors as `Moments` has them, the second's multiplied by λ."""
    moments, other = estimates(basis), estimates(basis, seed=1)
    first, second = other.relative_error(moments)
    assert min(first, second) > 0.1
    module = MomentLoss(moments, weighting="none", lam=lam)
    assert value_of(module, other) == pytest.approx(first + lam * second, rel=1e-5)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("weighting", ["none", "rings", "noise"])
def test_cut_is_the_loss_in_a_smaller_basis(average, weighting):
    """
    Of fewer rings and orders; RMS of rings from what orders there are, which are nearly
    all.
    """
    basis = PolarBasis(11, max_order=14, inplane_average=average)
    small = PolarBasis(11, n_rings=4, max_order=11, inplane_average=average)
    moments, other = (estimates(basis, s, with_errors=True) for s in (0, 1))

    def cut(m):
        arrays = {}
        for name in ("first", "second"):
            shape = getattr(small, f"{name}_shape")
            for key in (name, f"{name}_error"):
                value = getattr(m, key)
                if value.ndim == 4:
                    value = value[:, :, 3:-3]
                arrays[key] = value[tuple(map(slice, shape))]
        return Moments(basis=small, **arrays)

    options = {"weighting": weighting, "lam": 0.5}
    whole = MomentLoss(moments, small, **options)
    expected = value_of(MomentLoss(cut(moments), **options), cut(other))
    assert expected > 0.01
    assert value_of(whole, cut(other)) == pytest.approx(expected, rel=1e-3)


def entries(basis):
    """Of the second moment as stored: index, ring of each factor, copies."""
    if isinstance(basis, CartesianBasis):
        half = basis.L // 2
        pixels = [(ky, kx) for ky in range(-half, basis.L - half)
                  for kx in range(-half, basis.L - half)]  # fmt: skip
        inside = [max(map(abs, p)) < basis.L / 2 for p in pixels]
        ring = [round(np.hypot(*p)) for p in pixels]
        for i, r in enumerate(ring):
            for j, s in enumerate(ring):
                if inside[i] and inside[j]:
                    yield (i, j), r, s, 1
        return
    for m in range(basis.max_order + 1):
        for r in range(basis.n_rings):
            for s in range(basis.n_rings):
                copies = 2 if m else 1
                if basis.inplane_average:
                    yield (m, r, s), r, s, copies
                else:
                    for n in range(2 * basis.max_order + 1):
                        yield (m, r, n, s), r, s, copies


def typical(basis, rms, r, s):
    """What an entry's RMS is if a ring's power spreads evenly over its orders."""
    if isinstance(basis, CartesianBasis):
        return rms[r] * rms[s]
    spread = 1 + 1.6 * np.pi * np.array([r, s])
    shared = min(spread) if basis.inplane_average else np.prod(spread)
    return rms[r] * rms[s] / np.sqrt(shared)


@BASES
def test_second_moment_weighted_by_rings(basis):
    moments, other = estimates(basis), estimates(basis, seed=1)
    other = replace(other, first=moments.first)
    rms = ring_rms(moments)
    difference = power = 0
    for index, r, s, _ in entries(basis):
        scale = typical(basis, rms, r, s)
        difference += abs((other.second - moments.second)[index] / scale) ** 2
        power += abs(moments.second[index] / scale) ** 2
    module = MomentLoss(moments, weighting="rings", lam=0.7)
    expected = 0.7 * difference / power
    assert expected > 0.1
    assert value_of(module, other) == pytest.approx(expected, rel=1e-4)


@BASES
@pytest.mark.parametrize("with_errors", [False, True])
def test_second_moment_weighted_by_noise(basis, with_errors):
    moments, other = estimates(basis, 0, with_errors), estimates(basis, seed=1)
    other = replace(other, first=moments.first)
    rms, expected = ring_rms(moments), 0
    for index, r, s, copies in entries(basis):
        variance = (0.003 * typical(basis, rms, r, s)) ** 2
        if with_errors:
            variance += moments.second_error[index] ** 2
        difference = abs((other.second - moments.second)[index]) ** 2
        expected += 0.5 * copies * difference / variance
    module = MomentLoss(moments, weighting="noise", lam=0.7)
    assert value_of(module, other) == pytest.approx(0.7 * expected, rel=1e-4)


@BASES
def test_first_moment_weighted_by_noise(basis):
    moments, other = estimates(basis, 0, with_errors=True), estimates(basis, seed=1)
    rms = ring_rms(moments)
    if isinstance(basis, CartesianBasis):
        radius = np.round(np.linalg.norm(basis.frequencies, axis=1)).astype(int)
        scale, copies = rms[radius], (basis.frequencies > -basis.L / 2).all(1)
    elif basis.inplane_average:
        scale, copies = rms, 1
    else:
        scale = rms / np.sqrt(1 + 1.6 * np.pi * np.arange(basis.n_rings))
        copies = np.where(np.arange(basis.max_order + 1) > 0, 2, 1)[:, None]
    variance = (0.003 * scale) ** 2 + moments.first_error**2
    expected = np.sum(copies * np.abs(other.first - moments.first) ** 2 / variance)
    other = replace(other, second=moments.second)
    module = MomentLoss(moments, weighting="noise")
    assert value_of(module, other) == pytest.approx(expected, rel=1e-4)


@BASES
@pytest.mark.parametrize("weighting", ["none", "rings", "noise"])
def test_zero_at_the_estimates_and_there_alone(basis, weighting):
    """With finite gradients, where a root's slope would be infinite."""
    moments = estimates(basis, with_errors=True)
    module = MomentLoss(moments, weighting=weighting)
    parts = [
        torch.from_numpy(part.astype(np.complex64)).requires_grad_()
        for part in (moments.first, moments.second)
    ]
    value = module(*parts)
    assert 0 <= float(value.detach()) < 1e-6
    value.backward()
    assert all(torch.isfinite(torch.view_as_real(part.grad)).all() for part in parts)
    worse = replace(moments, first=1.01 * moments.first)
    assert value_of(module, worse) > 1e-5
    worse = replace(moments, second=1.01 * moments.second)
    assert value_of(module, worse) > 1e-5


@settings(max_examples=8)
@given(exponent=st.floats(-8, 8), weighting=st.sampled_from(["none", "rings", "noise"]))
def test_scale_of_the_data_does_not_matter(exponent, weighting):
    """Nor that squares of second moments leave float32's range."""
    basis, unit = PolarBasis(10), 10**exponent

    def scaled(m):
        names = {"first": unit, "second": unit**2}
        names |= {f"{name}_error": factor for name, factor in names.items()}
        return replace(m, **{k: getattr(m, k) * f for k, f in names.items()})

    moments, other = (estimates(basis, s, with_errors=True) for s in (0, 1))
    expected = value_of(MomentLoss(moments, weighting=weighting), other)
    actual = value_of(MomentLoss(scaled(moments), weighting=weighting), scaled(other))
    assert actual == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("weighting", ["none", "rings", "noise"])
def test_gradcheck(average, weighting):
    """Of the whole chain in float64, from volume and probabilities to the loss."""
    basis = PolarBasis(6, n_rings=3, max_order=2, inplane_average=average)
    module = MomentLoss(
        estimates(basis, with_errors=True), weighting=weighting
    ).double()
    forward, model = forward_model(basis, QUADRATURE), mixture(2, seed=3)

    def value(p):
        return module(*forward(model, p))

    p = torch.from_numpy(random_probabilities(len(QUADRATURE), seed=3))
    assert torch.autograd.gradcheck(value, (p.requires_grad_(),))
    parameter = model.log_sigmas
    step = torch.tensor([1e-6, -2e-6], dtype=torch.float64)
    slope = torch.autograd.grad(value(p), parameter)[0] @ step
    with torch.no_grad():
        parameter += step
        above = value(p)
        parameter -= 2 * step
        below = value(p)
    assert float(slope) == pytest.approx(float(above - below) / 2, rel=1e-4)
    assert abs(float(slope)) > 0


@pytest.mark.parametrize("L", [7, 8])
@pytest.mark.parametrize(
    "options",
    [{"max_order": 5}, {"n_rings": 3, "max_order": 3, "inplane_average": False}, None],
)
def test_noise_weights_are_a_log_likelihood(L, options, monkeypatch):
    """
    At the true moments a noise-weighted loss, minus twice a log-likelihood, is on
    average the number of real numbers compared. Entries hang together: the mean of 40
    draws scatters by about 5 %; weights wrong by 2 would be 100 % off.
    """
    monkeypatch.setattr(loss, "MODEL_ERROR", 1e-4)
    basis = CartesianBasis(L) if options is None else PolarBasis(L, **options)
    axis = np.arange(L) - L // 2
    image = np.exp(-((axis - 0.4) ** 2) / 4) * np.exp(-((axis[:, None] + 0.3) ** 2) / 2)
    exact = feature_products(image, basis)
    rng, values = np.random.default_rng(L), []
    for _ in range(40):
        images = image + rng.standard_normal((200, L, L))
        source = ArrayImageSource(images, pixel_size=1.0)
        moments = MomentEstimator(source, basis, noise=Noise(variance=1)).estimate()
        module = MomentLoss(moments, lam=1e-9)
        first = value_of(module, Moments(*exact, basis))
        module = MomentLoss(moments, lam=1)
        values.append((first, value_of(module, Moments(*exact, basis)) - first))
    # Orders above 0 do not exist on ring 0.
    if options is None:
        pixels = (L - 1 + L % 2) ** 2
        expected = pixels, pixels**2 / 2
    elif "inplane_average" in options:
        expected = 3 + 3 * 2 * 2, (3 + 3 * 2 * 2) ** 2 / 2
    else:
        R = basis.n_rings
        expected = R, R**2 / 2 + 5 * (R - 1) ** 2
    ratio = np.mean(values, axis=0) / expected
    assert (np.abs(ratio - 1) < 0.2).all(), ratio


@BASES
def test_ring_power(basis):
    """Mean power of slices at the nodes, over the ring or the pixels nearest to it."""
    moments, model = estimates(basis), mixture()
    p, L = random_probabilities(len(QUADRATURE)), basis.L
    transform, nodes = closed_form(model), QUADRATURE.rotations.matrices
    rms = ring_rms(moments)
    n_rings = len(rms)
    assert n_rings >= L // 2
    theta = 2 * np.pi * np.arange(200) / 200
    for r in range(min(n_rings, L // 2)):
        if isinstance(basis, CartesianBasis):
            k = basis.frequencies[np.round(np.hypot(*basis.frequencies.T)) == r]
        else:
            k = r * np.stack((np.cos(theta), np.sin(theta)), 1)
        values = [np.abs(transform(k @ R[:, :2].T) / L) ** 2 for R in nodes]
        power = p @ np.mean(values, axis=1)
        if not isinstance(basis, CartesianBasis) and basis.max_order < 10:
            assert rms[r] ** 2 <= power * (1 + 1e-6)  # some orders only
            power = max(power, rms[r] ** 2) if r < 2 else rms[r] ** 2
        assert rms[r] ** 2 == pytest.approx(power, rel=0.05 if r < 2 else 1e-6)


def test_negative_power_counts_as_none():
    moments = estimates(PolarBasis(10))
    second = moments.second.copy()
    second[:, 4, 4] *= -1
    rms = ring_rms(replace(moments, second=second))
    assert rms[4] == 0
    np.testing.assert_allclose(rms[:4], ring_rms(moments)[:4])


@pytest.mark.parametrize("average", [True, False])
def test_rings_of_exact_moments(average):
    """All that are not negligible, and at least four."""
    for sigma, expected in ((0.06, 9), (0.13, 6), (0.4, 4)):
        basis = PolarBasis(18, max_order=12, inplane_average=average)
        model = mixture(1, sigma=sigma / 0.7)
        moments = exact_moments(
            model, random_probabilities(len(QUADRATURE)), QUADRATURE, basis
        )
        # exp(-2π²σ²r²) falls below 1e-4 at r = 0.683 / σ; the one Gaussian has 0.7 σ.
        decay = np.exp(-2 * np.pi**2 * sigma**2 * np.arange(9) ** 2)
        assert max(4, (decay > 1e-4).sum()) == expected
        assert informative_rings(moments) == expected


@pytest.mark.parametrize("strong", [1, 4, 7, 9])
def test_rings_of_noisy_moments(strong):
    """Two more than those with signal: noise alone has squares of one on average."""
    basis, rng = PolarBasis(18), np.random.default_rng(strong)
    shape = basis.second_shape
    second = rng.standard_normal((2, *shape)) / np.sqrt(2)
    second = second[0] + 1j * second[1]
    second[:, :strong, :strong] *= 4
    moments = Moments(
        first=np.ones(9),
        second=second,
        basis=basis,
        n_images=100,
        first_error=np.ones(9),
        second_error=np.ones(shape),
    )
    assert informative_rings(moments) == np.clip(strong + 2, 4, 9)
    # Round-off on ring 0, where order 0 alone is not zero, says nothing; nor do entries
    # without an error.
    second[1:, 0] = second[1:, :, 0] = 1e-6
    error = np.ones(shape)
    error[1:, 0] = error[1:, :, 0] = 1e-9
    error[1, 8, 8] = 0
    moments = replace(moments, second=second, second_error=error)
    assert informative_rings(moments) == np.clip(strong + 2, 4, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "shells"}, "weighting is 'shells'; it must be noise or"),
        ({"lam": 0.0}, "lam is 0.0; it must be a positive"),
        ({"lam": float("nan")}, "lam is nan"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MomentLoss(estimates(PolarBasis(10)), **options)


@BASES
def test_refuses_moments_without_power(basis):
    """Zero, or all of it taken for noise: there is nothing to compare with."""
    for power in (0, -1):
        second = np.full(basis.second_shape, power, complex)
        with pytest.raises(ValueError, match="no power on any ring"):
            MomentLoss(Moments(np.zeros(basis.first_shape), second, basis))
