"""Posterior of images over viewing directions, in-plane angles and shifts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aspire_mom.refinement.slices import slices
from aspire_mom.refinement.views import (
    COARSE_RINGS,
    Views,
    inplane_angles,
)

# Images at once: more do not fit into cache.
IMAGES_AT_ONCE = 16
# Largest shift that is tried, in standard deviations.
MOST_SHIFT = 2.5
# Coarse views and shifts of an image around which finer ones are tried: those of at
# least this share of the best one's probability, but so many at least and at most. The
# best coarse view can be a neighbour of the one that holds the best finer view.
LEAST_CANDIDATE, LEAST_KEPT, MOST_KEPT = 1e-3, 6, 32
# Share of the best finer view's probability below which another does not count.
LEAST_SHARE = 1e-3
# Pairs of an image and a finer view at once, for the same reason.
PAIRS_AT_ONCE = 128


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
        self.coarse_rings = min(n_rings, COARSE_RINGS)
        self.n_angles = inplane_angles(n_rings)
        self.coarse_angles = inplane_angles(self.coarse_rings)
        log_density = np.log(np.maximum(density, 1e-9))
        coarse_prior = log_density - math.log(self.coarse_angles)

        def placed(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        coarse = slices(u, views.directions, self.coarse_rings, L)
        w = self.weights.astype(np.float32)
        self.power = inner(coarse, coarse)
        self.coarse = placed((w[: self.coarse_rings] * coarse).transpose(1, 2, 0))
        self.coarse_norms = placed(0.5 * (w[: self.coarse_rings] * self.power).T)
        self.coarse_prior = placed(coarse_prior.astype(np.float32))
        self.slices = coarse
        self.has_finer = views.children is not None
        if views.children is not None:
            self.slices = slices(u, views.finest, n_rings, L)
            self.power = inner(self.slices, self.slices)
            counts = (views.children >= 0).sum(1)
            own = (log_density - np.log(np.maximum(counts, 1)))[views.parents]
            own -= math.log(self.n_angles)
            self.fine = placed(w * self.slices)
            self.fine_norms = placed(0.5 * w * self.power)
            self.fine_prior = placed(own.astype(np.float32))
            self.children = placed(views.children)


def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """
    :param a: Coefficients (n, max_order + 1, n_rings) of orders m ≥ 0.
    :param b: Others.
    :return: Re Σ conj(a) b over all orders (n, n_rings).
    """
    products = a.real * b.real + a.imag * b.imag
    return 2 * products.sum(1) - products[:, 0]


class Shifts:
    """
    Shifts to try, with Gaussian prior probabilities. `offsets` (n, 2) holds them as x
    and y in pixels, `finer` (n_finer, 2) what is added around the best ones.

    :param std: Standard deviation of the shifts along each axis, pixels; 0 for none.
    :param spacing: Distance of shifts, pixels.
    :param L: Pixels along the edge of the images.
    :param device: torch device.
    """

    def __init__(self, std: float, spacing: float, L: int, device: torch.device):
        self.std, self.L = std, L
        most = math.ceil(MOST_SHIFT * std / spacing)
        axis = spacing * np.arange(-most, most + 1)
        offsets = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        squares = (offsets**2).sum(1)
        near = squares <= (MOST_SHIFT * std) ** 2
        self.offsets = offsets[near]
        prior = -squares[near] / (2 * max(std, 1e-9) ** 2)
        prior -= np.log(np.exp(prior).sum())
        # Around each, half as far apart, and no further than shifts are likely.
        corners = np.array(((-1, -1), (-1, 1), (1, -1), (1, 1)))
        self.finer = min(spacing / 4, std) * corners if std else np.zeros((1, 2))
        self.prior = torch.from_numpy(prior.astype(np.float32)).to(device)

    def __len__(self) -> int:
        return len(self.offsets)

    def undone(self, x: Tensor, offsets: np.ndarray) -> Tensor:
        """
        :param x: Coefficients of images (n, orders, n_rings).
        :param offsets: Shifts (n_shifts, 2), x and y in pixels.
        :return: Coefficients of the images moved back by each of the shifts, (n ·
            n_shifts, orders, n_rings).
        """
        if not offsets.any():
            return x
        M, n_angles = x.shape[1] - 1, 2 * x.shape[1]
        signs = (-1.0) ** torch.arange(1, M + 1, device=x.device)
        negative = (x[:, 1:].conj() * signs[:, None]).flip(1)
        full = torch.cat((x, torch.zeros_like(x[:, :1]), negative), 1)
        values = torch.fft.ifft(full, dim=1, norm="forward")[:, None]
        values = values * self._phases(offsets, n_angles, x.shape[2]).to(x.device)
        moved = torch.fft.fft(values, dim=2, norm="forward")
        return moved[:, :, : M + 1].flatten(0, 1)

    def _phases(self, offsets: np.ndarray, n_angles: int, n_rings: int) -> Tensor:
        """Factors (shifts, angles, rings) that move images back."""
        theta = 2 * np.pi * np.arange(n_angles) / n_angles
        along = offsets @ np.stack((np.cos(theta), np.sin(theta)))
        phase = -2 * np.pi / self.L * along[..., None] * np.arange(n_rings)
        return torch.from_numpy(np.exp(1j * phase).astype(np.complex64))


@dataclass
class ViewSums:
    """
    Sums over images, weighted by their posteriors, and each image's best pose.

    :param slices: Images times CTF turned into each of the finest views, (n_views,
        max_order + 1, n_rings), complex64.
    :param information: Sums of squared CTFs (n_views, n_rings).
    :param mass: Sums of probabilities (n_views,).
    :param poses: Most probable pose of each image (n, 4): finest view, in-plane angle
        in radians, shift along x and y in pixels; float64.
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
        np.zeros((len(x), 4)),
    )
    step = max(1, IMAGES_AT_ONCE // len(shifts))
    add = _add_fine if model.has_finer else _add_coarse
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        rows = shifts.undone(x[part, :, :n_rings], shifts.offsets)
        add(sums, model, rows, h[part], shifts, part)
    return sums


def _coarse_scores(model: Model, rows: Tensor, h: Tensor, shifts: Shifts) -> Tensor:
    """Logarithms (n, shifts, coarse views, angles) of posteriors, without constants."""
    M, R, n_views = model.coarse.shape
    products = torch.einsum("nmr,mrv->nvm", rows[:, :M, :R].conj(), model.coarse)
    score = torch.fft.irfft(products, model.coarse_angles, norm="forward")
    score = score.reshape(len(h), len(shifts), n_views, -1)
    prior = model.coarse_prior - h[:, :R] @ model.coarse_norms
    return score.add_(prior[:, None, :, None]).add_(shifts.prior[:, None, None])


def _add_coarse(
    sums: ViewSums, model: Model, rows: Tensor, h: Tensor, shifts: Shifts, part: slice
) -> None:
    """Add images to the sums over all coarse views."""
    score = _coarse_scores(model, rows, h, shifts)
    _, _, n_views, n_angles = score.shape
    p, best = _probabilities(sums, score)
    shift, view = best // (n_views * n_angles), best // n_angles % n_views
    offsets = shifts.offsets[shift.cpu().numpy()]
    _remember(sums, part, view, best % n_angles, n_angles, offsets)
    mass = p.sum((1, 3))
    turns = torch.fft.rfft(p.flatten(0, 1))[..., : sums.slices.shape[1]]
    turned = torch.einsum("nvm,nmr->vmr", turns, rows[:, : turns.shape[2]])
    sums.slices += turned
    sums.information += mass.T @ h
    sums.mass += mass.sum(0)


def _add_fine(
    sums: ViewSums, model: Model, rows: Tensor, h: Tensor, shifts: Shifts, part: slice
) -> None:
    """Add images to the sums over the finer views and shifts around their best coarse
    ones. Pairs are of a row, an image at a shift, and a view."""
    image, shift, view = _candidates(_coarse_scores(model, rows, h, shifts))
    kept, row = torch.unique(image * len(shifts) + shift, return_inverse=True)
    finer = shifts.finer
    rows = shifts.undone(rows[kept], finer)[:, : sums.slices.shape[1]]
    children = model.children[view][:, None].expand(-1, len(finer), -1)
    at, which, child = torch.nonzero(children >= 0, as_tuple=True)
    image, row, view = (
        image[at],
        row[at] * len(finer) + which,
        children[at, which, child],
    )
    scores = _fine_scores(model, rows, row, view)
    prior = model.fine_prior[view] + (shifts.prior - math.log(len(finer)))[shift[at]]
    scores += (prior - (h[image] * model.fine_norms[view]).sum(-1))[:, None]
    # Side by side for each image, to normalise.
    counts = torch.bincount(image, minlength=len(h))
    first = counts.cumsum(0) - counts
    place = torch.arange(len(image), device=h.device) - first[image]
    shape = len(h), int(counts.max()), model.n_angles
    padded = torch.full(shape, -math.inf, device=h.device)
    padded[image, place] = scores
    p, best = _probabilities(sums, padded)
    pair = first + best // model.n_angles
    offsets = shifts.offsets[shift[at[pair]].cpu().numpy()]
    offsets = offsets + finer[which[pair].cpu().numpy()]
    found = view[pair], best % model.n_angles, model.n_angles, offsets
    _remember(sums, part, *found)
    masses = p.sum(-1)
    large = masses > LEAST_SHARE * masses.amax(1, keepdim=True)
    p, mass = p[image, place], masses[image, place]
    used = torch.nonzero(large[image, place])[:, 0]
    image, row, view, mass = image[used], row[used], view[used], mass[used]
    # What is left of each image counts in full.
    whole = torch.zeros(len(h), device=h.device).index_add_(0, image, mass)[image]
    turns = torch.fft.rfft(p[used] / whole[:, None])[:, : rows.shape[1]]
    mass = mass / whole
    # Real and flat, as sums over complex ones are slow.
    flat = torch.view_as_real(sums.slices).flatten(1)
    for some in torch.arange(len(used), device=h.device).split(PAIRS_AT_ONCE):
        turned = turns[some, :, None] * rows[row[some]]
        flat.index_add_(0, view[some], torch.view_as_real(turned).flatten(1))
    sums.information.index_add_(0, view, mass[:, None] * h[image])
    sums.mass.index_add_(0, view, mass)


def _fine_scores(model: Model, rows: Tensor, row: Tensor, view: Tensor) -> Tensor:
    """Re Σ conj(x) s e^{imα} of pairs of rows and finer views, (pairs, angles)."""
    conjugate = rows.conj().resolve_conj()
    pairs = zip(row.split(PAIRS_AT_ONCE), view.split(PAIRS_AT_ONCE), strict=True)
    products = [(conjugate[a] * model.fine[b]).sum(-1) for a, b in pairs]
    return torch.fft.irfft(torch.cat(products), model.n_angles, norm="forward")


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


def _candidates(score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images, shifts and coarse views, each (n_candidates,), that hold nearly all of
    the images' posteriors; `MOST_KEPT` of an image at most. Images ascend."""
    n_views = score.shape[2]
    p = torch.softmax(score.flatten(1), 1).view_as(score).sum(-1).flatten(1)
    p, best = p.topk(min(MOST_KEPT, p.shape[1]))
    chosen = p > LEAST_CANDIDATE * p[:, :1]
    chosen[:, :LEAST_KEPT] = True
    image, place = torch.nonzero(chosen, as_tuple=True)
    best = best[image, place]
    return image, best // n_views, best % n_views


def _remember(
    sums: ViewSums,
    part: slice,
    view: Tensor,
    angle: Tensor,
    n_angles: int,
    offsets: np.ndarray,
) -> None:
    """Keep poses of images."""
    angle = angle * (2 * math.pi / n_angles)
    sums.poses[part, :2] = torch.stack((view, angle), 1).cpu().numpy()
    sums.poses[part, 2:] = offsets
