"""Residual shifts, which the forward moments model."""

import numpy as np
import pytest
import torch

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.checkpoints import Checkpoint, InvalidCheckpoint
from aspire_mom.inversion import (
    MomentInversion,
    Reconstruction,
    SearchOptions,
    StoppedByUser,
)
from aspire_mom.inversion.forward import Shifts, forward_model
from aspire_mom.inversion.search import FIRST_SHIFT_STD, SHIFT_UNIT, Search
from aspire_mom.moments import (
    Corrections,
    MomentEstimator,
    Moments,
    Noise,
)
from aspire_mom.rotations import DiscreteDensity, SO3Quadrature, SphericalDesign
from aspire_mom.volumes import GaussianMixture
from tests.moments.sources import largest_difference, simulation

STD = 1.2


def hermite(n):
    """Nodes and weights of a standard normal distribution in the plane."""
    x, w = np.polynomial.hermite_e.hermegauss(n)
    w = w / w.sum()
    nodes = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    return nodes, np.outer(w, w).ravel()


def shifted_moments(L, basis):
    """
    Moments of clean images (in-plane turned by quarter turns, so that shifts along the
    axes stand for all) averaged over shifts by a quadrature of Gauss and Hermite, and
    those of the centred images.
    """
    nodes, weights = hermite(9)
    views = np.array([(0.3, 1.1, np.pi / 2 * i) for i in range(4)])
    options = {"noise": 0, "dtype": np.float64}
    shifted = simulation(
        L,
        n=4 * len(nodes),
        angles=np.tile(views, (len(nodes), 1)),
        offsets=STD * nodes.repeat(4, 0),
        **options,
    )
    c, p = basis.coefficients(shifted.images[:].asnumpy()), weights.repeat(4) / 4
    first = np.tensordot(p, c[:, 0], 1)
    second = np.einsum("nmr,nms->mrs", p[:, None, None] * c, c.conj())
    centred = simulation(L, n=4, angles=views, **options)
    return (
        first,
        second,
        MomentEstimator(centred, basis, noise=Noise(variance=0)).estimate(),
    )


@pytest.mark.parametrize("L", [24, 25])
def test_moments_of_shifted_images(L):
    basis = PolarBasis(L, n_rings=7)
    first, second, centred = shifted_moments(L, basis)
    shifts = Shifts(basis.n_rings, basis.max_order, max_std=STD / L)
    model = shifts(
        torch.from_numpy(centred.first), torch.from_numpy(centred.second), STD / L
    )
    for value, expected in zip(model, (first, second), strict=True):
        assert largest_difference(value.numpy(), expected) < 1e-4
    # What leaving the shifts out would give.
    assert largest_difference(centred.second, second) > 0.03


def test_pairs_of_pixels_shrink_with_their_distance():
    """Cartesian entries shrink with the distance of their pixels."""
    L, quadrature = 9, SO3Quadrature.product(SphericalDesign(5), 4)
    volume = GaussianMixture(3, seed=1).double()
    p = torch.full((len(quadrature),), 1 / len(quadrature)).double()
    basis = CartesianBasis(L)
    with torch.no_grad():
        plain = forward_model(basis, quadrature)(volume, p)
        shifted = forward_model(basis, quadrature, shift_std=STD)(volume, p)
    k = basis.frequencies
    a = 2 * np.pi**2 * (STD / L) ** 2
    apart = ((k[:, None] - k) ** 2).sum(-1)
    for value, expected in (
        (shifted[0], plain[0].numpy() * np.exp(-a * (k**2).sum(1))),
        (shifted[1], plain[1].numpy() * np.exp(-a * apart)),
    ):
        assert np.allclose(value.numpy(), expected, atol=1e-12)


def test_shift_matrix_keeps_the_power_of_rings():
    basis = PolarBasis(24, n_rings=6)
    rng = np.random.default_rng(0)
    half = rng.standard_normal((basis.max_order + 1, 6, 9))
    half = torch.from_numpy(half * 0.5 ** np.arange(len(half))[:, None, None])
    second = (half @ half.transpose(1, 2)).to(torch.complex128)
    _, shifted = Shifts(6, basis.max_order, 0.03)(torch.zeros(6), second, 0.03)
    count = torch.full((len(half), 1), 2.0)
    count[0] = 1
    power = [
        (count * s.diagonal(dim1=1, dim2=2).real).sum(0) for s in (second, shifted)
    ]
    assert torch.allclose(*power, rtol=1e-3)


