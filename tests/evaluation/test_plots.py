import matplotlib.pyplot as plt
import numpy as np
import pytest
from aspire.volume import Volume
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from aspire_mom.evaluation import (
    compare,
    plot_isosurfaces,
    plot_slices,
    plot_views,
    plots,
)
from aspire_mom.evaluation.plots import _smooth_density, _triangles
from tests.evaluation.blobs import blobs


@pytest.fixture(autouse=True)
def _no_pyplot_state():
    yield
    assert plt.get_fignums() == []


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def golden_spiral(n):
    z = 1 - (2 * np.arange(n) + 1) / n
    phi = np.pi * (3 - np.sqrt(5)) * np.arange(n)
    r = np.sqrt(1 - z**2)
    return np.stack([r * np.cos(phi), r * np.sin(phi), z], -1)


@pytest.mark.parametrize("pixel_size", [None, 2.5])
def test_fsc_plot_shows_the_curve_and_its_resolutions(tmp_path, pixel_size):
    volume = blobs(17, pixel_size=pixel_size) + blobs(17, seed=1)
    comparison = compare(volume, blobs(17, pixel_size=pixel_size))
    figure = comparison.plot(tmp_path / "fsc.png")
    assert is_png(tmp_path / "fsc.png")
    ax = figure.axes[0]
    curve = next(line for line in ax.lines if len(line.get_xdata()) == 8)
    np.testing.assert_array_equal(curve.get_ydata(), comparison.fsc[1:])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"{comparison.resolution_shells(0.5):.1f} shells" in labels[0]
    if pixel_size is None:
        assert not ax.child_axes
        assert "Å" not in labels[0]
    else:
        assert f"{comparison.resolution(0.5):.1f} Å" in labels[0]
        top = ax.child_axes[0].xaxis
        assert top.get_major_formatter()(5) == f"{17 * 2.5 / 5:.3g}"


def test_slices_are_central_and_share_one_gray_scale(tmp_path):
    volumes = [blobs(16, pixel_size=2.0), 3 * blobs(17, seed=1)]
    figure = plot_slices(volumes, ["one", "two"], tmp_path / "slices.png")
    assert is_png(tmp_path / "slices.png")
    axes = np.reshape(figure.axes, (3, 2))
    assert [ax.get_title() for ax in axes[0]] == ["one", "two"]
    for column, volume in zip(axes.T, volumes, strict=True):
        voxels = volume.asnumpy()[0]
        for ax, plane in zip(
            column, (voxels[8], voxels[:, 8], voxels[:, :, 8]), strict=True
        ):
            np.testing.assert_array_equal(ax.images[0].get_array(), plane)
    assert len({ax.images[0].get_clim() for ax in axes.flat}) == 1
    assert axes[2, 0].texts[0].get_text() == "10 Å"
    assert not axes[2, 1].texts


@pytest.mark.parametrize("L", [32, 33])
def test_a_gaussians_surface_is_a_sphere(L):
    axis = np.arange(L) - L // 2
    r_squared = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    ball = np.exp(-r_squared / (2 * 4.0**2))
    triangles = _triangles(Volume(ball), 3.0)
    level = ball.mean() + 3 * ball.std()
    centre = triangles.mean((0, 1))
    radii = np.linalg.norm(triangles - centre, axis=-1)
    # Upsampling stretches the padded box by less than 2 %.
    np.testing.assert_allclose(radii, 4 * np.sqrt(-2 * np.log(level)), rtol=0.03)
    outward = (triangles.mean(1) - centre) / radii.mean(1, keepdims=True)
    sides = triangles[:, 1:] - triangles[:, :1]
    normals = np.cross(sides[:, 0], sides[:, 1])
    # Counterclockwise as seen from outside; but for slivers, normals are radial.
    large = np.linalg.norm(normals, axis=1) > 1e-3
    normals = normals[large] / np.linalg.norm(normals[large], axis=1, keepdims=True)
    assert (np.sum(outward[large] * normals, 1) > 0.95).all()


def test_isosurfaces_are_drawn_from_three_sides(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "SURFACE_VOXELS", 40)
    volumes = [blobs(16), blobs(17, seed=1)]
    figure = plot_isosurfaces(volumes, ["one", "two"], tmp_path / "surfaces.png")
    assert is_png(tmp_path / "surfaces.png")
    assert len(figure.axes) == 6
    for ax in figure.axes:
        (surface,) = (c for c in ax.collections if isinstance(c, Poly3DCollection))
        # Lit and shaded sides.
        assert np.ptp(surface.get_facecolor()[:, 0]) > 0.2


def test_a_volume_filling_half_its_box_has_a_surface():
    slab = np.zeros((12, 12, 12))
    slab[:6] = 1
    triangles = _triangles(Volume(slab), 3.0)
    assert np.ptp(triangles[..., 2]) == pytest.approx(6, abs=0.5)


def test_uniform_views_have_density_one():
    longitude, latitude = np.linspace(-np.pi, np.pi, 9), np.linspace(-1.5, 1.5, 7)
    directions = golden_spiral(2000)
    density = _smooth_density(directions, np.ones(2000), longitude, latitude, 0.2)
    np.testing.assert_allclose(density, 1, atol=0.02)


def test_view_maps_have_their_peaks_where_the_views_are(tmp_path):
    direction = np.array([[np.cos(0.5), np.sin(0.5), 0.0]])
    views = [(direction, np.ones(1)), (golden_spiral(500), np.full(500, 0.002))]
    figure = plot_views(views, ["one", "uniform"], tmp_path / "views.png")
    assert is_png(tmp_path / "views.png")
    first, second = (ax.collections[0] for ax in figure.axes[:2])
    assert first.get_clim() == second.get_clim()
    values = np.asarray(first.get_array()).reshape(91, 181)
    row, column = np.unravel_index(values.argmax(), values.shape)
    assert row == 45
    assert column == 90 + round(0.5 / (np.pi / 90))
    np.testing.assert_allclose(second.get_array(), 1, atol=0.05)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: plot_slices([blobs(8)], []), "1 items .* 0 titles"),
        (lambda: plot_slices([], []), "0 items .* 0 titles"),
        (
            lambda: plot_isosurfaces([blobs(8)], ["a", "b"]),
            "1 items .* 2 titles",
        ),
        (lambda: plot_views([(np.ones(3), np.ones(3))], ["a"]), r"not \(3, 3\)"),
        (lambda: plot_views([(np.eye(3), np.ones(2))], ["a"]), r"not \(2, 3\)"),
        (
            lambda: plot_slices([Volume(np.zeros((2, 8, 8, 8)))], ["a"]),
            r"not a stack \(2,\)",
        ),
    ],
)
def test_bad_input_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
