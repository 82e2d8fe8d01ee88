"""`aspire-mom inspect`: words, figures and pictures of moments."""

import json

import numpy as np
import pytest

from aspire_mom import CartesianBasis, Moments, PolarBasis
from tests.cli.conftest import IMAGES, PIXEL_SIZE, L, run, succeed
from tests.cli.test_bad_input import refused


def test_table(moments):
    head, columns, *rows, verdict = succeed("inspect", moments).stdout.splitlines()
    assert head.startswith(f"{IMAGES} images of {L} x {L} pixels of 2 Å (Nyquist 4 Å)")
    assert columns.split() == [
        *("ring", "Å", "signal", "noise", "signal/error", "supported")
    ]
    assert len(rows) == L // 2
    assert rows[3].split()[:2] == ["3", f"{L * PIXEL_SIZE / 3:.1f}"]
    assert rows[0].endswith("yes")
    assert verdict.startswith("the data support a model up to ring ")


def test_json_and_picture(tmp_path, moments):
    plot = tmp_path / "new" / "moments.png"
    result = succeed("inspect", moments, "--json", "--plot", plot)
    report = json.loads(result.stdout)
    assert report["n_images"] == IMAGES
    assert report["nyquist_angstrom"] == 2 * PIXEL_SIZE
    last = report["last_ring"]
    assert report["last_ring_angstrom"] == pytest.approx(L * PIXEL_SIZE / last)
    assert report["supported"][last]
    assert not any(report["supported"][last + 1 :])
    assert report["ring_angstrom"][0] is None
    assert len(report["signal_power"]) == len(report["supported"]) == L // 2
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in plot.parent.iterdir()] == ["moments.png"]


def test_halves(tmp_path, star):
    """Half sets of a file that has none are the first and the other images."""
    halves = [tmp_path / f"half{i}.npz" for i in (1, 2)]
    text = star.read_text().splitlines(keepends=True)
    rows = [line for line in text if "@" in line]
    for i, half in enumerate(halves):
        own = star.with_name(f"half{i}.star")
        others = set(rows[1 - i :: 2])
        own.write_text("".join(line for line in text if line not in others))
        succeed("moments", own, "-o", half)
    report = json.loads(succeed("inspect", *halves, "--json").stdout)
    assert report["n_images"] == IMAGES
    assert len(report["half_set_correlation"]) == L // 2
    assert report["half_set_correlation"][1] > 0.5
    plot = tmp_path / "m.svg"
    assert "halves" in succeed("inspect", *halves, "--plot", plot).stdout
    assert "half-set correlation" in plot.read_text()


@pytest.mark.parametrize(
    "basis",
    [CartesianBasis(8), PolarBasis(8, inplane_average=False), PolarBasis(8, 1, 0)],
    ids=str,
)
def test_every_basis_is_shown(tmp_path, basis):
    """With one image and without power too."""
    shapes = basis.first_shape, basis.second_shape
    for value, n in ((1.0, 0), (0.0, 1)):
        path = tmp_path / f"{n}.npz"
        Moments(*(np.full(s, value, complex) for s in shapes), basis, n).save(path)
        succeed("inspect", path, "--plot", tmp_path / f"{n}.pdf")


def test_bad_input(tmp_path, moments, star):
    assert "of which there must be moments first" in refused(tmp_path, "inspect", star)
    other = tmp_path / "other.npz"
    succeed("moments", star, "-o", other, "--downsample", 8)
    assert "different bases" in refused(tmp_path, "inspect", moments, other)
    args = ("inspect", moments, "--plot", tmp_path / "m.txt")
    assert "must end in" in refused(tmp_path, *args)
    (tmp_path / "m.png").write_text("precious")
    args = ("inspect", moments, "--plot", tmp_path / "m.png")
    assert "--overwrite" in refused(tmp_path, *args)
    assert run(*args, "--overwrite").exit_code == 0
