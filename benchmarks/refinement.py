"""
From images of real maps to a refined model: the start from moments, the result, and the
ceiling, which the same volume step reaches from the same images with their true poses.

    python benchmarks/refinement.py MAP.mrc… [--images 20000] [--snr 0.0625] [--ctf]

Simulated images are as those of `benchmarks/grid.py`, kept in memory. Resolutions are
those at FSC 0.5 against the map, in shells (box / Å), and beside them that at FSC 0.143
of the half volumes. With --mixed, half of the images show another map of the same size,
which no single model explains.
"""

import argparse
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from aspire.source import ImageSource
from aspire.utils.logging import setConsoleLoggingLevel
from aspire.volume import Volume

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from aspire_mom import (
    Comparison,
    CorrectionOptions,
    MomentEstimator,
    MomentInversion,
    PolarBasis,
    RefinedModel,
    Refinement,
    SearchOptions,
    VonMisesFisherMixture,
    compare,
)
from aspire_mom.refinement.fourier import (
    SUPPORT_RADIUS,
    half_fsc,
    locally_filtered,
    noise_variance,
    resized,
)
from aspire_mom.refinement.images import PolarImages
from aspire_mom.refinement.iteration import LEAST_FSC, MOST_FSC
from aspire_mom.refinement.maximisation import edge_of
from aspire_mom.refinement.slices import volume_from_slices
from aspire_mom.rotations import viewing_rotations
from benchmarks.grid import read_unit_volume, simulated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("maps", type=Path, nargs="+", help="MRC files")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--snr", type=float, default=1 / 16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--uniform", action="store_true", help="views equally likely")
    parser.add_argument("--ctf", action="store_true", help="images have CTFs")
    parser.add_argument("--shifts", type=float, default=0, help="their spread, pixels")
    parser.add_argument("--rings", type=int, help="of the refinement, at most")
    parser.add_argument("--mixed", type=Path, help="map that half of the images show")
    options = parser.parse_args()
    setConsoleLoggingLevel("WARNING")
    for path in options.maps:
        volume = read_unit_volume(path)
        for seed in options.seeds:
            run(path.stem, volume, seed, options)


def run(name: str, volume: Volume, seed: int, options: argparse.Namespace) -> None:
    """Print what becomes of one set of images."""
    views = None if options.uniform else VonMisesFisherMixture.random(8, seed=seed)
    shown = volume
    if options.mixed:
        both = volume.asnumpy(), read_unit_volume(options.mixed).asnumpy()
        shown = Volume(np.concatenate(both), pixel_size=volume.pixel_size)
    source, corrections = simulated(shown, views, seed, options)
    source, corrections = source.cache(), replace(corrections, phase_flipped=False)
    times = [time.perf_counter()]
    basis = PolarBasis(volume.resolution)
    moments = MomentEstimator(source, basis, corrections=corrections).estimate()
    times.append(time.perf_counter())
    search = SearchOptions(seed=1000 * seed)
    start = MomentInversion(moments, search=search).estimate()
    times.append(time.perf_counter())
    refinement = Refinement(
        source, start, n_rings=options.rings, corrections=corrections
    )
    model = refinement.estimate()
    times.append(time.perf_counter())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = "moments {:.0f} s, inversion {:.0f} s, refinement {:.0f} s".format(
        *np.diff(times)
    )
    print(f"{name}, {source.n} images at SNR {options.snr:g}, seed {seed}: {seconds}")
    print(f"  {memory:.2f} GiB of memory at most so far, images included")
    print(f"  start   {shells(compare(start.volume, volume))}")
    comparison = compare(model.volume, volume)
    print(f"  refined {shells(comparison)}, halves {model.resolution_shells():.2f}")
    held_out = model.held_out_log_likelihood
    print(f"  log-likelihood per held-out image {held_out:.2f}")
    shares = " ".join(f"{share:.2f}" for share in model.signal_share[2:])
    print(f"  share of the signal on rings from 2 on: {shares}")
    print(f"  {model.verdict()}")
    best = ceiling(source, model, refinement)
    print(f"  ceiling {shells(compare(best, volume))}")
    error = np.median(angular_errors(model, comparison, source.rotations[:, :, 2]))
    spacing = np.degrees(np.sqrt(4 * np.pi / len(model.directions)))
    rings = " ".join(f"{e['n_rings']}:{e['shells']:.1f}" for e in model.history)
    print(f"  rings in use and shells of agreement: {rings}")
    last = model.history[-1]
    print(
        f"  viewing directions off by {error:.1f}° in the median, views {spacing:.1f}°"
    )
    print(
        f"  {len(model.history)} iterations, the last of {last['seconds']:.1f} s with"
        f" {last['n_rings']} rings",
        flush=True,
    )


def shells(comparison: Comparison) -> str:
    """Resolution at FSC 0.5."""
    return (
        f"{comparison.resolution_shells(0.5):5.2f} shells,"
        f" {comparison.resolution(0.5):.1f} Å"
    )


def ceiling(
    source: ImageSource,
    model: RefinedModel,
    refinement: Refinement,
) -> Volume:
    """The volume step from true poses, with as many rings as the model has."""
    R, L = len(model.fsc), source.L
    basis = PolarBasis(L, R, refinement.basis.max_order)
    centred = CorrectionOptions(phase_flipped=False)
    x, h, _ = (
        a.numpy() for a in PolarImages(source, basis, centred, False).batch(0, source.n)
    )
    x, h = x[:, : basis.max_order + 1], h[:, :R]
    matrices = source.rotations
    directions = matrices[:, :, 2]
    turns = viewing_rotations(directions).transpose(0, 2, 1) @ matrices
    angles = np.arctan2(turns[:, 1, 0], turns[:, 0, 0])
    orders = np.arange(x.shape[1])
    x = x * np.exp(-1j * np.outer(angles, orders))[:, :, None].astype(np.complex64)
    areas = basis.areas.copy()
    areas[0] = 0
    weights, edge = areas / model.noise, edge_of(R, L)
    counts = 4 * np.pi * np.arange(R) ** 2 + np.pi / 3

    def solved(part: slice, ssnr: np.ndarray) -> np.ndarray:
        precision = np.maximum(weights * h[part].sum(0) / counts, 1e-12)
        return volume_from_slices(
            x[part], h[part], directions[part], weights, precision / ssnr,
            n=edge, L=L, support_radius=SUPPORT_RADIUS,
        )  # fmt: skip

    ssnr = np.ones(R)
    for _ in range(2):
        halves = [solved(slice(i, None, 2), ssnr) for i in (0, 1)]
        fsc = np.clip(half_fsc(halves)[:R], LEAST_FSC, MOST_FSC)
        ssnr = fsc / (1 - fsc)
    noise = noise_variance(np.stack(halves)) / 2
    whole = locally_filtered(solved(slice(None), 2 * ssnr), noise)
    return Volume(resized(whole, L), pixel_size=source.pixel_size)


def angular_errors(
    model: RefinedModel, comparison: Comparison, true: np.ndarray
) -> np.ndarray:
    """Degrees between true and found viewing directions, turned as the map."""
    found = comparison.align_views(model.rotations.matrices[:, :, 2])
    cosines = np.abs((found * true).sum(1))
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


if __name__ == "__main__":
    main()
