import copy
import io

import numpy as np
import pytest
import torch
from scipy import optimize

from aspire_mom.inversion import OptimizerStatus, StoppedByUser
from aspire_mom.inversion.optimise import minimise, minimise_batch

METHODS = pytest.mark.parametrize("method", ["lbfgs", "adam"])
REPORTS = {"lbfgs": 20, "adam": 50}


class Valley:
    """½ xᵀA x - bᵀx, eigenvalues of A from 1 to 100, least at x = A⁻¹b."""

    def __init__(self, n=12, dtype=torch.float64):
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(n, n, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(basis).Q
        self.A = (basis * torch.logspace(0, 2, n).double()) @ basis.T
        self.b = torch.randn(n, generator=generator, dtype=torch.float64)
        self.solution = torch.linalg.solve(self.A, self.b)
        self.x = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))
        self.y = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.evaluations = 0

    def __call__(self):
        self.evaluations += 1
        valley = 0.5 * self.x @ self.A @ self.x - self.b @ self.x
        return valley + (self.y**2).sum() + 10

    @property
    def parameters(self):
        return [self.x, self.y]


@METHODS
def test_finds_the_minimum(method):
    valley = Valley()
    loss = minimise(
        valley,
        valley.parameters,
        method=method,
        n_steps=100 if method == "lbfgs" else 3000,
        learning_rates=(1e-2, 1e-3, 1e-4),
    )
    torch.testing.assert_close(valley.x.data, valley.solution, rtol=0, atol=1e-4)
    assert valley.y.abs().max() < 1e-3
    exact = 10 - 0.5 * float(valley.b @ valley.solution)
    assert loss == pytest.approx(exact, rel=1e-6)
    assert loss < 10 - 0.01


@METHODS
@pytest.mark.parametrize("n_steps", [1, 50, 130])
def test_status(method, n_steps):
    """Every report's steps and at the end, with the loss after them."""
    valley, seen = Valley(), []

    def status(state):
        assert isinstance(state, OptimizerStatus)
        assert state.loss == float(valley().detach())
        seen.append(state)

    loss = minimise(
        valley,
        valley.parameters,
        method=method,
        n_steps=n_steps,
        stage="a stage",
        status=status,
    )
    every = REPORTS[method]
    steps = [*range(every, n_steps, every), n_steps]
    if method == "lbfgs":
        steps = steps[: len(seen) - 1] + [n_steps]  # it may converge before
    assert [state.step for state in seen] == steps
    assert {(state.stage, state.n_steps) for state in seen} == {("a stage", n_steps)}
    assert seen[-1].loss == loss
    losses = [state.loss for state in seen]
    assert losses == sorted(losses, reverse=True)


def test_lbfgs_stops_when_it_has_converged():
    valley = Valley()
    minimise(valley, valley.parameters, method="lbfgs", n_steps=10_000)
    assert valley.evaluations < 300


@pytest.mark.parametrize("n_steps", [1, 7])
def test_few_steps_of_lbfgs_are_few(n_steps):
    valley = Valley()
    minimise(valley, valley.parameters, method="lbfgs", n_steps=n_steps)
    few, seen = valley.x.detach().clone(), Valley()
    minimise(seen, seen.parameters, method="lbfgs", n_steps=20)
    assert (few != 0).any()
    assert (few != seen.x).any()
    assert valley.evaluations <= 4 * n_steps + 3


def test_adam_takes_learning_rates_in_turn():
    """On a slope of constant sign, Adam's steps are the learning rate."""
    x, path = torch.nn.Parameter(torch.zeros(())), []

    def slope():
        if torch.is_grad_enabled():
            path.append(float(x.detach()))
        return -x

    minimise(slope, [x], method="adam", n_steps=10, learning_rates=(1, 0.1, 0.01))
    path.append(float(x.detach()))
    steps = [b - a for a, b in zip(path[:-1], path[1:], strict=True)]
    assert steps == pytest.approx([1] * 4 + [0.1] * 3 + [0.01] * 3, rel=1e-3)


@METHODS
def test_resumes_as_if_never_stopped(method):
    """From what was saved and written to a file: the same to the last bit."""
    n_steps = 30 if method == "lbfgs" else 170
    options = {"method": method, "n_steps": n_steps, "learning_rates": (1e-2, 1e-3)}
    whole = Valley()
    expected = minimise(whole, whole.parameters, **options)

    stopped, saved = Valley(), {}

    def save(state):
        saved.update(state=state, parameters=copy.deepcopy(stopped.parameters))

    with pytest.raises(StoppedByUser, match="first"):
        minimise(
            stopped,
            stopped.parameters,
            status=lambda state: True,
            save=save,
            stage="first",
            **options,
        )
    # Stopped after one report, with the parameters as they were then.
    assert saved["state"]["step"] == REPORTS[method]
    assert torch.equal(stopped.x, saved["parameters"][0])
    file = io.BytesIO()
    torch.save(saved["state"], file)
    file.seek(0)
    state, resumed = torch.load(file, weights_only=True), Valley()
    resumed.x.data.copy_(stopped.x.data)
    resumed.y.data.copy_(stopped.y.data)
    loss = minimise(resumed, resumed.parameters, state=state, **options)
    assert loss == expected
    assert torch.equal(resumed.x, whole.x)
    assert torch.equal(resumed.y, whole.y)
    assert not torch.equal(resumed.x, stopped.x)


