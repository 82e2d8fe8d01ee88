"""
Noise, CTF and shifts
=====================

What else is in the images besides the molecule, what it does to moments, and how it is
taken out in the same pass.
"""

# %%
# The result first
# ----------------
# The power of the signal on each ring, from images with all of it: coloured noise,
# a contrast transfer function (CTF) for each micrograph, and particles that are off
# centre. Corrected, moments are nearly those of ideal images; uncorrected, they are of
# something else.

import os

import matplotlib.pyplot as plt
import numpy as np
from aspire.noise import CustomNoiseAdder
from aspire.operators import FunctionFilter, RadialCTFFilter

from aspire_mom import (
    CorrectionOptions,
    MomentEstimator,
    Noise,
    PolarBasis,
    VonMisesFisherMixture,
)
from aspire_mom.moments.report import RingReport
from aspire_mom.phantoms import helix_bundle_phantom
from aspire_mom.simulation import FastSimulation

SHORT = "ASPIRE_MOM_SHORT" in os.environ
L, n = 32, 1_000 if SHORT else 20_000

molecule = helix_bundle_phantom(L, seed=2, pixel_size=5.0)
angles = VonMisesFisherMixture.random(8, seed=1).sample(n, seed=2).angles
defoci = np.linspace(1e4, 3e4, 12)
shifts = np.random.default_rng(3).normal(scale=1.5, size=(n, 2))


def images(noise=None, ctfs=False, offsets=0):
    """Images of the same particles from the same views."""
    return FastSimulation(
        vols=molecule,
        n=n,
        angles=angles.astype(np.float32),
        offsets=offsets,
        amplitudes=1,
        unique_filters=[RadialCTFFilter(defocus=d) for d in defoci] if ctfs else None,
        noise_adder=noise,
        seed=4,
    )


def moments(source, **options):
    """First and second moments."""
    return MomentEstimator(source, PolarBasis(L), third=None, **options).estimate()


def power(found):
    """Power of the signal on each ring."""
    return RingReport.of(found).signal


ideal = moments(images(), noise=Noise(variance=0))
variance = 8 * float(np.mean(images().images[:200].asnumpy() ** 2))
falling = FunctionFilter(lambda x, y: variance / (0.3 + (x**2 + y**2) / 2))
coloured = CustomNoiseAdder(falling, seed=5)
real = images(coloured, ctfs=True, offsets=shifts)

white = CorrectionOptions(ignore_ctf=True, ignore_shifts=True)
raw = moments(real, corrections=white)
corrected = moments(real, noise=Noise(spectrum="corners"))

figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
for name, found, style in (
    ("ideal images", ideal, "k-"),
    ("corrected", corrected, "o-"),
    ("nothing but white noise corrected", raw, "s--"),
):
    ax.semilogy(np.maximum(power(found), 1e-12), style, label=name)
ax.set(xlabel="ring (cycles per box)", ylabel="power of the signal", xlim=(0, 12))
ax.set_ylim(power(ideal)[12] / 10, 3 * power(ideal).max())
ax.legend(frameon=False)

# %%
# Noise
# -----
# Noise adds to the second moment, by a known amount. White noise has one variance,
# which the corners of the images tell; other noise has a power spectrum, which they
# tell as well. Relative errors (eq. 22) of the second moment without a CTF:

errors = {}
for name, options in (
    ("taken as white", {}),
    ("spectrum seen in the corners", {"noise": Noise(spectrum="corners")}),
    ("spectrum given", {"noise": Noise(spectrum=falling)}),
):
    errors[name] = ideal.relative_error(moments(images(coloured), **options))[1]
    print(f"coloured noise, {name}: {errors[name]:.3f}")

# %%
# CTF
# ---
# A CTF changes signs and takes frequencies away. Those of all micrographs together
# leave no gap; each entry of a moment is a least-squares estimate of its own, and none
# is divided by a value near zero.

for name, options in (
    ("ignored", {"corrections": CorrectionOptions(ignore_ctf=True)}),
    ("corrected", {}),
):
    found = moments(images(ctfs=True), noise=Noise(variance=0), **options)
    errors["ctf", name] = ideal.relative_error(found)[1]
    print(f"CTF {name}: {errors['ctf', name]:.3f}")

# %%
# Shifts
# ------
# Shifts that are known, from picking or an earlier refinement, are undone. Unknown ones
# leave the power of each ring as it is and weaken what rings have in common. The
# inversion models them as Gaussian: `CorrectionOptions(shift_std=1.5)`, or `None` to
# find their spread as well.

for name, ignored in (("left in", True), ("undone", False)):
    corrections = CorrectionOptions(ignore_shifts=ignored)
    source = images(offsets=shifts)
    found = moments(source, noise=Noise(variance=0), corrections=corrections)
    errors["shifts", name] = ideal.relative_error(found)[1]
    print(f"shifts {name}: {errors['shifts', name]:.3f}")

# %%
# What must hold
# --------------

assert errors["spectrum seen in the corners"] < 0.5 * errors["taken as white"]
assert errors["ctf", "corrected"] < 0.2 * errors["ctf", "ignored"]
assert errors["shifts", "undone"] < 0.2 * errors["shifts", "left in"]
