"""The search for a non-negative grid, and its loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aspire_mom import (
    CartesianBasis,
    DiscreteDensity,
    MomentInversion,
    Moments,
    PolarBasis,
    PositiveGrid,
    SearchOptions,
    SO3Quadrature,
    SphericalDesign,
    ThirdMomentBasis,
    compare,
)
from aspire_mom.checkpoints import InvalidCheckpoint
from aspire_mom.inversion import StoppedByUser, forward_model, grid_search
from aspire_mom.inversion.grid_problem import EXTRA_DEGREE, FIRST_RING, GridProblem
from aspire_mom.inversion.grid_search import _random_starts
from aspire_mom.inversion.grid_shifts import ShiftedMoment
from aspire_mom.inversion.start import cut_to_support

RADIUS, DEGREE = 0.3, 2


def truth(n_rings):
    """A few blobs, of a smooth density of views."""
    grid = PositiveGrid(n_rings, support_radius=RADIUS)
    generator = torch.Generator().manual_seed(5)
    centres = 0.1 * torch.randn(5, 3, generator=generator)
    distances = (grid.points[:, None] - centres).norm(dim=-1)
    grid.roots.data = torch.exp(-(distances**2) / 0.01).sum(1).sqrt()
    coefficients = 0.5 * torch.randn((DEGREE + 1) ** 2 - 1, generator=generator)
    return grid, coefficients


def moments_of(grid, coefficients, design, *, L=21, cut=None, third_basis=None):
    """Exact moments, by the forward model of single volumes."""
    basis = PolarBasis(L, n_rings=grid.n_rings) if cut is None else cut
    quadrature = SO3Quadrature.product(design, 1)
    density = DiscreteDensity(quadrature, degree=DEGREE)
    density.coefficients.data = coefficients
    third_basis = third_basis or ThirdMomentBasis.rings(basis)
    forward = forward_model(basis, quadrature)
    with torch.no_grad():
        p = density()
        first, second = forward(grid, p)
        c = forward._coefficients(grid)
        ahead, behind = p.tensor_split(2)
        third = third_basis.of_views(c, ahead) + third_basis.of_views(c.conj(), behind)
    arrays = (t.numpy().astype(np.complex128) for t in (first, second, third))
    first, second, third = arrays
    return Moments(first, second, basis, third=third, third_basis=third_basis)


def shifted_images(c, std, n_nodes=12):
    """
    Shift images with coefficients c (orders, rings, views) by the nodes of a
    Gauss-Hermite quadrature, std in boxes. Return their coefficients (orders, rings,
    views, nodes) and the nodes' weights.
    """
    n_orders, n_rings, _ = c.shape
    n_angles = 4 * n_orders
    angles = 2 * np.pi * np.arange(n_angles) / n_angles
    # Coefficients of real images: c[-m] = (-1)^m conj c[m]
    m = np.arange(n_orders)[:, None, None]
    turns = np.exp(1j * np.outer(angles, m))
    negative = ((-1.0) ** m * c.conj())[1:]
    values = np.tensordot(turns, c, 1) + np.tensordot(turns[:, 1:].conj(), negative, 1)
    x, w = np.polynomial.hermite_e.hermegauss(n_nodes)
    o, w = std * x, w / w.sum()
    shifts = np.stack(np.meshgrid(o, o, indexing="ij"), -1).reshape(-1, 2)
    units = np.stack((np.cos(angles), np.sin(angles)), -1)
    k = units[:, None] * np.arange(n_rings)[:, None]
    shifted = values[..., None] * np.exp(2j * np.pi * k @ shifts.T)[:, :, None]
    shifted = np.tensordot(turns.conj().T / n_angles, shifted, 1)
    return shifted, np.outer(w, w).reshape(-1)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_shifted_moments_are_those_of_shifted_images(d):
    std, n_orders, rings = 0.05, 10, np.array([2, 3, 4])
    rng = np.random.default_rng(1)
    shape = n_orders, 5, 6
    c = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    # Few orders of the images, all of those that shifts give them.
    c[0], c[3:] = c[0].real, 0
    shifted, weights = shifted_images(c, std)
    factors = np.indices(d * (len(rings),)).reshape(d, -1).T
    r, m = [], []
    for orders in np.ndindex(*(d - 1) * (n_orders,)):
        if sum(orders) < n_orders:
            r.append(rings[factors])
            m.append(np.tile((*orders, sum(orders)), (len(factors), 1)))
    r, m = np.concatenate(r), np.concatenate(m)

    def moment(c, p):
        factors = [c[a, b] for a, b in zip(m.T, r.T, strict=True)]
        if d > 1:
            factors[-1] = factors[-1].conj()
        return (np.prod(factors, 0) * p).reshape(len(m), -1).sum(1)

    p = np.full(6, 1 / 6)
    expected = moment(shifted, p[:, None] * weights)
    clean = moment(c, p)
    given = torch.from_numpy(clean[None].astype(np.complex64))
    found = ShiftedMoment(r, m, std)(given)[0].numpy()
    assert abs(found - clean).max() > 0.1 * abs(clean).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(clean).max())


def with_shifts(moments, c, probabilities, std):
    """The moments of a model's images that are shifted by std pixels."""
    shifted, weights = shifted_images(c.numpy().astype(complex), std / moments.basis.L)
    ahead, behind = probabilities.double().tensor_split(2)
    sums = [0, 0, 0]
    for i, weight in enumerate(weights):
        for p, images in ((ahead, shifted[..., i]), (behind, shifted[..., i].conj())):
            p, images = p * weight, torch.from_numpy(images)
            sums[0] = sums[0] + images[0] @ p.to(images)
            sums[1] = sums[1] + (images * p) @ images.mH
            sums[2] = sums[2] + moments.third_basis.of_views(images, p)
    first, second, third = (total.numpy() for total in sums)
    moments = replace(moments, first=first.real + 0j, second=second, third=third)
    return moments.with_corrections(shift_std=std)


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize(("L", "std"), [(21, 0.5), (22, 1.0)])
def test_the_truth_has_no_loss_behind_shifts(L, std, filled):
    grid, coefficients = truth(5)
    if filled:  # the support, up to its edge
        grid.roots.data = PositiveGrid(5, support_radius=RADIUS).roots.data
    design = SphericalDesign(20)
    moments = moments_of(grid, coefficients, design, L=L)
    quadrature = SO3Quadrature.product(design, 1)
    density = DiscreteDensity(quadrature, degree=DEGREE)
    density.coefficients.data = coefficients
    with torch.no_grad():
        c = forward_model(moments.basis, quadrature)._coefficients(grid)
        shifted = with_shifts(moments, c, density(), std)
    problem = GridProblem(shifted, grid, DEGREE, 5, torch.zeros(1))
    centred = shifted.with_corrections(shift_std=0.0)
    centred = GridProblem(centred, grid, DEGREE, 5, torch.zeros(1))
    x = parameters(grid, coefficients)
    at_truth = problem._distances(x)
    assert at_truth < 1e-4
    assert centred._distances(x) > 100 * at_truth


