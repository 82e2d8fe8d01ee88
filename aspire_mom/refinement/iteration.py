"""One iteration of a refinement: posteriors of images, and what follows."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from aspire.volume import Volume

from aspire_mom import processes
from aspire_mom.evaluation.fsc import resolution_in_shells
from aspire_mom.evaluation.symmetry import mean_of_copies, symmetry_rotations
from aspire_mom.moments.streaming import Sums, accumulate
from aspire_mom.refinement.fourier import (
    half_fsc,
    locally_filtered,
    noise_variance,
    resized,
)
from aspire_mom.refinement.images import PolarImages
from aspire_mom.refinement.maximisation import (
    density_of,
    residual_power,
    shell_precision,
    volume_of,
)
from aspire_mom.refinement.posterior import Model, expectation
from aspire_mom.refinement.shifts import Shifts
from aspire_mom.refinement.state import State
from aspire_mom.refinement.views import Views

# Bytes of results of batches computed at once.
RESULTS = 2**30
# Rings that are added after an iteration, at most. The FSC of the halves on the
# outermost ring must be PLENTY, or ENOUGH once all images are in use and there is no
# more progress: it falls as the halves forget the start that they share.
NEW_RINGS, PLENTY, ENOUGH = 2, 0.5, 0.143
# Iterations without progress, in shells or as a share of the log-likelihood, after
# which all images are taken, or a refinement ends.
PATIENCE, LEAST_SHELLS, LEAST_GAIN = 2, 0.1, 0.01
# Volumes are extrapolated by this share of their last step. Where images hardly tell
# views apart, expectation maximisation takes many more steps without it.
MOMENTUM = 0.9
# Bounds of the FSC that Wiener filters rest on.
LEAST_FSC, MOST_FSC = 0.01, 0.999


class Iterations:
    """
    Iterations of expectation maximisation.

    :param images: The images.
    :param shifts: Shifts to try.
    :param max_rings: Rings to add up to.
    :param batch: Images in a batch; every other one belongs to the same half.
    :param device: torch device of the posteriors.
    :param symmetry: Symmetry of the volumes, as for `symmetry_rotations`.
    """

    def __init__(
        self,
        images: PolarImages,
        shifts: Shifts,
        max_rings: int,
        batch: int,
        device: torch.device,
        symmetry: str = "C1",
    ):
        self.images, self.shifts, self.max_rings = images, shifts, max_rings
        self.batch, self.device, self.L = batch, device, images.basis.L
        self.group = symmetry_rotations(symmetry)

    @property
    def exponent(self) -> int:
        """The power of two by which volumes are smaller here, as images are."""
        return self.images.preparation.exponent

    @cached_property
    def _white_power(self) -> np.ndarray:
        """Power of noise of unit variance per Fourier pixel in the orders in use."""
        second = np.einsum("mrr->mr", self.images.basis.noise_second()).real
        return (2 * second.sum(0) - second[0]) / self.L**2

    def power_of_images(self) -> np.ndarray:
        """:return: Power of the first images at a Fourier pixel on each ring."""
        _, _, squares = self.images.batch(0, self.batch)
        return squares.numpy().mean(0) / self._white_power

    def next(self, state: State) -> State:
        """
        :param state: Where the refinement stands.
        :return: Where it stands after one iteration.
        """
        R, n = state.n_rings, state.n_images
        models, sums, _ = self.sums(state)
        halves = np.stack(self.halves(models, sums, state))
        fsc = half_fsc(halves)[:R]
        entry = {
            "n_rings": R,
            "n_images": n,
            "shells": resolution_in_shells(fsc, ENOUGH),
            "log_likelihood": sum(float(s["log_likelihood"]) for s in sums) / n,
        }
        history = [*state.history, entry]
        resting = settled(history)
        enough = ENOUGH if resting and n == len(self.images) else PLENTY
        both = list(zip(models, sums, strict=True))
        precision = sum(shell_precision(*half) for half in both) / 2
        ratio = np.clip(fsc, LEAST_FSC, MOST_FSC)
        noises = state.noises.copy()
        noises[:, :R] = [self.noise(*half) for half in both]
        variance = noise_variance(halves)
        halves = np.stack([locally_filtered(u, variance) for u in halves])
        moved, last = halves, state.history[-1] if state.history else {}
        if last.get("n_images") == n:
            # New rings have no step before.
            inner = 2 * last["n_rings"] - 1
            steps = [
                resized(resized(new, inner) - resized(old, inner), len(new))
                for new, old in zip(halves, state.before, strict=True)
            ]
            moved = halves + np.float32(MOMENTUM) * np.stack(steps)
        return State(
            halves=moved,
            before=halves,
            densities=np.stack([density_of(*half) for half in both]),
            noises=noises,
            signal=ratio / (1 - ratio) / precision,
            n_rings=min(R + NEW_RINGS, self.max_rings) if fsc[-1] > enough else R,
            n_images=len(self.images) if resting else n,
            history=history,
        )

    def sums(self, state: State) -> tuple[list[Model], list[Sums], np.ndarray]:
        """
        :param state: Where the refinement stands.
        :return: Models of both halves, sums over their images, and the images' most
            probable poses (n_images, 5): finest view, in-plane angle, shift along x
            and y, probability.
        """
        R, n_images = state.n_rings, state.n_images
        views = Views.for_rings(R)
        areas = self.images.basis.areas[:R].copy()
        areas[0] = 0  # backgrounds and filters leave no meaning to zero frequency
        models = [
            Model(*parts, views, areas, self.L, self.device)
            for parts in zip(
                state.halves, state.densities, state.noises[:, :R], strict=True
            )
        ]
        poses = np.zeros((n_images, 5))

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
                # Images that are left out have no power.
                "n": np.array(float(squares.any(1).sum())),
            }

        most = max(1, RESULTS // (8 * math.prod(models[0].slices.shape)))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            sums = accumulate(
                n_images,
                self.batch,
                self.images.batch,
                sums_of,
                n_groups=2,
                most_workers=1 if self.device.type == "cuda" else most,
            )
        finally:
            torch.set_num_threads(threads)
        processes.all_reduce_sum(poses)
        return models, sums, poses

    def halves(
        self, models: list[Model], sums: list[Sums], state: State
    ) -> list[np.ndarray]:
        """
        :param models: Models of both halves.
        :param sums: Sums over their images.
        :param state: The state that they are of.
        :return: The volumes of both halves, each (n, n, n).
        """
        return [
            self.volume(model, [of_half], state.signal, start)
            for model, of_half, start in zip(models, sums, state.halves, strict=True)
        ]

    def volume(
        self, model: Model, sums: list[Sums], signal: np.ndarray, start: np.ndarray
    ) -> np.ndarray:
        """
        :param model: A model.
        :param sums: Sums over images, of both halves or one.
        :param signal: Variance of the volume's Fourier values / L on shells.
        :param start: Voxels to start from.
        :return: The volume that the sums determine (n, n, n), with the symmetry.
        """
        found = None
        if processes.is_first():
            found = volume_of(model, sums, signal, start, self.L)
            if len(self.group) > 1:
                found = mean_of_copies(Volume(found), self.group).asnumpy()[0]
        # Processes would differ by rounding.
        return processes.broadcast_object(found)

    def noise(self, model: Model, sums: Sums) -> np.ndarray:
        """
        :param model: A model.
        :param sums: Sums over images.
        :return: Variance of the noise at a Fourier pixel (n_rings,).
        """
        return residual_power(model, sums) / self._white_power[: model.n_rings]


def settled(history: list[dict]) -> bool:
    """
    :param history: One dict per iteration.
    :return: Whether the last iterations of as many images brought no progress.
    """
    last = [e for e in history if e["n_images"] == history[-1]["n_images"]]
    if len(last) <= PATIENCE:
        return False
    shells, likelihoods = (
        [entry[name] for entry in last] for name in ("shells", "log_likelihood")
    )
    best = max(likelihoods[:-PATIENCE])
    # Those of pure noise are near 0.
    least = best + LEAST_GAIN * max(abs(best), 1)
    closer = max(shells[-PATIENCE:]) >= max(shells[:-PATIENCE]) + LEAST_SHELLS
    return not closer and max(likelihoods[-PATIENCE:]) < least
