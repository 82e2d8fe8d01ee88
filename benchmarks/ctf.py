"""
CTFs undone: error of the second moment against exact moments, beside that of as many
images without a CTF, at equal noise and at equal signal-to-noise ratio.

    python benchmarks/ctf.py --maps DIR [--images 20000] [--snr 0.05] [--draws 3]

Images are ASPIRE's projections from uniform views, through ASPIRE's CTF filters of
defoci evenly spaced from 1 to 2.5 µm (300 kV, Cs 2.7 mm, amplitude contrast 0.1), with
NumPy's white noise. Rings are weighted by r, and those count that carry 95 % of the
power. SNR is ASPIRE's, after the CTF: the same SNR means several times less noise
behind a CTF. The floor is the error that clean images behind CTFs have, against the
same images without, each behind every CTF: what CTFs spread beyond the box.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
from aspire.image import Image
from aspire.operators import CTFFilter
from aspire.source import ArrayImageSource, ImageSource
from aspire.utils import Rotation, grid_2d
from aspire.utils.logging import setConsoleLoggingLevel
from aspire.volume import Volume

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from aspire_mom.bases import PolarBasis
from aspire_mom.cli.volumes import read_volume
from aspire_mom.moments import MomentEstimator, Moments, Noise
from aspire_mom.rotations import viewing_rotations
from benchmarks.moments import exact_moments, on_fewer_pixels
from tests.references.moments import product_quadrature

MAPS = {"gpcr_gs_7cfn_63.mrc": 2.5, "ribosome_70s_65.mrc": 5.0}
DEGREE = 80
POWER = 0.95
# Shares of the images whose errors tell the slope.
SHARES = (1, 1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--maps", type=Path, required=True, help="folder of both maps")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--snr", type=float, default=0.05)
    parser.add_argument("--astigmatism", type=float, default=0, help="Å")
    parser.add_argument("--draws", type=int, default=3, help="of views and noise")
    parser.add_argument("--groups", type=int, nargs="+", default=[7, 50])
    arguments = parser.parse_args()
    setConsoleLoggingLevel("ERROR")
    start = time.perf_counter()
    print(
        f"{arguments.images} images, SNR {arguments.snr:g}, root mean square errors of"
        f" the second moment over {arguments.draws} draws;"
    )
    print("slope of log error over log N down to an eighth of the images")
    for name, pixel_size in MAPS.items():
        path = arguments.maps / name
        if not path.is_file():
            print(f"{path} is not there: left out")
            continue
        volume = read_volume(path, pixel_size).astype(np.float32)
        compare(name, volume, None, arguments)
        compare(f"{name}, 64 -> 32", on_64_pixels(volume), 32, arguments)
    print(f"\n{time.perf_counter() - start:.0f} s in all")


def on_64_pixels(volume: Volume) -> Volume:
    """The same molecule in a box of 64 voxels: padded or downsampled."""
    L = volume.resolution
    if L > 64:
        return volume.downsample(64)
    before = 32 - L // 2
    padded = np.pad(volume.asnumpy()[0], ((before, 64 - L - before),) * 3)
    return Volume(padded, pixel_size=volume.pixel_size)


def compare(name: str, volume: Volume, target: int | None, arguments) -> None:
    L = volume.resolution
    basis = PolarBasis(target or L)
    directions, weights = product_quadrature(DEGREE)
    exact = exact_moments(volume, viewing_rotations(directions), weights, PolarBasis(L))
    if target:
        exact = on_fewer_pixels(exact, basis)
    print(f"\n{name}: {carrying_rings(exact)} rings of {basis.n_rings}")
    print(f"{'':32} {'noise variance':>14} {'error':>8} {'ratio':>6} {'slope':>6}")
    variances, errors = {}, {}
    for draw in range(arguments.draws):
        clean = projections(volume, arguments.images, draw)
        for label, seen, filters, variance in cases(clean, volume, arguments):
            moments = noisy_moments(
                seen, filters, variance, basis, volume.pixel_size, draw
            )
            variances[label] = variance
            errors.setdefault(label, []).append(errors_of_parts(moments, exact))
    none = rms(errors["no CTF"])[-1]
    for label, of_draws in errors.items():
        mean = rms(of_draws)
        slope = np.polyfit(np.log(np.cumsum(SHARES)), np.log(mean), 1)[0]
        print(
            f"{label:32} {variances[label]:14.3g} {mean[-1]:8.4f}"
            f" {mean[-1] / none:6.2f} {slope:6.2f}"
        )
    for n_groups in arguments.groups:
        filters = ctfs(n_groups, arguments.astigmatism)
        label = f"{n_groups} CTFs, floor"
        error = floor(clean, filters, exact, volume.pixel_size)
        print(f"{label:47} {error:8.5f}", flush=True)


def cases(
    clean: np.ndarray, volume: Volume, arguments
) -> Iterator[tuple[str, np.ndarray, list[CTFFilter], float]]:
    """Label, images without noise, their CTFs, and variance of the noise."""
    variance = signal_power(clean) / arguments.snr
    yield "no CTF", clean, [], variance
    for n_groups in arguments.groups:
        filters = ctfs(n_groups, arguments.astigmatism)
        seen = filtered(clean, filters, volume.pixel_size)
        label = f"{n_groups} CTFs, equal"
        yield f"{label} noise", seen, filters, variance
        yield f"{label} SNR", seen, filters, signal_power(seen) / arguments.snr


def projections(volume: Volume, n: int, seed: int) -> np.ndarray:
    """Of uniform views."""
    rotations = Rotation.generate_random_rotations(n, seed=seed).matrices
    return np.concatenate(
        [
            volume.project(Rotation(part, gimble_lock_warnings=False)).asnumpy()
            for part in np.array_split(rotations, max(n // 1000, 1))
        ]
    )


def floor(
    clean: np.ndarray, filters: list[CTFFilter], exact: Moments, pixel_size: float
) -> float:
    """Error of a few clean images, each behind every CTF, against themselves."""
    few = clean[: 2000 // len(filters)]
    every = filtered(np.repeat(few, len(filters), axis=0), filters, pixel_size)
    return error_of(
        moments_of(every, filters, 0, exact.basis, pixel_size),
        moments_of(few, [], 0, exact.basis, pixel_size),
    )


def ctfs(n: int, astigmatism: float) -> list[CTFFilter]:
    return [
        CTFFilter(
            voltage=300,
            defocus_u=defocus + astigmatism / 2,
            defocus_v=defocus - astigmatism / 2,
            defocus_ang=i,
            Cs=2.7,
            alpha=0.1,
        )
        for i, defocus in enumerate(np.linspace(1e4, 2.5e4, n))
    ]


def filtered(
    images: np.ndarray, filters: list[CTFFilter], pixel_size: float
) -> np.ndarray:
    """Every i-th image through filter i."""
    seen = np.empty_like(images)
    for i, image_filter in enumerate(filters):
        part = Image(images[i :: len(filters)], pixel_size=pixel_size)
        seen[i :: len(filters)] = part.filter(image_filter).asnumpy()
    return seen


def signal_power(images: np.ndarray) -> float:
    """Mean square within the inscribed disc, as ASPIRE's SNR has it."""
    disc = grid_2d(images.shape[-1], indexing="yx")["r"] < 1
    return float(np.mean(images[:, disc].astype(np.float64) ** 2))