def test_gradients_behind_shifts():
    grid, coefficients = truth(5)
    moments = moments_of(grid, coefficients, SphericalDesign(20))
    moments = moments.with_corrections(shift_std=1.0)
    problem = GridProblem(moments, grid, DEGREE, 5, torch.ones(2))
    x = _random_starts(problem, [0, 1]).requires_grad_()
    (gradient,) = torch.autograd.grad(problem.losses(x).sum(), x)
    step = 3e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        change = problem.losses(x + step) - problem.losses(x - step)
    torch.testing.assert_close(
        change / 2, (gradient * step).sum(1), rtol=1e-2, atol=1e-6
    )


def test_without_shifts_nothing_is_applied(problem, monkeypatch):
    _, moments = problem
    monkeypatch.setattr(ShiftedMoment, "__init__", None)
    centred = GridProblem(moments, PositiveGrid(5), DEGREE, 5, torch.ones(1))
    assert centred.shifts == []


def parameters(grid, coefficients):
    parts = [p.detach() for p in grid.parameters()]
    return torch.cat((*parts, coefficients))[None]


def test_the_truth_has_no_loss():
    grid, coefficients = truth(5)
    moments = moments_of(grid, coefficients, SphericalDesign(30))
    problem = GridProblem(moments, grid, DEGREE, 5, torch.zeros(1))
    at_truth = problem._distances(parameters(grid, coefficients))
    elsewhere = problem._distances(_random_starts(problem, [0]))
    assert at_truth < 1e-4 * elsewhere
    assert at_truth < 1e-3


