import numpy as np
import pytest
import torch
from aspire.volume import Volume
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import sph_harm_y, spherical_jn
from torch.func import functional_call

from aspire_mom.rotations import real_spherical_harmonics
from aspire_mom.volumes.ball_harmonics import BallHarmonics
from aspire_mom.volumes.base import FourierVolume


def random_directions(n, seed=0):
    directions = np.random.default_rng(seed).standard_normal((n, 3))
    directions[:2] = [[0, 0, 1], [0, 0, -1]]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return torch.from_numpy(directions)


def random_rotation(seed):
    Q, R = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    Q = Q * np.sign(np.diag(R))
    return Q * np.sign(np.linalg.det(Q))


def scipy_harmonic(l, m, directions):
    polar = np.arccos(np.clip(directions[:, 2], -1, 1))
    azimuth = np.arctan2(directions[:, 1], directions[:, 0])
    values = (-1) ** m * sph_harm_y(l, abs(m), polar, azimuth)
    if m == 0:
        return values.real
    return np.sqrt(2) * (values.real if m > 0 else values.imag)


def quadrature_transform(model, k):
    """∫ v(x) exp(-2πi k·x) dx of the real-space definition, by quadrature."""
    R = model.support_radius
    nodes, weights = np.polynomial.legendre.leggauss(40)
    radii, radial = (nodes + 1) * R / 2, weights * R / 2 * ((nodes + 1) * R / 2) ** 2
    phi = np.arange(80) * 2 * np.pi / 80
    z, phi = np.meshgrid(nodes, phi, indexing="ij")
    rho = np.sqrt(1 - z**2)
    directions = np.stack((rho * np.cos(phi), rho * np.sin(phi), z), -1).reshape(-1, 3)
    angular = np.repeat(weights, 80) * 2 * np.pi / 80
    a = iter(model.coefficients.detach().double().numpy())
    v = np.zeros((len(radii), len(directions)))
    for l, zeros in enumerate(model.zeros):
        for zero in zeros:
            norm = np.sqrt(2 / R**3) / abs(spherical_jn(l + 1, zero))
            profile = norm * spherical_jn(l, zero * radii / R)
            for m in range(-l, l + 1):
                Y = scipy_harmonic(l, m, directions)
                v += next(a) * profile[:, None] * Y
    weighted = v * radial[:, None] * angular
    points = radii[:, None, None] * directions
    values = [np.sum(weighted * np.exp(-2j * np.pi * points @ q)) for q in k]
    return np.array(values), np.sum(weighted * v)


