"""
Multireference alignment
========================

A signal is seen many times, each time shifted by an unknown amount and under noise. Its
first two moments are enough to recover it, together with the density of the shifts:
the one-dimensional problem of Khoo, Paul and Sharon (section 5.1).
"""

# %%
# The result first
# ----------------
# A hundred thousand observations of a signal v, a mixture of two Gaussians on 41
# points, shifted by amounts from a density ρ of the same kind, with noise of standard
# deviation one, the signal's mean. Moments are averaged in one pass; `solve` finds v
# and ρ, up to a common shift, which is undone for the picture.

import os

import matplotlib.pyplot as plt
import numpy as np

from aspire_mom.mra import (
    GaussianFamily,
    PaperEncoder,
    best_shift,
    estimate_moments,
    observe,
    predict,
    pretrained,
    refine_directly,
    refine_weights,
    shift,
    shift_error,
    simulate_moments,
    solve,
)

SHORT = "ASPIRE_MOM_SHORT" in os.environ
N, SIGMA = 100_000, 1.0

family = GaussianFamily(k=2)
v, rho = (x[0] for x in family.draw(1, np.random.default_rng(1)))
observations = observe(v, rho, N, SIGMA, np.random.default_rng(2))
moments = estimate_moments(observations, sigma=SIGMA)
found = solve(moments.first, moments.second, n_observations=N, sigma=SIGMA)
errors = [shift_error(x, y).item() for x, y in zip((v, rho), found, strict=True)]


def plot_pairs(pairs, truths):
    """Density left and signal right; solid the truth, dotted what was found."""
    figure, axes = plt.subplots(len(pairs), 2, figsize=(8, 2.2 * len(pairs)), squeeze=0)
    for row, pair, truth in zip(axes, pairs, truths, strict=True):
        by = best_shift(truth[0], pair[0])
        shown = shift(pair[0], -by), shift(pair[1], by)
        for ax, i, name in ((row[0], 1, "ρ"), (row[1], 0, "v")):
            ax.plot(truth[i], "-", label=f"{name}, truth")
            ax.plot(shown[i], ":", lw=2.5, label=f"{name}, found")
            ax.legend(frameon=False)
    figure.tight_layout()
    return figure


result = plot_pairs([found], [(v, rho)])
print(f"relative errors: v {errors[0]:.4f}, ρ {errors[1]:.4f}")

# %%
# Answers of encoders: the paper's Fig. 3
# ---------------------------------------
# A network trained on such problems maps moments to v and ρ at once. First the paper's
# architecture, as trained for this package for minutes on one core, then the
# `MixtureEncoder`, which answers with the parameters of Gaussians; both from moments of
# a million observations of signals that they have not seen.

fresh_v, fresh_rho = family.draw(3, np.random.default_rng(3))
fresh = simulate_moments(fresh_v, fresh_rho, 10**6, SIGMA, np.random.default_rng(4))
truths = list(zip(fresh_v, fresh_rho, strict=True))
papers, ours = (predict(pretrained(name), fresh) for name in ("paper-2", "mixture"))
figure_papers = plot_pairs(list(zip(*papers, strict=True)), truths)
figure_papers.suptitle("the paper's encoder", y=1.02)

# %%

figure_ours = plot_pairs(list(zip(*ours, strict=True)), truths)
figure_ours.suptitle("MixtureEncoder", y=1.02)
for name, pair in (("paper's", papers), ("MixtureEncoder", ours)):
    v_error, rho_error = (
        shift_error(x, y).mean()
        for x, y in zip((fresh_v, fresh_rho), pair, strict=True)
    )
    print(f"{name}: v {v_error:.4f}, ρ {rho_error:.4f}")

# %%
# Refinement: the paper's Fig. 4
# ------------------------------
# Outputs of an encoder are brought to one common shift, and the distance of their
# moments from the data's (loss 26) is minimised over the weights of the network. From
# moments of a million observations each, the trained start is far ahead of the
# untrained one. From the `MixtureEncoder`, v and ρ themselves are changed.

n_instances, n_steps = (3, 60) if SHORT else (20, 1000)
many_v, many_rho = family.draw(n_instances, np.random.default_rng(5))
many = simulate_moments(many_v, many_rho, 10**6, SIGMA, np.random.default_rng(6))
curves = {}


def record(name):
    """A status callback that keeps mean errors of moments, v and ρ."""
    curves[name] = []

    def status(s):
        if s.step > 30 and s.step % 10:
            return
        mismatch = s.errors.mean().item()
        pairs = ((many_v, s.v), (many_rho, s.rho))
        both = sum(shift_error(x, y.numpy()).mean() for x, y in pairs)
        curves[name].append((s.step, mismatch, both))

    return status


for name, encoder, rate in (
    ("untrained", PaperEncoder(), 1e-3),
    ("trained", pretrained("paper-2"), 1e-4),
):
    status = record(name)
    refine_weights(encoder, many, n_steps=n_steps, learning_rate=rate, status=status)
start = predict(pretrained(), many)
refine_directly(*start, many, n_steps=n_steps, status=record("MixtureEncoder"))
curves = {name: np.array(values) for name, values in curves.items()}

figure, axes = plt.subplots(2, 1, figsize=(7, 7), sharex=True, layout="constrained")
for name, values in curves.items():
    for ax, column in zip(axes, (1, 2), strict=True):
        ax.plot(values[:, 0], np.log10(values[:, column]), label=name)
axes[0].set(ylabel="log10 of errors of moments")
axes[1].set(ylabel="log10 of errors of v and ρ", xlabel="iteration")
axes[0].legend(frameon=False)

# %%
# What must hold
# --------------

assert errors[0] < 0.02
assert errors[1] < 0.05
for values in curves.values():
    assert values[-1, 1] < values[0, 1]
goal = curves["untrained"][-1, 1:]
for name in ("trained", "MixtureEncoder"):
    assert (curves[name][:, 1:].min(0) <= goal).all()
for truth, pair in ((fresh_v, ours[0]), (fresh_rho, ours[1])):
    assert shift_error(truth, pair).mean() < 0.05
