import logging
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from aspire_mom import (
    BallHarmonics,
    CartesianBasis,
    DiscreteDensity,
    FourierNet,
    GaussianMixture,
    LossOptions,
    MomentEncoder,
    MomentInversion,
    PolarBasis,
    SearchOptions,
    SO3Quadrature,
    SphericalDesign,
    VonMisesFisherMixture,
    compare,
)
from aspire_mom.checkpoints import InvalidCheckpoint
from aspire_mom.inversion import OptimizerStatus, StoppedByUser
from tests.inversion.models import exact_moments, mixture

COARSE = SO3Quadrature.product(SphericalDesign(7), 1)
NODES = SO3Quadrature.product(SphericalDesign(3), 3)


def problem(L, *, seed=4, degree=7, basis=None):
    """A molecule, and exact moments of its images at uneven viewing directions."""
    quadrature = SO3Quadrature.product(SphericalDesign(degree), 1)
    truth = mixture(3, seed=seed, sigma=0.09)
    p = VonMisesFisherMixture.random(3, seed=1).on(quadrature)
    basis = basis or PolarBasis(L)
    return truth, exact_moments(truth, p, quadrature, basis, pixel_size=2.0)


@pytest.fixture(scope="module")
def small():
    """Moments for runs of a second or so."""
    return problem(11)[1]


@pytest.fixture(scope="module")
def pixels():
    """Moments of all pixels, at few rotations."""
    p = VonMisesFisherMixture.random(3, seed=1).on(NODES)
    return exact_moments(mixture(2, sigma=0.12), p, NODES, CartesianBasis(9))


def quick(moments, volume="gaussians", **options):
    """Two starts of few Gaussians, which take a second on `small`."""
    of_search = {"n_steps": 40, "n_starts": 2, "max_gaussians": 4}
    of_loss = {}
    for group, kind in ((of_search, SearchOptions), (of_loss, LossOptions)):
        for field in fields(kind):
            if field.name in options:
                group[field.name] = options.pop(field.name)
    return MomentInversion(
        moments,
        volume,
        search=SearchOptions(**of_search),
        loss=LossOptions(**of_loss),
        **{"n_rings": 5, "quadrature": COARSE} | options,
    )


@pytest.fixture
def few_steps(monkeypatch):
    """For tests of what a search does, not of what it finds."""
    monkeypatch.setattr("aspire_mom.inversion.search.STEPS_PER_LEVEL", 10)
    for method in ("LBFGS", "ADAM"):
        name = f"aspire_mom.inversion.optimise.{method}_STEPS_PER_REPORT"
        monkeypatch.setattr(name, 5)


def test_recovers_three_gaussians():
    truth, moments = problem(13, degree=11)
    search = SearchOptions(n_starts=3, n_steps=40, max_gaussians=4)
    inversion = MomentInversion(moments, search=search)
    result = inversion.estimate()
    comparison = compare(result.volume, truth.to_volume(13, 2.0))
    assert comparison.correlation > 0.9
    assert comparison.fsc[1:4].min() > 0.8
    assert result.volume.pixel_size == 2.0
    assert result.density.sum() == pytest.approx(1)
    assert result.density.min() >= 0
    assert len(result.density) == len(result.quadrature) == len(inversion.quadrature)
    criteria = [start["criterion"] for start in result.starts]
    assert criteria == sorted(criteria)
    assert {start["seed"] for start in result.starts} == {0, 1, 2}
    assert result.history[-1]["criterion"] == criteria[0]
    assert result.history[-1]["n_rings"] == inversion.n_rings
    np.testing.assert_array_equal(
        result.start_volumes.asnumpy()[0], result.volume.asnumpy()[0]
    )
    # What is left are the outer rings of three narrow Gaussians, which are not in use.
    assert 0 < max(result.moment_errors) < 0.1
    # The criterion compares starts by moments alone, and rightly so here.
    worst = compare(result.start_volumes[-1], truth.to_volume(13, 2.0))
    assert comparison.correlation > worst.correlation - 0.02


