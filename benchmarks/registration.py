"""
Registration of 50 random rotations and both hands: angular error, hands and time.

The rotated copies owe nothing to the registration: Gaussians are rotated by their
centres, the atomic phantom (../shared/data of the repository, where present) by
`Volume.rotate`.

    python benchmarks/registration.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from aspire.utils import Rotation
from aspire.volume import Volume
from scipy.spatial.transform import Rotation as Rotations

from aspire_mom.evaluation import register
from aspire_mom.phantoms import gaussians_on_grid

N_ROTATIONS = 50
ATOMIC_PHANTOM = (
    Path(__file__).resolve().parents[2] / "shared" / "data" / "gpcr_gs_7cfn_63.mrc"
)


def gaussians(L: int) -> Callable[[np.ndarray], Volume]:
    """30 Gaussians of standard deviation L/40 to L/20 in a ball of radius 0.3 L."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((30, 3))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    centres *= 0.3 * L * np.cbrt(rng.uniform(size=(30, 1)))
    sigmas, heights = L * rng.uniform(0.025, 0.05, 30), rng.uniform(0.5, 1.5, 30)
    return lambda motion: gaussians_on_grid(centres @ motion.T, sigmas, heights, L)


def atoms(path: Path) -> Callable[[np.ndarray], Volume]:
    """An odd-sized volume file, of which reversing z is the mirror image."""
    volume = Volume.load(path)

    def moved(motion: np.ndarray) -> Volume:
        hand = round(np.linalg.det(motion))
        # motion = rotation · J, J = diag(1, 1, hand).
        rotation = (motion * (1, 1, hand)).astype(volume.dtype)
        voxels = volume.asnumpy()[0, ::hand]
        return Volume(np.ascontiguousarray(voxels)).rotate(Rotation(rotation))

    return moved


def measure(moved: Callable[[np.ndarray], Volume]) -> str:
    """One row of the table."""
    reference = moved(np.eye(3))
    rotations = Rotations.random(N_ROTATIONS, rng=np.random.default_rng(1)).as_matrix()
    errors, hands, seconds = [], [], []
    for rotation in rotations:
        for hand in (1, -1):
            J = np.diag([1, 1, hand])
            volume = moved(rotation @ J)
            start = time.perf_counter()
            found = register(volume, reference)
            seconds.append(time.perf_counter() - start)
            hands.append(found.mirrored == (hand < 0))
            # What undoes it after mirroring: (J rotation J)ᵀ.
            residual = found.rotation.matrices[0] @ J @ rotation @ J
            chord = np.linalg.norm(residual - np.eye(3)) / np.sqrt(8)
            errors.append(np.degrees(2 * np.arcsin(min(chord, 1))))
    return (
        f"{max(errors):9.4f} {np.median(errors):9.4f} "
        f"{sum(np.array(errors) < 1):5d}/{len(errors)} {sum(hands):5d}/{len(hands)} "
        f"{np.median(seconds):9.2f} {max(seconds):9.2f}"
    )


def main() -> None:
    rows = [(f"Gaussians {L}³", gaussians(L)) for L in (33, 63, 64)]
    if ATOMIC_PHANTOM.exists():
        rows.append(("GPCR-Gs 63³", atoms(ATOMIC_PHANTOM)))
    print(
        f"{'phantom':14} {'max °':>9} {'median °':>9} {'within 1°':>9} {'hands':>9} "
        f"{'median s':>9} {'max s':>9}"
    )
    for name, moved in rows:
        print(f"{name:14} {measure(moved)}", flush=True)


if __name__ == "__main__":
    main()
