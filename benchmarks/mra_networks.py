"""
Multireference alignment by networks: Table 1 and Fig. 4 of Khoo, Paul & Sharon.

    python benchmarks/mra_networks.py table [--count N] [--seed S]
    python benchmarks/mra_networks.py noisy [--count N] [--seed S]
    python benchmarks/mra_networks.py figure [--png fig4.png] [--steps N]

table: errors (eq. 21) of the encoders that come with the package, from exact moments of
fresh instances and, for the paper's, of the training set. noisy: the same from N = 10⁶
observations at σ = 1, in density units and with v of unit norm, with marching beside
them. figure: refinement (loss 26) from trained and untrained encoders, mean of 20
instances, k = 2, N = 10⁶, σ = 1.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from aspire_mom.mra import GaussianFamily, exact_moments, shift_error
from aspire_mom.mra.comparison import HEADER, draw_test, score
from aspire_mom.mra.paper_encoder import PaperEncoder
from aspire_mom.mra.refine import predict, refine_directly, refine_weights
from aspire_mom.mra.training import Training, training_set
from aspire_mom.mra.weights import pretrained

BATCH = 250
PAPER = {1: (0.052, 0.048), 2: (0.170, 0.141), 3: (0.206, 0.195)}
# A step over the weights of ours costs 50 times one over v and ρ.
STEPS_OURS = 100
# Adam's. The higher one suits the untrained start, the lower one the trained.
HIGH, LOW = 1e-3, 1e-4
COLUMNS = ("moments", "v", "ρ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("table", "noisy", "figure"))
    parser.add_argument("--count", type=int, help="instances per row")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--png", help="picture to write")
    arguments = parser.parse_args()
    if arguments.what == "table":
        table(arguments.count or 2000, arguments.seed)
    elif arguments.what == "noisy":
        noisy(arguments.count or 200, arguments.seed)
    else:
        figure(arguments.count or 20, arguments.seed, arguments.steps, arguments.png)


def table(count: int, seed: int) -> None:
    print(f"Exact moments, {count} fresh instances a row; in batches of {BATCH};")
    print("alone: 50 of them, one at a time; mixture: MixtureEncoder")
    for k in (1, 2, 3):
        print(f"\nk = {k}; the paper's means: v {PAPER[k][0]}, ρ {PAPER[k][1]} (test)")
        print(HEADER)
        fresh = draw_test(GaussianFamily(k), count, seed)
        how = pretrained(f"paper-{k}").training_info
        settings = {x: how["training"][x] for x in ("n", "set_size", "seed")}
        v, rho, _ = training_set(Training(ks=(k,), **settings))
        v, rho = v[:count], rho[:count]
        seen = v, rho, exact_moments(v, rho)
        few = [fresh[0][:50], fresh[1][:50], first_few(fresh[2], 50)]
        for name, method, problems, batch_size in (
            ("paper's, train", "paper", seen, BATCH),
            ("paper's, test", "paper", fresh, BATCH),
            ("mixture", "network", fresh, BATCH),
            ("paper's, alone", "paper", few, 1),
            ("mixture, alone", "network", few, 1),
        ):
            print(f"{name:<14}  {score(method, k, *problems, batch_size=batch_size)}")
        print(f"paper's: {how['command']}")
    print(f"mixture: {pretrained().training_info['command']}")


def noisy(count: int, seed: int) -> None:
    print(f"N = 10⁶, σ = 1, {count} fresh instances a row")
    for scale in ("density", "unit"):
        for k in (1, 2, 3):
            print(f"\nk = {k}, v in {scale} units")
            print(HEADER)
            family = GaussianFamily(k, scale=scale)
            problems = draw_test(family, count, seed, 10**6, 1.0)
            for name, method in (
                ("marching", "marching"),
                ("MixtureEncoder", "network"),
                ("paper's", "paper"),
            ):
                scores = score(method, k, *problems, batch_size=BATCH)
                print(f"{name:<14}  {scores}", flush=True)


def figure(count: int, seed: int, n_steps: int, png: str | None) -> None:
    print(f"k = 2, N = 10⁶, σ = 1, mean of {count} instances, loss 26 with")
    print("λ = ‖M̂1‖/‖M̂2‖; moments: sum of both relative errors (eq. 22); v, ρ: eq. 21")
    v, rho, moments = draw_test(GaussianFamily(2), count, seed, 10**6, 1.0)
    few = min(STEPS_OURS, n_steps)
    runs = {
        "paper's untrained, Adam 1e-3": (PaperEncoder(), n_steps, HIGH),
        "paper's untrained, Adam 1e-4": (PaperEncoder(), n_steps, LOW),
        "paper's trained, Adam 1e-4": (pretrained("paper-2"), n_steps, LOW),
        "MixtureEncoder trained, Adam 1e-4": (pretrained("mixture"), few, LOW),
    }
    curves = {
        name: curve(
            partial(refine_weights, encoder, moments, n_steps=n, learning_rate=rate),
            v,
            rho,
        )
        for name, (encoder, n, rate) in runs.items()
    }
    start = predict(pretrained(), moments)
    curves["MixtureEncoder trained, over v and ρ"] = curve(
        partial(refine_directly, *start, moments, n_steps=n_steps), v, rho
    )
    goal = np.minimum(*(curves[name][1][-1] for name in list(runs)[:2]))
    for name, (steps, errors) in curves.items():
        print(f"\n{name}")
        for at in (0, 10, 100, 300, 1000, 3000):
            if at in steps:
                values = errors[steps == at][0]
                cells = zip(COLUMNS, values, strict=True)
                print(f"  step {at:5}: " + "  ".join(f"{c} {x:.4f}" for c, x in cells))
        reached = [
            first_below(steps, *pair) for pair in zip(errors.T, goal, strict=True)
        ]
        print(
            "  steps to the better untrained run's last: "
            + ", ".join(f"{c} {at}" for c, at in zip(COLUMNS, reached, strict=True))
        )
    if png is not None:
        draw(curves, png)


def curve(refine, v: np.ndarray, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and mean errors of moments, v and ρ after them (steps, 3)."""
    steps, errors = [], []

    def status(s) -> None:
        if s.step > 100 and s.step % 10:
            return
        steps.append(s.step)
        moments = s.errors.mean().item()
        pairs = ((v, s.v.numpy()), (rho, s.rho.numpy()))
        errors.append([moments, *(shift_error(*pair).mean() for pair in pairs)])

    refine(status=status)
    return np.array(steps), np.array(errors)


def first_below(steps: np.ndarray, errors: np.ndarray, goal: float) -> str:
    below = np.nonzero(errors <= goal)[0]
    return str(steps[below[0]]) if len(below) else "not reached"


def first_few(moments, count: int):
    return replace(moments, first=moments.first[:count], second=moments.second[:count])


def draw(curves: dict, png: str) -> None:
    picture = Figure(figsize=(7, 8), layout="constrained")
    top, bottom = picture.subplots(2, 1, sharex=True)
    for name, (steps, errors) in curves.items():
        x = np.maximum(steps, 0.5)
        line = top.plot(x, np.log10(errors[:, 0]), label=name)[0]
        bottom.plot(x, errors[:, 1], color=line.get_color())
        bottom.plot(x, errors[:, 2], "--", color=line.get_color())
    top.set(ylabel="log10 of summed relative errors of moments")
    picture.legend(loc="outside upper center", ncols=2, frameon=False)
    bottom.set(
        xscale="log",
        yscale="log",
        xlabel="iterations (0 at the left edge)",
        ylabel="relative error of v (solid) and ρ (dashed)",
    )
    picture.savefig(png, dpi=120)


if __name__ == "__main__":
    main()
