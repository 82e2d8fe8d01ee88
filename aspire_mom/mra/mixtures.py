"""Curves that are a few Gaussians, fitted to a quadratic misfit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aspire_mom.mra.curves import MARGIN, NO_CUT, WIDTHS, Curves, joined
from aspire_mom.mra.misfit import Quadratic

# What one parameter must gain in misfit to be worth having.
PENALTY = 7.0
MOST_COMPONENTS = 4
# Curves kept of one, two, … Gaussians: in all, and with the same window. Few Gaussians
# do not tell yet which window is right.
BREADTH = ((50, 1), (42, 1), (30, 1), (16, 3))
# Steps of a fit. It is done after CALM that gain less than CONVERGED and a share of how
# far it lies behind the best, or where damping says that it is stuck.
STEPS, CONVERGED, CALM, STUCK = 15, 0.1, 2, 1e2
BEHIND = 0.03


def fit(
    curves: Curves, target: Quadratic, *, offset: bool
) -> tuple[Curves, np.ndarray]:
    """
    Minimise a quadratic misfit over curves' parameters, each curve on its own.

    :param curves: Where to start.
    :param target: Misfit as a function of the curve, (n,).
    :param offset: Whether offsets of curves that have a cut may change.
    :return: Fitted curves and their misfits (S,).
    """
    free = np.ones(curves.parameters.shape)
    free[:, -1] = (curves.windows != NO_CUT) & offset
    parameters, misfits = levenberg_marquardt(
        np.where(free > 0, curves.parameters, 0),
        lambda p, rows: curves[rows].with_parameters(p).values(),
        target,
        curves.bounds(),
        free,
    )
    return curves.with_parameters(parameters), misfits


def levenberg_marquardt(
    parameters: np.ndarray,
    evaluate: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    target: Quadratic,
    bounds: tuple[np.ndarray, np.ndarray],
    free: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Minimise target(x(p)) for several p at once.

    :param parameters: Starts (S, P).
    :param evaluate: (p (R, P), which rows R of the starts these are) ↦ x (R, m) and its
        derivatives (R, P, m).
    :param target: Quadratic in x.
    :param bounds: Least and greatest parameters, (S, P) each.
    :param free: 1 for parameters that may change, 0 for others, (S, P).
    :return: Parameters (S, P) and values (S,).
    """
    parameters = parameters.copy()
    low, high = bounds
    diagonal = np.arange(parameters.shape[1])
    # Rows still moving, and what is kept of them between steps.
    rows = np.arange(len(parameters))
    damping, calm = np.full(len(rows), 1e-3), np.zeros(len(rows), int)
    x, by = evaluate(parameters, rows)
    values, slope = target(x)
    for _ in range(STEPS):
        by = by * free[rows, :, None]
        normal = (by @ target.hessian) @ by.swapaxes(-1, -2)
        size = normal[:, diagonal, diagonal]
        normal[:, diagonal, diagonal] += (
            damping[:, None] * size + 1e-7 * size.max(1, keepdims=True) + 1e-30
        )
        step = np.linalg.solve(normal, by @ slope[..., None])[..., 0]
        tried = np.clip(parameters[rows] + step, low[rows], high[rows])
        x, by_tried = evaluate(tried, rows)
        value_tried, slope_tried = target(x)
        gain = values[rows] - value_tried
        better = gain > 0
        parameters[rows[better]] = tried[better]
        values[rows[better]] = value_tried[better]
        by = np.where(better[:, None, None], by_tried, by)
        slope = np.where(better[:, None], slope_tried, slope)
        damping = np.where(better, damping / 10, damping * 8)
        little = CONVERGED + BEHIND * (values[rows] - values.min())
        calm = np.where(gain > little, 0, calm + better)
        moving = (calm < CALM) & (damping < STUCK)
        rows, by, slope = rows[moving], by[moving], slope[moving]
        damping, calm = damping[moving], calm[moving]
        if len(rows) == 0:
            break
    return parameters, values


def grow(target: Quadratic, starts: Curves, *, offset: bool) -> list[tuple]:
    """
    Fits of one, two, … Gaussians, each number from the best fits of the one before,
    until one more is not worth its parameters.

    :param target: Misfit as a function of the curve, (n,).
    :param starts: Curves of one Gaussian, one for each window to try.
    :param offset: Whether curves may be shifted off the sample points.
    :return: (score, curve) in order of score, misfit + PENALTY per free parameter, the
        best of each number of Gaussians and window.
    """
    found, best = [], np.inf
    curves, misfits = fit(starts, target, offset=offset)
    for k in range(1, MOST_COMPONENTS + 1):
        if k > 1:
            moved, moved_misfits = fit(
                _with_moved_windows(curves[_select(misfits, curves.windows, 6, 2)]),
                target,
                offset=offset,
            )
            curves = joined(curves, moved)
            misfits = np.concatenate((misfits, moved_misfits))
        scores = misfits + PENALTY * curves.n_free
        chosen = _select(scores, curves.windows, *BREADTH[k - 1])
        curves, scores = curves[chosen], scores[chosen]
        found += [(s, curves[i : i + 1]) for i, s in enumerate(scores)]
        if k == MOST_COMPONENTS or scores[0] > best:
            break
        best = scores[0]
        curves, misfits = fit(_with_one_more(curves, target), target, offset=offset)
    found.sort(key=lambda pair: round(pair[0], 3))
    return found


