"""From moments to a volume and a density of rotations."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from aspire.utils import tqdm
from aspire.volume import Volume
from torch import Tensor

from aspire_mom.bases import CartesianBasis
from aspire_mom.checks import checked_device
from aspire_mom.files import Checkpoint, digest
from aspire_mom.inversion.cartesian import CartesianLoss
from aspire_mom.inversion.forward import forward_model
from aspire_mom.inversion.loss import MomentLoss, Weighting
from aspire_mom.inversion.optimise import Optimizer, StatusCallback
from aspire_mom.inversion.options import (
    OPTIMIZERS,
    WEIGHTINGS,
    check_choice,
    check_counts,
    check_kinds,
    check_numbers,
    check_rings,
)
from aspire_mom.inversion.reconstruction import Reconstruction
from aspire_mom.inversion.search import (
    FIRST_SHIFT_STD,
    SHIFT_UNIT,
    Candidate,
    Plan,
    Problem,
    march_levels,
    n_refinements,
    search,
)
from aspire_mom.moments import Moments
from aspire_mom.moments.rings import informative_rings, ring_rms
from aspire_mom.networks import MomentEncoder
from aspire_mom.processes import is_first, wait
from aspire_mom.rotations import DiscreteDensity, SO3Quadrature, SphericalDesign
from aspire_mom.volumes import (
    BallHarmonics,
    FourierNet,
    FourierVolume,
    GaussianMixture,
)

logger = logging.getLogger(__name__)

STARTS = {"gaussians": 16, "fouriernet": 1, "harmonics": 4}
STEPS = {"lbfgs": 400, "adam": 1000}
# Sizes that starts take in turn; the criterion tells which the data ask for.
STARTING_SIZES = (3, 4, 6, 8)
STARTING_SIGMA = 0.1
# Wide enough for the few shells that moments determine, and quick.
NETWORK_WIDTH = 64
LOG_DENSITY_DEGREE = 6
# Share of the best known frequencies' weight below which CTFs hardly let one pass.
HARDLY = 0.01
MAX_DEGREE = 41


class MomentInversion:
    """
    Finds a volume and a density of rotations whose moments match (sections 3.2, 4.2).

    By default the volume is a mixture of Gaussians that grows while the data ask for
    more, the density smooth on viewing directions, moments are weighted by their
    standard errors, and the best of several starts is kept by Akaike's information
    criterion, which sees no reference. Where `moments.shift_std` is None,
    each start finds the standard deviation of its images' shifts with the rest.

    :param moments: Estimated (or exact) moments in either basis.
    :param volume: "gaussians", "harmonics", "fouriernet", or a volume model to start
        from.
    :param density: `DiscreteDensity`, `MomentEncoder` or any module that gives the
        nodes' probabilities; by default smooth (`DiscreteDensity(…, degree=6)`), or one
        logit per node where the volume is a network.
    :param quadrature: Nodes on SO(3); by default a spherical design as fine as the
        moments' angular orders, with 12 in-plane angles where they are not averaged.
    :param n_rings: Rings in use of a polar basis; by default those with signal.
    :param weighting: "noise", "rings" or "none" (see `MomentLoss`); by default "none",
        eq. 28 itself, for networks and "noise" for the rest.
    :param lam: λ of eq. 28.
    :param optimizer: "lbfgs" or "adam"; by default Adam for networks.
    :param n_steps: Steps of the last refinement of each start.
    :param learning_rates: Adam's, each for an equal share of the steps (the paper:
        1e-5, 1e-6).
    :param n_starts: Number of random starts; 1 where `volume` is a model.
    :param max_gaussians: Largest mixture of Gaussians.
    :param support_radius: Radius of a ball that holds the molecule, in boxes.
    :param signed: Let Gaussians be negative; by default only where the mean of the
        images is too small for a non-negative volume, and not where CTFs hide it.
    :param seed: Seed of the starts.
    :param device: torch device.
    :param status: Called every few steps with an `OptimizerStatus`; True stops with
        `StoppedByUser`.
    :param checkpoint: File that keeps progress; an existing one is resumed. It stays
        when the inversion is complete, so that nothing is lost before the result is
        saved, and gives the same result at once; delete it then.
    :raises TypeError: `moments` or `volume` of another kind.
    :raises ValueError: options out of range, or a density of another number of nodes.
    """

    def __init__(
        self,
        moments: Moments,
        volume: str | FourierVolume = "gaussians",
        density: torch.nn.Module | None = None,
        quadrature: SO3Quadrature | None = None,
        *,
        n_rings: int | None = None,
        weighting: Weighting | None = None,
        lam: float = 1.0,
        optimizer: Optimizer | None = None,
        n_steps: int | None = None,
        learning_rates: tuple[float, ...] = (2e-3, 2e-4),
        n_starts: int | None = None,
        max_gaussians: int = 64,
        support_radius: float = 0.4,
        signed: bool | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        status: StatusCallback | None = None,
        checkpoint: str | Path | None = None,
    ):
        check_kinds(moments, volume, density, quadrature)
        check_choice("weighting", weighting, WEIGHTINGS)
        check_choice("optimizer", optimizer, OPTIMIZERS)
        check_counts(
            n_rings=n_rings,
            n_steps=n_steps,
            n_starts=n_starts,
            max_gaussians=max_gaussians,
        )
        check_numbers(lam, support_radius, tuple(learning_rates), seed)
        network = volume == "fouriernet" or isinstance(volume, FourierNet)
        self.moments = moments
        self.volume = volume
        self.cartesian = isinstance(moments.basis, CartesianBasis)
        if self.cartesian:
            self.n_rings = (moments.basis.L + 1) // 2
        else:
            self.n_rings = n_rings or informative_rings(moments)
        check_rings(self.n_rings, moments.basis)
        self.weighting = weighting or ("none" if network else "noise")
        self.lam = lam
        self.optimizer = optimizer or ("adam" if network else "lbfgs")
        self.n_steps = n_steps or STEPS[self.optimizer]
        self.learning_rates = tuple(learning_rates)
        given = isinstance(volume, FourierVolume)
        self.n_starts = n_starts or (1 if given else STARTS[volume])
        self.max_gaussians = max_gaussians
        self.support_radius = support_radius
        self.signed = _needs_signs(moments) if signed is None else signed
        self.seed = seed
        self.device = checked_device(device)
        self.status = status
        self.checkpoint = checkpoint
        self.quadrature = quadrature or self._default_quadrature()
        if density is None:
            degree = None if network else LOG_DENSITY_DEGREE
            density = DiscreteDensity(self.quadrature, degree=degree)
        self.density = density
        self._check_density()

    @property
    def settings(self) -> dict:
        """Options in use, JSON-able."""
        volume, density = self.volume, type(self.density).__name__
        names = (
            "n_rings weighting lam optimizer n_steps learning_rates n_starts"
            " max_gaussians support_radius signed seed"
        )
        return {
            "volume": volume if isinstance(volume, str) else type(volume).__name__,
            "density": density,
            "basis": repr(self.moments.basis),
            "n_nodes": len(self.quadrature),
            "shift_std": self.moments.shift_std,
            "device": str(self.device),
            **{name: getattr(self, name) for name in names.split()},
        }

    def estimate(self) -> Reconstruction:
        """
        Search, refine and choose.

        :return: The reconstruction of the best start.
        :raises StoppedByUser: the status callback returned True; what was done is in
            the checkpoint.
        :raises FloatingPointError: the loss became infinite or NaN.
        """
        checkpoint = Checkpoint(self.checkpoint, self._fingerprint())
        wait()  # all have read the file before the first one writes it
        plan = Plan(
            self.optimizer, self.n_steps, self.learning_rates, self.status, checkpoint
        )
        problems = [*map(self._problem, self._levels()[:-1]), self._whole]
        candidates = [self._start(self.seed + i) for i in range(self.n_starts)]
        logger.info(f"Inverting {self.moments} with {self.settings}")
        try:
            total = n_refinements(len(candidates), len(problems))
            bar = tqdm(desc="inversion", total=total, disable=not is_first())
            with self._threads(), bar:
                ranking = search(
                    candidates,
                    problems,
                    plan,
                    max_gaussians=self.max_gaussians,
                    advance=lambda stage: (bar.set_postfix_str(stage), bar.update()),
                )
        except BaseException:
            # Killed or stopped: what is finished must not be lost.
            checkpoint.write()
            raise
        checkpoint.write()
        return self._result(ranking)

    @torch.no_grad()
    def moment_errors(
        self,
        volume: FourierVolume,
        density: torch.nn.Module,
        shift_std: float = 0.0,
    ) -> tuple[float, float]:
        """
        How well a model meets the moments, all rings and orders of them: eq. 22, as in
        the paper's Table 2.

        :param volume: A volume model.
        :param density: A density model of this inversion's nodes.
        :param shift_std: Standard deviation of the images' shifts, pixels, where the
            moments leave it open.
        :return: Relative errors of the first and the second moment.
        """
        problem = self._whole
        problem.encode(volume)
        probabilities = problem.probabilities(density)
        if isinstance(problem.loss, CartesianLoss):
            slices = problem.forward.slices(volume)
            errors = problem.loss.relative_errors(slices, probabilities)
            return tuple(float(error) for error in errors)
        open_std = shift_std if self.moments.shift_std is None else None
        made = self._forward()(volume, probabilities, open_std)
        first, second = (m.cpu().numpy().astype(np.complex128) for m in made)
        return Moments(first, second, self.moments.basis).relative_error(self.moments)

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """
        One thread for all but networks: their tensors are so small that handing work to
        more threads takes longer than the work.
        """
        n_threads = torch.get_num_threads()
        if self.optimizer == "lbfgs":
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(n_threads)

    def _result(self, ranking: list[Candidate]) -> Reconstruction:
        best, problem = ranking[0], self._whole
        L, pixel_size = self.moments.basis.L, self.moments.pixel_size
        with torch.no_grad():
            for candidate in ranking:
                # A stage that is taken from the checkpoint has set no latent variable.
                problem.encode(candidate.volume)
            probabilities = problem.probabilities(best.density).double().cpu().numpy()
        volumes = [c.volume.to_volume(L, pixel_size).asnumpy()[0] for c in ranking]
        starts = [
            {"seed": c.seed, "criterion": c.criterion, "loss": c.loss} for c in ranking
        ]
        shift_std = self.moments.shift_std
        if shift_std is None:
            for start, candidate in zip(starts, ranking, strict=True):
                start["shift_std"] = SHIFT_UNIT * L * abs(candidate.shift_std.item())
            shift_std = starts[0]["shift_std"]
        logger.info(f"Best of {self.n_starts} starts: {starts[0]}")
        return Reconstruction(
            volume=Volume(volumes[0], pixel_size=pixel_size),
            density=probabilities / probabilities.sum(),
            quadrature=self.quadrature,
            history=best.history,
            starts=starts,
            settings=self.settings,
            seed=self.seed,
            moment_errors=self.moment_errors(best.volume, best.density, shift_std),
            shift_std=shift_std,
            start_volumes=Volume(np.stack(volumes), pixel_size=pixel_size),
        )

    def _levels(self) -> list[int]:
        march = not self.cartesian and self.optimizer == "lbfgs"
        return march_levels(self.n_rings) if march else [self.n_rings]

    def _max_order(self, n_rings: int) -> int:
        """Orders that an object within the support has on the outermost ring."""
        order = math.ceil(2 * math.pi * self.support_radius * (n_rings - 1)) + 1
        return order if self.cartesian else min(order, self.moments.basis.max_order)

    def _problem(self, n_rings: int) -> Problem:
        cut = {}
        if not self.cartesian:
            cut = {"n_rings": n_rings, "max_order": self._max_order(n_rings)}
        moments = self.moments
        # Shifts and weights are of pairs of pixels, which `CartesianLoss` never forms.
        pairs = moments.shift_std != 0 or moments.second_weight is not None
        if self.cartesian and self.weighting == "none" and not pairs:
            loss = CartesianLoss(moments, lam=self.lam)
        else:
            loss = MomentLoss(moments, weighting=self.weighting, lam=self.lam, **cut)
        return Problem(
            forward=self._forward(**cut),
            loss=loss.to(self.device),
            n_rings=n_rings,
            estimates=self._estimates,
        )

    def _forward(self, **cut: int) -> torch.nn.Module:
        model = forward_model(
            self.moments.basis,
            self.quadrature,
            shift_std=self.moments.shift_std,
            **cut,
        )
        return model.to(self.device)

    @cached_property
    def _whole(self) -> Problem:
        """All rings in use: kept, for Cartesian moments take seconds to prepare."""
        return self._problem(self.n_rings)

    @cached_property
    def _estimates(self) -> tuple[Tensor, ...]:
        """The moments as encoders take them; nothing where there is none."""
        encoded = getattr(self.volume, "encoder", None) is not None
        if not encoded and not isinstance(self.density, MomentEncoder):
            return ()
        return tuple(
            torch.from_numpy(np.asarray(value, dtype=np.complex64)).to(self.device)
            for value in (self.moments.first, self.moments.second)
        )

    def _start(self, seed: int) -> Candidate:
        density = copy.deepcopy(self.density).to(self.device)
        if isinstance(self.volume, FourierVolume):
            volume = copy.deepcopy(self.volume)
        else:
            volume = self._random_volume(seed)
        shift_std = None
        if self.moments.shift_std is None:
            first = torch.tensor(FIRST_SHIFT_STD / SHIFT_UNIT, device=self.device)
            shift_std = torch.nn.Parameter(first)
        return Candidate(seed, volume.to(self.device), density, shift_std)

    def _random_volume(self, seed: int) -> FourierVolume:
        L, rms = self.moments.basis.L, ring_rms(self.moments)
        scale = L * float(rms[: min(len(rms), 3)].max())
        band_limit = float(self.n_rings - 1)
        if self.volume == "gaussians":
            mean = L * abs(mean_coefficient(self.moments))
            return GaussianMixture(
                STARTING_SIZES[seed % len(STARTING_SIZES)],
                support_radius=self.support_radius,
                sigma=STARTING_SIGMA,
                signed=self.signed,
                total=2 * scale if self.signed else mean,
                seed=seed,
            )
        if self.volume == "harmonics":
            model = BallHarmonics(
                band_limit, support_radius=self.support_radius, seed=seed
            )
            model.coefficients.data *= scale
            return model
        return FourierNet(band_limit, hidden=NETWORK_WIDTH, scale=scale, seed=seed)

    def _default_quadrature(self) -> SO3Quadrature:
        degree = min(self._max_order(self.n_rings), MAX_DEGREE)
        averaged = not self.cartesian and self.moments.basis.inplane_average
        if averaged:
            return SO3Quadrature.product(SphericalDesign(degree), 1)
        return SO3Quadrature.product(SphericalDesign(13, n_points=100), 12)

    def _check_density(self) -> None:
        if isinstance(self.density, DiscreteDensity):
            n = len(self.density.probabilities)
            if n != len(self.quadrature):
                raise ValueError(
                    f"the density has {n} nodes, the quadrature {len(self.quadrature)}"
                )

    def _fingerprint(self) -> dict[str, str]:
        """What decides the result, by name; the device does not."""
        moments, quadrature = self.moments, self.quadrature
        found = {name: str(value) for name, value in self.settings.items()}
        del found["device"]
        found["quadrature"] = digest(quadrature.rotations.matrices, quadrature.weights)
        found["moments"] = digest(
            *(moments.first, moments.second),
            *(moments.first_error, moments.second_error),
            *(moments.first_weight, moments.second_weight),
        )
        for name in ("volume", "density"):
            model = getattr(self, name)
            if isinstance(model, torch.nn.Module):
                found[f"initial {name}"] = digest(model)
        return found


def mean_coefficient(moments: Moments) -> float:
    """
    E f at zero frequency, real: the mean over images of their sum. Where CTFs hardly
    let that pass, of the innermost ring that they do.
    """
    basis, weight = moments.basis, moments.first_weight
    if weight is not None and not isinstance(basis, CartesianBasis):
        ring = int(np.argmax(weight >= HARDLY * weight.max()))
        return float(abs(moments.first.reshape(-1, basis.n_rings)[0, ring].real))
    if isinstance(basis, CartesianBasis):
        centre = basis.L // 2
        return float(moments.first.reshape(basis.L, basis.L)[centre, centre].real)
    return float(moments.first.reshape(-1, basis.n_rings)[0, 0].real)


def _needs_signs(moments: Moments) -> bool:
    """
    Whether no non-negative volume fits: |V(k)| ≤ V(0) for those, so no ring's RMS may
    exceed the mean at zero frequency.
    """
    if moments.first_weight is not None:
        return False  # CTFs hide the mean, and rings of noise would exceed it
    rms = ring_rms(moments)
    return bool(rms[1:].max(initial=0) > 1.05 * mean_coefficient(moments))
