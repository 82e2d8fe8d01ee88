"""Posterior of images over viewing directions, in-plane angles and shifts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aspire_mom.refinement.shifts import Shifts
from aspire_mom.refinement.slices import slices
from aspire_mom.refinement.views import Views, inplane_angles

# Images at once, each shift of an image counted: fewer are slower, more do not fit into
# cache.
IMAGES_AT_ONCE = 64
# Views and shifts of an image around which finer ones are tried: those of at least this
# share of the best one's probability, but so many at least and at most: on the coarsest
# level, and on others. The best view can be a neighbour of the one that holds the best
# finer view.
LEAST_CANDIDATE, LEAST_KEPT, MOST_KEPT, MOST_FINER = 1e-3, 12, 32, 64
# Share of the best finer view's probability below which another does not count.
LEAST_SHARE = 1e-3
# Pairs of an image and a finer view at once, which have to fit as well.
PAIRS_AT_ONCE = 64


class Level(NamedTuple):
    """
    Views that are tried around the best ones of a coarser level.

    :param slices: Slices (n_views, orders, rings).
    :param norms: Half their weighted power (n_views, rings).
    :param prior: Logarithm of each view's probability per in-plane angle (n_views,).
    :param n_angles: In-plane angles.
    :param children: Views of this level that belong to each of the coarser one, -1 for
        none.
    """

    slices: Tensor
    norms: Tensor
    prior: Tensor
    n_angles: int
    children: Tensor


class Model:
    """
    Slices of a volume in all views, and what images weigh.

    :param u: Voxels (n, n, n).
    :param density: Probabilities of the coarse views (n_views,).
    :param noise: Variance of the noise at a Fourier pixel on each ring (n_rings,).
    :param views: Views.
    :param areas: Fourier pixels on each ring (n_rings,).
    :param L: Pixels along the edge of the images.
    :param device: torch device.
    """

    def __init__(
        self,
        u: np.ndarray,
        density: np.ndarray,
        noise: np.ndarray,
        views: Views,
        areas: np.ndarray,
        L: int,
        device: torch.device,
    ):
        n_rings = len(noise)
        self.views, self.n_rings = views, n_rings
        self.weights = np.divide(
            areas, noise, out=np.zeros_like(areas), where=noise > 0
        )
        self.n_angles = inplane_angles(n_rings)
        self.coarse_angles = inplane_angles(views.rings[0])
        log_density = np.log(np.maximum(density, 1e-9))
        w = self.weights.astype(np.float32)
        levels = zip(views.levels, views.rings, strict=True)
        found = [slices(u, directions, R, L) for directions, R in levels]
        powers = [inner(c, c) for c in found]
        self.slices, self.power = found[-1], powers[-1]
        norms = [0.5 * w[: power.shape[1]] * power for power in powers]

        def placed(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        def prior(i: int) -> Tensor:
            coarsest = views.coarsest[i]
            counts = np.maximum(
                np.bincount(coarsest, minlength=len(density)), 1
            ) * inplane_angles(views.rings[i])
            return placed((log_density - np.log(counts))[coarsest].astype(np.float32))

        self.ring_weights = placed(w)
        weighted = w[: views.rings[0]] * found[0]
        self.coarse = placed(weighted.transpose(1, 2, 0))
        self.coarse_norms, self.coarse_prior = placed(norms[0].T), prior(0)
        self.finer = [
            Level(
                placed(found[i]),
                placed(norms[i]),
                prior(i),
                inplane_angles(views.rings[i]),
                placed(children),
            )
            for i, children in enumerate(views.children, 1)
        ]


def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """
    :param a: Coefficients (n, max_order + 1, n_rings) of orders m ≥ 0.
    :param b: Others.
    :return: Re Σ conj(a) b over all orders (n, n_rings).
    """
    # Products of all coefficients would take twice the memory of these.
    parts = (a.real, b.real), (a.imag, b.imag)
    every = sum(np.einsum("nmr,nmr->nr", x, y) for x, y in parts)
    return 2 * every - sum(x[:, 0] * y[:, 0] for x, y in parts)


@dataclass
class ViewSums:
    """
    Sums over images, weighted by their posteriors, and each image's best pose.

    :param slices: Images times CTF turned into each of the finest views, (n_views,
        max_order + 1, n_rings), complex64.
    :param information: Sums of squared CTFs (n_views, n_rings).
    :param mass: Sums of probabilities (n_views,).
    :param poses: Most probable pose of each image (n, 5): finest view, in-plane angle
        in radians, shift along x and y in pixels, and its probability; float64.
    :param log_likelihood: Sum of the images' log-likelihoods less those of noise alone,
        of the views that are tried.
    """

    slices: Tensor
    information: Tensor
    mass: Tensor
    poses: np.ndarray
    log_likelihood: float = 0.0


def expectation(model: Model, x: Tensor, h: Tensor, shifts: Shifts) -> ViewSums:
    """
    Sum images over the poses that they may have. The posterior of image i is

        p_i(v, α, t) ∝ ρ(v) q(t) exp(Σ_r w_r (Re Σ_m conj(x_itmr) s_vmr e^{imα}
                                            - ½ h_ir Σ_m |s_vmr|²)),

    over orders m = -max_order … max_order, where x_it are the coefficients of the image
    times its CTF, moved back by t, and h_i is the mean squared CTF on a ring.

    :param model: The model.
    :param x: Coefficients of the images times their CTFs (n, orders, rings),
        complex64, with the orders that shifts need.
    :param h: Mean squared CTFs (n, n_rings).
    :param shifts: Shifts t to try.
    :return: The sums.
    """
    n_views, _, n_rings = model.slices.shape
    sums = ViewSums(
        torch.zeros(model.slices.shape, dtype=x.dtype, device=x.device),
        torch.zeros(n_views, n_rings, device=x.device),
        torch.zeros(n_views, device=x.device),
        np.zeros((len(x), 5)),
    )
    n_orders = shifts.orders(n_rings)
    step = max(1, IMAGES_AT_ONCE // len(shifts))
    add = _add_fine if model.finer else _add_coarse
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        add(sums, model, x[part, :n_orders, :n_rings], h[part], shifts, part)
    return sums


def _coarse_scores(
    model: Model, x: Tensor, h: Tensor, shifts: Shifts
) -> tuple[Tensor, Tensor]:
    """Logarithms (n, shifts, coarse views, angles) of posteriors, without constants,
    and the images moved back by all shifts, on as many rings and orders."""
    M, R, n_views = model.coarse.shape
    rows = shifts.undone(x[:, : shifts.orders(R), :R], shifts.offsets)[:, :M]
    products = torch.einsum("nmr,mrv->nvm", rows.conj(), model.coarse)
    score = torch.fft.irfft(products, model.coarse_angles, norm="forward")
    score = score.reshape(len(h), len(shifts), n_views, -1)
    prior = model.coarse_prior - h[:, :R] @ model.coarse_norms
    score.add_(prior[:, None, :, None]).add_(shifts.prior[:, None, None])
    return score, rows


def _add_coarse(
    sums: ViewSums, model: Model, x: Tensor, h: Tensor, shifts: Shifts, part: slice
) -> None:
    """Add images to the sums over all coarse views."""
    score, rows = _coarse_scores(model, x, h, shifts)
    _, _, n_views, n_angles = score.shape
    p, best = _probabilities(sums, score)
    shift, view = best // (n_views * n_angles), best // n_angles % n_views
    offsets = shifts.offsets[shift.cpu().numpy()]
    _remember(sums, part, view, best % n_angles, n_angles, offsets, p)
    mass = p.sum((1, 3))
    turns = torch.fft.rfft(p.flatten(0, 1))[..., : rows.shape[1]]
    sums.slices += torch.einsum("nvm,nmr->vmr", turns, rows)
    sums.information += mass.T @ h
    sums.mass += mass.sum(0)


class _Pairs(NamedTuple):
    """
    Pairs of a row and a view, (n_pairs,) each, ordered by image.

    :param image: Image.
    :param row: Row: the image, moved back by a shift and a finer one.
    :param shift: Shift.
    :param finer_shift: Finer shift.
    :param view: View of a level.
    """

    image: Tensor
    row: Tensor
    shift: Tensor
    finer_shift: Tensor
    view: Tensor

    def at(self, places: Tensor) -> _Pairs:
        """
        :param places: Places of some of the pairs.
        :return: These.
        """
        return _Pairs(*(part[places] for part in self))

    def children(self, level: Level) -> _Pairs:
        """
        :param level: The next finer level.
        :return: Its views that belong to these.
        """
        children = level.children[self.view]
        pair, child = torch.nonzero(children >= 0, as_tuple=True)
        return self.at(pair)._replace(view=children[pair, child])


def _add_fine(
    sums: ViewSums, model: Model, x: Tensor, h: Tensor, shifts: Shifts, part: slice
) -> None:
    """Add images to the sums over the finest views and shifts around the best ones of
    each coarser level."""
    score, _ = _coarse_scores(model, x, h, shifts)
    n_views, n_finer = score.shape[2], len(shifts.finer)
    image, best = _candidates(
        torch.softmax(score.flatten(1), 1).view_as(score), MOST_KEPT
    )
    shift, view = best // n_views, best % n_views
    kept, row = torch.unique(image * len(shifts) + shift, return_inverse=True)
    moved = x[kept // len(shifts)]
    rows = shifts.undone(moved, shifts.finer, kept % len(shifts))
    rows = rows[:, : sums.slices.shape[1]]
    weighted = (rows * model.ring_weights).conj().resolve_conj()
    finer = torch.arange(n_finer, device=h.device).repeat(len(row))
    each = (
        part.repeat_interleave(n_finer) for part in (image, row * n_finer, shift, view)
    )
    image, row, shift, view = each
    pairs = _Pairs(image, row + finer, shift, finer, view)
    for level in model.finer:
        pairs = pairs.children(level)
        score, first, place = _side_by_side(level, pairs, weighted, h, shifts)
        if level is not model.finer[-1]:
            p = torch.softmax(score.flatten(1), 1).view_as(score)
            image, best = _candidates(p, MOST_FINER)
            pairs = pairs.at(first[image] + best)
    p, best = _probabilities(sums, score)
    likeliest = pairs.at(first + best // level.n_angles)
    offsets = shifts.offsets[likeliest.shift.cpu().numpy()]
    offsets = offsets + shifts.finer[likeliest.finer_shift.cpu().numpy()]
    angle = best % level.n_angles
    _remember(sums, part, likeliest.view, angle, level.n_angles, offsets, p)
    _add_pairs(sums, pairs, p[pairs.image, place], rows, h)


def _side_by_side(
    level: Level, pairs: _Pairs, weighted: Tensor, h: Tensor, shifts: Shifts
) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithms of posteriors, those of each image side by side (n, most, angles), -∞
    beyond its last; each image's first pair (n,), and the pairs' places (n_pairs,).
    `weighted` are the rows' conjugates times the rings' weights."""
    _, M, R = level.slices.shape
    weighted = weighted[:, :M, :R]
    some = zip(
        *(part.split(PAIRS_AT_ONCE) for part in (pairs.row, pairs.view)), strict=True
    )
    products = [
        weighted.index_select(0, a).mul_(level.slices.index_select(0, b)).sum(-1)
        for a, b in some
    ]
    scores = torch.fft.irfft(torch.cat(products), level.n_angles, norm="forward")
    prior = (
        level.prior[pairs.view]
        + shifts.prior[pairs.shift]
        - math.log(len(shifts.finer))
    )
    norms = (h[pairs.image, :R] * level.norms[pairs.view]).sum(-1)
    scores += (prior - norms)[:, None]
    counts = torch.bincount(pairs.image, minlength=len(h))
    first = counts.cumsum(0) - counts
    place = torch.arange(len(scores), device=h.device) - first[pairs.image]
    shape = len(h), int(counts.max()), level.n_angles
    padded = torch.full(shape, -math.inf, device=h.device)
    padded[pairs.image, place] = scores
    return padded, first, place