def noisy(moments, level, seed):
    """Moments with errors of a share of the RMS entry, which they know."""
    rng, changed = np.random.default_rng(seed), {}
    for name in ("first", "second", "third"):
        values = getattr(moments, name)
        error = level * np.sqrt((abs(values) ** 2).mean()) * np.ones(values.shape)
        parts = rng.normal(size=(2, *values.shape)) / np.sqrt(2)
        changed |= {
            name: values + error * (parts[0] + 1j * parts[1]),
            f"{name}_error": error,
        }
    return replace(moments, **changed)


def test_the_truth_differs_by_the_noise():
    grid, coefficients = truth(5)
    moments = moments_of(grid, coefficients, SphericalDesign(30))
    x, ratios = parameters(grid, coefficients), []
    for seed in range(10):
        some = noisy(moments, 0.2, seed)
        problem = GridProblem(some, grid, DEGREE, 5, torch.zeros(1))
        ratios.append(problem._distances(x).item() / problem.noise_loss)
    # A hundred entries or so carry most of the weight: 0.1 per draw.
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)
    exact = GridProblem(moments, grid, DEGREE, 5, torch.zeros(1))
    assert exact.noise_loss == 0


@pytest.mark.parametrize("third", ["all rings", "inner rings", "outer rings", ""])
def test_losses_are_sums_over_entries(third):
    """The definition, with moments of one volume at a time and NumPy sums."""
    grid, coefficients = truth(5)
    basis = PolarBasis(21, n_rings=5)
    third_basis = ThirdMomentBasis.rings(basis, 4 if third == "inner rings" else 5)
    if third == "outer rings":
        vectors = [U[:, U[:3].sum(0) == 0] for U in third_basis.vectors]
        third_basis = ThirdMomentBasis(basis, vectors)
    moments = moments_of(
        grid, coefficients, SphericalDesign(30), third_basis=third_basis
    )
    if not third:
        moments = replace(moments, third=None, third_basis=None)
    rng = np.random.default_rng(0)
    errors = {
        name: abs(getattr(moments, name)) * rng.uniform(0.1, 1)
        for name in ("first", "second", *(["third"] if third else []))
    }
    if third:
        errors["third"][::7] = 0  # CTFs let nothing through there
    moments = replace(moments, **{f"{k}_error": v for k, v in errors.items()})
    problem = GridProblem(moments, grid, DEGREE, 5, torch.zeros(3))
    x = _random_starts(problem, [0, 1, 2])
    losses = problem._distances(x)

    cut = cut_to_support(moments.basis, 5, RADIUS)
    design = SphericalDesign(cut.max_order + EXTRA_DEGREE)
    supported = cut.order_support.diagonal(axis1=1, axis2=2).copy()
    supported[:, :FIRST_RING] = False
    rms = problem.rms
    for row, loss in zip(x, losses, strict=True):
        *parts, h = problem.split(row[None])
        for parameter, values in zip(grid.parameters(), parts, strict=True):
            parameter.data = values[0]
        model = moments_of(grid, h[0], design, cut=cut)
        expected = 0.0

        def relative(pairs):
            # Of (model, estimate, error, scale, count) per entry.
            a, b, e, s, n = map(np.array, zip(*pairs, strict=True))
            b, a, e = b / s, a / s, e / s
            power, noise = np.average([abs(b) ** 2, e**2], axis=1, weights=n)
            w = n / (e**2 + 0.1**2 * max(power - noise, 0.1**2 * noise))
            return (w * abs(a - b) ** 2).sum() / (w * abs(b) ** 2).sum()

        rings = np.flatnonzero(supported[0])
        expected += relative(
            [
                (model.first[r], moments.first[r], errors["first"][r], rms[r], 1)
                for r in rings
            ]
        )
        expected += relative(
            [
                (
                    model.second[m, r, s],
                    moments.second[m, r, s],
                    errors["second"][m, r, s],
                    rms[r] * rms[s],
                    1 + (m > 0),
                )
                for m, r in np.argwhere(supported)
                for s in np.flatnonzero(supported[m])
            ]
        )
        if third:
            expected += relative(third_entries(moments, model, errors, supported, rms))
        assert float(loss) == pytest.approx(expected, rel=1e-3)


