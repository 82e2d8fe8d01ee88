"""
Whether to trust a model
========================

A refinement always gives a map, and the halves of the images always agree a little, for
both began with the same start. This is what the report shows, and how its verdict tells
a model from a map without one.
"""

# %%
# The result first
# ----------------
# Three sets of images, refined from the same start: of one molecule, which the start is
# of; of it and another, mixed; and of nothing but noise. From left to right: the
# molecule, and what comes of each set. The last ones look like molecules, too.

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from aspire.volume import Volume

from aspire_mom import (
    MomentEstimator,
    MomentInversion,
    PolarBasis,
    Refinement,
    SearchOptions,
    VonMisesFisherMixture,
    compare,
)
from aspire_mom.evaluation import plot_isosurfaces
from aspire_mom.moments.report import ring_power
from aspire_mom.phantoms import helix_bundle_phantom
from aspire_mom.refinement.model import LEAST_SHARE
from aspire_mom.simulation import FastSimulation, WhiteNoise

SHORT = "ASPIRE_MOM_SHORT" in os.environ
n_images, L = (2_000, 32) if SHORT else (10_000, 32)
few = {"n_rings": 7, "search": SearchOptions(n_starts=2)} if SHORT else {}
shortly = {"n_rings": 12, "n_iterations": 8} if SHORT else {}

molecule = helix_bundle_phantom(L, seed=1, pixel_size=5.0)
another = helix_bundle_phantom(L, n_helices=4, seed=5, pixel_size=5.0)
both = Volume(np.concatenate([molecule.asnumpy(), another.asnumpy()]), pixel_size=5.0)
views = VonMisesFisherMixture.random(8, seed=1).sample(n_images, seed=2)
angles = views.angles.astype(np.float32)
options = {"n": n_images, "angles": angles, "offsets": 0, "seed": 3}


def images_of(volumes, noise, amplitudes=1):
    """A source of images; if there are two volumes, each is of one of them."""
    options["amplitudes"] = amplitudes
    return FastSimulation(vols=volumes, noise_adder=noise, **options).cache()


one = images_of(molecule, WhiteNoise.from_snr(1 / 4 if SHORT else 1 / 16, seed=4))
noise = WhiteNoise(one.noise_adder.noise_var, seed=5)
sources = {
    "one molecule": one,
    "two molecules": images_of(both, noise),
    "noise alone": images_of(molecule, noise, amplitudes=1e-3),
}

basis = PolarBasis(L)
moments = {name: MomentEstimator(s, basis).estimate() for name, s in sources.items()}
start = MomentInversion(moments["one molecule"], "grid", **few).estimate()
models = {}
for name, source in sources.items():
    # From the best start alone; the power of their signal is that of their own moments.
    own = replace(start, start_volumes=None, signal_power=ring_power(moments[name]))
    models[name] = Refinement(source, own, **shortly).estimate()

aligned = [compare(model.volume, molecule).aligned for model in models.values()]
surfaces = plot_isosurfaces([molecule, *aligned], ["molecule", *models])

# %%
# The verdict
# -----------
# `RefinedModel.verdict()` says it in words, `failed()` as True or False. On the command
# line it is printed, and it stands at the top of `report.html`.

for name, model in models.items():
    print(f"{name}: {model.verdict()}")

# %%
# What it rests on
# ----------------
# Left, the Fourier shell correlation of both halves. It is high where they still share
# the start, so that alone it proves nothing. Right, the share of the images' signal
# that the model explains on each ring, where second moments know how strong the signal
# is: a right model explains all of it, a wrong one, or one of a mixture, only a part.
# The legend also has the log-likelihood of images given the map of the other half;
# without signal it is near 0.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for name, model in models.items():
    label = f"{name}, held out {model.held_out_log_likelihood:.2f}"
    axes[0].plot(model.fsc, "o-", label=label)
    axes[1].plot(model.signal_share[: len(model.fsc)], "o-", label=name)
axes[0].axhline(0.143, color="gray", lw=1)
axes[0].set(ylabel="FSC of the halves")
axes[0].legend(frameon=False)
axes[1].axhline(LEAST_SHARE, color="gray", lw=1)
axes[1].set(ylabel="share of the signal explained", ylim=(-0.5, 1.5))
for ax in axes:
    ax.set(xlabel="shell (cycles per box)")

# %%
# What to look at in the report
# -----------------------------
# :doc:`/report` goes through the page. The same in Python, from a folder that
# `aspire-mom initial-model` wrote: `RefinedModel.load("model").verdict()`.

# %%
# What must hold
# --------------

assert not models["one molecule"].failed()
assert models["two molecules"].failed()
assert models["noise alone"].failed()
