"""Simulate noisy projections, computed when they are read."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import finufft
import numpy as np
import scipy.fft
import torch
from aspire.image import Image
from aspire.noise import WhiteNoiseAdder
from aspire.operators import CTFFilter
from aspire.source import Simulation
from aspire.utils import Rotation
from aspire.volume import Volume

from aspire_mom.checks import check_disk

# Relative accuracy of projections, by the volume's dtype.
ACCURACY = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-10}


class FastSimulation(Simulation):
    """
    ASPIRE's `Simulation`, of the same arguments and images, at many times its rate: the
    projections' Fourier transforms are computed on half planes only, filters, shifts
    and amplitudes are applied to them, and one inverse transform makes the images.

    Projections agree with those of `Simulation` to `ACCURACY`. Use it with `WhiteNoise`
    in place of ASPIRE's `WhiteNoiseAdder`, which takes longer than all the rest.
    """

    def _projections(self, indices: np.ndarray) -> Image:
        return self._of_transforms(self._transforms(indices), np.zeros(2))

    def _images(self, indices: np.ndarray, clean_images: bool = False) -> Image:
        if not clean_images and self._cached_im is not None:
            return super()._images(indices)
        transforms = self._transforms(indices)
        if self.sim_filters:
            transforms *= self._filter_values[self.filter_indices[indices]]
        amplitudes = np.broadcast_to(self.sim_amplitudes, self.n)[indices]
        transforms *= amplitudes.astype(self.dtype)[:, None, None]
        images = self._of_transforms(transforms, self.sim_offsets[indices])
        images.pixel_size = self.pixel_size
        if not clean_images and self.noise_adder is not None:
            images = self.noise_adder.forward(images, indices=indices)
        return self.generation_pipeline.forward(images, indices)

    def _populate_ctf_metadata(self, filter_indices: np.ndarray) -> None:
        super()._populate_ctf_metadata(filter_indices)
        # ASPIRE writes radians, and reads degrees, as RELION does.
        name = "_rlnDefocusAngle"
        self.set_metadata(name, np.degrees(self.get_metadata(name)))

    def save_images(self, starfile_filepath: str | Path, *args, **options) -> None:
        # ASPIRE writes through a memory map, and a full disk kills a process that does.
        check_disk(Path(starfile_filepath), 4 * self.n * self.L**2)
        super().save_images(starfile_filepath, *args, **options)

    @cached_property
    def _frequencies(self) -> tuple[np.ndarray, np.ndarray]:
        """Integers ky in the order of the FFT, and kx ≥ 0."""
        L = self._original_L
        return np.fft.fftfreq(L, 1 / L), np.arange((L + 1) // 2)

    @cached_property
    def _filter_values(self) -> np.ndarray:
        """The filters at the frequencies (n_filters, n_ky, n_kx)."""
        L, size = self._original_L, self._projection_pixel_size
        options = {"dtype": np.float64, "pixel_size": size}
        grids = [filt.evaluate_grid(L, **options) for filt in self.sim_filters]
        shifted = scipy.fft.ifftshift(grids, axes=(1, 2))
        return shifted[..., : len(self._frequencies[1])].astype(self.dtype)

    def _transforms(self, indices: np.ndarray) -> np.ndarray:
        """Transforms of projections at the frequencies (n, n_ky, n_kx), with the origin
        at the centre of the image."""
        ky, kx = self._frequencies
        L, dtype = self._original_L, np.dtype(self.dtype)
        complex_dtype = np.result_type(dtype, np.complex64)
        found = np.empty((len(indices), len(ky), len(kx)), complex_dtype)
        for state in np.unique(self.states[indices]):
            of_state = np.flatnonzero(self.states[indices] == state)
            axes = self.rotations[indices[of_state]][:, :, :2] * (2 * np.pi / L)
            axes = axes.astype(dtype)
            # x, y, z of the points, each flat (n, ky, kx).
            points = axes[:, :, 1, None, None] * ky.astype(dtype)[:, None]
            points = points + axes[:, :, 0, None, None] * kx.astype(dtype)
            x, y, z = np.moveaxis(points, 1, 0).reshape(3, -1)
            voxels = self.vols.asnumpy()[state - 1].astype(complex_dtype, order="C")
            values = finufft.nufft3d2(z, y, x, voxels, eps=ACCURACY[dtype], isign=-1)
            found[of_state] = values.reshape(-1, len(ky), len(kx))
        if L % 2 == 0:
            found[:, L // 2] = 0  # ASPIRE leaves out the Nyquist frequency
        found /= L
        return found

    def _of_transforms(self, transforms: np.ndarray, offsets: np.ndarray) -> Image:
        """Images (n, L, L) of transforms, moved back by offsets (n, 2), x and y in
        pixels, as `Image.shift` moves them."""
        L = self._original_L
        offsets = L // 2 - np.broadcast_to(offsets, (len(transforms), 2))
        for axis, k in enumerate(self._frequencies):
            along = offsets[:, 1 - axis, None] * k
            phases = np.exp(-2j * np.pi / L * along).astype(transforms.dtype)
            transforms *= np.expand_dims(phases, 2 - axis)
        images = scipy.fft.irfft2(transforms, (L, L))
        return Image(images, pixel_size=self._projection_pixel_size)


class WhiteNoise(WhiteNoiseAdder):
    """
    The noise of ASPIRE's `WhiteNoiseAdder`, number by number up to rounding, without a
    Fourier transform of four times the image's size for a factor that is the same at
    all frequencies.
    """

    def _forward(self, im: Image, indices: np.ndarray) -> Image:
        noisy, L = im.asnumpy().copy(), im.resolution
        scale, state = np.sqrt(2 * self.noise_var), np.random.RandomState()
        for image, index in zip(noisy, indices, strict=True):
            # As `aspire.utils.randn` draws 2L x 2L numbers, of which these are used.
            state.seed((self.seed + 191 * (index + 1)) or 5489)
            uniform = state.random_sample((L, 2 * L))[:, :L]
            # At four times the rate of SciPy's.
            deviates = torch.erfinv(torch.from_numpy(2 * uniform - 1)).numpy()
            image += scale * deviates.T
        return Image(noisy, pixel_size=im.pixel_size)


def defocus_groups(
    least: float,
    most: float,
    *,
    n_groups: int = 50,
    astigmatism: float = 500.0,
    seed: int = 0,
) -> list[CTFFilter]:
    """
    Make CTFs of evenly spaced defoci, at 300 kV with a spherical aberration of 2.7 mm
    and an amplitude contrast of 0.1.

    :param least: Least mean defocus, Å, positive for underfocus.
    :param most: Largest mean defocus, Å.
    :param n_groups: Number of CTFs.
    :param astigmatism: Difference of the defoci along the two axes, Å.
    :param seed: Seed of the angles of these axes.
    :return: One ASPIRE filter for each defocus group.
    """
    defoci, half = np.linspace(least, most, n_groups), astigmatism / 2
    angles = np.random.default_rng(seed).uniform(0, np.pi, n_groups)
    return [
        CTFFilter(300, defocus + half, defocus - half, angle, 2.7, 0.1)
        for defocus, angle in zip(defoci, angles, strict=True)
    ]


def simulate(
    volume: Volume,
    rotations: Rotation,
    noise: WhiteNoiseAdder,
    seed: int,
    *,
    filters: list[CTFFilter] | None = None,
    shift_std: float = 0.0,
    amplitude_std: float = 0.0,
) -> FastSimulation:
    """
    Simulate noisy projections.

    :param volume: One ASPIRE `Volume`, float32.
    :param rotations: ASPIRE `Rotation` with one rotation for each image.
    :param noise: Noise to add.
    :param seed: Seed of the `Simulation`, which chooses a filter for each image, and of
        shifts and amplitudes.
    :param filters: CTFs; none for images without.
    :param shift_std: Standard deviation of Gaussian shifts along each axis, pixels,
        which the source knows as its `offsets`.
    :param amplitude_std: Standard deviation of amplitudes, which are uniform about 1.
    :return: The images' source.
    :raises ValueError: `shift_std` is negative or not finite, or `amplitude_std` so
        large that amplitudes would not be positive, 1 / √3 or more.
    """
    # Another stream than that of rotations which were drawn with the same seed.
    n, rng = len(rotations), np.random.default_rng((seed, 1))
    spread = math.sqrt(3) * amplitude_std
    if not 0 <= shift_std < math.inf:
        raise ValueError(f"shift_std is {shift_std}; it must be 0 or more, and finite")
    if not 0 <= spread < 1:
        raise ValueError(
            f"amplitude_std is {amplitude_std}; it must be 0 or more and below"
            " 0.577, so that uniform amplitudes are positive"
        )
    offsets = shift_std * rng.standard_normal((n, 2)) if shift_std else 0
    amplitudes = rng.uniform(1 - spread, 1 + spread, n) if spread else 1
    return FastSimulation(
        vols=volume,
        n=n,
        angles=rotations.angles.astype(volume.dtype),
        offsets=offsets,
        amplitudes=amplitudes,
        unique_filters=filters,
        noise_adder=noise,
        seed=seed,
    )