def _add_pairs(
    sums: ViewSums, pairs: _Pairs, p: Tensor, rows: Tensor, h: Tensor
) -> None:
    """Add pairs of the finest level, of probabilities p (n_pairs, angles)."""
    mass = p.sum(1)
    highest = torch.zeros(len(h), device=h.device)
    highest.scatter_reduce_(0, pairs.image, mass, "amax")
    used = torch.nonzero(mass > LEAST_SHARE * highest[pairs.image])[:, 0]
    pairs, mass = pairs.at(used), mass[used]
    # What is left of each image counts in full.
    whole = torch.zeros_like(highest).index_add_(0, pairs.image, mass)[pairs.image]
    turns = torch.fft.rfft(p[used] / whole[:, None])[:, : rows.shape[1], None]
    mass = mass / whole
    # Real and flat, as sums over complex ones are slow.
    flat = torch.view_as_real(sums.slices).flatten(1)
    for some in torch.arange(len(used), device=h.device).split(PAIRS_AT_ONCE):
        turned = rows.index_select(0, pairs.row[some]).mul_(turns[some])
        flat.index_add_(0, pairs.view[some], torch.view_as_real(turned).flatten(1))
    sums.information.index_add_(0, pairs.view, mass[:, None] * h[pairs.image])
    sums.mass.index_add_(0, pairs.view, mass)


