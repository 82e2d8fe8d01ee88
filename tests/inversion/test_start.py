"""Predictions from estimated moments, weights on disk, the command."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.spatial.transform import Rotation

from aspire_mom import CartesianBasis, MomentInversion, Moments, PolarBasis
from aspire_mom.cli.main import main
from aspire_mom.cli.train import train
from aspire_mom.inversion import SearchOptions, predict
from aspire_mom.inversion.forward import forward_model
from aspire_mom.inversion.start import _encoder_inputs
from aspire_mom.moments.report import ring_rms
from aspire_mom.networks import (
    StartEncoder,
    Training,
    pretrained,
)
from aspire_mom.rotations import SO3Quadrature, SphericalDesign, log_density_harmonics
from aspire_mom.volumes import GaussianMixture

L = 21
DESIGN = SphericalDesign(29)
CENTRES = np.array([[0.2, 0, 0.05], [-0.15, 0.1, 0], [0, -0.1, -0.05], [0, 0.05, 0.1]])
WEIGHTS = torch.tensor([1.0, 2, 1.5, 1]).double()
LOGITS = 0.3 * np.random.default_rng(0).standard_normal(15)


MIRROR = np.diag([1.0, 1, -1])


def moments(turn=None, mirrored=False, scale=1.0, size=L, **basis):
    """
    Exact moments of four Gaussians and a smooth density, rotated together, or mirrored
    and then rotated: a mirrored volume has at Q the image that the volume has at JQJ,
    so what is seen from -Jd is then seen from d.
    """
    turn = np.eye(3) if turn is None else turn
    of_views = turn @ -MIRROR if mirrored else turn
    turn = turn @ MIRROR if mirrored else turn
    volume = (
        GaussianMixture(1)
        .double()
        .with_gaussians(
            torch.from_numpy(CENTRES @ turn.T),
            torch.full((4,), 0.06).double(),
            scale * WEIGHTS,
        )
    )
    n_inplane = 1 if basis.get("inplane_average", True) else 60
    quadrature = SO3Quadrature.product(DESIGN, n_inplane)
    # ρ'(d) = ρ(Qᵀ d): rows d times Q.
    harmonics = log_density_harmonics(quadrature.views @ of_views, 3).numpy()
    p = np.exp(harmonics @ LOGITS)
    p = np.repeat(p / p.sum() / n_inplane, n_inplane)
    basis = PolarBasis(size, n_rings=8, **basis)
    with torch.no_grad():
        first, second = forward_model(basis, quadrature)(volume, torch.from_numpy(p))
    return Moments(first.numpy(), second.numpy(), basis)


def answer(moments):
    volume, density = predict(moments)
    return (
        volume.centres.detach().numpy(),
        volume.sigmas.detach().numpy(),
        volume.weights.detach().numpy(),
        density.coefficients.detach().numpy(),
    )


def test_turning_the_volume_changes_nothing():
    turn = Rotation.random(rng=np.random.default_rng(3)).as_matrix()
    for a, b in zip(answer(moments()), answer(moments(turn)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.parametrize("turned", [False, True])
def test_mirroring_the_volume_changes_nothing(turned):
    """A mirrored volume with its views has the same moments and the same answer."""
    turn = Rotation.random(rng=np.random.default_rng(4)).as_matrix() if turned else None
    plain, mirrored = moments(), moments(turn, mirrored=True)
    tolerance = 1e-4 if turned else 1e-9  # of the quadrature
    for name in ("first", "second"):
        a, b = getattr(plain, name), getattr(mirrored, name)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(a).max())
    for a, b in zip(answer(plain), answer(mirrored), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    # The mirrored volume with the views of the other hand is another pair.
    other = moments(MIRROR)
    assert np.abs(other.second - plain.second).max() > 1e-3 * np.abs(plain.second).max()


def test_scale_size_and_inplane_averaging():
    expected = answer(moments())
    bigger = answer(moments(scale=7.0, size=31))
    for i, factor in enumerate((1, 1, 7, 1)):
        np.testing.assert_allclose(
            bigger[i], factor * expected[i], atol=1e-3, rtol=1e-3
        )
    kept = answer(moments(inplane_average=False))
    for a, b in zip(expected, kept, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_prediction_starts_an_inversion_and_has_the_mean():
    data = moments()
    volume, density = predict(data)
    mean = volume(torch.zeros(1, 3)).real.item()
    assert mean == pytest.approx(float(WEIGHTS.sum()), rel=1e-3)
    search = SearchOptions(max_gaussians=12, n_steps=5)
    inversion = MomentInversion(data, volume, density, search=search)
    assert inversion.estimate().volume.resolution == L
    quadrature = SO3Quadrature.product(SphericalDesign(9), 1)
    assert len(predict(data, quadrature)[1].probabilities) == len(quadrature)


def test_errors_are_told_in_units_of_the_strongest_ring():
    data = moments()
    error = np.zeros(data.second.shape)
    error[0, 2, 2], error[3, 2, 2], error[3, 2, 1] = 3.0, 2.0, 100.0
    noisy = Moments(data.first, data.second, data.basis, n_images=9, second_error=error)
    told = _encoder_inputs(noisy, pretrained())[2].numpy()
    expected = np.zeros((1, 8))
    expected[0, 2] = 5 / ring_rms(data).max() ** 2  # orders ±3 count twice
    np.testing.assert_allclose(told, expected, rtol=1e-5)
    exact, doubtful = answer(data), answer(noisy)
    assert np.abs(exact[0] - doubtful[0]).max() > 1e-3


def test_bad_moments():
    with pytest.raises(TypeError, match="moments is a int, not a Moments"):
        predict(3)
    flat = Moments(
        np.zeros(64, complex), np.zeros((64, 64), complex), CartesianBasis(8)
    )
    with pytest.raises(ValueError, match=r"CartesianBasis\(L=8\); the encoder needs"):
        predict(flat)
    for basis in (PolarBasis(13), PolarBasis(21, max_order=5)):
        few = Moments(
            np.zeros(basis.first_shape, complex),
            np.zeros(basis.second_shape, complex),
            basis,
        )
        with pytest.raises(ValueError, match=r"n_rings of at least 8 and max_order"):
            predict(few)
    for std, words in ((1.5, "1.5 pixels"), (None, "unknown spread")):
        with pytest.raises(ValueError, match=f"shifts of {words}, which encoders do"):
            predict(moments().with_corrections(shift_std=std))
    basis = PolarBasis(21)
    empty = Moments(
        np.zeros(basis.first_shape, complex),
        np.zeros(basis.second_shape, complex),
        basis,
    )
    with pytest.raises(ValueError, match="no power on any ring"):
        predict(empty)


def test_weights_come_back(tmp_path):
    encoder = StartEncoder(3, n_rings=4, max_order=5, width=16, n_blocks=1, seed=2)
    path = tmp_path / "w.npz"
    encoder.save(path, {"command": "none"})
    loaded = StartEncoder.load(path)
    assert loaded.settings == encoder.settings
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(
            loaded.state_dict()[name], value, atol=1e-3, rtol=1e-3
        )
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="is damaged"):
        StartEncoder.load(path)
    with pytest.raises(FileNotFoundError):
        StartEncoder.load(tmp_path / "no.npz")


def test_shipped_weights_say_how_they_were_made():
    assert pretrained().n_rings == 8
    how = pretrained().training_info
    assert how["command"].startswith("aspire-mom train ")
    assert how["training"]["n_steps"] >= 1000


def test_command(tmp_path):
    out = tmp_path / "w.npz"
    words = ["train", "--steps", "2", "--batch-size", "8", "-o", str(out)]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "validation loss" in result.output
    assert not out.with_name("w.npz.checkpoint").exists()
    assert StartEncoder.load(out).n_gaussians == 12
    defaults = {p.name: p.default for p in train.params}
    assert defaults["n_steps"] == Training.n_steps
    assert defaults["batch_size"] == Training.batch_size
    assert defaults["learning_rate"] == Training.learning_rate
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 2
    assert "exists" in again.output
    odd = CliRunner().invoke(main, [*words[:4], "12", "-o", str(tmp_path / "x.npz")])
    assert "--batch-size is 12; it must be a multiple of 8" in odd.output
