"""Refinement of a volume against images, from a reconstruction of their moments."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from aspire.numeric import fft
from aspire.source import ImageSource
from aspire.utils import Rotation, tqdm
from aspire.volume import Volume

from aspire_mom import processes
from aspire_mom.bases import PolarBasis
from aspire_mom.checkpoints import Checkpoint, digest
from aspire_mom.checks import check_integer, check_kind, checked_device
from aspire_mom.inversion import Reconstruction
from aspire_mom.moments.corrections import source_identity
from aspire_mom.moments.options import CorrectionOptions
from aspire_mom.refinement.fourier import (
    half_fsc,
    locally_filtered,
    noise_variance,
    resized,
    shell_mean,
)
from aspire_mom.refinement.images import PolarImages
from aspire_mom.refinement.iteration import Iterations, settled
from aspire_mom.refinement.maximisation import added, edge_of, explained_power
from aspire_mom.refinement.model import RefinedModel
from aspire_mom.refinement.posterior import inner
from aspire_mom.refinement.shifts import Shifts
from aspire_mom.refinement.slices import slices
from aspire_mom.refinement.state import State, with_uniform_share
from aspire_mom.refinement.views import COARSE_RINGS, coarse_directions
from aspire_mom.rotations import viewing_rotations

logger = logging.getLogger(__name__)

# Fewest rings, whose halves can agree to 4 shells, and pixels that have as many.
LEAST_RINGS, MIN_SIZE = 5, 9
# Rings at most: sums over images on 24 rings take 0.4 GB.
MAX_RINGS = 24
BATCH = 1024
# Images whose signal is compared with their noise to begin with. Then so many are used,
# until there is no more progress: FIRST_LIKELIHOOD over the square of their mean
# log-likelihood. The less images say of their poses, the more of them it takes.
FIRST_IMAGES, FIRST_LIKELIHOOD = 2048, 2.5e7
# Starts that compete at most, and iterations and images that each gets, of which the
# first half is fitted.
MAX_STARTS, TRIAL_ITERATIONS, TRIAL_IMAGES = 4, 2, 4096
# Starts that are refined at most, one after the other, until a model explains the
# images' signal. Which of them lead there does not show in a few iterations.
MAX_TRIES = 3
# Distance of shifts that are tried, in boxes, times the number of coarse rings.
SHIFT_SPACING = 0.25


class Refinement:
    """
    Refine a volume by expectation maximisation over the poses of images (Sigworth 1998;
    Scheres 2012) on rings of Fourier space, from the volume that their moments gave.

    The images are split into two halves, every other batch, which do not meet after the
    start. In each iteration every image is turned into every view by its posterior
    probability, and each half's volume follows from the views by least squares in a
    ball, with a Wiener filter whose signal-to-noise ratio is that of the halves' FSC.
    Rings are added while the halves agree. What images are compared with, and the
    volume of all images, is smoothed where it varies no more than noise does; the half
    volumes are not. Every view is tried on up to 8 rings; on more rings, finer views
    around the best of these. At first a part of the images is used, the larger the less
    each says of its pose; all of them once there is no more progress. A symmetry that
    the reconstruction has is imposed on each volume.

    Where the model explains too little of the images' signal, the next best start of
    the reconstruction is refined, and so on, up to three of them. If no model explains
    it, the one that held-out images prefer is returned.

    :param source: ASPIRE `ImageSource`.
    :param reconstruction: Where to start: its volume, density, and spread of shifts.
    :param n_rings: Rings at most, 5 or more; never more than 24, the default, or than
        the images have.
    :param corrections: What to correct images for, as for their moments; the spread of
        shifts is the reconstruction's.
    :param n_iterations: Iterations at most, from each start.
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
        n_iterations: int = 60,
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
        self.basis = PolarBasis(L, self.n_rings, self.shifts.orders(self.n_rings) - 1)
        half = source.n / 2
        self.batch = math.ceil(half / math.ceil(half / BATCH))  # equal halves

    def estimate(self) -> RefinedModel:
        """
        Iterate until the halves agree no further.

        :return: The refined model.
        :raises ValueError: An image is not finite, or the checkpoint does not fit.
        """
        iterations = self._iterations()
        kept = Checkpoint(self.checkpoint, self._fingerprint(iterations))
        stored = processes.broadcast_object(kept.state)
        if stored:
            states = [State.stored(fields) for fields in stored["tries"]]
        else:
            states = self._ranked_starts(iterations)[:MAX_TRIES]
        models: list[RefinedModel] = []
        for i, state in enumerate(states):
            if models:
                share = f"{models[-1].typical_share():.0%}"
                logger.info(
                    f"The model explains {share} of the images' signal; trying the next"
                    f" best start, {i + 1} of {len(states)}"
                )
            while not self._finished(state):
                states[i] = state = self._next(iterations, state)
                kept.state = {"tries": [vars(state) for state in states]}
                kept.write()
            models.append(self._final(iterations, state))
            # Processes would differ by rounding.
            if not processes.broadcast_object(models[-1].leaves_signal()):
                break
        else:
            models.sort(key=attrgetter("held_out_log_likelihood"))
        settings = {**models[-1].settings, "n_tries": len(models)}
        return replace(models[-1], settings=settings)

    def _fingerprint(self, iterations: Iterations) -> dict:
        """What a checkpoint must be of."""
        found = self.reconstruction
        starts = found.volume if found.start_volumes is None else found.start_volumes
        views, first_rings = found.quadrature.views, found.settings.get("n_rings")
        used = replace(self.corrections, shift_std=0.0, amplitude_std=0.0)
        return {
            "images": source_identity(self.source),
            "start": digest(starts.asnumpy(), views, found.view_density, first_rings),
            "tries": MAX_TRIES,
            "shift_std": found.shift_std,
            "inverted": self._inverted,
            "premultiplied": iterations.images.premultiplied,
            "phase_flipped": iterations.images.phase_flipped,
            "symmetry": self._symmetry,
            "n_rings": self.n_rings,
            "corrections": asdict(used),
            "batch": self.batch,
        }

    @property
    def _inverted(self) -> bool:
        """Whether molecules are dark in the images as they are."""
        return bool(self.reconstruction.settings.get("inverted", False))

    @property
    def _symmetry(self) -> str:
        return str(self.reconstruction.settings.get("symmetry", "C1"))

    def _iterations(self) -> Iterations:
        images = PolarImages(self.source, self.basis, self.corrections, self._inverted)
        parts = images, self.shifts, self.n_rings, self.batch, self.device
        return Iterations(*parts, symmetry=self._symmetry)

    def _next(self, iterations: Iterations, state: State) -> State:
        """One more iteration, which tells its time."""
        begun = time.perf_counter()
        state = iterations.next(state)
        entry = state.history[-1]
        entry["seconds"] = round(time.perf_counter() - begun, 2)
        logger.info(
            f"Iteration {len(state.history)}: {entry['n_rings']} rings, halves"
            f" agree to {entry['shells']:.1f} shells"
        )
        return state

    def _finished(self, state: State) -> bool:
        if not state.history or len(state.history) >= self.n_iterations:
            return bool(state.history)
        last = state.history[-1]
        same = last["n_images"] == self.source.n and last["n_rings"] == state.n_rings
        return same and settled(state.history)

    def _ranked_starts(self, iterations: Iterations) -> list[State]:
        """The reconstruction's starts. First comes the one from which a few iterations
        on the first half of some images lead to the highest likelihood of the second
        half."""
        volumes = self.reconstruction.start_volumes
        if volumes is None:
            volumes = self.reconstruction.volume
        best, *others = volumes.asnumpy()[:MAX_STARTS]
        first = self._with_noise(iterations, self._start(iterations, best))
        if not others:
            return [first]
        starts = [first]
        for voxels in others:
            start = self._start(iterations, voxels, best=False)
            # Likelihoods leave out constants, which depend on the noise.
            starts.append(replace(start, noises=first.noises, n_images=first.n_images))
        quiet = not processes.is_first()
        likelihoods = [
            self._trial(iterations, start)
            for start in tqdm(starts, desc="Comparing starts", disable=quiet)
        ]
        order = np.argsort(-np.array(likelihoods), kind="stable")
        order = processes.broadcast_object(order)
        logger.info(f"Start {order[0] + 1} of {len(starts)} suits the images best")
        return [starts[i] for i in order]

    def _trial(self, iterations: Iterations, start: State) -> float:
        """Log-likelihood of images held out from a few iterations on others."""
        few = replace(start, n_images=self._whole_batches(TRIAL_IMAGES))
        state = few
        for _ in range(TRIAL_ITERATIONS):
            state = iterations.next(state)
            state = replace(state, n_rings=few.n_rings, n_images=few.n_images)
        state = replace(
            state,
            halves=state.halves[[0, 0]],
            densities=state.densities[[0, 0]],
            noises=start.noises,
        )
        _, sums, _ = iterations.sums(state)
        return float(sums[1]["log_likelihood"])

    def _start(
        self, iterations: Iterations, voxels: np.ndarray, *, best: bool = True
    ) -> State:
        """A volume, the best start's or another's, and its density, for both halves."""
        found = self.reconstruction
        R = min(self.n_rings, found.settings.get("n_rings", COARSE_RINGS))
        # Of the scale of the images that are compared with it.
        u = np.ldexp(resized(voxels, edge_of(R, self.L)), -iterations.exponent)
        distances = coarse_directions() @ found.quadrature.views.T
        density = found.view_density[distances.argmax(1)]
        if not best:  # of another orientation and hand
            density = np.ones(len(density))
        density = with_uniform_share(density)
        # Nearly all of the images' power is noise.
        noise = iterations.power_of_images()
        return State(
            halves=np.stack((u, u)),
            before=np.stack((u, u)),
            densities=np.stack((density, density)),
            noises=np.stack((noise, noise)),
            signal=shell_mean(np.abs(fft.centered_fftn(u)) ** 2)[:R] / self.L**2,
            n_rings=R,
            n_images=self._whole_batches(FIRST_IMAGES),
            history=[],
        )

    def _with_noise(self, iterations: Iterations, start: State) -> State:
        """A start with the noise that it leaves, and as many images as it takes."""
        models, sums, _ = iterations.sums(start)
        noises, R = start.noises.copy(), start.n_rings
        both = list(zip(models, sums, strict=True))
        noises[:, :R] = [iterations.noise(*half) for half in both]
        powers = np.array([explained_power(*half) for half in both])
        ratios = (powers / np.maximum(noises[:, :R], 1e-30)).sum(0)
        likelihood = 0.5 * (self.basis.areas[1:R] * ratios[1:]).sum()
        mean = max(likelihood / start.n_images, 1e-3)
        n_images = self._whole_batches(FIRST_LIKELIHOOD / mean**2)
        # Processes would differ by rounding.
        n_images = processes.broadcast_object(n_images)
        return replace(start, noises=noises, n_images=n_images)

    def _whole_batches(self, n: float) -> int:
        """At least n images as equal halves of whole batches, or all."""
        pairs = max(1, math.ceil(n / (2 * self.batch)))
        return min(2 * self.batch * pairs, self.source.n)

    def _final(self, iterations: Iterations, state: State) -> RefinedModel:
        """Both halves and all images once more, with the images' poses."""
        images = iterations.images
        state = replace(state, n_images=len(images))
        models, sums, poses = iterations.sums(state)
        halves = iterations.halves(models, sums, state)
        whole = iterations.volume(models[0], sums, state.signal, state.halves.mean(0))
        view, angle, *offsets, probabilities = poses.T
        views = models[0].views.finest
        rotations = viewing_rotations(views[view.astype(int)], angle)
        offsets = np.stack(offsets, 1)
        if images.offsets is not None:
            offsets = offsets + images.offsets
        turned, information, mass = added(sums)
        R = state.n_rings
        exponent = iterations.exponent
        swapped = {name: getattr(state, name)[::-1] for name in ("densities", "noises")}
        # On more rings, views far from an image's best ones would not be counted.
        swapped["n_rings"] = min(R, COARSE_RINGS)
        swapped = replace(state, halves=np.stack(halves[::-1]), **swapped)
        _, held_out, _ = iterations.sums(swapped)
        likelihood = sum(float(s["log_likelihood"]) for s in held_out)
        size = self.reconstruction.volume.pixel_size
        signal = self.reconstruction.signal_power
        if signal is not None:
            seen = slices(whole, views, R, self.L)
            explained = 2 * inner(turned, seen) - information * inner(seen, seen)
            # CTFs may leave no information on ring 0.
            total = np.maximum(information.sum(0), 1e-12 * information.sum())
            power = np.ldexp(explained.sum(0) / total, 2 * exponent)
            signal = power[: len(signal)] / np.where(signal > 0, signal, np.nan)[:R]
        # Of twice as many images, with half the variance of the noise.
        filtered = locally_filtered(whole, noise_variance(np.stack(halves)) / 2)
        volume, *both = (
            Volume(np.ldexp(resized(u, self.L), exponent), pixel_size=size)
            for u in (filtered, *halves)
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
            probabilities=probabilities,
            signal_share=signal,
            fsc=half_fsc(halves)[:R],
            noise=np.ldexp(state.noises[:, :R].mean(0), 2 * exponent),
            history=state.history,
            settings={
                "n_rings": self.n_rings,
                "shift_std": self.shifts.std,
                "symmetry": self._symmetry,
            },
            held_out_log_likelihood=likelihood / len(images),
        )