def _probabilities(sums: ViewSums, score: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of poses, of which the score (n, …) is the logarithm but for a
    constant, and the most probable ones (n,). Adds to the log-likelihood."""
    flat = score.flatten(1)
    p = torch.softmax(flat, 1)
    highest, best = p.max(1)
    # Several times faster than logsumexp.
    totals = flat.gather(1, best[:, None])[:, 0] - highest.log()
    sums.log_likelihood += totals.sum().item()
    return p.view_as(score), best


def _candidates(p: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Images, and which of their views or shifts and views, side by side, hold nearly
    all of their posteriors p (n, …, angles); `most` of an image at most. Both are
    (n_candidates,); images ascend."""
    p = p.sum(-1).flatten(1)
    p, best = p.topk(min(most, p.shape[1]))
    chosen = p > LEAST_CANDIDATE * p[:, :1]
    chosen[:, :LEAST_KEPT] = p[:, :LEAST_KEPT] > 0
    chosen[:, 0] = True
    image, place = torch.nonzero(chosen, as_tuple=True)
    return image, best[image, place]


def _remember(
    sums: ViewSums,
    part: slice,
    view: Tensor,
    angle: Tensor,
    n_angles: int,
    offsets: np.ndarray,
    p: Tensor,
) -> None:
    """Keep poses of images, and their shares of the probabilities p (n, …)."""
    angle = angle * (2 * math.pi / n_angles)
    sums.poses[part, :2] = torch.stack((view, angle), 1).cpu().numpy()
    sums.poses[part, 2:4] = offsets
    sums.poses[part, 4] = p.flatten(1).amax(1).cpu().numpy()
