"""
Symmetric phantoms from simulated images, with and without their symmetry imposed on the
start and in its refinement: shells at FSC 0.5 against the phantom, and time.

    python benchmarks/symmetry.py [--symmetries C4 D2] [--images 20000] [--snr 0.0625]

Phantoms are copies of a bundle of helices about the axes, in solvent. Views are drawn
as in `benchmarks/grid.py`, images are kept in memory.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from aspire.utils.logging import setConsoleLoggingLevel
from aspire.volume import Volume
from scipy.ndimage import shift

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from aspire_mom import (
    MomentEstimator,
    MomentInversion,
    PolarBasis,
    Refinement,
    SearchOptions,
    VonMisesFisherMixture,
    compare,
)
from aspire_mom.evaluation.symmetry import mean_of_copies, symmetry_rotations
from aspire_mom.phantoms import helix_bundle_phantom
from benchmarks.grid import PIXEL_SIZE, simulated
from benchmarks.refinement import shells

SOLVENT = 0.8
# From the centre to that of a copy, in boxes, and along which direction [z, y, x].
OFFSET, DIRECTION = 0.16, np.array([0.5, 0.5, 0.7])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--symmetries", nargs="+", default=["C4", "D2"])
    parser.add_argument("--size", type=int, default=63, help="pixels along an edge")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--snr", type=float, default=1 / 16)
    parser.add_argument("--ctf", action="store_true", help="images have CTFs")
    parser.add_argument("--shifts", type=float, default=0, help="their spread, pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    setConsoleLoggingLevel("WARNING")
    for symmetry in options.symmetries:
        for seed in options.seeds:
            run(symmetry, seed, options)


def phantom(symmetry: str, size: int, seed: int) -> Volume:
    """A volume of unit norm with the symmetry."""
    unit = helix_bundle_phantom(
        size, n_helices=4, solvent=SOLVENT, seed=seed, pixel_size=PIXEL_SIZE
    )
    away = Volume(
        shift(unit.asnumpy()[0], OFFSET * size * DIRECTION), pixel_size=PIXEL_SIZE
    )
    volume = mean_of_copies(away, symmetry_rotations(symmetry))
    return volume / np.linalg.norm(volume.asnumpy())


def run(symmetry: str, seed: int, options: argparse.Namespace) -> None:
    """Print what becomes of one set of images, with the symmetry and without."""
    volume = phantom(symmetry, options.size, seed)
    views = VonMisesFisherMixture.random(8, seed=seed)
    source, corrections = simulated(volume, views, seed, options)
    source, corrections = source.cache(), replace(corrections, phase_flipped=False)
    begun = time.perf_counter()
    basis = PolarBasis(volume.resolution)
    moments = MomentEstimator(source, basis, corrections=corrections).estimate()
    search = SearchOptions(seed=1000 * seed)
    start = MomentInversion(moments, search=search).estimate()
    print(
        f"{symmetry}, {source.n} images at SNR {options.snr:g}, seed {seed}: start in"
        f" {time.perf_counter() - begun:.0f} s",
        flush=True,
    )
    for imposed in ("C1", symmetry):
        begun = time.perf_counter()
        found = start if imposed == "C1" else start.with_symmetry(symmetry)
        model = Refinement(source, found, corrections=corrections).estimate()
        seconds = time.perf_counter() - begun
        comparison = compare(model.volume, volume)
        print(f"  {imposed}: start   {shells(compare(found.volume, volume))}")
        halves = f"halves {model.resolution_shells():.2f}, in {seconds:.0f} s"
        print(f"      refined {shells(comparison)}, {halves}")
        if imposed != "C1":
            print(f"      {found.settings['symmetry_verdict']}")
        print(f"      {model.verdict()}", flush=True)


if __name__ == "__main__":
    main()