def single_gaussians(curve: np.ndarray, windows, offsets, density: bool) -> Curves:
    """
    Curves of one Gaussian with a given curve's mean and spread, for several windows.

    :param curve: Values (n,); negative ones count as 0.
    :param windows: Windows (S,), -1 for none.
    :param offsets: Offsets (S,).
    :param density: Whether they are densities.
    """
    n, curve = len(curve), np.maximum(curve, 0)
    windows, j = np.asarray(windows), np.arange(n)
    weights = curve / curve.sum()
    middle = np.angle(np.exp(2j * np.pi / n * j) @ weights) * n / (2 * np.pi)
    around = (j - middle + n / 2) % n + middle - n / 2
    w = windows[:, None]
    x = np.where(w == NO_CUT, around, np.where(j >= w, j, j + n))
    mean = x @ weights
    spread = np.sqrt(((x - mean[:, None]) ** 2) @ weights)
    spread = np.clip(spread, n / 25, WIDTHS[1] * n)
    height = np.log(curve.sum() / (np.sqrt(2 * np.pi) * spread))
    parameters = np.column_stack((mean, np.log(spread), height, offsets))
    return Curves(parameters, windows, n, density)


def _select(scores, windows, most: int, per_window: int) -> np.ndarray:
    """Rows of least score, only so many with the same window."""
    chosen, seen = [], {}
    # Windows that cut nothing off differ by rounding, which is not to decide.
    for row in np.argsort(np.round(scores, 3), kind="stable"):
        seen[windows[row]] = seen.get(windows[row], 0) + 1
        if seen[windows[row]] <= per_window:
            chosen.append(row)
    return np.array(chosen[:most])


def _with_moved_windows(curves: Curves) -> Curves:
    """The curves that have a cut, with it one sample to either side."""
    curves = curves[curves.windows != NO_CUT]
    n, k, parts = curves.n, curves.k, []
    for by in (-1, 1):
        windows, p = (curves.windows + by) % n, curves.parameters.copy()
        start = windows[:, None] - 0.5 - MARGIN * n
        p[:, :k] = np.where(p[:, :k] < start, p[:, :k] + n, p[:, :k])
        over = p[:, :k] > start + (1 + 2 * MARGIN) * n
        p[:, :k] = np.where(over, p[:, :k] - n, p[:, :k])
        p[:, -1] = np.clip(p[:, -1] - by, -0.5, 0.5)
        parts.append(Curves(p, windows, n, curves.density))
    return joined(*parts)


def _with_one_more(curves: Curves, target: Quadratic) -> Curves:
    """Each curve with a Gaussian added where it helps most, and with each split."""
    k, parts = curves.k, []
    values = curves.curves
    for width in (curves.n / 20, curves.n / 10):
        parts += _with_bumps(curves, values, target, width)
    centres, widths, heights, offset = np.split(curves.parameters, [k, 2 * k, 3 * k], 1)
    for i in range(k):
        apart = np.zeros((len(curves), k))
        apart[:, i] = 0.8 * np.exp(widths[:, i])
        thinner = np.where(np.arange(k) == i, 0.3, 0)
        parts.append(
            np.hstack(
                (
                    *(centres - apart, (centres + apart)[:, i : i + 1]),
                    *(widths - thinner, widths[:, i : i + 1] - 0.3),
                    *(heights - thinner, heights[:, i : i + 1] - 0.3),
                    offset,
                )
            )
        )
    return Curves(
        np.concatenate(parts),
        np.tile(curves.windows, len(parts)),
        curves.n,
        curves.density,
    )


def _with_bumps(curves, values, target, width) -> list[np.ndarray]:
    """Parameters with one more Gaussian of a width, at the two best places."""
    n, k, j = curves.n, curves.k, np.arange(curves.n)
    bumps = np.exp(-0.5 * (((j - j[:, None] + n / 2) % n - n / 2) / width) ** 2)
    if curves.density:
        bumps /= bumps.sum(1, keepdims=True)
    slope = target(values)[1]
    bent = bumps @ target.hessian
    pull, bend = slope @ bumps.T, (bent * bumps).sum(1)
    if curves.density:
        # A share moves from the curve to the bump.
        pull = pull - (slope * values).sum(1, keepdims=True)
        inner = ((values @ target.hessian) * values).sum(1, keepdims=True)
        bend = bend - 2 * values @ bent.T + inner
    gain = np.where(pull > 0, pull**2 / bend, 0)
    share = pull / bend
    centres, widths, heights, offset = np.split(curves.parameters, [k, 2 * k, 3 * k], 1)
    parts = []
    for _ in range(2):
        at = np.argmax(gain, 1)
        amount = np.take_along_axis(share, at[:, None], 1)
        if curves.density:
            amount = np.clip(amount, 1e-3, 0.5)
            mass = np.exp(heights + widths).sum(1, keepdims=True) / width
            height = np.log(amount / (1 - amount) * mass)
        else:
            height = np.log(np.maximum(amount, 1e-3 * values.max(1, keepdims=True)))
        windows = curves.windows
        place = np.where(windows == NO_CUT, at, windows + (at - windows) % n)
        parts.append(
            np.hstack(
                (
                    *(centres, place[:, None]),
                    *(widths, np.full((len(at), 1), np.log(width))),
                    *(heights, height, offset),
                )
            )
        )
        near = np.abs((j - at[:, None] + n / 2) % n - n / 2) < n / 8
        gain = np.where(near, 0, gain)
    return parts