def third_entries(moments, model, errors, supported, rms):
    ours, theirs = moments.third_basis, model.third_basis
    unit = np.sqrt(moments.basis.areas) * rms
    for m1, m2 in ours.pairs:
        if m1 + m2 >= len(supported):
            continue
        orders = (m1, m2, m1 + m2)
        blocks = [
            *(
                basis.block(values, m1, m2)
                for basis, values in (
                    (theirs, model.third),
                    (ours, moments.third),
                    (ours, errors["third"]),
                )
            ),
        ]
        weights = ours.block(ours.weights, m1, m2)
        for rings in np.argwhere(np.ones([supported.shape[1]] * 3)):
            if not all(
                supported[m, r] and r in ours.ring_indices[m]
                for m, r in zip(orders, rings, strict=True)
            ):
                continue
            at = [
                tuple(
                    int(np.flatnonzero(basis.ring_indices[m] == r)[0])
                    for m, r in zip(orders, rings, strict=True)
                )
                for basis in (theirs, ours, ours)
            ]
            values = [block[i] for block, i in zip(blocks, at, strict=True)]
            yield (*values, np.prod(unit[rings]), weights[at[1]] * (values[2] > 0))


def test_starts_do_not_depend_on_others():
    grid, coefficients = truth(5)
    moments = moments_of(grid, coefficients, SphericalDesign(20))
    problem = GridProblem(moments, grid, DEGREE, 5, torch.ones(3))
    x = _random_starts(problem, [3, 4, 5])
    alone = [problem._distances(row[None]) for row in x]
    torch.testing.assert_close(
        problem._distances(x), torch.cat(alone), rtol=1e-4, atol=0
    )
    # Processes may have no start.
    assert problem._distances(x[:0]).shape == (0,)


@pytest.fixture(scope="module")
def problem():
    grid, coefficients = truth(5)
    moments = moments_of(grid, coefficients, SphericalDesign(30))
    return grid.to_volume(21, 1.0), replace(moments, pixel_size=1.0)


def inversion(moments, *, n_starts=2, n_steps=20, **options):
    search = SearchOptions(n_starts=n_starts, n_steps=n_steps)
    return MomentInversion(
        moments, "grid", search=search, support_radius=RADIUS, **options
    )


def test_finds_the_volume(problem, monkeypatch):
    monkeypatch.setattr(grid_search, "LEVELS", ((1, 40, 1.0), (1, 60, 1.0)))
    monkeypatch.setattr(grid_search, "ROUNDS", 1)
    volume, moments = problem
    found = inversion(moments, n_starts=8, n_steps=60).estimate()
    assert compare(found.volume, volume).fsc[2:5].min() > 0.8
    losses = [start["loss"] for start in found.starts]
    assert losses == sorted(losses)
    assert max(found.moment_errors) < 0.1


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(grid_search, "LEVELS", ((1, 10, 1.0), (1, 15, 1.0)))
    monkeypatch.setattr(grid_search, "STEPS_PER_REPORT", 5)
    monkeypatch.setattr(grid_search, "ROUNDS", 1)


@pytest.mark.usefixtures("few_steps")
def test_a_search_does_not_follow_the_noise(problem, monkeypatch):
    _, moments = problem
    whole = inversion(moments).estimate().history
    (end,) = (e["loss"] for e in whole if e["stage"] == "grid, 5 rings")
    noise, steps = 1.5 * end, []
    set_entries = GridProblem._set_entries

    def with_noise(self, moments):
        set_entries(self, moments)
        self.noise_loss = noise

    monkeypatch.setattr(GridProblem, "_set_entries", with_noise)
    search = inversion(moments, status=steps.append)
    found = search.estimate()
    # One step may go further, but no more follow, on all rings.
    assert end < found.starts[0]["loss"] <= noise
    assert steps[-1].stage == found.history[-1]["stage"] == "grid, 5 rings"


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("third", [True, False])
def test_known_shifts(problem, third):
    _, moments = problem
    if not third:
        moments = replace(moments, third=None, third_basis=None)
    found = inversion(moments.with_corrections(shift_std=1.0), n_steps=2).estimate()
    assert found.shift_std == 1.0
    assert np.isfinite(found.volume.asnumpy()).all()


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("stage", ["grid, 5 rings", "grid, averages 2"])
def test_a_stopped_search_goes_on(problem, tmp_path, monkeypatch, stage):
    monkeypatch.setattr(grid_search, "ROUNDS", 3)
    _, moments = problem
    whole = inversion(moments).estimate()

    def stop(status):
        return status.stage == stage

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(StoppedByUser):
        inversion(moments, status=stop, checkpoint=path).estimate()
    again = inversion(moments, checkpoint=path).estimate()
    np.testing.assert_array_equal(again.volume.asnumpy(), whole.volume.asnumpy())


