"""The encoder whose answers are Gaussians, and what it is trained by."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from aspire_mom.mra import (
    FourierMoments,
    GaussianFamily,
    MixtureEncoder,
    exact_moments,
    load_weights,
    predict,
    pretrained,
    save_weights,
    shift_error,
    simulate_moments,
)
from aspire_mom.mra.mixture_encoder import Hypotheses
from aspire_mom.mra.training import (
    CENTRES,
    ERROR_SCALE,
    LOG_WIDTHS,
    MEAN_WEIGHT,
    TAIL_EXPONENT,
    TRAINING,
    Training,
    _draw_problems,
    _negative_log_likelihood,
)


def tensors(moments, dtype=torch.float64):
    kind = {torch.float32: torch.complex64, torch.float64: torch.complex128}[dtype]
    count = len(moments.first)
    share = moments.sigma**2 / (moments.n_observations or np.inf)
    return (
        torch.as_tensor(moments.first).to(kind),
        torch.as_tensor(moments.second).to(kind),
        torch.full((count,), share, dtype=dtype),
        torch.full((count,), moments.sigma, dtype=dtype),
    )


def noisy(n=41, count=6, seed=0):
    rng = np.random.default_rng(seed)
    v, rho = GaussianFamily(2, n).draw(count, rng)
    return v, rho, simulate_moments(v, rho, 10**6, 1.0, rng)


def some_hypotheses(k=2, dtype=torch.float64, requires_grad=False):
    rng = np.random.default_rng(1)
    arrays = (
        rng.uniform(-0.5, 0.5, (3, 4, k)),
        np.log(rng.uniform(0.05, 0.1, (3, 4, k))),
        np.log(rng.dirichlet(np.ones(4), 3)),
    )
    parts = (torch.tensor(a, dtype=dtype) for a in arrays)
    return Hypotheses(*(x.requires_grad_(requires_grad) for x in parts))


@pytest.mark.parametrize("n", [20, 41])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_curves_are_gaussians_cut_off(n, k, dtype):
    hypotheses = some_hypotheses(k, dtype)
    curves = hypotheses.curves(n)
    assert curves.dtype == dtype
    for i, h in np.ndindex(3, 4):
        centres, widths = hypotheses.centres[i, h], hypotheses.log_widths[i, h].exp()
        expected = np.zeros(n)
        for j in range(n):
            at = (j + 0.5) / n - 0.5
            for centre, width in zip(centres.tolist(), widths.tolist(), strict=True):
                expected[j] += norm.pdf(at, centre, width) / k
        np.testing.assert_allclose(
            curves[i, h],
            expected / expected.sum(),
            rtol=0,
            atol=5 * torch.finfo(dtype).eps,
        )


def test_gradients():
    hypotheses = some_hypotheses(requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda c, w: Hypotheses(c, w, None).curves(12), hypotheses[:2]
    )
    encoder = MixtureEncoder(width=8, n_blocks=1, seed=3).double()
    problems = _draw_problems(Training(n=20, ks=(1, 2, 3)), 16, (TRAINING, 0))
    first, second, share, sigma = problems.inputs
    inputs = first.cdouble(), second.cdouble(), share.double(), sigma.double()
    problems = type(problems)(inputs, *(x.double() for x in problems[1:]))
    weight = encoder.leave.weight
    _negative_log_likelihood(encoder, problems).backward()
    way = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()
    values = []
    for by in (1e-6, -2e-6):
        weight.data += by * way
        values.append(_negative_log_likelihood(encoder, problems).item())
    expected = (values[0] - values[1]) / 2e-6
    assert (weight.grad * way).sum().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("n", [20, 41])
def test_shifting_scaling_and_reversing_the_data(n):
    _, _, moments = noisy(n)
    encoder = MixtureEncoder(seed=1).double()
    k = np.fft.fftfreq(n, 1 / n)
    turn = -2.5 * np.exp(-2j * np.pi / n * 3.7 * k)
    turned = FourierMoments(
        moments.first * turn,
        moments.second * turn[:, None] * turn.conj(),
        moments.n_observations,
        2.5 * moments.sigma,
    )
    back = FourierMoments(
        *(moments.first.conj(), moments.second.conj()), 10**6, moments.sigma
    )
    with torch.no_grad():
        v, rho = encoder(*tensors(moments))
        for other, scale, order in ((turned, -2.5, 1), (back, 1, -1)):
            v_other, rho_other = (
                x.numpy()[:, ::order] for x in encoder(*tensors(other))
            )
            np.testing.assert_allclose(v_other, scale * v, atol=1e-9)
            np.testing.assert_allclose(rho_other, rho, atol=1e-9)
    np.testing.assert_allclose(v.mean(1), moments.first[:, 0].real / np.sqrt(n))
    np.testing.assert_allclose(rho.sum(1), 1)


def test_one_problem_looks_alike_at_every_n():
    parameters = GaussianFamily(2).draw_parameters(5, np.random.default_rng(0))
    encoder, seen = MixtureEncoder().double(), []
    for n in (24, 41, 100):
        moments = exact_moments(*GaussianFamily(2, n).pair(parameters))
        seen.append(encoder._features(*tensors(moments))[0])
    for features in seen[::2]:
        np.testing.assert_allclose(features, seen[1], atol=0.15)
        assert (features - seen[1]).abs().mean() < 0.01


def test_likelihood_is_what_its_docstring_says():
    encoder = MixtureEncoder(width=8, n_blocks=1, seed=3)
    problems = _draw_problems(
        Training(n=20, ks=(1, 2), exact_share=1.0), 8, (TRAINING, 1)
    )
    counts, pairs = encoder.hypotheses(*problems.inputs)
    total = 0.0
    for i in range(8):
        k = int(problems.parameters[i, 0, 0].isfinite().sum())
        total -= counts[i, k - 1].item()
        truths = problems.v[i].numpy(), problems.rho[i].numpy()
        for truth, where, h in zip(
            truths, problems.parameters[i, :, :, :k].numpy(), pairs[k - 1], strict=True
        ):
            curves = h.curves(20)[i].detach().double().numpy()
            errors = shift_error(np.tile(truth / truth.sum(), (4, 1)), curves)
            distances = []
            for centres, widths in zip(
                h.centres[i].detach().numpy(),
                h.log_widths[i].detach().numpy(),
                strict=True,
            ):
                orders = [where, where[:, ::-1]]
                distances.append(
                    min(
                        np.mean(
                            ((centres - c) / CENTRES) ** 2
                            + ((widths - np.log(w)) / LOG_WIDTHS) ** 2
                        )
                        for c, w in orders
                    )
                )
            fits = -np.sqrt(1 + np.array(distances))
            fits -= TAIL_EXPONENT / 2 * np.log(errors**2 + ERROR_SCALE**2)
            p = h.log_probabilities[i].exp().detach().numpy()
            total -= (1 - MEAN_WEIGHT) * np.log(
                p @ np.exp(fits)
            ) + MEAN_WEIGHT * fits.mean()
    # The shift of `squared_errors` is found less exactly than that of the metric.
    assert _negative_log_likelihood(encoder, problems).item() == pytest.approx(
        total / 8, abs=0.01
    )


@pytest.mark.parametrize(
    ("k", "goals"), [(1, (0.026, 0.024)), (2, (0.085, 0.0705)), (3, (0.103, 0.0975))]
)
def test_trained_encoder_from_exact_moments(k, goals):
    """Half of the paper's errors, plus three standard errors of the mean."""
    v, rho = GaussianFamily(k).draw(300, np.random.default_rng(11))
    found = predict(pretrained("mixture"), exact_moments(v, rho))
    for truth, estimate, goal in zip((v, rho), found, goals, strict=True):
        errors = shift_error(truth, estimate)
        assert errors.mean() < goal + 3 * errors.std() / np.sqrt(300)


