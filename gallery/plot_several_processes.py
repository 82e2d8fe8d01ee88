"""
Several processes
=================

Moments are averages, so processes, or machines, may each take a share of the images.
There are two ways: `torchrun` for one job, and merging moments that jobs which know
nothing of each other have averaged.
"""

# %%
# The result first
# ----------------
# A script, run by one process and by two. `processes.joined` joins those that
# `torchrun` started, if any; in between, everything is as without it. Only the first
# process writes.

import functools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt

from aspire_mom import MomentEstimator, Moments, PolarBasis, VonMisesFisherMixture
from aspire_mom.phantoms import helix_bundle_phantom
from aspire_mom.simulation import WhiteNoise, simulate

SHORT = "ASPIRE_MOM_SHORT" in os.environ
n_images = 2_000 if SHORT else 20_000

SCRIPT = """
import sys
from aspire_mom import MomentEstimator, PolarBasis, VonMisesFisherMixture, processes
from aspire_mom.phantoms import helix_bundle_phantom
from aspire_mom.simulation import WhiteNoise, simulate

n, out = int(sys.argv[1]), sys.argv[2]
views = VonMisesFisherMixture.random(8, seed=1).sample(n, seed=2)
noise = WhiteNoise.from_snr(1 / 16, seed=3)
source = simulate(helix_bundle_phantom(48, seed=1), views, noise, seed=4)
with processes.joined("cpu"):
    moments = MomentEstimator(source, PolarBasis(source.L)).estimate()
    if processes.is_first():
        moments.save(out, overwrite=True)
"""

found, seconds = {}, {}
torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
commands = {
    "one process": [sys.executable],
    "two processes": [*torchrun, "--nproc-per-node", "2"],
}
# Each with one core, so that two have twice as many.
environment = {**os.environ, "OMP_NUM_THREADS": "1"}
with tempfile.TemporaryDirectory() as folder:
    script, out = Path(folder) / "script.py", Path(folder) / "moments.npz"
    script.write_text(SCRIPT)
    for name, command in commands.items():
        begun = time.perf_counter()
        arguments = [*command, str(script), str(n_images), str(out)]
        subprocess.run(arguments, check=True, env=environment)
        seconds[name] = time.perf_counter() - begun
        found[name] = Moments.load(out)

bars, ax = plt.subplots(figsize=(6, 2), layout="constrained")
ax.barh(list(seconds), list(seconds.values()))
ax.set(xlabel=f"seconds, start of Python included, {n_images:,} images")

# %%
# They give the same, but for the order of additions in single precision.

one, two = found.values()
differences = one.relative_error(two)
print("relative differences of the moments:", differences)

# %%
# On the command line
# -------------------
# The same for a whole initial model; with `--device cuda`, each process has a GPU of
# its own (:doc:`/cluster`)::
#
#    torchrun --nproc-per-node 2 --no-python \
#        aspire-mom initial-model particles.star -o model

# %%
# Without torchrun
# ----------------
# Jobs of a queue may each take a part of the particles, or a data set may grow as it is
# recorded. Moments of parts merge to those of all, with their standard errors.

views = VonMisesFisherMixture.random(8, seed=1).sample(1_000, seed=2)
noise = WhiteNoise.from_snr(1 / 16, seed=3)
source = simulate(helix_bundle_phantom(24, seed=1), views, noise, seed=4)
basis = PolarBasis(source.L)
parts = [MomentEstimator(source[i : i + 250], basis) for i in range(0, 1_000, 250)]
merged = functools.reduce(Moments.merge, (part.estimate() for part in parts))
at_once = MomentEstimator(source, basis).estimate()
apart = merged.relative_error(at_once)
print(f"{merged.n_images} images, relative differences:", apart)

# %%
# What must hold
# --------------

assert one.n_images == two.n_images == n_images
assert max(differences) < 1e-4
assert max(apart) < 0.05  # each part estimates its noise anew
