import copy

import numpy as np
import pytest
import torch
from aspire.volume import Volume
from hypothesis import given, settings
from hypothesis import strategies as st

from aspire_mom.networks import LatentEncoder
from aspire_mom.volumes.fourier_net import FourierNet
from aspire_mom.volumes.grid import volume_transform


def frequencies(n, K, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    radii = K * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return (radii * k / torch.linalg.norm(k, dim=1, keepdim=True)).to(dtype)


def reference_values(net, k):
    """Eq. A.1 with the module's weights, in NumPy."""
    state = {name: p.detach().double().numpy() for name, p in net.state_dict().items()}

    def network(name, first):
        values = first(k @ state[f"{name}.first"].T)
        for i in range(2):
            bias = state.get(f"{name}.hidden.{i}.bias", 0)
            values = np.sin(5 * (values @ state[f"{name}.hidden.{i}.weight"].T + bias))
        return (values @ state[f"{name}.last.weight"].T)[:, 0]

    log_amplitude = network("envelope", np.cos)
    log_amplitude -= state["decay"] * (k**2).sum(1) / net.band_limit**2
    modulant = network("real", np.cos) + 1j * network("imaginary", np.sin)
    return state["scale"] * np.exp(log_amplitude) * modulant


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)]
)
def test_values_are_amplitude_times_modulant(dtype, tolerance):
    net = FourierNet(6.0, hidden=16, scale=7.0).to(dtype)
    k = frequencies(20, 6.0, dtype)
    values = net(k)
    assert values.dtype == (torch.ones(1, dtype=dtype) * 1j).dtype
    expected = reference_values(net, k.double().numpy())
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(
        values.detach().numpy(), expected, atol=tolerance * np.abs(expected).max()
    )


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), layers=st.integers(1, 4))
def test_real_volume(seed, layers):
    net = FourierNet(5.0, hidden=8, layers=layers, seed=seed)
    k = frequencies(30, 5.0, torch.float32, seed)
    values = net(k)
    assert values.abs().max() > 0
    assert values.imag.abs().max() > 0
    # Products and cosines are the same bit for bit; matrix products may not be.
    torch.testing.assert_close(net(-k), values.conj(), rtol=1e-4, atol=1e-6)


def test_smooth_across_every_plane_through_the_origin():
    """No tear where a reflected half-space would have one: V moves with the step."""
    net = FourierNet(5.0, hidden=16).double()
    k = frequencies(50, 5.0)
    k[:, 0] = 0
    step = torch.tensor([1e-6, 0, 0], dtype=torch.float64)
    jump = (net(k + step) - net(k - step)).abs().max()
    assert 0 < jump < 1e-4 * net(k).abs().max()


def test_zero_beyond_the_band_limit_and_not_at_it():
    net = FourierNet(6.0, hidden=16)
    direction = frequencies(1, 1.0, torch.float32)
    direction = direction / torch.linalg.norm(direction)
    values = net.on_rings(direction, torch.tensor([6.0, 6.1]))[0]
    assert values[0] != 0
    assert values[1] == 0


@pytest.mark.parametrize("L", [10, 11])
def test_volume_has_the_network_s_fourier_values(L):
    net = FourierNet(L / 2, hidden=16)
    values = volume_transform(net.to_volume(L))
    k = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0], [-4.0, 1.0, 0.0]])
    x, y, z = (k.int() + L // 2).T.numpy()
    expected = net(k).detach().numpy()
    np.testing.assert_allclose(
        values[z, y, x], expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("L", [9, 10])
def test_fit_recovers_two_gaussians(L):
    """A quarter of the volume's norm in 300 steps; a zero volume would have 1."""
    axis = (np.arange(L) - L // 2) / L
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    voxels = np.exp(-((x - 0.1) ** 2 + y**2 + z**2) / 0.03)
    voxels += 0.7 * np.exp(-(x**2 + (y + 0.15) ** 2 + (z - 0.1) ** 2) / 0.03)
    volume = Volume(voxels.astype(np.float32))
    net, losses = FourierNet(L / 2, hidden=32), []
    error = net.fit(
        volume, n_steps=300, callback=lambda step, loss: losses.append(loss)
    )
    assert error < 0.25
    assert len(losses) == 300
    assert losses[-1] < 0.05 * losses[0]
    assert net.scale.item() == pytest.approx(voxels.sum(), rel=1e-5)


def test_seed_decides_and_global_state_stays():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    k = frequencies(4, 3.0, torch.float32)
    values = [FourierNet(4.0, hidden=8, seed=s)(k) for s in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(values[0], values[1])
    assert not torch.allclose(values[0], values[2])


def test_gradcheck():
    net = FourierNet(4.0, hidden=4, layers=2).double()
    k = frequencies(3, 3.0).requires_grad_()
    assert torch.autograd.gradcheck(net, (k,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"band_limit": 0.0}, "band_limit"),
        ({"band_limit": 4.0, "hidden": 0}, "hidden"),
        ({"band_limit": 4.0, "layers": 0}, "layers"),
        ({"band_limit": 4.0, "hidden": 2.5}, "hidden"),
        ({"band_limit": float("nan")}, "band_limit is nan"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FourierNet(**arguments)


@pytest.mark.parametrize("seed", [0, 1])
def test_latent_variable_keeps_the_symmetry(seed):
    """V(-k) = conj V(k) for any z_v, and z_v matters."""
    encoder = LatentEncoder.polar(3, 4, 5, channels=2, width=8, window=3)
    network = FourierNet(6.0, hidden=16, encoder=encoder, seed=seed).double()
    k = torch.randn(50, 3, generator=torch.Generator().manual_seed(seed)).double()
    with pytest.raises(ValueError, match="z_v is not known"):
        network(k)
    values = []
    for scale in (0, 1):
        first = torch.full((4,), 1 + 1j, dtype=torch.complex128)
        second = torch.randn(3, 4, 4, dtype=torch.complex128) * scale + first
        network.encode(first, second)
        values.append(network(k).detach())
        torch.testing.assert_close(network(-k).detach(), values[-1].conj())
    assert (values[0] - values[1]).abs().max() > 1e-6
    assert network.latent is not None
    assert copy.deepcopy(network).latent is None