@pytest.mark.parametrize("n", [20, 33, 64, 101])
def test_trained_encoder_at_other_sizes(n):
    v, rho = GaussianFamily(2, n).draw(200, np.random.default_rng(12))
    found = predict(pretrained("mixture"), exact_moments(v, rho))
    for truth, estimate, goal in zip((v, rho), found, (0.085, 0.0705), strict=True):
        errors = shift_error(truth, estimate)
        assert errors.mean() < 1.2 * goal + 3 * errors.std() / np.sqrt(200)


def test_weights_round_trip(tmp_path):
    encoder = MixtureEncoder(width=16, n_blocks=1, most=2, alternatives=3)
    save_weights(encoder, tmp_path / "w.npz")
    loaded = load_weights(tmp_path / "w.npz")
    assert loaded.settings == encoder.settings
    _, _, moments = noisy(24)
    inputs = tensors(moments, torch.float32)
    for a, b in zip(loaded(*inputs), encoder(*inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.05)


def test_bad_input():
    with pytest.raises(ValueError, match="most is 6; it must be 1 to 5"):
        MixtureEncoder(most=6)
    _, _, moments = noisy(18)
    with pytest.raises(
        ValueError, match="n is 18; it must be an integer of at least 19"
    ):
        predict(MixtureEncoder(), moments)
