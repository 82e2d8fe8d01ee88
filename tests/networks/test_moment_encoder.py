from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import softmax

from aspire_mom.networks import MomentEncoder

N_NODES = 30
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
FORMS = ["cartesian-5", "cartesian-6", "polar-5", "polar-6"]


def make(form, dtype=torch.float64, **sizes):
    """An encoder of a form and size, window 3 or as given."""
    kind, size = form.split("-")
    sizes = {"window": 3, "width": 32} | sizes
    if kind == "cartesian":
        return MomentEncoder.cartesian(int(size), N_NODES, **sizes).to(dtype)
    return MomentEncoder.polar(4, int(size), N_NODES, **sizes).to(dtype)


def moments(encoder, *batch, seed=0, dtype=torch.complex128):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(*batch, *shape, dtype=dtype, generator=generator)
        for shape in (encoder.first_shape, encoder.second_shape)
    )


def numpy_forward(encoder, first, second, mode):
    """The encoder written out with NumPy, its window 3 wide."""
    weights = {k: v.detach().numpy() for k, v in encoder.named_parameters()}
    side = encoder.side

    def leaky(x):
        return np.where(x > 0, x, 0.02 * x)

    def convolve(name, field):
        kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        padded = np.pad(field, ((0, 0), (1, 1), (1, 1)), mode=mode)
        patches = sliding_window_view(padded, (3, 3), axis=(1, 2))
        sums = np.einsum("cyxij,ocij->oyx", patches, kernel)
        return leaky(sums + bias[:, None, None])

    def field(moment):
        moment = moment.numpy()
        moment = moment / np.sqrt(np.mean(np.abs(moment) ** 2))
        if moment.size == side:
            moment = np.tile(moment, (side, 1))
        moment = moment.reshape(-1, side, side)
        return np.concatenate((moment.real, moment.imag))

    branches = [
        convolve(f"{name}.2", convolve(f"{name}.0", field(moment)))
        for name, moment in (("first_branch", first), ("second_branch", second))
    ]
    assert branches[0].shape == (3, side, side)
    joint = convolve("joint.2", convolve("joint.0", np.concatenate(branches))).ravel()
    hidden = leaky(weights["joint.5.weight"] @ joint + weights["joint.5.bias"])
    return softmax(weights["joint.7.weight"] @ hidden + weights["joint.7.bias"])


@pytest.mark.parametrize("form", FORMS)
def test_is_the_network_written_out(form):
    encoder = make(form)
    first, second = moments(encoder)
    mode = "wrap" if form.startswith("cartesian") else "constant"
    expected = numpy_forward(encoder, first, second, mode)
    z = encoder(first, second).detach().numpy()
    np.testing.assert_allclose(z, expected, rtol=1e-10)
    assert np.ptp(expected) > 1e-3 * expected.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_gives_probabilities_in_its_own_dtype(form, dtype):
    encoder = make(form, dtype)
    for moment_dtype in COMPLEX.values():
        z = encoder(*moments(encoder, dtype=moment_dtype))
        assert z.shape == (N_NODES,)
        assert z.dtype == dtype
        assert torch.all(z > 0)
        assert z.sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_batches_are_many_single_moments(form):
    encoder = make(form)
    first, second = moments(encoder, 2, 3)
    z = encoder(first, second)
    assert z.shape == (2, 3, N_NODES)
    torch.testing.assert_close(z[1, 2], encoder(first[1, 2], second[1, 2]))
    assert (z[0, 0] - z[1, 2]).abs().max() > 1e-5


@settings(max_examples=15)
@given(a=st.floats(1e-6, 1e6), b=st.floats(1e-6, 1e6), form=st.sampled_from(FORMS))
def test_scale_of_the_data_does_not_matter(a, b, form):
    encoder = make(form)
    first, second = moments(encoder)
    torch.testing.assert_close(encoder(a * first, b * second), encoder(first, second))


def test_zero_moments_give_finite_probabilities():
    encoder = make("polar-5")
    z = encoder(*(torch.zeros_like(moment) for moment in moments(encoder)))
    assert torch.isfinite(z).all()


def test_cartesian_fields_are_periodic():
    """Convolutions commute with cyclic shifts of the right pixel."""
    encoder = make("cartesian-6")
    _, second = moments(encoder)
    field = encoder._field(
        "moment",
        second,
        second.shape[: -len(encoder.second_shape)],
        encoder.second_shape,
    )
    shifted = encoder.second_branch(field.roll((2, 3), (-2, -1)))
    rolled = encoder.second_branch(field).roll((2, 3), (-2, -1))
    torch.testing.assert_close(shifted, rolled)
    assert rolled.std() > 1e-3


def test_construction_is_seeded_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    a, b, c = (make("polar-5", seed=seed) for seed in (1, 1, 2))
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    first, second = moments(a)
    assert torch.equal(a(first, second), b(first, second))
    assert not torch.equal(a(first, second), c(first, second))


@pytest.mark.parametrize("form", ["cartesian-5", "polar-6"])
def test_learns_a_density_from_given_moments(form):
    """Every parameter has a gradient, and 60 Adam steps take 9/10 of the divergence."""
    encoder = make(form, torch.float32)
    first, second = moments(encoder)
    rng = np.random.default_rng(0)
    target = torch.tensor(rng.dirichlet(np.ones(N_NODES)), dtype=torch.float32)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.kl_div(
            encoder(first, second).log(), target, reduction="sum"
        )
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]
    assert all(p.grad.abs().max() > 0 for p in encoder.parameters())


def test_default_sizes():
    encoder = MomentEncoder.cartesian(9, N_NODES)
    assert encoder.second_branch[0].weight.shape == (6, 2 * 81, 15, 15)
    assert encoder.joint[0].weight.shape == (6, 6, 15, 15)
    assert encoder.joint[-1].weight.shape == (N_NODES, 256)
    assert MomentEncoder.polar(4, 8, 5).second_branch[0].weight.shape == (6, 8, 5, 5)


def test_refuses_moments_that_do_not_fit():
    encoder = make("polar-5")
    first, second = moments(encoder)
    with pytest.raises(ValueError, match=r"first moment .* shape \(5,\)"):
        encoder(first[:4], second)
    with pytest.raises(ValueError, match=r"second moment .* \(4, 5, 5\)"):
        encoder(first, second[:3])
    with pytest.raises(ValueError, match=r"second moment .* shape \(1, 4, 5, 5\)"):
        encoder(first, second[None])
    with pytest.raises(ValueError, match="first moment is torch.float"):
        encoder(first.real, second)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"window": 4}, "window is 4; it must be odd and at most 9"),
        ({"window": 11}, "window is 11; it must be odd and at most 9"),
        ({"channels": 0}, "channels is 0"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_refuses_bad_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        make("cartesian-5", **sizes)
