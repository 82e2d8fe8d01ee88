"""A small volume and its particles, moments and reconstruction, each made by the
command that makes it, and a way to run commands."""

from dataclasses import replace
from pathlib import Path

import aspire
import pytest
import torch
from click.testing import CliRunner

from aspire_mom import MomentInversion
from aspire_mom.cli.main import main
from aspire_mom.phantoms import gaussian_phantom

L, PIXEL_SIZE, IMAGES = 12, 2.0, 300
FEW = {"n_steps": 40, "max_gaussians": 4}


def search_quickly(patch, **options):
    """Other options of the search, whatever a command asks for."""

    def make(*args, search, **more):
        return MomentInversion(*args, search=replace(search, **options), **more)

    patch.setattr("aspire_mom.MomentInversion", make)
    patch.setattr("aspire_mom.inversion.search.STEPS_PER_LEVEL", 40)


def draw_coarsely(patch):
    patch.setattr("aspire_mom.evaluation.plots.SURFACE_VOXELS", 30)


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(autouse=True, scope="session")
def no_progress_bars():
    """As when the command's stderr is a file."""
    setting = aspire.config["logging"]["tqdm_disable"]
    before = setting.get()
    setting.set(True)
    yield
    setting.set(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def volume(folder) -> Path:
    path = folder / "map.mrc"
    gaussian_phantom(L, seed=1, pixel_size=PIXEL_SIZE).save(str(path))
    return path


@pytest.fixture(scope="session")
def star(folder, volume) -> Path:
    path = folder / "particles.star"
    succeed("simulate", volume, "--images", IMAGES, "--snr", 1, "-o", path)
    return path


@pytest.fixture(scope="session")
def moments(folder, star) -> Path:
    path = folder / "moments.npz"
    succeed("moments", star, "-o", path)
    return path


@pytest.fixture(scope="session")
def counted_result(folder, moments) -> tuple[Path, int]:
    """A result, and the number of optimiser calls that led there."""
    path, step, calls = folder / "result", torch.optim.LBFGS.step, []

    def counted(self, closure):
        calls.append(1)
        return step(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.LBFGS, "step", counted)
        search_quickly(patch, **FEW)
        draw_coarsely(patch)
        succeed("reconstruct", moments, "-o", path, "--starts", 1)
    return path, len(calls)


@pytest.fixture
def quick(monkeypatch):
    """The search of `result`, without a page."""
    search_quickly(monkeypatch, **FEW)
    monkeypatch.setattr("aspire_mom.report.write_report", lambda *_: None)


@pytest.fixture(scope="session")
def result(counted_result) -> Path:
    return counted_result[0]
