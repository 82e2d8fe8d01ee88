"""`aspire-mom mra`: what it writes, and how it refuses."""

from typing import get_args

import numpy as np
import pytest
from click.testing import CliRunner

from aspire_mom.cli.main import main
from aspire_mom.cli.mra import METHODS
from aspire_mom.mra import (
    GaussianFamily,
    Method,
    PaperEncoder,
    exact_moments,
    load_weights,
    observe,
    save_weights,
    shift_error,
    solve,
)


def run(*args):
    return CliRunner().invoke(main, ["mra", *(str(arg) for arg in args)])


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args):
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def problem():
    v, rho = GaussianFamily(2).draw(1, np.random.default_rng(0))
    return v[0], rho[0]


@pytest.fixture
def exact(tmp_path, problem):
    path, moments = tmp_path / "m.npz", exact_moments(*problem)
    np.savez(path, first=moments.first, second=moments.second)
    return path


@pytest.fixture(scope="module")
def raw(tmp_path_factory, problem):
    path = tmp_path_factory.mktemp("raw") / "y.npy"
    batches = observe(*problem, 20_000, 1.0, np.random.default_rng(1))
    np.save(path, np.concatenate(list(batches)).astype(np.float32))
    return path


@pytest.mark.parametrize("method", ["auto", "mixture", "marching"])
def test_solve_exact_moments(tmp_path, exact, problem, method):
    out = tmp_path / "new" / "s.npz"
    succeed("solve", exact, "-o", out, "--method", method)
    with np.load(out) as found:
        for truth, name in zip(problem, ("v", "rho"), strict=True):
            assert shift_error(truth, found[name]) < 1e-6
    assert out.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.parametrize("sigma", [(), ("--sigma", 1)])
def test_solve_observations(tmp_path, raw, problem, sigma):
    out = tmp_path / "s.npz"
    succeed("solve", raw, "-o", out, "--method", "network", *sigma)
    with np.load(out) as found:
        assert shift_error(problem[0], found["v"]) < 0.1


def test_solve_is_the_function(tmp_path, exact):
    out = tmp_path / "s.npz"
    succeed("solve", exact, "-o", out)
    with np.load(exact) as m, np.load(out) as found:
        v, rho = solve(m["first"], m["second"])
        np.testing.assert_array_equal(found["v"], v)
        np.testing.assert_array_equal(found["rho"], rho)


def test_overwrite(tmp_path, exact):
    out = tmp_path / "s.npz"
    out.with_suffix(".png").write_bytes(b"mine")
    assert "s.png exists; pass --overwrite" in refused("solve", exact, "-o", out)
    assert not out.exists()
    succeed("solve", exact, "-o", out, "--overwrite")


def test_refusals(tmp_path, exact, raw):
    out = ("-o", tmp_path / "s.npz")
    text = tmp_path / "m.txt"
    text.write_text("1")
    assert "must end in .npz (moments) or .npy" in refused("solve", text, *out)
    assert "must end in .npz" in refused("solve", exact, "-o", tmp_path / "s.mat")
    broken = tmp_path / "b.npz"
    broken.write_bytes(exact.read_bytes()[:200])
    assert "is damaged" in refused("solve", broken, *out)
    np.savez(broken, first=np.ones(41))
    assert "lacks 'second'" in refused("solve", broken, *out)
    with np.load(exact) as m:
        arrays = dict(m)
    np.savez(broken, **arrays, n_observations=np.arange(3))
    assert "cannot be used: can only convert" in refused("solve", broken, *out)
    np.savez(broken, **arrays, n_observations=np.nan)
    assert "n_observations is nan; it must be an integer" in refused(
        "solve", broken, *out
    )
    np.savez(broken, **{**arrays, "first": np.full(41, "x")})
    assert "first has dtype <U1; it must be numbers" in refused("solve", broken, *out)
    np.savez(broken, first=arrays["first"], second=arrays["second"][:3])
    assert "they must be (n,) and (n, n)" in refused("solve", broken, *out)
    np.savez(broken, **arrays, sigma=2.0)
    assert "--sigma is 1, but" in refused("solve", broken, *out, "--sigma", 1)
    wrong = tmp_path / "y.npy"
    np.save(wrong, np.zeros((3, 4, 5)))
    assert "holds float64 of shape (3, 4, 5)" in refused("solve", wrong, *out)
    np.save(wrong, np.ones((1000, 41)))
    message = refused("solve", wrong, *out, "--method", "network")
    assert "the signal is constant" in message
    assert not (tmp_path / "s.npz").exists()
    assert "--weights is for --method network" in refused(
        "solve", exact, *out, "--weights", exact
    )
    assert "holds unknown contents" in refused(
        "solve", exact, *out, "--method", "network", "--weights", exact
    )


def test_network_of_another_size(tmp_path):
    path, weights = tmp_path / "m.npz", tmp_path / "w.npz"
    save_weights(PaperEncoder(41), weights)
    v, rho = GaussianFamily(2, 20).draw(1, np.random.default_rng(0))
    moments = exact_moments(v[0], rho[0])
    np.savez(path, first=moments.first, second=moments.second)
    message = refused(
        *("solve", path, "-o", tmp_path / "s.npz"),
        *("--method", "network", "--weights", weights),
    )
    assert "n is 20; the encoder is for n = 41" in message


@pytest.mark.parametrize(
    "options",
    [
        ("--n", 20, "--gaussians", 1, "--gaussians", 2),
        ("--encoder", "paper", "--training-set", 30, "--gaussians", 1),
    ],
)
def test_train(tmp_path, options):
    out = tmp_path / "w.npz"
    small = ("--n", 15, "--steps", 2, "--batch-size", 8)
    text = succeed("train", "-o", out, *small, *options)
    assert "validation loss" in text
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]
    assert load_weights(out).n == (15 if "paper" in options else None)
    assert "exists" in refused("train", "-o", out, *small)


def test_training_refusals(tmp_path):
    out = ("-o", tmp_path / "w.npz")
    assert "--training-set is for --encoder paper" in refused(
        "train", *out, "--training-set", 5
    )
    assert "--device is tpu, which cannot be used" in refused(
        "train", *out, "--device", "tpu", "--steps", 1
    )
    assert "--n is 15; --encoder mixture is for at least 19" in refused(
        "train", *out, "--n", 15, "--encoder", "mixture"
    )
    (tmp_path / "w.npz.checkpoint").write_bytes(b"x")
    assert "is no checkpoint" in refused("train", *out, "--steps", 1)


def test_methods_are_those_of_the_inversion():
    assert (*get_args(Method), "network") == METHODS


def test_benchmark():
    text = succeed("benchmark", "--instances", 2, "--method", "marching")
    assert [line.split()[0] for line in text.splitlines()] == ["ms", "marching"]


@pytest.mark.parametrize("command", ["train", "solve", "benchmark"])
def test_help_has_an_example(command):
    assert f"aspire-mom mra {command}" in succeed(command, "--help")
