"""
What the paper's cryo-EM experiments start from (section 5.2): a volume of unit norm,
the network that represents it, noisy images of that, and their moments in both bases.
All of it is kept in a folder, and taken from there the next time.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from aspire.volume import Volume

from aspire_mom import (
    CartesianBasis,
    FourierNet,
    MomentEstimator,
    Moments,
    PolarBasis,
    VonMisesFisherMixture,
)
from aspire_mom.phantoms import gaussian_phantom
from aspire_mom.simulation import FastSimulation, WhiteNoise

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
EMDB = "https://ftp.ebi.ac.uk/pub/databases/emdb/structures/EMD-{0}/map/emd_{0}.map.gz"
SIGMA = 0.5


@dataclass(frozen=True)
class Case:
    """
    One of the paper's volumes, or what stands for it here.

    :param file: Map, or None for Gaussians.
    :param L: Voxels along an edge.
    :param pixel_size: Ångström per voxel of the file.
    :param paper: The paper's errors of both moments (Table 2), resolution in Å and box
        in Å (Table 3), and error of the neural ground truth.
    :param fit: Steps and batch of the neural ground truth's fit.
    """

    file: str | None
    L: int
    pixel_size: float | None
    paper: tuple[float, ...]
    fit: tuple[int, int] = (4000, 4096)


CASES = {
    "gaussians": Case(None, 25, 1.0, (0.007, 0.016, 4.45, 25.0, 0.004), (2000, 2048)),
    "ribosome": Case(
        "ribosome_70s_65.mrc", 63, 5.0, (0.003, 0.013, 16.86, 143.0, 0.043)
    ),
    "gpcr": Case("gpcr_gs_7cfn_63.mrc", 63, 2.5, (0.007, 0.035, 21.52, 537.6, 0.076)),
    "EMD-0409": Case(None, 63, 1.117, (0.003, 0.013, 16.86, 143.0, 0.043)),
    "EMD-25892": Case(None, 63, 1.68, (0.007, 0.035, 21.52, 537.6, 0.076)),
}


def parser(description: str) -> argparse.ArgumentParser:
    """Options that all scripts here have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--volume", choices=CASES, default="gaussians")
    options.add_argument("--seed", type=int, default=0, help="phantom, views, noise")
    options.add_argument(
        "--images", type=int, help="default 50,000 at 25³, else 20,000"
    )
    options.add_argument("--device", default="cpu")
    options.add_argument("--out", type=Path, default=Path("paper_results"))
    return options


def n_images(options: argparse.Namespace) -> int:
    """Images asked for, or as many as two cores simulate in minutes."""
    return options.images or (50_000 if CASES[options.volume].L <= 32 else 20_000)


def folder(options: argparse.Namespace) -> Path:
    """Where results of a case and a number of images are kept."""
    path = options.out / f"{options.volume}_{options.seed}" / str(n_images(options))
    path.mkdir(parents=True, exist_ok=True)
    return path


def original(name: str, seed: int) -> Volume:
    """The volume at the paper's size, of unit norm."""
    case = CASES[name]
    if name == "gaussians":
        return gaussian_phantom(case.L, seed=seed, pixel_size=case.pixel_size)
    path = DATA / case.file if case.file else _download(name)
    volume = Volume(Volume.load(path).asnumpy(), pixel_size=case.pixel_size)
    if volume.resolution != case.L:
        volume = volume.downsample(case.L)
    return volume / np.linalg.norm(volume.asnumpy())


def _download(name: str) -> str:
    import pooch

    url = EMDB.format(name.removeprefix("EMD-"))
    return pooch.retrieve(url, None, processor=pooch.Decompress(name=f"{name}.map"))


def ground_truth(options: argparse.Namespace) -> tuple[FourierNet, dict]:
    """The network that represents the volume, and the error of eq. 27 with its time."""
    case, path = CASES[options.volume], folder(options).parent / "ground_truth.pt"
    volume = original(options.volume, options.seed)
    network = FourierNet(case.L / 2, seed=options.seed).to(options.device)
    if path.is_file():
        saved = torch.load(path, weights_only=True, map_location=options.device)
        network.load_state_dict(saved["network"])
        return network, saved["report"]
    steps, batch = case.fit
    start = time.perf_counter()
    network.fit(volume, n_steps=steps, batch_size=batch)
    report = {"seconds": time.perf_counter() - start, "steps": steps}
    report["error"] = network.relative_error(volume)
    torch.save({"network": network.state_dict(), "report": report}, path)
    return network, report


def views(options: argparse.Namespace) -> VonMisesFisherMixture:
    """The paper's density of views: eight von Mises-Fisher components."""
    return VonMisesFisherMixture.random(8, seed=options.seed + 1000)


def source(options: argparse.Namespace, volume: Volume) -> FastSimulation:
    """Noisy images of a volume, eq. 29, σ = 0.5 in the paper's units."""
    n = n_images(options)
    return FastSimulation(
        n=n,
        vols=volume,
        angles=views(options).sample(n, seed=options.seed).angles.astype(np.float32),
        offsets=0,
        amplitudes=1,
        noise_adder=WhiteNoise(var=(SIGMA / volume.resolution) ** 2, seed=options.seed),
        seed=options.seed,
    )


def moments(
    options: argparse.Namespace, network: FourierNet, *bases: str
) -> tuple[Moments, ...]:
    """Moments of the images in the named bases, "cartesian" and "polar", eq. 30."""
    L = CASES[options.volume].L
    made = {"cartesian": CartesianBasis, "polar": PolarBasis}
    paths = {basis: folder(options) / f"{basis}.npz" for basis in bases}
    missing = {basis: path for basis, path in paths.items() if not path.is_file()}
    if missing:
        volume = network.to_volume(L, original(options.volume, 0).pixel_size)
        images = source(options, volume).cache()
        for basis, path in missing.items():
            MomentEstimator(images, made[basis](L)).estimate().save(path)
    return tuple(Moments.load(path) for path in paths.values())


def noise_floor(estimate: Moments) -> tuple[float, float]:
    """Expected eq. 22 error of the estimates themselves, from standard errors."""
    errors = []
    for name in ("first", "second"):
        weights = getattr(estimate.basis, f"{name}_weights")
        value, error = getattr(estimate, name), getattr(estimate, f"{name}_error")
        size = np.sum(weights * np.abs(value) ** 2)
        errors.append(float(np.sqrt(np.sum(weights * error**2) / size)))
    return tuple(errors)


def keep(path: Path, report: dict) -> None:
    """Write a report, for the other scripts to read."""
    path.write_text(json.dumps(report, indent=2) + "\n")
