"""
Spherical designs and quadrature on SO(3)
=========================================

Moments of a model are means over rotations. The paper takes them over a few
well-spread rotations with equal weights (section 5.2); up to a degree that is exact.
"""

# %%
# The result first
# ----------------
# A spherical design of degree t has points so placed that the plain mean over them is
# the mean over the whole sphere, for all polynomials of degree t or less. Below, the
# 100 points of degree 13 that the paper's experiments take as viewing directions, and
# as many random ones.

import matplotlib.pyplot as plt
import numpy as np
import torch

from aspire_mom import SO3Quadrature, SphericalDesign, VonMisesFisherMixture
from aspire_mom.rotations import real_spherical_harmonics

design = SphericalDesign(13, n_points=100)
rng = np.random.default_rng(0)
random = rng.standard_normal((100, 3))
random /= np.linalg.norm(random, axis=1, keepdims=True)

figure = plt.figure(figsize=(8, 4), layout="constrained")
for i, (points, title) in enumerate([(design.points, "design"), (random, "random")]):
    ax = figure.add_subplot(1, 2, i + 1, projection="3d", title=title)
    front = points @ [0.5, -0.8, 0.35] > 0
    ax.scatter(*points[front].T, c="#0072b2", s=30, depthshade=False)
    ax.scatter(*points[~front].T, c="#cccccc", s=12, depthshade=False)
    ax.set_box_aspect((1, 1, 1))
    ax.set_axis_off()

# %%
# Where exactness ends
# --------------------
# The mean of a spherical harmonic of degree l > 0 over the sphere is zero. Over a
# design it is zero too, to rounding, until the degree is passed. Odd degrees cancel
# throughout, as each point has its opposite.

degrees = np.arange(1, 21)


def largest_mean(points):
    """Largest mean of any spherical harmonic of each degree."""
    values = real_spherical_harmonics(torch.from_numpy(points), 20)
    return [y.mean(0).abs().max().item() for y in values][1:]


curves, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, points in (("degree 13", design.points), ("random", random)):
    ax.semilogy(degrees, np.maximum(largest_mean(points), 1e-18), "o-", label=name)
ax.set(xlabel="degree l", ylabel="largest mean of a harmonic", xticks=degrees[::2])
ax.legend(frameon=False)

# %%
# Rotations
# ---------
# A rotation is a viewing direction and an angle in the plane. All directions times
# equally spaced angles are exact up to the lesser of t and one less than the number of
# angles. The test function here is the character of degree l at R R₀, a mixture of all
# Wigner functions of that degree, whose mean over SO(3) is zero as well.


def character(rotations, l):
    """Trace of the representation of degree l, by the angle of the rotation."""
    cosine = (np.trace(rotations, axis1=1, axis2=2) - 1) / 2
    angle = np.arccos(np.clip(cosine, -1, 1))
    return 1 + 2 * np.sum(np.cos(np.outer(np.arange(1, l + 1), angle)), axis=0)


fixed = SO3Quadrature.product(SphericalDesign(3), 4).rotations.matrices
errors = {}
for n_inplane in (8, 12, 16):
    rule = SO3Quadrature.product(design, n_inplane)
    matrices = rule.rotations.matrices
    errors[n_inplane, rule.degree] = [
        max(abs(rule.weights @ character(matrices @ R, l)) for R in fixed)
        for l in degrees[:16]
    ]

rules, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for (n_inplane, degree), values in errors.items():
    label = f"{n_inplane} angles: degree {degree}"
    ax.semilogy(degrees[:16], np.maximum(values, 1e-18), "o-", label=label)
ax.set(xlabel="degree l", ylabel="error of the mean")
ax.legend(frameon=False)

# %%
# How fine it must be
# -------------------
# The second moment multiplies two images, of angular orders up to m each, so that twice
# the highest order in use is wanted if views are equally likely. A peaked density takes
# more: its values at the nodes must sum to one.

for degree in (5, 13, 21):
    rule = SO3Quadrature.product(SphericalDesign(degree), degree + 1)
    density = VonMisesFisherMixture.random(8, seed=0)
    total = 4 * np.pi * rule.view_weights @ density.pdf(rule.views)
    print(f"degree {rule.degree}, {len(rule.views)} views: sums to {total:.4f}")

# %%
# What must hold
# --------------

assert max(largest_mean(design.points)[:13]) < 1e-12
assert max(largest_mean(design.points)[13:]) > 1e-3
for (_, degree), values in errors.items():
    assert max(values[:degree]) < 1e-10
    assert max(values[degree:]) > 1e-3
assert abs(total - 1) < 1e-2