@pytest.mark.parametrize(
    ("volume", "weighting"),
    [
        ("gaussians", "none"),
        ("gaussians", "rings"),
        ("gaussians", "noise"),
        ("harmonics", "none"),
        ("harmonics", "rings"),
        ("harmonics", "noise"),
        (BallHarmonics(4.0, support_radius=0.4), "none"),
        (FourierNet(4.0, hidden=16, scale=20.0), "none"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_every_prior_fits_moments(small, volume, weighting):
    """To a few per cent of the loss of no volume at all."""
    seen = []
    inversion = quick(
        small,
        volume,
        weighting=weighting,
        n_starts=1,
        n_steps=150 if isinstance(volume, FourierNet) else 60,
        learning_rates=(1e-2, 3e-3),
        status=seen.append,
    )
    result = inversion.estimate()
    loss = inversion.problem(5).loss
    nothing = float(loss(torch.zeros_like(loss.first), torch.zeros_like(loss.second)))
    final = result.history[-1]["loss"]
    assert final < 0.1 * nothing
    assert final == min(
        status.loss for status in seen if status.stage == seen[-1].stage
    )
    assert np.linalg.norm(result.volume.asnumpy()) > 0.1
    if weighting == "none":
        assert nothing == pytest.approx(2)


def test_given_model_is_where_the_search_starts(small):
    """It is not changed, and the true one is found good at once."""
    truth = mixture(3, seed=4, sigma=0.09, dtype=torch.float32)
    before = [p.clone() for p in truth.parameters()]
    p = VonMisesFisherMixture.random(3, seed=1).on(COARSE)
    density = DiscreteDensity.from_probabilities(p)  # float64, unlike the volume
    seen = []
    inversion = MomentInversion(
        small,
        truth,
        density,
        COARSE,
        loss=LossOptions("none"),
        search=SearchOptions(n_steps=20, max_gaussians=3),
        status=seen.append,
    )
    assert inversion.search.n_starts == 1
    result = inversion.estimate()
    # Orders beyond those of a ball of 0.4 boxes are cut off.
    assert max(status.loss for status in seen) < 1e-3
    for parameter, value in zip(truth.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
    comparison = compare(result.volume, truth.to_volume(11))
    assert comparison.correlation > 0.999
    assert np.corrcoef(result.density, p)[0, 1] > 0.99


def encoder_of(moments, n_nodes):
    basis = moments.basis
    options = {"window": 3, "channels": 2, "width": 16}
    if isinstance(basis, CartesianBasis):
        return MomentEncoder.cartesian(basis.L, n_nodes, **options)
    return MomentEncoder.polar(basis.max_order + 1, basis.n_rings, n_nodes, **options)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_encoder_as_density(small, optimizer):
    encoder = encoder_of(small, len(COARSE))
    before = [p.clone() for p in encoder.parameters()]
    result = quick(
        small, density=encoder, optimizer=optimizer, n_starts=1, n_steps=40
    ).estimate()
    assert result.settings["density"] == "MomentEncoder"
    first, second = (torch.from_numpy(m) for m in (small.first, small.second))
    start = encoder(first, second).detach().numpy()
    assert np.abs(result.density - start).max() > 1e-3 / len(COARSE)
    assert result.density.sum() == pytest.approx(1)
    for parameter, value in zip(encoder.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


@pytest.mark.parametrize("with_encoder", [False, True])
def test_cartesian_moments(pixels, with_encoder):
    density = encoder_of(pixels, len(NODES)) if with_encoder else None
    seen = []
    result = MomentInversion(
        pixels,
        density=density,
        quadrature=NODES,
        loss=LossOptions("none"),
        search=SearchOptions(n_starts=1, n_steps=60, max_gaussians=4),
        status=seen.append,
    ).estimate()
    assert result.history[-1]["loss"] < min(0.15, 0.5 * seen[0].loss)
    truth = mixture(2, sigma=0.12).to_volume(9)
    assert compare(result.volume, truth).correlation > 0.8
    assert result.volume.pixel_size is None


def test_cartesian_moments_and_network(pixels):
    """The paper's own pairing, in miniature."""
    result = MomentInversion(
        pixels,
        FourierNet(4.5, hidden=8, scale=20.0),
        encoder_of(pixels, len(NODES)),
        NODES,
        search=SearchOptions(n_steps=100, learning_rates=(1e-2, 3e-3)),
    ).estimate()
    assert result.settings["optimizer"] == "adam"
    assert result.settings["weighting"] == "none"
    assert result.history[-1]["loss"] < 0.5


def same(a, b):
    """Reconstructions equal to the last bit."""
    np.testing.assert_array_equal(a.volume.asnumpy(), b.volume.asnumpy())
    np.testing.assert_array_equal(a.density, b.density)
    assert a.starts == b.starts
    assert a.history == b.history


@pytest.mark.parametrize("basis", [PolarBasis(9), CartesianBasis(9)], ids=repr)
@pytest.mark.parametrize("with_encoder", [False, True])
def test_moment_errors_are_eq_22(basis, with_encoder):
    """Of all rings, whatever the loss is."""
    quadrature = SO3Quadrature.product(SphericalDesign(3), 4)
    p = np.full(len(quadrature), 1 / len(quadrature))
    models = [mixture(seed=s, dtype=torch.float32) for s in (0, 1)]
    truth, other = (exact_moments(m, p, quadrature, basis) for m in models)
    density = DiscreteDensity(len(quadrature))
    if with_encoder:
        density = encoder_of(truth, len(quadrature))
        other = exact_moments(
            models[1],
            density(
                *(
                    torch.from_numpy(m.astype(np.complex64))
                    for m in (truth.first, truth.second)
                )
            )
            .detach()
            .double(),
            quadrature,
            basis,
        )
    for weighting in ("none", "noise"):
        inversion = MomentInversion(
            truth, models[0], density, quadrature, loss=LossOptions(weighting)
        )
        errors = inversion.moment_errors(models[1], density)
        assert errors == pytest.approx(other.relative_error(truth), rel=1e-4)


@pytest.mark.usefixtures("few_steps")
def test_each_level_is_prepared_once(small, monkeypatch):
    """Cartesian moments of 63² pixels take seconds to prepare."""
    prepared, prepare = [], MomentInversion.problem

    def counted(self, n_rings):
        prepared.append(n_rings)
        return prepare(self, n_rings)

    monkeypatch.setattr(MomentInversion, "problem", counted)
    quick(small).estimate()
    assert sorted(prepared) == sorted(set(prepared))


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_resumes_from_its_checkpoint(small, tmp_path, optimizer):
    """Stopped again and again, at every second report, and resumed as often."""
    path = tmp_path / "run.ckpt"
    options = {"optimizer": optimizer, "checkpoint": path, "learning_rates": (1e-2,)}
    options["n_steps"] = 20
    expected = quick(small, **{**options, "checkpoint": None}).estimate()
    assert not path.exists()
    reports, stops = [], 0

    def stop(status):
        assert isinstance(status, OptimizerStatus)
        reports.append((status.stage, status.step))
        return len(reports) % 2 == 0

    while True:
        try:
            result = quick(small, status=stop, **options).estimate()
            break
        except StoppedByUser:
            assert path.exists()
            stops += 1
    assert stops >= 3
    # No step is done twice.
    assert len(set(reports)) == len(reports)
    same(result, expected)
    # A complete checkpoint gives the same again, and at once.
    again = quick(small, **options, status=lambda status: reports.append(status))
    n_reports = len(reports)
    same(again.estimate(), expected)
    assert len(reports) == n_reports


@pytest.mark.usefixtures("few_steps")
def test_interrupts_keep_the_checkpoint(small, tmp_path):
    """Ctrl-C between reports: what was reported last is there."""
    path, calls = tmp_path / "run.ckpt", []
    expected = quick(small, n_starts=1).estimate()

    class Interrupting(DiscreteDensity):
        def forward(self):
            calls.append(1)
            if len(calls) == 25:
                raise KeyboardInterrupt
            return super().forward()

    density = Interrupting(COARSE, degree=6)
    inversion = quick(small, density=density, n_starts=1, checkpoint=path)
    with pytest.raises(KeyboardInterrupt):
        inversion.estimate()
    # Once more, now past the call that is interrupted.
    result = inversion.estimate()
    same(result, expected)


def test_checkpoint_of_others_is_refused(small, tmp_path):
    path = tmp_path / "run.ckpt"
    with pytest.raises(StoppedByUser):
        quick(small, checkpoint=path, status=lambda status: True).estimate()
    before = path.read_bytes()
    other = problem(11, seed=5)[1]
    for inversion in (
        quick(other, checkpoint=path),
        quick(small, checkpoint=path, n_steps=41),
        quick(small, checkpoint=path, seed=1),
        quick(small, "harmonics", checkpoint=path),
        quick(small, GaussianMixture(3, seed=1), checkpoint=path),
        quick(small, density=DiscreteDensity(len(COARSE)), checkpoint=path),
        quick(replace(small, first_error=np.ones(6)), checkpoint=path),
    ):
        with pytest.raises(ValueError, match="other data or settings"):
            inversion.estimate()
    assert path.read_bytes() == before


def test_checkpoint_of_another_model_is_refused(small, tmp_path):
    """Models of one class and size differ in their parameters alone."""
    path = tmp_path / "run.ckpt"
    given = GaussianMixture(3, seed=0), GaussianMixture(3, seed=1)
    with pytest.raises(StoppedByUser):
        quick(small, given[0], checkpoint=path, status=lambda _: True).estimate()
    with pytest.raises(InvalidCheckpoint, match="other data or settings"):
        quick(small, given[1], checkpoint=path).estimate()


def test_models_of_equal_weights_are_told_apart(small, tmp_path):
    """A network's limit is no weight, yet decides what it can be."""
    path, options = tmp_path / "c.pt", {"hidden": 8, "scale": 10.0}
    quick(small, FourierNet(4.0, **options), checkpoint=path, n_steps=2).estimate()
    with pytest.raises(InvalidCheckpoint, match="other data or settings"):
        quick(small, FourierNet(2.0, **options), checkpoint=path, n_steps=2).estimate()


@pytest.mark.usefixtures("few_steps")
def test_seed_decides_and_global_state_stays(small):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    inversion = quick(small, n_steps=20, n_starts=1)
    first, again = inversion.estimate(), inversion.estimate()
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    same(first, again)
    other = quick(small, n_steps=20, n_starts=1, seed=7).estimate()
    assert [start["seed"] for start in other.starts] == [7]
    assert np.abs(other.volume.asnumpy() - first.volume.asnumpy()).max() > 1e-6


@pytest.mark.usefixtures("few_steps")
def test_settings_and_log(small, caplog):
    inversion = quick(small, n_steps=20, n_starts=1, support_radius=0.3)
    with caplog.at_level(logging.INFO, logger="aspire_mom"):
        result = inversion.estimate()
    assert "Inverting Moments of 0 images" in caplog.text
    assert result.settings == inversion.settings
    expected = {
        "volume": "gaussians",
        "density": "DiscreteDensity",
        "weighting": "noise",
        "optimizer": "lbfgs",
        "n_nodes": len(COARSE),
        "n_rings": 5,
        "n_steps": 20,
        "support_radius": 0.3,
        "signed": False,
        "device": "cpu",
    }
    assert expected.items() <= result.settings.items()


@pytest.mark.parametrize("inverted", [True, False, "mixed"])
def test_settings_tell_whether_the_contrast_was_inverted(small, inverted):
    moments = small.with_corrections(inverted=inverted)
    assert MomentInversion(moments).settings["inverted"] is (inverted is True)


def test_defaults(small, pixels):
    inversion = MomentInversion(small)
    assert isinstance(inversion.density, DiscreteDensity)
    assert inversion.density.coefficients is not None
    # Orders of a ball of 0.4 boxes on the outermost ring.
    outermost = 2 * np.pi * 0.4 * (inversion.n_rings - 1)
    assert (
        outermost < inversion.quadrature.degree or inversion.quadrature.n_inplane == 1
    )
    assert len(inversion.quadrature) >= outermost**2 / 2
    network = MomentInversion(small, "fouriernet")
    assert (network.search.optimizer, network.loss.weighting) == ("adam", "none")
    assert network.density.coefficients is None
    assert network.search.n_starts == 1
    # The paper's 100 views × 12 in-plane angles.
    cartesian = MomentInversion(pixels)
    assert len(cartesian.quadrature) == 1200
    assert cartesian.quadrature.n_inplane == 12


@pytest.mark.parametrize("average", [True, False])
def test_signs_where_the_mean_is_too_small(average):
    """A Gaussian less a wider one of the same mass has V(0) = 0."""
    basis = PolarBasis(11, max_order=6, inplane_average=average)
    model = mixture(2, sigma=0.08)
    assert not MomentInversion(problem(11, basis=basis)[1], n_rings=4).signed
    model.signed = True
    model.weight_parameters.data = torch.tensor([1.0, -1.0]).double()
    model.log_sigmas.data = torch.tensor([0.05, 0.15]).double().log()
    moments = exact_moments(model, COARSE.weights, COARSE, basis)
    assert MomentInversion(moments, n_rings=4).signed
    assert not MomentInversion(moments, n_rings=4, signed=False).signed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"volume": "gaussian"}, "volume is 'gaussian'; it must be gaussians or"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; it must be lbfgs or adam"),
        ({"support_radius": 0.0}, "support_radius is 0.0 boxes; it must lie in"),
        ({"support_radius": 0.6}, "support_radius is 0.6 boxes"),
        ({"n_rings": 7}, "n_rings is 7; .* 1 to 6"),
        ({"n_rings": -1}, "n_rings is -1"),
        ({"n_rings": 0}, "n_rings is 0; it must be an integer of at least 1"),
        ({"n_rings": 2.5}, "n_rings is 2.5"),
        ({"n_steps": 0}, "n_steps is 0; it must be an integer of at least 1"),
        ({"n_starts": -1}, "n_starts is -1"),
        ({"max_gaussians": 0}, "max_gaussians is 0"),
        ({"learning_rates": ()}, r"learning_rates are \(\); there must be at least"),
        ({"learning_rates": (-1.0,)}, "at least one, all positive"),
        ({"lam": float("nan")}, "lam is nan; it must be a positive"),
        ({"lam": -1.0}, "lam is -1.0; it must be a positive"),
        ({"weighting": "shells"}, "weighting is 'shells'; it must be noise or rings"),
        ({"seed": "a"}, "seed is 'a'; it must be an integer of at least 0"),
        ({"device": "foo"}, "device is foo, which cannot be used; cpu always can"),
    ],
)
def test_bad_options_are_named(small, options, message):
    with pytest.raises(ValueError, match=message):
        quick(small, **options)


def test_density_of_another_number_of_nodes(small):
    for density in (encoder_of(small, len(COARSE) + 1), DiscreteDensity(7)):
        with pytest.raises(ValueError, match=f"the quadrature has {len(COARSE)} nodes"):
            quick(small, density=density).estimate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("moments.npz",), "moments is a str, not a Moments"),
        ((None, 3), "volume is a int, not a FourierVolume"),
        ((None, "gaussians", 3), "density is a int, not a Module"),
        ((None, "gaussians", None, "x"), "quadrature is a str, not a SO3Quad"),
    ],
)
def test_bad_types_are_named(small, arguments, message):
    moments, *rest = arguments
    with pytest.raises(TypeError, match=message):
        MomentInversion(moments or small, *rest)


def test_one_image_is_too_few(small):
    with pytest.raises(ValueError, match="moments are of 1 image; at least 2"):
        MomentInversion(replace(small, n_images=1))


def test_diverging_run_says_so(small):
    net = FourierNet(4.0, hidden=8, scale=20.0)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        quick(small, net, n_starts=1, n_steps=200, learning_rates=(1e3,)).estimate()
