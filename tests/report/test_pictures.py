import numpy as np
import pytest

from aspire_mom.report.pictures import (
    plot_iterations,
    plot_probabilities,
    plot_residual,
    plot_starts,
)


@pytest.fixture
def path(tmp_path):
    """What each of them must write."""
    yield tmp_path / "picture.png"
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_residual_by_order_and_ring(path):
    residual = np.arange(12.0).reshape(3, 4)
    ax = plot_residual(residual, path).axes[0]
    shown = ax.images[0].get_array()
    np.testing.assert_array_equal(shown.filled(0), residual)
    assert shown.mask.sum() == 1  # where there is nothing
    bottom, top = ax.get_ylim()
    assert bottom < top


def test_starts_and_stages(path):
    starts = [{"criterion": c, "loss": c} for c in (3.0, 4.0, 9.0)]
    history = [{"n_rings": r, "loss": x} for r, x in ((4, 5.0), (4, 2.0), (6, 3.0))]
    left, right = plot_starts(starts, history, path).axes
    np.testing.assert_array_equal(left.lines[0].get_xydata()[:, 1], [3, 4, 9])
    assert [*right.lines[0].get_ydata()] == [5, 2, 3]
    assert [line.get_xdata()[0] for line in right.lines[1:]] == [2.5]


def test_iterations(path):
    history = [
        {"n_rings": r, "shells": r - 2.5, "log_likelihood": x}
        for r, x in ((8, 1.0), (10, 2.0))
    ]
    left, right = plot_iterations(history, path).axes
    assert [*left.lines[1].get_ydata()] == [5.5, 7.5]
    assert [*right.lines[0].get_ydata()] == [1, 2]


def test_probabilities(path):
    ax = plot_probabilities(np.array([0.1, 0.11, 0.9]), path).axes[0]
    heights = [patch.get_height() for patch in ax.patches]
    assert len(heights) == 40
    assert sum(heights) == 3
    assert ax.get_legend().get_texts()[0].get_text() == "median 0.11"
