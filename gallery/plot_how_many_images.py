"""
How many images do I need?
==========================

Averaging beats any noise, at a price: at a tenth of the signal-to-noise ratio, second
moments take a hundred times as many images.
"""

# %%
# The result first
# ----------------
# The last ring of the images' Fourier transforms on which second moments stand out of
# their noise: up to there, and hardly further, moments support a model. `aspire-mom
# inspect moments.npz` prints it for your data.

import os

import matplotlib.pyplot as plt
import numpy as np

from aspire_mom import MomentEstimator, PolarBasis, VonMisesFisherMixture
from aspire_mom.moments.report import RingReport
from aspire_mom.phantoms import helix_bundle_phantom
from aspire_mom.simulation import WhiteNoise, simulate

SHORT = "ASPIRE_MOM_SHORT" in os.environ
L, size = 32, 5.0
numbers = [250, 1_000, 4_000] if SHORT else [1_000, 4_000, 16_000, 64_000]
ratios = [1 / 4, 1 / 16, 1 / 64]

molecule = helix_bundle_phantom(L, seed=2, pixel_size=size)
density, basis = VonMisesFisherMixture.random(8, seed=1), PolarBasis(L)


def moments_of(n, ratio=None):
    """First and second moments of n images."""
    noise = WhiteNoise.from_snr(ratio or 1e6, seed=n)
    source = simulate(molecule, density.sample(n, seed=n), noise, seed=0)
    return MomentEstimator(source, basis, third=None).estimate()


estimates = {(n, ratio): moments_of(n, ratio) for n in numbers for ratio in ratios}
last = np.array(
    [
        [RingReport.of(estimates[n, ratio]).last_ring or 0 for n in numbers]
        for ratio in ratios
    ]
)
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.imshow(last, cmap="viridis", aspect="auto")
for (i, j), ring in np.ndenumerate(last):
    text = f"{L * size / ring:.0f} Å\nring {ring}" if ring else "nothing"
    ax.text(j, i, text, ha="center", va="center", color="w" if ring < 8 else "k")
ax.set_xticks(range(len(numbers)), [f"{n:,}" for n in numbers])
ax.set_yticks(range(len(ratios)), [f"1/{1 / ratio:.0f}" for ratio in ratios])
ax.set(xlabel="images", ylabel="signal-to-noise ratio")

# %%
# The rule
# --------
# Relative errors of the second moment, beside those of other images without noise.
# Errors of strong noise fall with the square root of the number of images and with the
# ratio itself: N × SNR² decides. The ratio is ASPIRE's, mean square of the clean images
# within the inscribed disc over the variance of the noise; it depends on the pixel
# size, so that downsampling raises it.

truth = moments_of(numbers[-1] * 2)
errors = {key: truth.relative_error(found)[1] for key, found in estimates.items()}
curves, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for ratio in ratios:
    values = [errors[n, ratio] for n in numbers]
    ax.loglog(numbers, values, "o-", label=f"SNR 1/{1 / ratio:.0f}")
ax.set(xlabel="images", ylabel="relative error of the second moment")
ax.legend(frameon=False)

# %%
# For your own particles
# ----------------------
# - Take moments of a part first, `aspire-mom moments --first 10000`, and look at
#   `aspire-mom inspect`. If the last ring is at 40 Å or coarser, more images help.
# - If all rings of the box are supported, more images change little: what limits the
#   model then is what moments do not determine, and the refinement sees to that.
# - Few molecules' moments tell anything from less than some thousand images.

print(last)

# %%
# What must hold
# --------------

assert (np.diff(last, axis=1) >= 0).mean() > 0.8
assert (np.diff(last[:, -1]) <= 0).all()
noisy = [errors[n, ratios[-1]] for n in numbers]
slope = np.polyfit(np.log(numbers), np.log(noisy), 1)[0]
assert -0.65 < slope < -0.35
