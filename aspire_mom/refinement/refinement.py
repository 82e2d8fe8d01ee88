"""Refinement of a volume against images, from a reconstruction of their moments."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from aspire.numeric import fft
from aspire.source import ImageSource
from aspire.utils import Rotation, tqdm
from aspire.volume import Volume

from aspire_mom import processes
from aspire_mom.bases import PolarBasis
from aspire_mom.checks import check_integer, check_kind, checked_device
from aspire_mom.evaluation.fsc import resolution_in_shells
from aspire_mom.files import Checkpoint, digest
from aspire_mom.inversion import Reconstruction
from aspire_mom.moments.corrections import source_identity
from aspire_mom.moments.options import CorrectionOptions
from aspire_mom.moments.streaming import Sums, accumulate
from aspire_mom.refinement.fourier import half_fsc, resized, shell_mean
from aspire_mom.refinement.images import PolarImages
from aspire_mom.refinement.model import RefinedModel
from aspire_mom.refinement.posterior import (
    MOST_SHIFT,
    Model,
    Shifts,
    expectation,
    inner,
)
from aspire_mom.refinement.slices import volume_from_slices
from aspire_mom.refinement.state import State, with_uniform_share
from aspire_mom.refinement.views import (
    COARSE_RINGS,
    Views,
    coarse_directions,
    largest_order,
)
from aspire_mom.rotations import viewing_rotations

logger = logging.getLogger(__name__)

# Fewest rings, whose halves can agree to 4 shells, and pixels that have as many.
LEAST_RINGS, MIN_SIZE = 5, 9
# Rings at most: sums over images on 24 rings take 0.4 GB.
MAX_RINGS = 24
BATCH = 512
# Bytes of results of batches computed at once.
RESULTS = 2**30
# Rings that are added after an iteration, at most, and the FSC of the halves on the
# outermost ring from which on they are.
NEW_RINGS, ENOUGH = 2, 0.143
# Iterations without progress, in shells, after which a refinement ends.
PATIENCE, PROGRESS = 3, 0.1
# Starts that compete at most, and iterations on so many images that each gets.
MAX_STARTS, TRIAL_ITERATIONS, TRIAL_IMAGES = 4, 3, 2048
# Least noise as a share of the images' power.
LEAST_NOISE = 1e-3
# Least variance of the volume on a shell, as a share of the largest beyond ring 0.
LEAST_SIGNAL = 1e-12
# Voxels along an edge beyond twice the number of rings.
MARGIN = 5
# Radius in boxes of the ball that holds the volume.
SUPPORT_RADIUS = 0.45
# Distance of shifts that are tried, in boxes, times the number of coarse rings.
SHIFT_SPACING = 0.25
# Bounds of the FSC that Wiener filters rest on.
LEAST_FSC, MOST_FSC = 0.01, 0.999


class Refinement:
    """
    Refine a volume by expectation maximisation over the poses of images (Sigworth 1998;
    Scheres 2012) on rings of Fourier space, from the volume that their moments gave.

    The images are split into two halves, every other batch, which do not meet after the
    start. In each iteration every image is turned into every view by its posterior
    probability, and each half's volume follows from the views by least squares in a
    ball, with a Wiener filter whose signal-to-noise ratio is that of the halves' FSC.
    Rings are added while the halves agree. Every view is tried on up to 8 rings; on
    more rings, finer views around the best of these.

    :param source: ASPIRE `ImageSource`.
    :param reconstruction: Where to start: its volume, density, and spread of shifts.
    :param n_rings: Rings at most, 5 or more; never more than 24, the default, or than
        the images have.
    :param corrections: What to correct images for, as for their moments; the spread of
        shifts is the reconstruction's.
    :param n_iterations: Iterations at most.
    :param checkpoint: File that keeps finished iterations, from which another run
        continues.
    :param device: torch device of the posteriors.
    :raises TypeError: An argument is of another type.
    :raises ValueError: The source has too few images, or images of another size than
        the volume; or an option is out of range.
    """

    def __init__(
        self,
        source: ImageSource,
        reconstruction: Reconstruction,
        *,
        n_rings: int | None = None,
        corrections: CorrectionOptions = CorrectionOptions(),
        n_iterations: int = 25,
        checkpoint: str | Path | None = None,
        device: str | torch.device = "cpu",
    ):
        check_kind("source", source, ImageSource)
        check_kind("reconstruction", reconstruction, Reconstruction)
        self.L = L = reconstruction.volume.resolution
        if source.L != L:
            raise ValueError(
                f"the images have {source.L} pixels along an edge, the volume {L}"
            )
        if source.n < 4:
            raise ValueError(f"the source has {source.n} images; it needs at least 4")
        if L < MIN_SIZE:
            raise ValueError(
                f"the images have {L} pixels along an edge; a refinement needs at least"
                f" {MIN_SIZE}"
            )
        most = min(MAX_RINGS, (L + 1) // 2)
        wanted = most if n_rings is None else n_rings
        self.n_rings = min(check_integer("n_rings", wanted, LEAST_RINGS), most)
        self.n_iterations = check_integer("n_iterations", n_iterations, 1)
        self.source, self.reconstruction = source, reconstruction
        self.corrections, self.checkpoint = corrections, checkpoint
        self.device = checked_device(device)
        std = reconstruction.shift_std
        spacing = SHIFT_SPACING * L / COARSE_RINGS
        self.shifts = Shifts(std, spacing, L, self.device)
        # Shifts mix orders.
        reach = 2 * math.pi * (self.n_rings - 1) * MOST_SHIFT * std / L
        order = largest_order(self.n_rings - 1) + math.ceil(reach)
        self.basis = PolarBasis(L, self.n_rings, order)
        half = source.n / 2
        self.batch = math.ceil(half / math.ceil(half / BATCH))  # equal halves

    def estimate(self) -> RefinedModel:
        """
        Iterate until the halves agree no further.

        :return: The refined model.
        :raises ValueError: An image is not finite, or the checkpoint does not fit.
        """
        inverted = bool(self.reconstruction.settings.get("inverted", False))
        images = PolarImages(self.source, self.basis, self.corrections, inverted)
        found = self.reconstruction
        starts = found.volume if found.start_volumes is None else found.start_volumes
        views, first_rings = found.quadrature.views, found.settings.get("n_rings")
        used = replace(self.corrections, shift_std=0.0, amplitude_std=0.0)
        settings = {
            "images": source_identity(self.source),
            "start": digest(starts.asnumpy(), views, found.view_density, first_rings),
            "shift_std": found.shift_std,
            "inverted": inverted,
            "n_rings": self.n_rings,
            "corrections": asdict(used),
            "batch": self.batch,
        }
        kept = Checkpoint(self.checkpoint, settings)
        stored = processes.broadcast_object(kept.state)
        state = State.stored(stored) if stored else self._best_start(images)
        while not self._finished(state.history):
            begun = time.perf_counter()
            state = self._next(images, state)
            entry = state.history[-1]
            entry["seconds"] = round(time.perf_counter() - begun, 2)
            kept.state = vars(state)
            kept.write()
            logger.info(
                f"Iteration {len(state.history)}: {entry['n_rings']} rings, halves"
                f" agree to {entry['shells']:.1f} shells"
            )
        return self._final(images, state)

    def _finished(self, history: list[dict]) -> bool:
        if len(history) >= self.n_iterations:
            return True
        shells = [entry["shells"] for entry in history]
        if len(shells) <= PATIENCE:
            return False
        return max(shells[-PATIENCE:]) < max(shells[:-PATIENCE]) + PROGRESS

    def _best_start(self, images: PolarImages) -> State:
        """The start, among the reconstruction's, from which a few iterations on the
        first half of some images lead to the highest likelihood of the second half."""
        volumes = self.reconstruction.start_volumes
        if volumes is None or len(volumes.asnumpy()) < 2:
            return self._start(images, self.reconstruction.volume.asnumpy()[0])
        found, n = [], min(len(images), TRIAL_IMAGES)
        starts = volumes.asnumpy()[:MAX_STARTS]
        quiet = not processes.is_first()
        for i, voxels in enumerate(
            tqdm(starts, desc="Comparing starts", disable=quiet)
        ):
            start = state = self._start(images, voxels, best=i == 0)
            for _ in range(TRIAL_ITERATIONS):
                state = replace(self._next(images, state, n), n_rings=start.n_rings)
            first = replace(
                state,
                halves=state.halves[[0, 0]],
                densities=state.densities[[0, 0]],
                noises=start.noises,  # the same for all, as constants are left out
            )
            _, sums, _ = self._pass(images, first, n)
            found.append((float(sums[1]["log_likelihood"]), start))
        likelihoods = [likelihood for likelihood, _ in found]
        best = int(np.argmax(likelihoods))
        logger.info(f"Start {best + 1} of {len(found)} suits the images best")
        return found[best][1]

    def _start(
        self, images: PolarImages, voxels: np.ndarray, *, best: bool = True
    ) -> State:
        """A volume, the best start's or another's, and its density, for both halves."""
        found = self.reconstruction
        R = min(self.n_rings, found.settings.get("n_rings", COARSE_RINGS))
        u = resized(voxels, self._edge(R))
        distances = coarse_directions() @ found.quadrature.views.T
        density = found.view_density[distances.argmax(1)]
        if not best:  # of another orientation and hand
            density = np.ones(len(density))
        density = with_uniform_share(density)
        noise = self._noise_of_images(images)
        return State(
            halves=np.stack((u, u)),
            densities=np.stack((density, density)),
            noises=np.stack((noise, noise)),
            signal=shell_mean(np.abs(fft.centered_fftn(u)) ** 2)[:R] / self.L**2,
            n_rings=R,
            history=[],
        )

    def _edge(self, n_rings: int) -> int:
        """Voxels along an edge of volumes that have so many rings."""
        return min(self.L, 2 * n_rings + MARGIN)

    def _noise_of_images(self, images: PolarImages) -> np.ndarray:
        """Power on the rings of the first images, nearly all of it noise."""
        _, _, squares = images.batch(0, self.batch)
        return squares.numpy().mean(0) / self._white_power

    @property
    def _white_power(self) -> np.ndarray:
        """Power of noise of unit variance per Fourier pixel in the orders in use."""
        second = np.einsum("mrr->mr", self.basis.noise_second()).real
        return (2 * second.sum(0) - second[0]) / self.L**2

    def _next(
        self, images: PolarImages, state: State, n_images: int | None = None
    ) -> State:
        """One iteration, on all images or the first ones."""
        R, (models, sums, _) = state.n_rings, self._pass(images, state, n_images)
        halves = self._halves(models, sums, state)
        fsc = half_fsc(halves)[:R]
        n = sum(float(s["n"]) for s in sums)
        likelihood = sum(float(s["log_likelihood"]) for s in sums) / n
        entry = {
            "n_rings": R,
            "shells": resolution_in_shells(fsc, ENOUGH),
            "log_likelihood": likelihood,
        }
        both = list(zip(models, sums, strict=True))
        precision = sum(shell_precision(*half) for half in both) / 2
        ratio = np.clip(fsc, LEAST_FSC, MOST_FSC)
        noises = state.noises.copy()
        noises[:, :R] = [self._noise(*half) for half in both]
        return State(
            halves=np.stack(halves),
            densities=np.stack([self._density(*half) for half in both]),
            noises=noises,
            signal=ratio / (1 - ratio) / precision,
            n_rings=min(R + NEW_RINGS, self.n_rings) if fsc[-1] > ENOUGH else R,
            history=[*state.history, entry],
        )

    def _pass(
        self, images: PolarImages, state: State, n_images: int | None = None
    ) -> tuple[list[Model], list[Sums], np.ndarray]:
        """Models of both halves, sums over their images, and the images' poses (n, 4):
        finest view, in-plane angle, shift along x and y."""
        n_images = n_images or len(images)
        views, R = Views.for_rings(state.n_rings), state.n_rings
        areas = self.basis.areas[:R].copy()
        areas[0] = 0  # backgrounds and filters leave no meaning to zero frequency
        models = [
            Model(*parts, views, areas, self.L, self.device)
            for parts in zip(
                state.halves, state.densities, state.noises[:, :R], strict=True
            )
        ]
        poses = np.zeros((n_images, 4))

        def sums_of(batch: tuple, start: int) -> Sums:
            torch.set_flush_denormal(True)  # of this thread: many times faster
            x, h, squares = (part.to(self.device) for part in batch)
            model = models[start // self.batch % 2]
            found = expectation(model, x, h[:, :R], self.shifts)
            poses[start : start + len(x)] = found.poses
            return {
                "slices": found.slices.cpu().numpy(),
                "information": found.information.cpu().numpy(),
                "mass": found.mass.cpu().numpy(),
                "log_likelihood": np.array(found.log_likelihood),
                "power": squares[:, :R].sum(0).cpu().numpy(),
                "n": np.array(float(len(x))),
            }

        most = max(1, RESULTS // (8 * math.prod(models[0].slices.shape)))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            sums = accumulate(
                n_images,
                self.batch,
                images.batch,
                sums_of,
                n_groups=2,
                most_workers=1 if self.device.type == "cuda" else most,
            )
        finally:
            torch.set_num_threads(threads)
        processes.all_reduce_sum(poses)
        return models, sums, poses

    def _halves(
        self, models: list[Model], sums: list[Sums], state: State
    ) -> list[np.ndarray]:
        """The volumes of both halves."""
        return [
            self._volume(model, [of_half], state.signal, start)
            for model, of_half, start in zip(models, sums, state.halves, strict=True)
        ]

    def _volume(
        self, model: Model, sums: list[Sums], signal: np.ndarray, start: np.ndarray
    ) -> np.ndarray:
        """The volume from sums over images, of both halves or one."""
        found, last = None, signal[-1:].repeat(max(0, model.n_rings - len(signal)))
        signal = np.concatenate((signal, last))
        slices, information, _ = _added(sums)
        if processes.is_first():
            edge = self._edge(model.n_rings)
            found = volume_from_slices(
                slices,
                information,
                model.views.finest,
                model.weights,
                1 / np.maximum(signal, LEAST_SIGNAL * signal[1:].max()),
                n=edge,
                L=self.L,
                support_radius=SUPPORT_RADIUS,
                start=resized(start, edge),
            )
        # Processes would differ by rounding.
        return processes.broadcast_object(found)

    def _density(self, model: Model, sums: Sums) -> np.ndarray:
        n = len(model.views.directions)
        return with_uniform_share(np.bincount(model.views.parents, sums["mass"], n))

    def _noise(self, model: Model, sums: Sums) -> np.ndarray:
        """Mean squares of the images' differences from the model, per Fourier pixel."""
        # Σ p |c - H s|² = Σ |c|² - 2 Re Σ conj(N) s + Σ D |s|²
        both = inner(sums["slices"], model.slices).sum(0)
        own = (sums["information"] * model.power).sum(0)
        squares = sums["power"] - 2 * both + own
        noise = np.maximum(squares, LEAST_NOISE * sums["power"]) / float(sums["n"])
        return noise / self._white_power[: model.n_rings]

    def _final(self, images: PolarImages, state: State) -> RefinedModel:
        """Both halves and all images once more, with the images' poses."""
        models, sums, poses = self._pass(images, state)
        halves = self._halves(models, sums, state)
        whole = self._volume(models[0], sums, state.signal, state.halves.mean(0))
        view, angle, *offsets = poses.T
        views = models[0].views.finest
        rotations = viewing_rotations(views[view.astype(int)], angle)
        offsets = np.stack(offsets, 1)
        if images.offsets is not None:
            offsets = offsets + images.offsets
        *_, mass = _added(sums)
        size = self.reconstruction.volume.pixel_size
        volume, *both = (
            Volume(resized(u, self.L), pixel_size=size) for u in (whole, *halves)
        )
        return RefinedModel(
            volume=volume,
            half_volumes=Volume(
                np.concatenate([v.asnumpy() for v in both]), pixel_size=size
            ),
            directions=views,
            density=mass / mass.sum(),
            rotations=Rotation(rotations, gimble_lock_warnings=False),
            offsets=offsets,
            halves=np.arange(len(images)) // self.batch % 2 + 1,
            fsc=half_fsc(halves)[: state.n_rings],
            noise=state.noises[:, : state.n_rings].mean(0),
            history=state.history,
            settings={"n_rings": self.n_rings, "shift_std": self.shifts.std},
        )


def shell_precision(model: Model, sums: Sums) -> np.ndarray:
    """
    :param model: The model that images were turned by.
    :param sums: Sums over them.
    :return: Precision of the volume's Fourier values / L on each shell (n_rings,).
    """
    r = np.arange(model.n_rings)
    voxels = 4 * np.pi * r**2 + np.pi / 3
    return np.maximum(model.weights * sums["information"].sum(0) / voxels, 1e-12)


def _added(sums: list[Sums]) -> list[np.ndarray]:
    """Slices, information and mass of all halves."""
    names = "slices", "information", "mass"
    return [np.sum([of_half[name] for of_half in sums], axis=0) for name in names]
