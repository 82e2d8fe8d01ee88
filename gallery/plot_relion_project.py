"""
From a RELION project to a refined initial model
================================================

Particles with a CTF each, in a STAR file as RELION writes it: their moments give a
start, and a refinement against the images gives a model and the pose of every image, in
a STAR file that RELION, cryoSPARC and ASPIRE read.
"""

# %%
# The result first
# ----------------
# The project here is simulated: a bundle of helices in a box of 32 pixels of 5 Å, seen
# from everywhere, but not equally often, behind the CTFs of twelve micrographs. With
# particles of your own, everything from `read_particles` on is the same; the command
# `aspire-mom initial-model particles.star -o model` does it all.

import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from aspire.operators import RadialCTFFilter

from aspire_mom import (
    MomentEstimator,
    MomentInversion,
    PolarBasis,
    Refinement,
    SearchOptions,
    VonMisesFisherMixture,
    compare,
)
from aspire_mom.evaluation import plot_fsc, plot_isosurfaces, plot_slices
from aspire_mom.phantoms import helix_bundle_phantom
from aspire_mom.relion import ParticleSource, read_particles
from aspire_mom.simulation import FastSimulation, WhiteNoise

SHORT = "ASPIRE_MOM_SHORT" in os.environ
n_images, snr = (2_000, 1 / 4) if SHORT else (10_000, 1 / 10)
# By default, images with CTFs take the longer search for a non-negative grid.
few = SearchOptions(n_starts=1, n_steps=100, max_gaussians=16)
quick = {"volume": "gaussians", "n_rings": 7, "search": few} if SHORT else {}
shortly = {"n_rings": 10, "n_iterations": 8} if SHORT else {}

truth = helix_bundle_phantom(32, seed=1, pixel_size=5.0)
project = tempfile.TemporaryDirectory()
star = Path(project.name) / "particles.star"
FastSimulation(
    vols=truth,
    n=n_images,
    angles=VonMisesFisherMixture.random(8, seed=1).sample(n_images, seed=2).angles,
    offsets=0,
    amplitudes=1,
    unique_filters=[RadialCTFFilter(defocus=d) for d in np.linspace(1e4, 3e4, 12)],
    noise_adder=WhiteNoise.from_snr(snr, seed=3),
    dtype=np.float32,
    seed=4,
).save(star, save_mode="single")

particles = read_particles(star)
source = ParticleSource(particles)
moments = MomentEstimator(source, PolarBasis(source.L)).estimate()
start = MomentInversion(moments, **quick).estimate()
model = Refinement(source, start, **shortly).estimate()
comparison = compare(model.volume, truth)
surfaces = plot_isosurfaces([truth, comparison.aligned], ["truth", "refined model"])

# %%
# What is in the file
# -------------------
# The summary tells whether pixel size, CTFs and shifts were understood. Below it, six
# of the images: at this noise no eye can orient them.

print(particles.summary())
figure, axes = plt.subplots(1, 6, figsize=(9, 1.7), layout="constrained")
for ax, image in zip(axes, source.images[:6].asnumpy(), strict=True):
    ax.imshow(image, cmap="gray", origin="lower")
    ax.set(xticks=[], yticks=[])

# %%
# From moments to a start
# -----------------------
# The start has the moments of the images, and no orientation was estimated for it. It
# resolves less than the model, which needs it: a refinement from anywhere else may well
# end in a wrong volume.

before = compare(start.volume, truth)
slices = plot_slices(
    [truth, before.aligned, comparison.aligned], ["truth", "start", "refined model"]
)
print(f"start {before.resolution():.1f} Å, model {comparison.resolution():.1f} Å")

# %%
# How good it is, without the truth
# ---------------------------------
# The images are split into two halves, each of which refines a volume of its own. Where
# both agree, the model is supported by the images, save for what the common start has
# put into both; therefore the verdict also asks whether each half explains the images
# of the other.

halves = plot_fsc(model.fsc, 32 * 5.0)
print(model.verdict())

# %%
# On to RELION
# ------------
# The folder gets the map, the half maps and all parameters; `particles.star` is the
# file that was read, with angles, origins and half sets. Take `volume.mrc` or its
# mirror image as the reference: no projection knows the hand.

model.save(Path(project.name) / "model")
model.save_star(Path(project.name) / "model/particles.star", particles)
text = (Path(project.name) / "model/particles.star").read_text()
print("\n".join(line for line in text.splitlines() if line.startswith("_rlnAngle")))

# %%
# What must hold
# --------------

assert comparison.resolution() < before.resolution()
assert comparison.resolution() < 20
assert model.resolution() < 25
assert "_rlnAngleRot" in text
project.cleanup()