@pytest.mark.usefixtures("few_steps")
def test_a_checkpoint_of_other_third_moments_is_refused(problem, tmp_path):
    _, moments = problem
    path = tmp_path / "checkpoint.pt"
    inversion(moments, n_steps=2, checkpoint=path).estimate()
    other = replace(moments, third=3 * moments.third)
    with pytest.raises(InvalidCheckpoint):
        inversion(other, n_steps=2, checkpoint=path).estimate()


@pytest.mark.parametrize("ring", [2, 4])
@pytest.mark.parametrize("power", [0, -1])
def test_rings_without_power(problem, ring, power):
    """Noise can leave a ring's power at 0 or below."""
    _, moments = problem
    second = moments.second.copy()
    second[:, ring] *= power
    second[:, :, ring] *= abs(power)
    moments, grid = replace(moments, second=second), PositiveGrid(5)
    weak = GridProblem(moments, grid, DEGREE, 5, torch.ones(1))
    x = _random_starts(weak, [0])
    assert x.isfinite().all()
    assert weak.losses(x).isfinite().all()


def test_denormal_numbers_are_as_before(problem):
    _, moments = problem
    tiny = torch.tensor(1e-40)

    def stop(status):
        return True

    with pytest.raises(StoppedByUser):
        inversion(moments, status=stop).estimate()
    assert (tiny * 1.0).item() > 0


def test_a_search_without_finite_losses_says_so(problem, monkeypatch):
    _, moments = problem
    monkeypatch.setattr(GridProblem, "losses", lambda self, x: x.sum(1) * np.nan)
    with pytest.raises(FloatingPointError, match="NaN in grid, 3 rings"):
        inversion(moments).estimate()


def test_moments_that_it_cannot_use(problem):
    _, moments = problem
    shifted = moments.with_corrections(shift_std=None)
    with pytest.raises(ValueError, match="shifts of unknown spread; .* deviation"):
        inversion(shifted)
    with pytest.raises(ValueError, match="n_rings is 3; the grid takes 4 to 10"):
        inversion(moments, n_rings=3)
    with pytest.raises(ValueError, match="no power on rings from 2 on"):
        inversion(replace(moments, second=0 * moments.second), n_rings=5)
    with pytest.raises(ValueError, match="has no signs"):
        inversion(moments, signed=True)
    compressed = ThirdMomentBasis.from_moments(moments)
    third = np.zeros(compressed.size, complex)
    with pytest.raises(ValueError, match="compressed to eigenvectors"):
        inversion(replace(moments, third=third, third_basis=compressed))
    cartesian = CartesianBasis(6)
    first, second = (
        np.ones(shape, complex)
        for shape in (cartesian.first_shape, cartesian.second_shape)
    )
    with pytest.raises(ValueError, match="needs a PolarBasis that is averaged"):
        inversion(Moments(first, second, cartesian))
    quadrature = SO3Quadrature.product(SphericalDesign(7), 1)
    with pytest.raises(ValueError, match="must be smooth"):
        inversion(moments, density=DiscreteDensity(quadrature), quadrature=quadrature)


def test_the_default_where_molecules_lie_in_solvent():
    grid, coefficients = truth(5)
    moments = moments_of(grid, coefficients, SphericalDesign(30))
    grid.solvent.data[0] = -20  # β = 0
    in_vacuum = moments_of(grid, coefficients, SphericalDesign(30))

    def default(moments, **options):
        return MomentInversion(moments, **options).settings["volume"]

    assert default(moments) == "grid"
    assert default(in_vacuum) == "gaussians"
    assert default(moments, signed=True) == "gaussians"
    assert default(replace(moments, third=None, third_basis=None)) == "gaussians"


def test_the_default_for_images_with_ctfs():
    """Real particles lie in solvent, whether or not their moments show it."""
    grid, coefficients = truth(5)
    grid.solvent.data[0] = -20  # β = 0
    moments = moments_of(grid, coefficients, SphericalDesign(30))
    n = moments.basis.n_frequencies
    moments = replace(
        moments,
        n_images=100,
        first_information=np.full(n, 50.0),
        second_information=np.full((1, n, n), 25.0),
    )

    def default(moments):
        return MomentInversion(moments).settings["volume"]

    assert default(moments) == "grid"
    assert default(replace(moments, third=None, third_basis=None)) == "gaussians"
    assert default(moments.with_corrections(shift_std=None)) == "gaussians"
