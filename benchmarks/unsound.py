"""
Resolution from images that were not prepared as they should be: with a background, wild
images, images of nothing, or images of the opposite contrast, beside sound ones.

    OMP_NUM_THREADS=1 python benchmarks/unsound.py
    python benchmarks/unsound.py --images 10000 --starts 4

Images are of a phantom of four Gaussians on 16 pixels of 2 Å, at a signal-to-noise
ratio of 0.2. Second moments are compared with those of the sound images: the root mean
square of the difference, in standard errors. With --moments, there are no volumes.
"""

from __future__ import annotations

import argparse

import numpy as np
from aspire.source import ArrayImageSource
from aspire.utils import Rotation
from aspire.utils.logging import setConsoleLoggingLevel

from aspire_mom import (
    MomentEstimator,
    MomentInversion,
    Moments,
    PolarBasis,
    SearchOptions,
    compare,
)
from aspire_mom.moments import CorrectionOptions
from aspire_mom.phantoms import gaussian_phantom
from aspire_mom.simulation import WhiteNoise, simulate

L, PIXEL_SIZE, SNR = 16, 2.0, 0.2


def variants(sound: np.ndarray, deviation: float) -> dict[str, np.ndarray]:
    """:param deviation: Standard deviation of the noise."""
    rng = np.random.default_rng(0)
    n = len(sound)
    few = rng.choice(n, 10, replace=False)
    share, other = np.split(rng.permutation(n)[: n // 10], 2)
    wild, hot, mixed = sound.copy(), sound.copy(), sound.copy()
    wild[few] *= 1000
    hot[few, 3, 5] = 1000 * deviation
    mixed[share] = deviation * rng.standard_normal((len(share), L, L))
    mixed[other] *= -1
    return {
        "sound": sound,
        "background of 3 standard deviations": sound + np.float32(3 * deviation),
        "10 images times 1000": wild,
        "10 images with a pixel of 1000 standard deviations": hot,
        "5 % pure noise, 5 % of opposite contrast": mixed,
    }


def moments(images: np.ndarray, unchecked: bool) -> Moments:
    source = ArrayImageSource(images, pixel_size=PIXEL_SIZE)
    corrections = CorrectionOptions(unchecked=unchecked)
    return MomentEstimator(source, PolarBasis(L), corrections=corrections).estimate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--moments", action="store_true", help="no volumes")
    options = parser.parse_args()
    setConsoleLoggingLevel("ERROR")
    volume = gaussian_phantom(L, seed=1, pixel_size=PIXEL_SIZE)
    rotations = Rotation.generate_random_rotations(options.images, seed=3)
    noise = WhiteNoise.from_snr(SNR)
    sound = simulate(volume, rotations, noise, seed=0).images[:].asnumpy()
    expected = moments(sound, unchecked=True)
    for name, images in variants(sound, np.sqrt(noise.noise_var)).items():
        for unchecked in (True, False):
            found = moments(images, unchecked)
            known = expected.second_error > 1e-3 * expected.second_error.max()
            off = np.abs(found.second - expected.second)[known]
            off = np.sqrt(np.mean((off / expected.second_error[known]) ** 2))
            line = (
                f"{name}, {'unchecked' if unchecked else 'default'}: off by {off:.2g}"
            )
            print(f"{line} standard errors; {found.corrections}", flush=True)
            if not options.moments:
                search = SearchOptions(n_starts=options.starts)
                volume_found = MomentInversion(found, search=search).estimate().volume
                result = compare(volume_found, volume)
                angstrom, shells = result.resolution(0.5), result.resolution_shells(0.5)
                print(f"  FSC 0.5 at {angstrom:.2f} Å, {shells:.1f} shells", flush=True)


if __name__ == "__main__":
    main()