@METHODS
def test_what_was_saved_does_not_change(method):
    """While the optimiser goes on, be it the one that saved or one that resumed."""
    valley, states = Valley(), []
    options = {"method": method, "learning_rates": (1e-2,)}
    minimise(valley, valley.parameters, n_steps=60, save=states.append, **options)

    def flat(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [leaf for item in value for leaf in flat(item)]
        return [0 if value is None else float(torch.as_tensor(value).double().sum())]

    first, again, kept = Valley(), [], []
    minimise(
        first,
        first.parameters,
        n_steps=REPORTS[method],
        save=lambda state: kept.append(flat(state["optimizer"]["state"])),
        **options,
    )
    assert flat(states[0]["optimizer"]["state"]) == kept[0]
    before = flat(states[0]["optimizer"]["state"])
    minimise(
        first,
        first.parameters,
        n_steps=60,
        state=states[0],
        save=again.append,
        **options,
    )
    assert flat(states[0]["optimizer"]["state"]) == before
    assert flat(again[0]["optimizer"]["state"]) != before


@METHODS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("after", [0, 10])
def test_refuses_to_go_on_without_a_loss(method, bad, after):
    """At once, or as soon as the next report is due."""
    valley, count = Valley(), 0

    def objective():
        nonlocal count
        count += 1
        return valley() * (bad if count > after else 1)

    with pytest.raises(
        FloatingPointError, match=r"became (nan|inf) in stage 'x'; lower"
    ):
        minimise(objective, valley.parameters, method=method, n_steps=500, stage="x")
    assert count <= after + 2 * REPORTS[method] + 5


def test_divergence_in_the_last_step_is_seen():
    x = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(FloatingPointError, match="nan"):
        minimise(
            lambda: torch.where(x > 0.5, x, torch.nan * x),
            [x],
            method="adam",
            n_steps=1,
            learning_rates=(1.0,),
        )


def test_no_steps():
    valley = Valley()
    assert minimise(valley, valley.parameters, method="adam", n_steps=0) == 12
    assert (valley.x == 0).all()


@pytest.mark.parametrize(
    "objective", [lambda x: torch.log(3 - x), lambda x: -x + 0 * torch.sqrt(3 - x)]
)
def test_a_line_search_off_the_domain_is_seen(objective):
    """Both end at x = 3, from where a line search would go on as far as floats do."""
    x = torch.nn.Parameter(torch.tensor(0.5))
    with pytest.raises(FloatingPointError, match=r"became (nan|-inf) in stage 'x'"):
        minimise(lambda: objective(x), [x], method="lbfgs", n_steps=20, stage="x")
    assert x.abs() < 100


class TestBatch:
    def valleys(self, x):
        """Valleys of different widths, one of which has infinite walls."""
        scales = torch.tensor([1.0, 10.0, 100.0]).to(x)[:, None]
        values = (scales * (x - 1) ** 2).sum(1) + (x[:, :1] - x[:, 1:]).pow(4).sum(1)
        outside = (x.abs() > 5).any(1)
        return torch.where(outside & (scales[:, 0] == 10), torch.inf, values)

    def starts(self):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(3, 6, generator=generator, dtype=torch.float64)

    def test_finds_all_minima(self):
        x, losses = minimise_batch(self.valleys, self.starts(), 60)
        torch.testing.assert_close(x, torch.ones_like(x), atol=1e-6, rtol=0)
        torch.testing.assert_close(losses, self.valleys(x))

    def test_starts_do_not_depend_on_others(self):
        together, _ = minimise_batch(self.valleys, self.starts(), 10)

        def alone(x):
            return self.valleys(x.expand(3, -1))[2:]

        x, _ = minimise_batch(alone, self.starts()[2:], 10)
        torch.testing.assert_close(x[0], together[2])

    def test_losses_never_rise(self):
        before = self.valleys(self.starts())
        for n_steps in (1, 2, 5, 10):
            _, losses = minimise_batch(self.valleys, self.starts(), n_steps)
            assert (losses <= before).all()
            before = losses

    def test_needs_no_more_steps_than_scipy(self):
        """L-BFGS of as many pairs, on Rosenbrock's function."""
        start = np.full(10, -1.2)
        reference = optimize.minimize(
            optimize.rosen,
            start,
            jac=optimize.rosen_der,
            method="L-BFGS-B",
            options={"maxcor": 20, "ftol": 0, "gtol": 1e-8},
        )

        def rosenbrock(x):
            a, b = x[:, :-1], x[:, 1:]
            return (100 * (b - a**2) ** 2 + (1 - a) ** 2).sum(1)

        x = torch.from_numpy(start)[None]
        x, losses = minimise_batch(rosenbrock, x, 2 * reference.nfev)
        assert losses < 1e-10

    def test_stops_where_that_is_enough(self):
        lowest = []

        def enough(losses):
            lowest.append(losses.min().item())
            return lowest[-1] <= 0.1

        _, losses = minimise_batch(self.valleys, self.starts(), 60, enough)
        assert len(lowest) < 60
        assert losses.min() == lowest[-1] <= 0.1 < lowest[-2]
