"""Which start is refined, and with how many images to begin with."""

from dataclasses import replace

import numpy as np
import pytest
from aspire.volume import Volume

from aspire_mom import MomentEstimator, RefinedModel, Refinement, compare
from aspire_mom.bases import PolarBasis
from aspire_mom.moments.report import ring_power
from aspire_mom.phantoms import chain_phantom
from aspire_mom.refinement.fourier import locally_filtered, noise_variance, resized
from aspire_mom.refinement.iteration import Iterations
from aspire_mom.volumes.grid import low_pass
from tests.refinement.test_refinement import L, images_of, start_from

FEW = {"n_rings": 8, "n_iterations": 3}


@pytest.fixture(scope="module")
def truth():
    return chain_phantom(L, seed=3, pixel_size=4.0)


@pytest.fixture(scope="module")
def two_starts(truth):
    """Of another molecule, and of this one."""
    other = chain_phantom(L, seed=9, pixel_size=4.0)
    both = low_pass(other, 25.0).asnumpy(), low_pass(truth, 25.0).asnumpy()
    start = start_from(Volume(both[0], pixel_size=4.0))
    stack = Volume(np.concatenate(both), pixel_size=4.0)
    return replace(start, start_volumes=stack)


def test_the_start_that_suits_the_images_is_chosen(truth, two_starts):
    found = Refinement(images_of(truth, 200), two_starts, n_iterations=2).estimate()
    assert compare(found.volume, truth).resolution_shells(0.5) > 6
    assert found.settings["n_tries"] == 1


@pytest.fixture(scope="module")
def images(truth):
    source = images_of(truth, 400, snr=1.0).cache()
    moments = MomentEstimator(source, PolarBasis(L)).estimate()
    return source, ring_power(moments)


def test_the_next_start_where_a_model_leaves_signal(
    truth, two_starts, images, tmp_path, monkeypatch
):
    """If killed in the middle of the second try, it goes on there."""
    source, power = images
    start, trials = replace(two_starts, signal_power=power), iter([2.0, 1.0])
    monkeypatch.setattr(Refinement, "_trial", lambda *_: next(trials))
    options = {**FEW, "checkpoint": tmp_path / "checkpoint.pt"}
    steps, unbroken = iter(range(100)), Iterations.next

    def killed(self, state):
        if next(steps) == FEW["n_iterations"] + 2:
            raise KeyboardInterrupt
        return unbroken(self, state)

    monkeypatch.setattr(Iterations, "next", killed)
    with pytest.raises(KeyboardInterrupt):
        Refinement(source, start, **options).estimate()
    left = []
    monkeypatch.setattr(
        Iterations, "next", lambda self, s: left.append(s) or unbroken(self, s)
    )
    model = Refinement(source, start, **options).estimate()
    assert len(left) == FEW["n_iterations"] - 2
    assert model.settings["n_tries"] == 2
    assert not model.failed()
    assert compare(model.volume, truth).resolution_shells(0.5) > 6


def test_which_of_several_models(truth, two_starts, monkeypatch):
    """The one that explains the signal, or else the one that held-out images prefer."""
    monkeypatch.setattr(RefinedModel, "typical_share", lambda _: 0.5)
    source, models = images_of(truth, 100).cache(), []
    for last_leaves_signal in (True, False):
        trials, left = iter([1.0, 2.0]), iter([True, last_leaves_signal])
        monkeypatch.setattr(Refinement, "_trial", lambda *_, i=trials: next(i))
        monkeypatch.setattr(RefinedModel, "leaves_signal", lambda _, i=left: next(i))
        refinement = Refinement(source, two_starts, n_rings=6, n_iterations=1)
        models.append(refinement.estimate())
        assert models[-1].settings["n_tries"] == 2
    # The first of two, from the right start, and the second.
    first, second = (model.held_out_log_likelihood for model in models)
    assert first > second + 0.5


def test_a_part_of_the_images_first_and_momentum(truth, monkeypatch):
    """Of 1,200 images half are two batches. Steps go on while as many are in use."""
    module = "aspire_mom.refinement.refinement"
    monkeypatch.setattr(f"{module}.FIRST_LIKELIHOOD", 1e-9)
    monkeypatch.setattr(f"{module}.BATCH", 300)
    monkeypatch.setattr(f"{module}.FIRST_IMAGES", 500)
    start = start_from(low_pass(truth, 25.0))
    refinement = Refinement(images_of(truth, 1200), start, n_rings=6)
    iterations = refinement._iterations()
    state = refinement._ranked_starts(iterations)[0]
    assert state.n_images == 600
    first = iterations.next(state)
    np.testing.assert_array_equal(first.halves, first.before)
    models, sums, _ = iterations.sums(state)
    plain = np.stack(iterations.halves(models, sums, state))
    smooth = [locally_filtered(u, noise_variance(plain)) for u in plain]
    np.testing.assert_allclose(first.halves, smooth, atol=1e-5 * abs(plain).max())
    second = iterations.next(first)
    for half in (0, 1):
        new, old = (resized(state.before[half], 11) for state in (second, first))
        moved = second.before[half] + 0.9 * resized(new - old, len(second.before[0]))
        np.testing.assert_allclose(second.halves[half], moved, atol=1e-5 * moved.max())
    whole = iterations.next(replace(second, n_images=1200))
    np.testing.assert_array_equal(whole.halves, whole.before)
    model = refinement.estimate()
    used = [entry["n_images"] for entry in model.history]
    assert used[0] == 600
    assert used[-1] == 1200
    assert used == sorted(used)
