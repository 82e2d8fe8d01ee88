"""From moments to a volume and a density of rotations; the paper's configuration."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from aspire.volume import Volume
from torch import Tensor, nn

from aspire_mom.bases import Basis, PolarBasis
from aspire_mom.checkpoints import Checkpoint, digest
from aspire_mom.checks import check_choice, check_integer, check_kind, checked_device
from aspire_mom.inversion import start
from aspire_mom.inversion.cartesian import CartesianForward, CartesianLoss
from aspire_mom.inversion.forward import forward_model
from aspire_mom.inversion.grid_search import check_grid, search_grid
from aspire_mom.inversion.loss import LossOptions, MomentLoss
from aspire_mom.inversion.optimise import StatusCallback
from aspire_mom.inversion.reconstruction import Reconstruction
from aspire_mom.inversion.search import (
    N_STARTS,
    STEPS,
    Candidate,
    LevelProblem,
    Search,
    SearchOptions,
)
from aspire_mom.moments import Moments
from aspire_mom.moments.compression import N_RINGS
from aspire_mom.moments.report import (
    informative_rings,
    ring_power,
    ring_rms,
    second_residual,
)
from aspire_mom.networks import MomentEncoder
from aspire_mom.processes import wait
from aspire_mom.rotations import DiscreteDensity, SO3Quadrature
from aspire_mom.volumes import BallHarmonics, FourierNet, FourierVolume, GaussianMixture

logger = logging.getLogger(__name__)

LOG_DENSITY_DEGREE = 6
# Number of Gaussians in a start, chosen by its seed.
STARTING_SIZES = (3, 4, 6, 8)
STARTING_SIGMA = 0.1
# Wide enough for the few shells that moments determine, and quick.
NETWORK_WIDTH = 64
FIRST_RINGS, RING_GROWTH_FACTOR = 4, 1.35


class MomentInversion:
    """
    Find a volume and density of rotations with given moments (sections 3.2 and 4.2).

    By default the density of viewing directions is smooth, moments are weighted by
    their standard errors, and the volume is a mixture of Gaussians, which grows while
    Akaike's information criterion falls; or, for images with CTFs, as those of real
    particles have, and where the moments have signal on many rings or show that the
    molecule lies in solvent, a `PositiveGrid`, found by `search_grid` from third
    moments too. The criterion also chooses the best of several starts. Where
    `moments.shift_std` is None, each start finds the standard deviation of the images'
    shifts too.

    :param moments: Estimated or exact moments in either basis.
    :param volume: "gaussians", "grid", "harmonics", "fouriernet", or a volume model to
        start from, which is not changed; by default that of `start.default_volume`,
        or Gaussians if `density`, `signed` or options of the loss are given.
    :param density: `DiscreteDensity`, `MomentEncoder` or another module that returns
        the probabilities of the nodes; by default `DiscreteDensity(quadrature,
        degree=6)`, or one logit per node if the volume is a network.
    :param quadrature: Nodes on SO(3); by default those of :func:`default_quadrature`.
    :param n_rings: Number of rings to use of a polar basis; by default all with signal.
    :param support_radius: Radius in boxes of a ball that holds the molecule.
    :param signed: Let Gaussians be negative; by default only where the mean of the
        images is too small for a non-negative volume.
    :param loss: How to measure the distance of moments.
    :param search: How to search: starts, steps, optimizer and seed.
    :param device: torch device.
    :param status: Called every few steps with an `OptimizerStatus`; True stops.
    :param checkpoint: File that keeps progress; an existing one is resumed. It stays
        when the inversion is complete and then gives the result at once.
    :raises TypeError: An argument is of another class.
    :raises ValueError: An option is out of range, or the moments are of one image.
    """

    def __init__(
        self,
        moments: Moments,
        volume: str | FourierVolume | None = None,
        density: nn.Module | None = None,
        quadrature: SO3Quadrature | None = None,
        *,
        n_rings: int | None = None,
        support_radius: float = start.SUPPORT_RADIUS,
        signed: bool | None = None,
        loss: LossOptions = LossOptions(),
        search: SearchOptions = SearchOptions(),
        device: str | torch.device = "cpu",
        status: StatusCallback | None = None,
        checkpoint: str | Path | None = None,
    ):
        check_kind("moments", moments, Moments)
        check_kind("loss", loss, LossOptions)
        check_kind("search", search, SearchOptions)
        if moments.n_images == 1:
            raise ValueError("the moments are of 1 image; at least 2 are needed")
        if volume is None:
            plain = density is None and signed is None and loss == LossOptions()
            volume = start.default_volume(moments) if plain else "gaussians"
        if isinstance(volume, str):
            check_choice("volume", volume, N_STARTS)
        else:
            check_kind("volume", volume, FourierVolume)
        if not 0 < support_radius <= 0.5:
            raise ValueError(
                f"support_radius is {support_radius} boxes; it must lie in (0, 0.5]"
            )
        basis = moments.basis
        grid = volume == "grid"
        if n_rings is None:
            n_rings = informative_rings(moments)
            n_rings = min(n_rings, N_RINGS) if grid else n_rings
        check_integer("n_rings", n_rings, 1)
        if n_rings > basis.n_rings:
            raise ValueError(f"n_rings is {n_rings}; {basis} has 1 to {basis.n_rings}")
        n_rings = basis.cut(n_rings).n_rings
        if quadrature is None:
            quadrature = start.default_quadrature(moments, n_rings, support_radius)
        check_kind("quadrature", quadrature, SO3Quadrature)
        network = volume == "fouriernet" or isinstance(volume, FourierNet)
        if density is None:
            degree = None if network else LOG_DENSITY_DEGREE
            density = DiscreteDensity(quadrature, degree=degree)
        check_kind("density", density, nn.Module)
        if grid:
            check_grid(moments, density, n_rings, search)
            if signed or loss != LossOptions():
                raise ValueError("the grid has no signs, and no options of the loss")
            signed = False
        self.moments, self.volume = moments, volume
        self.density, self.quadrature = density, quadrature
        self.n_rings, self.support_radius = n_rings, support_radius
        self.signed = start.needs_signs(moments) if signed is None else signed
        weighting = loss.weighting or ("none" if network else "noise")
        self.loss = replace(loss, weighting=weighting)
        optimizer = search.optimizer or ("adam" if network else "lbfgs")
        n_starts = N_STARTS[volume] if isinstance(volume, str) else 1
        self.search = replace(
            search,
            optimizer=optimizer,
            n_starts=search.n_starts or n_starts,
            n_steps=search.n_steps or STEPS[optimizer],
        )
        self.device = checked_device(device)
        self.status, self.checkpoint = status, checkpoint

    @property
    def settings(self) -> dict:
        """Options in use, names and values, as JSON can hold them."""
        volume = self.volume
        return {
            "volume": volume if isinstance(volume, str) else type(volume).__name__,
            "density": type(self.density).__name__,
            "basis": repr(self.moments.basis),
            "n_nodes": len(self.quadrature),
            "shift_std": self.moments.shift_std,
            "inverted": self.moments.corrections.inverted is True,
            "device": str(self.device),
            "n_rings": self.n_rings,
            "support_radius": self.support_radius,
            "signed": self.signed,
            **asdict(self.loss),
            **asdict(self.search),
        }

    def estimate(self) -> Reconstruction:
        """
        :return: The reconstruction of the best start.
        :raises ValueError: The density does not have one probability per node.
        :raises InvalidCheckpoint: The checkpoint is of other moments or settings.
        :raises StoppedByUser: The status callback returned True.
        :raises FloatingPointError: The loss became infinite or NaN.
        """
        checkpoint = Checkpoint(self.checkpoint, self._fingerprint())
        wait()  # all processes must read the file before the first one writes it
        logger.info(f"Inverting {self.moments} with {self.settings}")
        search = self._search_grid if self.volume == "grid" else self._search
        n_threads = torch.get_num_threads()
        try:
            return self._result(search(checkpoint))
        finally:
            torch.set_num_threads(n_threads)
            # A search that was killed or stopped keeps what it finished.
            checkpoint.write()

    def _search(self, checkpoint: Checkpoint) -> list[Candidate]:
        options, problems = self.search, [self._final_problem]
        if options.optimizer == "lbfgs":
            # Frequency marching: solve for 4, 6, 9, … rings in turn. Levels that do not
            # cut the basis would repeat the final one.
            inner, n = [], FIRST_RINGS
            while n < self.n_rings and self._cut(n) != self._cut(self.n_rings):
                inner.append(self.problem(n))
                n = math.ceil(RING_GROWTH_FACTOR * n)
            problems = [*inner, *problems]
            # Tensors of all but networks are so small that one thread is fastest.
            torch.set_num_threads(1)
        seeds = range(options.seed, options.seed + options.n_starts)
        candidates = [self.initial_candidate(seed) for seed in seeds]
        return Search(options, self.status, checkpoint).run(candidates, problems)

    def _search_grid(self, checkpoint: Checkpoint) -> list[Candidate]:
        return search_grid(
            *(self.moments, self.n_rings, self.density, self.search),
            support_radius=self.support_radius,
            device=self.device,
            status=self.status,
            checkpoint=checkpoint,
        )

    @torch.no_grad()
    def moment_errors(
        self, volume: FourierVolume, density: nn.Module, shift_std: float = 0.0
    ) -> tuple[float, float]:
        """
        :param volume: A volume model.
        :param density: A density model on this inversion's nodes.
        :param shift_std: Standard deviation of the images' shifts, pixels, where
            `moments.shift_std` is None.
        :return: Relative errors of the model's first and second moment on all rings and
            orders (eq. 22).
        """
        return self._compared(volume, density, shift_std)[0]

    def _compared(
        self, volume: FourierVolume, density: nn.Module, shift_std: float
    ) -> tuple[tuple[float, float], np.ndarray | None]:
        """Those errors, and the residual of the second moment if it is formed."""
        problem = self._final_problem
        probabilities = problem.probabilities(volume, density)
        if isinstance(problem.loss, CartesianLoss):
            slices = problem.forward.slices(volume)
            errors = problem.loss.relative_errors(slices, probabilities)
            return tuple(map(float, errors)), None
        std = shift_std if self.moments.shift_std is None else None
        made = self._forward(self.moments.basis)(volume, probabilities, std)
        first, second = (m.cpu().numpy().astype(np.complex128) for m in made)
        model = Moments(first, second, self.moments.basis)
        residual = second_residual(model, self.moments, self._cut(self.n_rings))
        return model.relative_error(self.moments), residual

    def problem(self, n_rings: int) -> LevelProblem:
        """
        :param n_rings: Number of rings to use of a polar basis.
        :return: Forward model and loss of these rings.
        """
        moments, inner = self.moments, self._cut(n_rings)
        forward = self._forward(inner)
        # `CartesianLoss` never forms the second moment, whose entries shifts and
        # information change one by one.
        pairs = moments.shift_std != 0 or moments.second_information is not None
        fast = isinstance(forward, CartesianForward) and not pairs
        if fast and self.loss.weighting == "none":
            loss = CartesianLoss(moments, lam=self.loss.lam)
        else:
            loss = MomentLoss(moments, inner, **asdict(self.loss))
        return LevelProblem(forward, loss.to(self.device), n_rings, self._estimates)

    def initial_candidate(self, seed: int) -> Candidate:
        """
        :param seed: Seed of a random volume; a volume model that was given is copied.
        :return: The start of the search that has this seed.
        """
        given = isinstance(self.volume, FourierVolume)
        volume = copy.deepcopy(self.volume) if given else self._random_volume(seed)
        find_shift_std = self.moments.shift_std is None
        density = copy.deepcopy(self.density)
        return Candidate(seed, volume, density, find_shift_std).to(self.device)

    def _random_volume(self, seed: int) -> FourierVolume:
        """Draw a volume, float32, scaled to the power of the moments."""
        moments, L, band_limit = self.moments, self.moments.basis.L, self.n_rings - 1.0
        scale = L * float(ring_rms(moments)[:3].max())
        if self.volume == "fouriernet":
            return FourierNet(band_limit, hidden=NETWORK_WIDTH, scale=scale, seed=seed)
        options = {"support_radius": self.support_radius, "seed": seed}
        if self.volume == "harmonics":
            model = BallHarmonics(band_limit, **options)
            model.coefficients.data *= scale
            return model
        mean = abs(start.zero_frequency_mean(moments))
        total = 2 * scale if self.signed else L * mean
        options |= {"sigma": STARTING_SIGMA, "signed": self.signed, "total": total}
        return GaussianMixture(STARTING_SIZES[seed % len(STARTING_SIZES)], **options)

    @torch.no_grad()
    def _result(self, ranking: list[Candidate]) -> Reconstruction:
        best, moments = ranking[0], self.moments
        L, pixel_size = moments.basis.L, moments.pixel_size
        volumes, densities, starts = [], [], []
        for c in ranking:
            # This sets the latent variable of a volume from a checkpoint, too.
            densities.append(self._final_problem.probabilities(c.volume, c.density))
            volumes.append(c.volume.to_volume(L, pixel_size).asnumpy()[0])
            starts.append({"seed": c.seed, "criterion": c.criterion, "loss": c.loss})
            if c.shift_std is not None:
                starts[-1]["shift_std"] = float(c.shift_pixels(L))
        density = densities[0].double().cpu().numpy()
        shift_std = starts[0].get("shift_std", moments.shift_std)
        polar = isinstance(moments.basis, PolarBasis)
        errors, residual = self._compared(best.volume, best.density, shift_std)
        logger.info(f"Best of {self.search.n_starts} starts: {starts[0]}")
        return Reconstruction(
            volume=Volume(volumes[0], pixel_size=pixel_size),
            density=density / density.sum(),
            quadrature=self.quadrature,
            history=best.history,
            starts=starts,
            settings=self.settings,
            seed=self.search.seed,
            moment_errors=errors,
            shift_std=shift_std,
            start_volumes=Volume(np.stack(volumes), pixel_size=pixel_size),
            second_residual=residual,
            signal_power=ring_power(moments) if polar else None,
        )

    def _cut(self, n_rings: int) -> Basis:
        return start.cut_to_support(self.moments.basis, n_rings, self.support_radius)

    def _forward(self, basis: Basis) -> nn.Module:
        shift_std = self.moments.shift_std
        model = forward_model(basis, self.quadrature, shift_std=shift_std)
        return model.to(self.device)

    @cached_property
    def _final_problem(self) -> LevelProblem:
        # Cached because preparing Cartesian moments takes seconds.
        return self.problem(self.n_rings)

    @cached_property
    def _estimates(self) -> tuple[Tensor, ...]:
        """The moments as encoders take them; empty if there is no encoder."""
        encoded = getattr(self.volume, "encoder", None) is not None
        if not encoded and not isinstance(self.density, MomentEncoder):
            return ()
        values = (self.moments.first, self.moments.second)
        return tuple(torch.tensor(v).to(self.device, torch.complex64) for v in values)

    def _fingerprint(self) -> dict[str, str]:
        """What decides the result, by name; the device does not."""
        moments, quadrature = self.moments, self.quadrature
        found = {name: str(value) for name, value in self.settings.items()}
        del found["device"]
        found["quadrature"] = digest(quadrature.rotations.matrices, quadrature.weights)
        found["moments"] = digest(
            *(moments.first, moments.second),
            *(moments.first_error, moments.second_error),
            *(moments.third, moments.third_error),
            *(moments.first_information, moments.second_information),
        )
        models = {"initial volume": self.volume, "initial density": self.density}
        return found | {name: digest(model) for name, model in models.items()}