def test_an_inversion_models_the_shifts_of_its_moments():
    """The truth fits moments of shifted images when told of the shifts, else not."""
    L = 16
    quadrature = SO3Quadrature.product(SphericalDesign(9), 1)
    volume = GaussianMixture(4, seed=0, sigma=0.08).double()
    basis = PolarBasis(L, n_rings=5)
    density = np.full(len(quadrature), 1 / len(quadrature))
    p = torch.from_numpy(density)
    with torch.no_grad():
        first, second = forward_model(basis, quadrature, shift_std=1.0)(volume, p)
    losses = []
    for std in (1.0, 0.0):
        moments = Moments(
            first.numpy(),
            second.numpy(),
            basis,
            n_images=100,
            corrections=Corrections(shift_std=std),
        )
        inversion = MomentInversion(moments, quadrature=quadrature)
        problem = inversion.problem(5)
        with torch.no_grad():
            losses.append(float(problem.loss(*problem.forward(volume, p))))
    assert losses[0] < 1e-6 * losses[1]


@pytest.mark.parametrize("L", [9, 10])
@pytest.mark.parametrize("kind", [CartesianBasis, PolarBasis])
def test_moments_are_differentiable_in_the_spread_of_shifts(L, kind):
    """Against differences, and equal to those of the same spread if that is given."""
    quadrature, basis = SO3Quadrature.product(SphericalDesign(3), 4), kind(L)
    volume = GaussianMixture(3, seed=1).double()
    p = torch.full((len(quadrature),), 1 / len(quadrature)).double()
    forward = forward_model(basis, quadrature, shift_std=None)
    std = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    made = forward(volume, p, std)
    with torch.no_grad():
        given = forward_model(basis, quadrature, shift_std=0.7)(volume, p)
        step = 1e-4
        sides = [forward(volume, p, 0.7 + d) for d in (step, -step)]
    rng = np.random.default_rng(0)
    for moment, expected, above, below in zip(made, given, *sides, strict=True):
        assert torch.allclose(moment, expected, atol=1e-9)
        w = torch.from_numpy(rng.standard_normal(moment.shape))
        (slope,) = torch.autograd.grad((w * moment.real).sum(), std, retain_graph=True)
        difference = (w * (above - below).real).sum() / (2 * step)
        assert slope.item() == pytest.approx(difference.item(), rel=1e-5)


def exact(basis, quadrature, std):
    """Moments of images with shifts, as if of a million images, their spread unknown,
    and models near the truth to start from."""
    volume = GaussianMixture(3, seed=0, sigma=0.08, support_radius=0.25)
    p = np.random.default_rng(0).exponential(size=len(quadrature))
    p = torch.from_numpy(p / p.sum())
    with torch.no_grad():
        model = forward_model(basis, quadrature, shift_std=std)
        first, second = (m.numpy() for m in model(volume.double(), p))
        volume.float().log_sigmas += 0.2
    density = DiscreteDensity.from_probabilities(p.float() + 1 / len(p))
    moments = Moments(
        first, second, basis, n_images=10**6, corrections=Corrections(shift_std=None)
    )
    return moments, volume, density


@pytest.mark.parametrize(
    ("basis", "std"),
    [
        (PolarBasis(16, n_rings=6), 0.9),
        (PolarBasis(17, n_rings=6), 0.9),
        (PolarBasis(17, n_rings=6), 0.0),
        (CartesianBasis(8), 0.6),
        (CartesianBasis(9), 0.6),
    ],
    ids=repr,
)
def test_the_spread_of_shifts_is_found(basis, std, tmp_path):
    """With the volume and the density, whose widths and views start off the truth."""
    inplane = 4 if isinstance(basis, CartesianBasis) else 1
    quadrature = SO3Quadrature.product(SphericalDesign(5), inplane)
    found = MomentInversion(
        *exact(basis, quadrature, std),
        quadrature,
        search=SearchOptions(max_gaussians=3, n_steps=100),
    ).estimate()
    # Moments depend on the square: 0.05 at 0.9 are as much as 0.3 at 0.
    assert found.shift_std**2 == pytest.approx(std**2, abs=0.09)
    assert found.starts[0]["shift_std"] == found.shift_std
    assert found.settings["shift_std"] is None
    assert max(found.moment_errors) < 0.01
    found.save(tmp_path / "result")
    assert Reconstruction.load(tmp_path / "result").shift_std == found.shift_std


