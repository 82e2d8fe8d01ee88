import numpy as np
import pytest
import torch
from aspire.source import Simulation
from aspire.utils import Rotation
from hypothesis import given, settings
from hypothesis import strategies as st

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.inversion import cartesian, forward_model
from aspire_mom.moments import MomentEstimator, Noise
from aspire_mom.rotations import SO3Quadrature, SphericalDesign, VonMisesFisherMixture
from aspire_mom.volumes import BallHarmonics, FourierNet, ball_harmonics
from tests.inversion.models import (
    GridVolume,
    closed_form,
    exact_moments,
    largest_difference,
    mixture,
    moved,
    quadrature_of,
    random_probabilities,
    random_rotations,
)
from tests.references import forward as reference
from tests.references.dft import volume_fourier_values

SIZES = pytest.mark.parametrize("L", [10, 11])
DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-9)]
)
MIRROR = np.diag([1.0, 1.0, -1.0])
QUADRATURES = {
    "antipodal": SO3Quadrature.product(SphericalDesign(5), 1),
    "antipodal, three in-plane angles": SO3Quadrature.product(SphericalDesign(3), 3),
    "random, odd number": quadrature_of(random_rotations(7)),
    "random, even number, uneven weights": quadrature_of(
        random_rotations(6), 2, random_probabilities(12, seed=5)
    ),
}
QUADRATURE = pytest.mark.parametrize(
    "quadrature", QUADRATURES.values(), ids=QUADRATURES
)
# Every ring and order; some of them; ring 0 alone.
CUTS = pytest.mark.parametrize("cut", [(None, None), (4, 5), (1, 0)])


def moments_of(model, quadrature, basis, **cut):
    p = random_probabilities(len(quadrature))
    forward = forward_model(basis.cut(**cut), quadrature)
    return forward(model, torch.from_numpy(p)), p


@SIZES
@DTYPES
@QUADRATURE
@CUTS
def test_polar_averaged(L, dtype, tolerance, quadrature, cut):
    model, basis = mixture(dtype=dtype), PolarBasis(L)
    n_rings, max_order = cut
    actual, p = moments_of(
        model, quadrature, basis, n_rings=n_rings, max_order=max_order
    )
    n_rings = n_rings or basis.n_rings
    max_order = basis.max_order if max_order is None else max_order
    expected = reference.averaged(
        *reference.polar_moments(
            closed_form(model), quadrature.rotations.matrices, p, L, n_rings, max_order
        )
    )
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.complex(*2 * [torch.ones(1, dtype=dtype)]).dtype
        assert largest_difference(a, e) < tolerance


@SIZES
@DTYPES
@pytest.mark.parametrize("n_inplane", [1, 2, 7])
@pytest.mark.parametrize("cut", [(None, 4), (4, 3), (1, 0)])
def test_polar_with_uneven_in_plane_angles(L, dtype, tolerance, n_inplane, cut):
    """Every node has a probability of its own, in-plane angles of one view included."""
    model = mixture(dtype=dtype)
    basis = PolarBasis(L, max_order=cut[1] + 1, inplane_average=False)
    quadrature = quadrature_of(random_rotations(5, seed=2), n_inplane)
    actual, p = moments_of(model, quadrature, basis, n_rings=cut[0], max_order=cut[1])
    n_rings = cut[0] or basis.n_rings
    expected = reference.polar_moments(
        closed_form(model), quadrature.rotations.matrices, p, L, n_rings, cut[1]
    )
    for a, e in zip(actual, expected, strict=True):
        assert largest_difference(a, e) < tolerance


def test_basis_shapes():
    model, quadrature = mixture(), QUADRATURES["random, odd number"]
    for basis in (
        PolarBasis(10),
        PolarBasis(11, n_rings=3, max_order=2),
        PolarBasis(11, max_order=4, inplane_average=False),
        CartesianBasis(8),
    ):
        (first, second), _ = moments_of(model, quadrature, basis)
        assert first.shape == basis.first_shape
        assert second.shape == basis.second_shape


