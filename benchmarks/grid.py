"""
Real maps from exact moments, or from those of simulated images in memory, by the
search for a non-negative grid: every start's criterion beside its FSC, agreement and
verdict, time and memory.

    python benchmarks/grid.py MAP.mrc… [--rings 8] [--seeds 0 1 2] [--no-third]
    python benchmarks/grid.py MAP.mrc… --images 20000 --snr 0.0625 [--ctf]

Views are drawn from a mixture of eight von Mises-Fisher distributions, another one for
each seed; --uniform makes all equally likely. --ctf gives the images CTFs of 50 defoci
from 0.8 to 3 µm with 0.05 µm of astigmatism (300 kV, Cs 2.7 mm, contrast 0.1);
--shifts moves them by Gaussian shifts of this many pixels along each axis, of which the
search knows the standard deviation only.
"""

import argparse
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from aspire.utils import Rotation
from aspire.utils.logging import setConsoleLoggingLevel
from aspire.volume import Volume

from aspire_mom import (
    CorrectionOptions,
    MomentEstimator,
    MomentInversion,
    Moments,
    PolarBasis,
    SearchOptions,
    SphericalDesign,
    ThirdMomentBasis,
    VonMisesFisherMixture,
    compare,
)
from aspire_mom.cli.volumes import read_volume
from aspire_mom.evaluation import starts_agreement
from aspire_mom.rotations import viewing_rotations
from aspire_mom.simulation import FastSimulation, WhiteNoise, defocus_groups

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.moments import average, slice_coefficients

# Of the design on whose points exact moments are averaged.
DEGREE = 41
# Of maps whose headers have none, Å; it matters for CTFs only.
PIXEL_SIZE = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("maps", type=Path, nargs="+", help="MRC files")
    parser.add_argument("--rings", type=int, default=8)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of views and search"
    )
    parser.add_argument("--images", type=int, default=0, help="0: exact moments")
    parser.add_argument("--snr", type=float, default=1 / 16)
    parser.add_argument("--uniform", action="store_true", help="views equally likely")
    parser.add_argument("--ctf", action="store_true", help="images have CTFs")
    parser.add_argument("--shifts", type=float, default=0, help="their spread, pixels")
    parser.add_argument("--no-third", action="store_true", help="two moments only")
    parser.add_argument("--starts", type=int, help="random starts")
    options = parser.parse_args()
    setConsoleLoggingLevel("WARNING")
    for path in options.maps:
        volume = read_unit_volume(path)
        found = [run(path.stem, volume, seed, options) for seed in options.seeds]
        print(f"{path.stem}: median {np.median(found):.2f} shells", flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{memory:.2f} GiB of memory at most, simulation included")


def read_unit_volume(path: Path) -> Volume:
    """A map scaled to unit norm."""
    volume = read_volume(path)
    voxels = volume.asnumpy() / np.linalg.norm(volume.asnumpy())
    return Volume(voxels, pixel_size=volume.pixel_size or PIXEL_SIZE)


def run(name: str, volume: Volume, seed: int, options: argparse.Namespace) -> float:
    """Shells at FSC 0.5 of the start of lowest criterion."""
    basis = PolarBasis(volume.resolution, n_rings=options.rings)
    third = ThirdMomentBasis.rings(basis, options.rings)
    views = None if options.uniform else VonMisesFisherMixture.random(8, seed=seed)
    if options.images:
        moments = estimated(volume, basis, third, views, seed, options)
    else:
        moments = exact(volume, basis, third, views)
    if options.no_third:
        none = dict.fromkeys(("third", "third_basis", "third_error"))
        moments = replace(moments, **none)
    start, cpu = time.perf_counter(), time.process_time()
    search = SearchOptions(n_starts=options.starts, seed=1000 * seed)
    reconstruction = MomentInversion(moments, "grid", search=search).estimate()
    seconds = time.perf_counter() - start, time.process_time() - cpu
    print("{} seed {}: {:.0f} s, {:.0f} s of CPU time".format(name, seed, *seconds))
    n_rings = reconstruction.settings["n_rings"]
    shells = []
    for voxels, entry in zip(
        reconstruction.start_volumes.asnumpy(), reconstruction.starts, strict=True
    ):
        comparison = compare(Volume(voxels, pixel_size=volume.pixel_size), volume)
        shells.append(comparison.resolution_shells(0.5))
        fsc = " ".join(f"{x:.2f}" for x in comparison.fsc[1 : options.rings + 1])
        criterion = entry["criterion"]
        print(f"  criterion {criterion:.2e}  {shells[-1]:5.2f} shells  FSC {fsc}")
    agreement = starts_agreement(reconstruction.start_volumes, n_rings, moments)
    print(f"  agreement {agreement.shells:.2f} shells. {agreement.verdict}", flush=True)
    return shells[0]


def exact(
    volume: Volume,
    basis: PolarBasis,
    third: ThirdMomentBasis,
    views: VonMisesFisherMixture | None,
) -> Moments:
    """Sums over the views of a design of the coefficients of their slices."""
    points = SphericalDesign(DEGREE).points
    c = slice_coefficients(volume, viewing_rotations(points), basis)
    p = np.ones(len(points)) if views is None else views.pdf(points)
    p = p / p.sum()
    by_order = torch.from_numpy(np.ascontiguousarray(c.transpose(1, 2, 0)))
    sums = third.of_views(by_order, torch.from_numpy(p)).numpy()
    fields = {"pixel_size": volume.pixel_size, "third": sums, "third_basis": third}
    return replace(average(c, p, basis), **fields)


def estimated(volume, basis, third, views, seed, options) -> Moments:
    """Moments of ASPIRE's projections with white noise."""
    source, corrections = simulated(volume, views, seed, options)
    return MomentEstimator(
        source, basis, corrections=corrections, third=third
    ).estimate()


def simulated(
    volume: Volume,
    views: VonMisesFisherMixture | None,
    seed: int,
    options: argparse.Namespace,
) -> tuple[FastSimulation, CorrectionOptions]:
    """Images as the options have them, and what to correct them for."""
    N, rng = options.images, np.random.default_rng(seed)
    if views is None:
        rotations = Rotation.generate_random_rotations(N, seed=seed)
    else:
        rotations = views.sample(N, seed=seed)
    source = FastSimulation(
        vols=volume,
        n=N,
        angles=rotations.angles.astype(np.float32),
        offsets=rng.normal(scale=options.shifts, size=(N, 2)),
        amplitudes=1,
        unique_filters=defocus_groups(8e3, 3e4) if options.ctf else None,
        noise_adder=WhiteNoise.from_snr(options.snr, seed=seed),
        seed=seed,
    )
    # The simulation knows its shifts; the inversion is to do without them.
    return source, CorrectionOptions(ignore_shifts=True, shift_std=options.shifts)


if __name__ == "__main__":
    main()