def source_of(
    images: np.ndarray, filters: list[CTFFilter], pixel_size: float, start: int
) -> ImageSource:
    source = ArrayImageSource(images, pixel_size=pixel_size)
    if filters:
        source.unique_filters = filters
        source.filter_indices = (start + np.arange(len(images))) % len(filters)
    return source


def moments_of(
    images: np.ndarray,
    filters: list[CTFFilter],
    variance: float,
    basis: PolarBasis,
    pixel_size: float,
    start: int = 0,
) -> Moments:
    source = source_of(images, filters, pixel_size, start)
    if source.L != basis.L:
        source = source.downsample(basis.L)
    noise = Noise(variance=0 if variance == 0 else None)
    return MomentEstimator(source, basis, noise=noise).estimate()


def noisy_moments(
    images: np.ndarray,
    filters: list[CTFFilter],
    variance: float,
    basis: PolarBasis,
    pixel_size: float,
    draw: int,
) -> Iterator[Moments]:
    """Moments of shares of the images, noise added and its variance estimated."""
    ends = len(images) * np.cumsum(SHARES) // sum(SHARES)
    rng = np.random.default_rng((1, draw))
    for start, stop in zip((0, *ends), ends, strict=False):
        noise = rng.standard_normal(images[start:stop].shape, dtype=np.float32)
        noisy = images[start:stop] + np.float32(np.sqrt(variance)) * noise
        yield moments_of(noisy, filters, variance, basis, pixel_size, start)


def errors_of_parts(parts: Iterator[Moments], exact: Moments) -> list[float]:
    """Of the first part, of the first two merged, and so on."""
    return [error_of(moments, exact) for moments in accumulate(parts, Moments.merge)]


def rms(errors: list[list[float]]) -> np.ndarray:
    """Root mean square over draws."""
    return np.sqrt(np.mean(np.square(errors), axis=0))


def carrying_rings(exact: Moments) -> int:
    """Rings, from the centre, that carry 95 % of the power, weighted by r."""
    r = np.arange(exact.basis.n_rings)
    count = np.where(np.arange(len(exact.second)) == 0, 1, 2)[:, None]
    power = (count * np.einsum("mrr->mr", exact.second).real).sum(0) * r
    return int(np.searchsorted(np.cumsum(power), POWER * power.sum())) + 1


def error_of(moments: Moments, exact: Moments) -> float:
    """‖M - M_exact‖ / ‖M_exact‖ on these rings, weighted by r."""
    R = carrying_rings(exact)
    r = np.arange(R)
    count = np.where(np.arange(len(exact.second)) == 0, 1, 2)[:, None, None]
    weights = count * np.outer(r, r)
    cut = np.s_[:, :R, :R]
    difference = np.abs(moments.second[cut] - exact.second[cut]) ** 2
    norm = np.abs(exact.second[cut]) ** 2
    return float(np.sqrt((weights * difference).sum() / (weights * norm).sum()))


if __name__ == "__main__":
    main()