@pytest.mark.parametrize("L", [6, 7])
def test_voxels(L):
    """
    A volume of random voxels, whose transform is summed voxel by voxel. They fill a
    ball of the box: its corners would have orders beyond those that rings are sampled
    for.
    """
    axis = (np.arange(L) - L // 2) / L
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    voxels = np.random.default_rng(0).standard_normal((L, L, L))
    voxels *= x**2 + y**2 + z**2 < 0.45**2
    model, quadrature = GridVolume(voxels), QUADRATURES["random, odd number"]
    p, nodes = random_probabilities(7), quadrature.rotations.matrices

    def transform(k):
        return volume_fourier_values(voxels, k)

    (first, second), _ = moments_of(model, quadrature, PolarBasis(L, max_order=3))
    args = transform, nodes, p, L
    n_rings = (L + 1) // 2
    expected = reference.averaged(*reference.polar_moments(*args, n_rings, 3))
    assert largest_difference(first, expected[0]) < 1e-4
    assert largest_difference(second, expected[1]) < 1e-4
    (first, second), _ = moments_of(model, quadrature, CartesianBasis(L))
    expected = reference.cartesian_moments(*args)
    assert largest_difference(first, expected[0]) < 1e-12
    assert largest_difference(second, expected[1]) < 1e-12


@SIZES
@DTYPES
def test_cartesian(L, dtype, tolerance):
    model, quadrature = mixture(dtype=dtype), quadrature_of(random_rotations(4), 3)
    (first, second), p = moments_of(model, quadrature, CartesianBasis(L))
    expected = reference.cartesian_moments(
        closed_form(model), quadrature.rotations.matrices, p, L
    )
    assert largest_difference(first, expected[0]) < tolerance
    assert largest_difference(second, expected[1]) < tolerance
    assert first.dtype == second.dtype == (torch.ones(1, dtype=dtype) * 1j).dtype
    if L % 2 == 0:
        grid = first.reshape(L, L)
        assert (grid[0] == 0).all()
        assert (grid[:, 0] == 0).all()
        assert (grid[1:, 1:] != 0).all()


@SIZES
def test_polar_and_cartesian_are_of_the_same_images(L):
    """F(r cos θ, r sin θ) = Σ_m c[m, r] exp(imθ) at pixels that lie on rings."""
    model, quadrature = mixture(), quadrature_of(random_rotations(4), 5)
    basis = PolarBasis(L, max_order=30, inplane_average=False)
    (first, second), _ = moments_of(model, quadrature, basis)
    (f, ff), _ = moments_of(model, quadrature, CartesianBasis(L))
    pixels = np.array([[0, 0], [1, 0], [0, -3], [-4, 0], [0, 2], [-2, 0]])  # kx, ky
    ring = np.abs(pixels).sum(1)
    at = (pixels[:, 1] + L // 2) * L + pixels[:, 0] + L // 2
    orders = np.arange(-30, 31)
    waves = np.exp(1j * np.outer(orders, np.arctan2(pixels[:, 1], pixels[:, 0])))
    first, second = first.detach().numpy(), second.detach().numpy()
    signs = (-1.0) ** orders[31:, None]
    both = np.concatenate(((signs * first[1:].conj())[::-1], first))
    synthesised = np.einsum("mp,mp->p", waves, both[:, ring])
    assert largest_difference(synthesised, f.detach().numpy()[at]) < 1e-10
    # (-m, m') holds (-1)^(m + m') conj (m, -m').
    negative = second[1:][::-1, :, ::-1].conj()
    negative *= ((-1.0) ** (orders[:30, None] + orders))[:, None, :, None]
    both = np.concatenate((negative, second))[:, ring][..., ring]
    synthesised = np.einsum("mp,mpnq,nq->pq", waves, both, waves.conj())
    assert largest_difference(synthesised, ff.detach().numpy()[np.ix_(at, at)]) < 1e-10


@pytest.mark.parametrize("L", [24, 25])
def test_moments_of_aspire_images(L):
    """
    Clean images of a `Simulation` at a quadrature's nodes have the model's moments:
    widths from 1.4 to 2.6 voxels keep what the grid cuts off below 1e-4.
    """
    model = mixture(sigma=2 / L)
    design = SO3Quadrature.product(SphericalDesign(5), 4)
    quadrature = quadrature_of(random_rotations(1)[0] @ design.view_rotations, 4)
    source = Simulation(
        vols=model.to_volume(L, pixel_size=1.0).astype(np.float64),
        n=len(quadrature),
        angles=quadrature.rotations.angles,
        offsets=0,
        amplitudes=1,
    )
    for basis in (
        PolarBasis(L),
        PolarBasis(L, max_order=9, inplane_average=False),
        CartesianBasis(L),
    ):
        images = MomentEstimator(source, basis, noise=Noise(variance=0)).estimate()
        exact = exact_moments(model, quadrature.weights, quadrature, basis)
        assert largest_difference(images.first, exact.first) < 2e-4
        assert largest_difference(images.second, exact.second) < 2e-4
        uneven = random_probabilities(len(quadrature))
        other = exact_moments(model, uneven, quadrature, basis)
        assert max(other.relative_error(exact)) > 0.01


def bases(L=11):
    return (
        PolarBasis(L),
        PolarBasis(L, max_order=6, inplane_average=False),
        CartesianBasis(L),
    )


@settings(max_examples=5)
@given(seed=st.integers(0, 1000), mirrored=st.booleans())
def test_volume_and_nodes_rotated_or_mirrored(seed, mirrored):
    """(Q v, Q R) and (J v, J R J) give the images of (v, R)."""
    model = mixture(seed=seed)
    views = random_rotations(5, seed=seed)
    turn = random_rotations(1, seed=seed + 1)[0]
    quadrature = quadrature_of(views, 3)
    other = quadrature_of(MIRROR @ views @ MIRROR if mirrored else turn @ views, 3)
    same = moved(model, MIRROR if mirrored else turn)
    for basis in bases():
        (first, second), _ = moments_of(model, quadrature, basis)
        for volume, nodes, equal in (
            (same, other, True),
            (model, other, False),
            (same, quadrature, False),
        ):
            (a, b), _ = moments_of(volume, nodes, basis)
            assert (largest_difference(b, second) < 1e-10) == equal
            # Over few nodes the first moment is nowhere near that of uniform views.
            assert (largest_difference(a, first) < 1e-10) == equal


@pytest.mark.parametrize("mirrored", [False, True])
def test_volume_and_density_rotated_or_mirrored(mirrored):
    """
    The same as functions: on one and the same design, fine enough for the density
    (κ = 2) and for the orders of four rings.
    """
    quadrature = SO3Quadrature.product(SphericalDesign(41), 1)
    density = VonMisesFisherMixture.random(3, seed=1)
    density = VonMisesFisherMixture(density.means, [2, 1, 2], density.weights)
    turn = random_rotations(1, seed=3)[0]
    model, basis = mixture(), PolarBasis(12, n_rings=4)
    if mirrored:
        # The view of J R J is J R J e_z = -J (R e_z).
        other, means = moved(model, MIRROR), -density.means @ MIRROR
    else:
        other, means = moved(model, turn), density.means @ turn.T
    same = VonMisesFisherMixture(means, density.concentrations, density.weights)
    exact = exact_moments(model, density.on(quadrature), quadrature, basis)
    moments = exact_moments(other, same.on(quadrature), quadrature, basis)
    assert max(moments.relative_error(exact)) < 1e-6
    moments = exact_moments(other, density.on(quadrature), quadrature, basis)
    assert min(moments.relative_error(exact)) > 0.003


@settings(max_examples=5)
@given(angle=st.floats(0.1, 6.0))
def test_in_plane_rotation(angle):
    """R Rz(β) leaves averaged moments alone and turns orders by exp(i(m - m')β)."""
    model, views = mixture(), random_rotations(6)
    turn = Rotation.about_axis("z", angle, dtype=np.float64).matrices[0]
    quadrature, turned = quadrature_of(views, 2), quadrature_of(views @ turn, 2)
    (first, second), (first_turned, second_turned) = (
        moments_of(model, nodes, PolarBasis(11))[0] for nodes in (quadrature, turned)
    )
    assert largest_difference(first_turned, first) < 1e-9
    assert largest_difference(second_turned, second) < 1e-9
    basis = PolarBasis(11, max_order=4, inplane_average=False)
    (first, second), (first_turned, second_turned) = (
        moments_of(model, nodes, basis)[0] for nodes in (quadrature, turned)
    )
    phases = torch.exp(1j * angle * torch.arange(-4, 5, dtype=torch.float64))
    assert largest_difference(first_turned, phases[4:, None] * first) < 1e-9
    second = phases[4:, None, None, None] * second * phases.conj()[:, None]
    assert largest_difference(second_turned, second) < 1e-9


@pytest.mark.parametrize(
    "model",
    [
        mixture(dtype=torch.float32),
        FourierNet(5.0, hidden=8, scale=9.0),
        BallHarmonics(4.0, support_radius=0.4),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.parametrize("basis", [PolarBasis(9), CartesianBasis(9)])
def test_chunks_make_no_difference(model, basis, monkeypatch):
    """Nor to gradients, recomputed chunk by chunk."""
    quadrature, results = QUADRATURES["antipodal"], []
    for points, kept in ((2**18, 2**18), (500, 2**18), (500, 0)):
        monkeypatch.setattr(cartesian, "POINTS_PER_CHUNK", {"cpu": points})
        monkeypatch.setattr(cartesian, "POINTS_KEPT", kept)
        (first, second), _ = moments_of(model, quadrature, basis)
        loss = first.abs().square().sum() + second.abs().square().sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append([first, second, *gradients])
    for whole, *others in zip(*results, strict=True):
        for chunked in others:
            assert largest_difference(chunked, whole) < 1e-4


def test_harmonics_are_evaluated_once(monkeypatch):
    """However many points there are: not for each loss, chunk and gradient."""
    calls, harmonics = [], ball_harmonics.real_spherical_harmonics

    def counted(*args):
        calls.append(args)
        return harmonics(*args)

    monkeypatch.setattr(ball_harmonics, "real_spherical_harmonics", counted)
    monkeypatch.setattr(cartesian, "POINTS_PER_CHUNK", {"cpu": 500})
    model = BallHarmonics(4.0, support_radius=0.4)
    quadrature = QUADRATURES["antipodal"]
    module = forward_model(PolarBasis(9), quadrature)
    probabilities = torch.from_numpy(random_probabilities(len(quadrature)))
    for _ in range(2):
        module(model, probabilities)[1].abs().sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize(
    "basis",
    [
        PolarBasis(5, max_order=2),
        PolarBasis(5, n_rings=2, max_order=1, inplane_average=False),
        CartesianBasis(4),
    ],
)
def test_gradcheck(basis):
    """With respect to the volume and to the probabilities."""
    model = mixture(2)
    quadrature = SO3Quadrature.product(SphericalDesign(1), 2)
    module = forward_model(basis, quadrature)
    p = torch.from_numpy(random_probabilities(len(quadrature))).requires_grad_()

    def moments(p, *parameters):
        names = [name for name, _ in model.named_parameters()]
        state = dict(zip(names, parameters, strict=True))
        volume = _Functional(model, state)
        return tuple(torch.view_as_real(m) for m in module(volume, p))

    assert torch.autograd.gradcheck(moments, (p, *model.parameters()), fast_mode=True)


class _Functional:
    """A model with other parameters, which gradcheck passes as arguments."""

    def __init__(self, model, state):
        self.model, self.state = model, state

    def parameters(self):
        return iter(self.state.values())

    def __getattr__(self, name):
        def call(*args):
            module = _Method(self.model, name)
            state = {f"model.{key}": value for key, value in self.state.items()}
            return torch.func.functional_call(module, state, args)

        return call


class _Method(torch.nn.Module):
    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *args):
        return getattr(self.model, self.name)(*args)


@pytest.mark.parametrize("basis", bases())
def test_probabilities_of_another_precision(basis):
    """A float64 density (from NumPy, say) of a float32 volume, and the reverse."""
    quadrature = QUADRATURES["antipodal"]
    p = random_probabilities(len(quadrature))
    module = forward_model(basis, quadrature)
    exact = module(mixture(), torch.from_numpy(p))
    for dtype, other in (
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
    ):
        moments = module(mixture(dtype=dtype), torch.from_numpy(p).to(other))
        for actual, expected in zip(moments, exact, strict=True):
            assert actual.real.dtype == dtype
            assert largest_difference(actual, expected) < 1e-5
