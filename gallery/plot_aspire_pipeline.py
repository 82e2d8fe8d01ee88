"""
In an ASPIRE pipeline
=====================

Everything here takes and gives ASPIRE's own objects: a `Source` goes in, rotations go
into `OrientedSource`, and ASPIRE's `MeanEstimator` makes the last volume.
"""

# %%
# The result first
# ----------------
# From left to right: the molecule, what its moments tell, that volume refined against
# the images, and ASPIRE's own reconstruction with the orientations that were found.

import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from aspire.noise import WhiteNoiseAdder
from aspire.reconstruction import MeanEstimator
from aspire.source import OrientedSource, Simulation

from aspire_mom import (
    MomentEstimator,
    MomentInversion,
    MomentOrientation,
    PolarBasis,
    Refinement,
    SearchOptions,
    VonMisesFisherMixture,
    compare,
)
from aspire_mom.evaluation import plot_isosurfaces
from aspire_mom.phantoms import helix_bundle_phantom

SHORT = "ASPIRE_MOM_SHORT" in os.environ
n_images, L = (2_000, 32) if SHORT else (10_000, 32)
few = {"n_rings": 7, "search": SearchOptions(n_starts=2)} if SHORT else {}
shortly = {"n_rings": 12, "n_iterations": 8} if SHORT else {}

molecule = helix_bundle_phantom(40, seed=1, pixel_size=4.0)
views = VonMisesFisherMixture.random(8, seed=1).sample(n_images, seed=2)
simulation = Simulation(
    vols=molecule,
    n=n_images,
    angles=views.angles.astype(np.float32),
    offsets=0,
    amplitudes=1,
    noise_adder=WhiteNoiseAdder.from_snr(1 / 4 if SHORT else 1 / 16),
    seed=3,
)
source = simulation.downsample(L).cache()

moments = MomentEstimator(source, PolarBasis(L)).estimate()
start = MomentInversion(moments, "grid", **few).estimate()
orientation = MomentOrientation(Refinement(source, start, **shortly))
oriented = OrientedSource(source, orientation)
with tempfile.TemporaryDirectory() as folder:  # of ASPIRE's checkpoint
    kept = f"{folder}/volume"
    final = MeanEstimator(oriented, maxiter=10, checkpoint_prefix=kept).estimate()

truth = molecule.downsample(L)
volumes = {"start": start.volume, "refined": orientation.model.volume, "mean": final}
comparisons = {name: compare(volume, truth) for name, volume in volumes.items()}
aligned = [comparison.aligned for comparison in comparisons.values()]
surfaces = plot_isosurfaces([truth, *aligned], ["truth", *volumes])

# %%
# How much each step adds
# -----------------------
# Fourier shell correlations with the truth. Moments give the first shells, from which
# the refinement takes over. The refined volume comes of posterior probabilities of all
# poses of an image; ASPIRE's reconstruction takes the most probable one as certain.

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, comparison in comparisons.items():
    ax.plot(comparison.fsc, "o-", label=f"{name}, {comparison.resolution():.1f} Å")
ax.axhline(0.5, color="gray", lw=1)
ax.set(xlabel="shell (cycles per box)", ylabel="Fourier shell correlation")
ax.legend(frameon=False)

# %%
# Orientations of single images
# -----------------------------
# How far the viewing directions are from the true ones, in the frame and hand of the
# truth.

found = comparisons["refined"].align_views(oriented.rotations[:, :, 2])
cosines = np.sum(found * simulation.rotations[:, :, 2], axis=1)
degrees = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
histogram, ax = plt.subplots(figsize=(6, 2.5), layout="constrained")
ax.hist(degrees, bins=45)
ax.set(xlabel="error of the viewing direction, degrees", ylabel="images")
print(f"median error of the viewing directions: {np.median(degrees):.1f}°")

# %%
# What must hold
# --------------

assert comparisons["refined"].resolution() < comparisons["start"].resolution()
assert comparisons["mean"].resolution() < comparisons["start"].resolution()
assert np.median(degrees) < 15
