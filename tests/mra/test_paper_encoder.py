"""Encoders: what they are made of, and what they do before and after training."""

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import softmax

from aspire_mom.mra import (
    GaussianFamily,
    exact_moments,
    shift_error,
    simulate_moments,
)
from aspire_mom.mra.mixture_encoder import MixtureEncoder
from aspire_mom.mra.paper_encoder import PaperEncoder
from aspire_mom.mra.refine import predict
from aspire_mom.mra.weights import load_weights, pretrained, save_weights


def problems(k=2, count=8, N=None, n=41, seed=0, **options):
    rng = np.random.default_rng(seed)
    v, rho = GaussianFamily(k, n, **options).draw(count, rng)
    if N is None:
        return v, rho, exact_moments(v, rho)
    return v, rho, simulate_moments(v, rho, N, 1.0, rng)


def run(encoder, moments):
    dtype = next(encoder.parameters()).dtype
    count = torch.full((len(moments.first),), float(moments.n_observations or 1e30))
    sigma = torch.full_like(count, moments.sigma).to(dtype)
    kind = torch.complex64 if dtype == torch.float32 else torch.complex128
    first, second = (
        torch.as_tensor(x).to(kind) for x in (moments.first, moments.second)
    )
    return encoder(first, second, sigma**2 / count.to(dtype), sigma)


def written_out(branches, first, second):
    """One of the paper's two networks with NumPy, for one problem, window 3."""
    weights = {k: v.detach().numpy() for k, v in branches.named_parameters()}

    def leaky(x):
        return np.where(x > 0, x, 0.02 * x)

    def convolve(name, field):
        padded = np.pad(field, ((0, 0), (1, 1)), mode="wrap")
        patches = sliding_window_view(padded, 3, axis=1)
        sums = np.einsum("cji,oci->oj", patches, weights[f"{name}.weight"])
        return leaky(sums + weights[f"{name}.bias"][:, None])

    def field(moment):
        moment = moment / np.sqrt(np.mean(np.abs(moment) ** 2) / 2)
        parts = np.stack((moment.real, moment.imag), -1)
        return parts.reshape(len(moment), -1).T

    upper = convolve("upper.2", convolve("upper.0", field(first[:, None])))
    lower = convolve("lower.2", convolve("lower.0", field(second)))
    x = np.concatenate((upper, lower))
    assert x.shape == (6, len(first))
    x = convolve("joint.0.2", convolve("joint.0.0", x)).ravel()
    x = leaky(weights["joint.2.weight"] @ x + weights["joint.2.bias"])
    return weights["joint.4.weight"] @ x + weights["joint.4.bias"]


@pytest.mark.parametrize("n", [10, 13])
def test_paper_encoder_is_what_its_docstring_says(n):
    encoder = PaperEncoder(n, window=3, width=16, seed=4).double()
    _, _, moments = problems(count=3, n=n)
    v, rho = run(encoder, moments)
    for i in range(3):
        one = moments.first[i], moments.second[i]
        mean = moments.first[i, 0].real / np.sqrt(n)
        expected = mean * written_out(encoder.signal, *one)
        np.testing.assert_allclose(v[i].detach(), expected, atol=1e-12)
        expected = softmax(written_out(encoder.density, *one))
        np.testing.assert_allclose(rho[i].detach(), expected, atol=1e-12)


def test_sizes_of_the_paper():
    encoder = PaperEncoder()
    assert encoder.density.lower[0].weight.shape == (6, 82, 15)
    assert encoder.density.upper[0].weight.shape == (6, 2, 15)
    assert encoder.density.joint[2].weight.shape == (256, 6 * 41)
    parts = [list(b.parameters()) for b in (encoder.signal, encoder.density)]
    assert not {id(p) for p in parts[0]} & {id(p) for p in parts[1]}


@pytest.mark.parametrize("k", [1, 2, 3])
def test_papers_encoder_has_learned_something(k):
    v, rho, moments = problems(k, count=100, seed=9)
    v_found, rho_found = predict(pretrained(f"paper-{k}"), moments)
    flat = np.full_like(rho, 1 / 41)
    assert shift_error(v, v_found).mean() < 0.7 * shift_error(v, flat * 41).mean()
    assert shift_error(rho, rho_found).mean() < 0.7 * shift_error(rho, flat).mean()


@pytest.mark.parametrize("encoder", [MixtureEncoder(width=16), PaperEncoder(15)])
def test_weights_round_trip(tmp_path, encoder):
    path = tmp_path / "w.npz"
    save_weights(encoder, path)
    with np.load(path, allow_pickle=False) as stored:
        assert {a.dtype.kind for a in stored.values()} <= set("fiU")
    loaded = load_weights(path)
    assert type(loaded) is type(encoder)
    assert loaded.settings == encoder.settings
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=1e-3, rtol=0)


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="n is 5; it must be an integer of at least 8"):
        PaperEncoder(5)
    with pytest.raises(ValueError, match="name is 'papers'; it must be mixture or"):
        pretrained("papers")
    with pytest.raises(ValueError, match="n is 15; the encoder is for n = 41"):
        predict(PaperEncoder(), problems(n=15)[2])
    v, rho, _ = problems()
    flat = exact_moments(v - v.mean(-1, keepdims=True), rho)
    with pytest.raises(ValueError, match="mean is 0 to within rounding"):
        predict(PaperEncoder(), flat)
    path = tmp_path / "w.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="is not an .npz file"):
        load_weights(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ValueError, match="holds unknown contents"):
        load_weights(path)
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "none.npz")