@pytest.mark.parametrize("astray", [0.0, -68.0])
def test_a_spread_gone_astray_comes_back_on_the_next_level(astray):
    """From 0, where moments are stationary in it, since they depend on its square, and
    from boxes, where they are, since nothing is left of them."""
    quadrature, basis = SO3Quadrature.product(SphericalDesign(5), 1), PolarBasis(17)
    inversion = MomentInversion(*exact(basis, quadrature, 0.9), quadrature)
    candidate = inversion.initial_candidate(0)
    candidate.shift_std.data.fill_(astray)
    search = Search(inversion.search, None, Checkpoint(None, {}))
    search.refine(candidate, inversion.problem(6), "second", 80)
    std = SHIFT_UNIT * 17 * candidate.shift_std.item()
    assert abs(std) == pytest.approx(0.9, abs=0.1)


@pytest.mark.parametrize("prior", ["fouriernet", "harmonics"])
def test_all_priors_move_the_spread_of_shifts(prior):
    quadrature = SO3Quadrature.product(SphericalDesign(3), 1)
    moments, _, _ = exact(PolarBasis(9, n_rings=4), quadrature, 0.9)
    found = MomentInversion(
        moments,
        prior,
        quadrature=quadrature,
        search=SearchOptions(n_starts=1, n_steps=20),
    ).estimate()
    assert found.shift_std != pytest.approx(9 * FIRST_SHIFT_STD, rel=1e-3)


def test_a_resumed_search_finds_the_same_spread(tmp_path, monkeypatch):
    monkeypatch.setattr("aspire_mom.inversion.search.STEPS_PER_LEVEL", 20)
    quadrature = SO3Quadrature.product(SphericalDesign(5), 1)
    moments, _, _ = exact(PolarBasis(9, n_rings=5), quadrature, 0.7)
    search = SearchOptions(n_starts=1, n_steps=40, max_gaussians=4)
    options = {"quadrature": quadrature, "search": search}
    expected = MomentInversion(moments, **options).estimate()
    path, seen = tmp_path / "checkpoint.pt", []

    def until_killed(now):
        seen.append(now)
        return len(seen) == 3

    options["checkpoint"] = path
    with pytest.raises(StoppedByUser):
        MomentInversion(moments, status=until_killed, **options).estimate()
    resumed = MomentInversion(moments, **options).estimate()
    assert resumed.shift_std == expected.shift_std
    assert resumed.starts == expected.starts
    given = MomentInversion(moments.with_corrections(shift_std=0.7), **options)
    with pytest.raises(InvalidCheckpoint, match="of other data or settings"):
        given.estimate()


def test_an_unknown_spread_is_kept_in_files_and_not_merged_with_a_known_one(tmp_path):
    quadrature = SO3Quadrature.product(SphericalDesign(5), 1)
    moments, _, _ = exact(PolarBasis(9), quadrature, 0.5)
    moments.save(tmp_path / "m.npz")
    assert Moments.load(tmp_path / "m.npz").shift_std is None
    assert moments.merge(moments).shift_std is None
    with pytest.raises(ValueError, match="shift_std is None for one and 1.5"):
        moments.merge(moments.with_corrections(shift_std=1.5))
    for bad in (-1, np.nan, np.inf, "auto"):
        with pytest.raises(ValueError, match=f"shift_std is {bad!r}; it must be"):
            moments.with_corrections(shift_std=bad)


@pytest.mark.parametrize(("std", "words"), [(1.5, "1.5 pixels"), (None, "unknown")])
def test_shifts_need_an_average_in_plane(std, words):
    quadrature = SO3Quadrature.product(SphericalDesign(5), 4)
    basis = PolarBasis(9, inplane_average=False)
    with pytest.raises(ValueError, match=f"shifts of {words}.*average over in-plane"):
        forward_model(basis, quadrature, shift_std=std)
