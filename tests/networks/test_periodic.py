import pytest
import torch

from aspire_mom.networks.moment_encoder import MANY_CHANNELS, _PeriodicConv2d


@pytest.mark.parametrize("n", [8, 9])
@pytest.mark.parametrize("window", [1, 3, 7])
@pytest.mark.parametrize("before", [2, MANY_CHANNELS + 1])
def test_is_pytorchs_periodic_convolution(n, window, before):
    """Values and gradients, whichever way they are computed."""
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(2, before, n, n, generator=generator).double()
    ours = _PeriodicConv2d(before, 3, window).double()
    theirs = torch.nn.Conv2d(
        before, 3, window, padding="same", padding_mode="circular"
    ).double()
    theirs.load_state_dict(ours.state_dict())
    field.requires_grad_()
    results = []
    for convolution in (ours, theirs):
        values = convolution(field)
        parameters = [field, *convolution.parameters()]
        gradients = torch.autograd.grad(values.square().sum(), parameters)
        results.append((values, *gradients))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_windows_wider_than_the_field_wrap_as_pytorchs_do():
    convolution = _PeriodicConv2d(MANY_CHANNELS, 2, 9)
    field = torch.randn(1, MANY_CHANNELS, 5, 5)
    expected = torch.nn.Conv2d.forward(convolution, field)
    torch.testing.assert_close(convolution(field), expected)