def test_harmonics_are_scipy_s():
    directions = random_directions(20)
    for l, Y in enumerate(real_spherical_harmonics(directions, 40)):
        assert Y.shape == (20, 2 * l + 1)
        for m in {-l, -l // 2, -1, 0, 1, l // 3, l} if l else {0}:
            expected = scipy_harmonic(l, m, directions.numpy())
            np.testing.assert_allclose(Y[:, l + m], expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [0.35, 0.5])
def test_fourier_values_are_integrals(dtype, radius):
    model = BallHarmonics(4.5, support_radius=radius).to(dtype)
    k = np.array([[0.3, -1.2, 2.2], [0, 0, 0], [3, 2, -1], [0, 0, -4]])
    expected, norm = quadrature_transform(model, k)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-6
    values = model(torch.tensor(k, dtype=dtype)).detach().numpy()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(values, expected, atol=tolerance)
    assert norm == pytest.approx(1, abs=1e-6)  # the basis is orthonormal, ‖a‖ = 1


def test_removable_singularity():
    """On the zeros themselves and to either side of the Taylor series' range."""
    model = BallHarmonics(6.0).double()
    zeros = np.concatenate(model.zeros)
    offsets = np.array([0, 1e-9, 0.99e-4, 1.01e-4, 1e-2])
    radii = (zeros[:, None] + offsets).ravel() / (2 * np.pi * model.support_radius)
    direction = np.array([0.6, 0.0, 0.8])
    expected, _ = quadrature_transform(model, radii[:, None] * direction)
    values = model(torch.from_numpy(radii[:, None] * direction)).detach().numpy()
    np.testing.assert_allclose(values, expected, atol=1e-9)


@pytest.mark.parametrize("degree", [0, 1, 6])
def test_rings_and_slices_are_scattered_points(degree):
    model = BallHarmonics(6.0, degree=degree).double()
    directions, radii = random_directions(7), torch.arange(7.0, dtype=torch.float64)
    for seed in (0, 0, 1):  # the second call uses what the first one kept
        directions = random_directions(7, seed)
        expected = FourierVolume.on_rings(model, directions, radii)
        assert expected.abs().max() > 0
        torch.testing.assert_close(model.on_rings(directions, radii), expected)
    rotations = torch.from_numpy(np.stack([random_rotation(s) for s in range(3)]))
    frequencies = torch.tensor([[0.0, 0.0], [1.0, -2.0], [4.5, 0.5]]).double()
    expected = FourierVolume.slices(model, rotations, frequencies)
    torch.testing.assert_close(model.slices(rotations, frequencies), expected)


def test_rings_follow_the_coefficients_and_their_dtype():
    model = BallHarmonics(4.0)
    directions, radii = random_directions(5).float(), torch.arange(4.0)
    first = model.on_rings(directions, radii).detach()
    with torch.no_grad():
        model.coefficients.mul_(2)
    torch.testing.assert_close(model.on_rings(directions, radii), 2 * first)
    model.double()
    again = model.on_rings(directions, radii)
    assert again.dtype == torch.complex128
    torch.testing.assert_close(again.to(torch.complex64), 2 * first)


def test_gradients():
    model = BallHarmonics(3.0, degree=3).double()
    directions, radii = random_directions(4), torch.arange(4.0, dtype=torch.float64)
    rotations = torch.from_numpy(random_rotation(0))[None].requires_grad_()
    frequencies = torch.tensor([[0.0, 0.0], [1.0, -2.0]]).double()

    def rings(a):
        arguments = (directions, radii)
        return functional_call(_OnRings(model), {"model.coefficients": a}, arguments)

    a = model.coefficients.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(rings, (a,))
    assert torch.autograd.gradcheck(
        lambda R: model.slices(R, frequencies), (rotations,)
    )


class _OnRings(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, directions, radii):
        return self.model.on_rings(directions, radii)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_real_volume(seed):
    model = BallHarmonics(5.0, seed=seed)
    k = 4 * random_directions(20, seed).float()
    assert model(k).imag.abs().max() > 0
    torch.testing.assert_close(model(-k), model(k).conj(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("L", [24, 25])
def test_volume_lives_in_its_ball(L):
    model = BallHarmonics(7.0, support_radius=0.35)
    voxels = model.to_volume(L).asnumpy()[0]
    axis = (np.arange(L) - L // 2) / L
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    outside = x**2 + y**2 + z**2 > 0.4**2
    power = np.sum(voxels**2)
    # What is cut at L/2 rings across the boundary; a uniform volume would have 0.73.
    assert np.sum(voxels[outside] ** 2) < 0.01 * power
    assert L**3 * power == pytest.approx(1, abs=0.05)  # Parseval, ‖a‖ = 1


def gaussians(L, rotation):
    axis = (np.arange(L) - L // 2) / L
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    centres = np.array([[0.15, 0, 0], [0, -0.1, 0.1], [-0.05, 0.1, -0.1]]) @ rotation.T
    voxels = sum(
        w * np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 0.012)
        for w, (a, b, c) in zip((1, 0.7, 1.3), centres, strict=True)
    )
    return Volume(voxels.astype(np.float32))


def degree_powers(model):
    return np.array([a.square().sum().item() for a in model._blocks()])


@settings(max_examples=4)
@given(seed=st.integers(0, 1000), L=st.sampled_from([20, 21]))
def test_rotation_keeps_the_power_of_every_degree(seed, L):
    models = [BallHarmonics(8.0) for _ in range(2)]
    for model, rotation in zip(models, (np.eye(3), random_rotation(seed)), strict=True):
        assert model.fit(gaussians(L, rotation)) < 0.05
    first, second = map(degree_powers, models)
    assert np.count_nonzero(first > 1e-3 * first.sum()) >= 4
    np.testing.assert_allclose(second, first, atol=2e-3 * first.sum())


def test_fit_recovers_coefficients():
    truth = BallHarmonics(8.0, support_radius=0.4, seed=3)
    with torch.no_grad():  # smooth at the boundary: the low radial orders alone
        for zeros, block in zip(truth.zeros, truth._blocks(), strict=True):
            block *= torch.from_numpy(np.exp(-((zeros / 12) ** 4)))[:, None].float()
    model = BallHarmonics(8.0, support_radius=0.4)
    assert model.fit(truth.to_volume(25)) < 0.02
    difference = (model.coefficients - truth.coefficients).norm()
    assert difference < 0.05 * truth.coefficients.norm()


def test_band_limit_beyond_the_grid_is_refused():
    with pytest.raises(ValueError, match="L/2 = 5.0"):
        BallHarmonics(6.0).fit(Volume(np.ones((10, 10, 10), np.float32)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"band_limit": 0.9}, "band_limit must exceed"),
        ({"band_limit": 4.0, "support_radius": 0.6}, "support_radius"),
        ({"band_limit": 4.0, "degree": -1}, "degree"),
        ({"band_limit": 4.0, "degree": 2.5}, r"degree is 2\.5; .* an integer"),
        ({"band_limit": float("nan")}, "band_limit is nan"),
        ({"band_limit": "x"}, "band_limit is 'x'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BallHarmonics(**arguments)
