"""Optimizers with a line search: known minimisers, recovery, Wolfe conditions, state, ranks, refusals."""

import copy
import io
import itertools
import pickle

import geoopt
import pytest
import torch

from tenfold.manifolds import TuckerManifold, is_low_rank
from tenfold.manifolds.entries import Entries
from tenfold.optim import Outcome, RankAdaptation, RiemannianCG, RiemannianLBFGS, RiemannianSGD, WolfeSearch
from tests.optim.problems import MANIFOLDS, dense, distance, generator, parameter, target

MANIFOLD = MANIFOLDS[0]
METHODS = pytest.mark.parametrize("method", [RiemannianCG, RiemannianLBFGS])


def closure_of(optimizer, loss):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def solve(optimizer, loss, steps=1):
    return [float(optimizer.step(closure_of(optimizer, loss))) for _ in range(steps)]


def gradient_norm(p, goal):
    return p.manifold.project_dense(p.detach(), dense(p) - goal).norm().item()


@METHODS
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_finds_a_tensor_of_its_own_rank(method, manifold):
    p = parameter(manifold)
    goal = manifold.to_dense(manifold.random(dtype=torch.float64, generator=generator(5)))
    optimizer = method([p], max_iter=60, tolerance_grad=1e-8)
    solve(optimizer, lambda: distance(p, goal))
    assert optimizer.report.outcome is Outcome.CONVERGED
    assert optimizer.report.gradient_norm <= 1e-8
    torch.testing.assert_close(dense(p), goal, atol=1e-7, rtol=0)


@METHODS
def test_finds_the_best_approximation_of_a_matrix(method):
    """The minimiser is the truncated singular value decomposition (Eckart and Young)."""
    manifold = MANIFOLDS[2]
    p, goal = parameter(manifold), target(manifold)
    solve(method([p], max_iter=100), lambda: distance(p, goal))
    u, s, vt = torch.linalg.svd(goal, full_matrices=False)
    torch.testing.assert_close(dense(p), u[:, :3] * s[:3] @ vt[:3], atol=1e-6, rtol=0)


@METHODS
@pytest.mark.parametrize("manifold", [MANIFOLDS[0], MANIFOLDS[3]], ids=str)
def test_needs_far_fewer_iterations_than_gradient_descent_at_its_best_rate(method, manifold):
    """Entries weighted from 1 to 100: the inverse of the smoothness constant is 1 / 100."""
    goal = manifold.to_dense(manifold.random(dtype=torch.float64, generator=generator(5)))
    order = torch.randperm(goal.numel(), generator=generator(6))
    weight = torch.logspace(0, 2, goal.numel(), dtype=torch.float64)[order].reshape(goal.shape)
    noise = torch.randn(goal.shape, dtype=torch.float64, generator=generator(7))
    start = manifold.from_dense(goal + 0.3 * noise)

    def loss(p):
        return 0.5 * (weight * (p.manifold.to_dense(p) - goal).square()).sum()

    p = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
    wanted = 1e-6 * loss(p).item()
    optimizer = method([p], max_iter=1)
    needed = 0
    while loss(p).item() > wanted:
        solve(optimizer, lambda: loss(p))
        needed += 1
    assert needed < 100
    for lr in (0.005, 0.01, 0.017):
        q = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
        descent = RiemannianSGD([q], lr=lr)
        for _ in range(2 * needed):
            descent.step(closure_of(descent, lambda q=q: loss(q)))
        assert not loss(q).item() <= wanted, f"with lr {lr} twice as many are enough"


@METHODS
@pytest.mark.parametrize("shape", [(20, 18, 16)], ids=str)
def test_completes_a_tensor_exactly(method, shape):
    """Noiseless, 40 % of the entries seen: the gradient falls to 1e-8 and the tensor is recovered."""
    manifold = TuckerManifold(shape, 3)
    truth = manifold.to_dense(manifold.random(dtype=torch.float64, generator=generator(3)))
    flat = torch.randperm(truth.numel(), generator=generator(4))[: int(0.4 * truth.numel())]
    entries = Entries(manifold, torch.stack(torch.unravel_index(flat, shape), dim=1))
    values, p = truth.reshape(-1)[flat], parameter(manifold, seed=8)
    optimizer = method([p], max_iter=200, tolerance_grad=1e-8)
    solve(optimizer, lambda: 0.5 * (entries(p.manifold, p) - values).square().sum())
    assert optimizer.report.outcome is Outcome.CONVERGED
    assert (dense(p) - truth).norm() / truth.norm() < 1e-8


@METHODS
def test_completes_with_growing_ranks(method):
    """From rank 1 to the true one; each time the state is carried along."""
    manifold = TuckerManifold((12, 11, 10), 1)
    full = manifold.with_rank(3)
    truth = full.to_dense(full.random(dtype=torch.float64, generator=generator(3)))
    flat = torch.randperm(truth.numel(), generator=generator(4))[: truth.numel() // 2]
    entries = Entries(manifold, torch.stack(torch.unravel_index(flat, truth.shape), dim=1))
    values, p = truth.reshape(-1)[flat], parameter(manifold)
    optimizer = method([p], max_iter=10, tolerance_grad=1e-8)
    noise = generator(9)

    def loss():
        return 0.5 * (entries(p.manifold, p) - values).square().sum()

    for rank in (2, 3):
        solve(optimizer, loss)
        before = loss().item()
        optimizer.grow_ranks(lambda m, rank=rank: (rank,) * len(m.shape), generator=noise)
        assert p.manifold.rank == (rank,) * 3
        assert all(v.shape == p.shape for v in optimizer.state[p].values())
        assert loss().item() == pytest.approx(before, rel=1e-4)
    solve(optimizer, loss, 20)
    assert optimizer.report.outcome is Outcome.CONVERGED
    assert (dense(p) - truth).norm() / truth.norm() < 1e-8


@METHODS
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_every_accepted_step_satisfies_the_strong_wolfe_conditions(method, manifold):
    p, goal = parameter(manifold), target(manifold)
    search = WolfeSearch(decrease=1e-3, curvature=0.2)
    optimizer = method([p], max_iter=12, search=search, tolerance_grad=1e-4)
    solve(optimizer, lambda: distance(p, goal))
    assert optimizer.report.accepted
    losses = []
    for start, end in optimizer.report.accepted:
        assert end.loss <= start.loss + 1e-3 * end.length * start.slope
        assert abs(end.slope) <= 0.2 * abs(start.slope)
        assert start.slope < 0 < end.length
        losses += [start.loss, end.loss]
    assert all(b <= a for a, b in itertools.pairwise(losses))
    assert optimizer.report.loss == distance(p, goal).item()
    assert optimizer.report.gradient_norm == pytest.approx(gradient_norm(p, goal))


def test_directions_are_conjugate_on_a_quadratic():
    """On a quadratic of four plain numbers the directions are those of linear CG: done after four steps."""
    hessian = torch.diag(torch.tensor([1.0, 4.0, 9.0, 30.0], dtype=torch.float64))
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimizer = RiemannianCG([p], max_iter=4, search=WolfeSearch(curvature=1e-3), tolerance_grad=0.0)
    solve(optimizer, lambda: 0.5 * p @ hessian @ p)
    assert optimizer.report.gradient_norm < 1e-2 * hessian.diagonal().norm()
    assert optimizer.report.loss < 1e-4


@METHODS
def test_moves_low_rank_other_manifolds_and_plain_parameters_together(method):
    """Maximise u^T W v + offset over the sphere with W fitted at the same time."""
    p, goal = parameter(MANIFOLD), target(MANIFOLD)
    sphere = geoopt.ManifoldParameter(
        torch.nn.functional.normalize(target(MANIFOLD, 4)[0, :, 0], dim=0), manifold=geoopt.Sphere()
    )
    plain = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    pole = torch.nn.functional.normalize(target(MANIFOLD, 5)[0, :, 0], dim=0)
    optimizer = method([p, sphere, plain], max_iter=80, tolerance_grad=1e-6)
    solve(
        optimizer,
        lambda: distance(p, goal) - sphere @ pole + (plain - torch.arange(3)).square().sum(),
    )
    assert optimizer.report.outcome is Outcome.CONVERGED
    assert gradient_norm(p, goal) < 1e-6
    torch.testing.assert_close(sphere.detach(), pole, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.detach(), torch.arange(3).double(), atol=1e-6, rtol=0)


@METHODS
def test_parameters_without_a_gradient_stay(method):
    p, idle, goal = parameter(MANIFOLD), parameter(MANIFOLD, seed=3), target(MANIFOLD)
    before = idle.detach().clone()
    solve(method([p, idle], max_iter=3), lambda: distance(p, goal))
    assert torch.equal(idle, before)


@METHODS
def test_a_batch_of_points_is_one_problem(method):
    x = torch.stack([parameter(MANIFOLD, s).detach() for s in (1, 2)])
    p = geoopt.ManifoldParameter(x, manifold=MANIFOLD)
    goal = MANIFOLD.to_dense(torch.stack([parameter(MANIFOLD, s).detach() for s in (3, 4)]))
    optimizer = method([p], max_iter=200, tolerance_grad=1e-8)
    solve(optimizer, lambda: distance(p, goal))
    assert optimizer.report.outcome is Outcome.CONVERGED


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stalls_instead_of_wandering_at_the_limit_of_rounding(method, dtype):
    p, goal = parameter(MANIFOLD, dtype=dtype), target(MANIFOLD, dtype=dtype)
    optimizer = method([p], max_iter=100, tolerance_grad=0.0)
    solve(optimizer, lambda: distance(p, goal))
    assert optimizer.report.outcome is Outcome.STALLED
    assert optimizer.report.gradient_norm < 100 * torch.finfo(dtype).eps ** 0.5
    ok, reason = MANIFOLD.check_point_on_manifold(p.detach(), explain=True)
    assert ok, reason


@METHODS
@pytest.mark.parametrize("change", [None, "truncate", "grow"])
def test_state_dict_goes_on_identically(method, change):
    p, goal = parameter(MANIFOLD), target(MANIFOLD)
    optimizer = method([p], max_iter=3)
    solve(optimizer, lambda: distance(p, goal))
    if change == "truncate":
        optimizer.adapt_ranks(RankAdaptation(0.5))
        assert p.manifold != MANIFOLD
    if change == "grow":
        optimizer.grow_ranks((4, 3, 3), generator=generator(1))
    stream = io.BytesIO()
    torch.save(optimizer.state_dict(), stream)
    stream.seek(0)
    q = geoopt.ManifoldParameter(p.detach().clone(), manifold=p.manifold)
    resumed = method([q], max_iter=7, first_step=0.1)
    resumed.load_state_dict(torch.load(stream, weights_only=True))
    twin = copy.deepcopy({"p": p, "optimizer": optimizer})
    solve(optimizer, lambda: distance(p, goal), 3)
    solve(resumed, lambda: distance(q, goal), 3)
    solve(twin["optimizer"], lambda: distance(twin["p"], goal), 3)
    assert torch.equal(p, q)
    assert torch.equal(p, twin["p"])
    assert resumed.report == optimizer.report


@METHODS
def test_iterations_may_be_split_into_steps(method):
    p, q, goal = parameter(MANIFOLD), parameter(MANIFOLD), target(MANIFOLD)
    one, many = method([p], max_iter=9), method([q], max_iter=1)
    solve(one, lambda: distance(p, goal))
    losses = solve(many, lambda: distance(q, goal), 9)
    assert torch.equal(p, q)
    assert losses == [start.loss for start, _ in one.report.accepted]


@METHODS
def test_state_of_another_rank_is_refused(method):
    p, goal = parameter(MANIFOLD), target(MANIFOLD)
    optimizer = method([p], max_iter=2)
    solve(optimizer, lambda: distance(p, goal))
    other = TuckerManifold(MANIFOLD.shape, 2)
    q = parameter(other)
    fresh = method([q])
    with pytest.raises(ValueError, match="load the model's state before the optimizer's"):
        fresh.load_state_dict(optimizer.state_dict())
    assert not fresh.state


@METHODS
@pytest.mark.parametrize("bad", ["nan at the start", "exception in a trial"])
def test_a_failed_step_changes_nothing(method, bad):
    p, goal = parameter(MANIFOLD), target(MANIFOLD)
    optimizer = method([p], max_iter=4)
    solve(optimizer, lambda: distance(p, goal))
    before, state = p.detach().clone(), copy.deepcopy(optimizer.state_dict())
    calls = itertools.count()

    def loss():
        if bad == "nan at the start":
            return distance(p, goal) * float("nan")
        if next(calls) == 3:
            raise RuntimeError("interrupted")
        return distance(p, goal)

    with pytest.raises((ValueError, RuntimeError), match=r"nothing was changed|interrupted"):
        solve(optimizer, loss)
    assert torch.equal(p, before)
    now = optimizer.state_dict()
    assert now["param_groups"] == state["param_groups"]
    for name, value in state["state"][0].items():
        assert torch.equal(value, now["state"][0][name])


@METHODS
def test_a_trial_that_is_not_finite_is_stepped_back_from(method):
    """A barrier: beyond it the loss is NaN, and the first trial lies there."""
    p = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = method([p], max_iter=30, first_step=50.0)
    solve(optimizer, lambda: (p - torch.log(p)).sum())
    torch.testing.assert_close(p.detach(), torch.ones(1, dtype=torch.float64))
    p.data.fill_(3.0)
    optimizer = method([p], max_iter=30, first_step=50.0)
    solve(optimizer, lambda: (p - torch.log(p)).sum())
    torch.testing.assert_close(p.detach(), torch.ones(1, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_iter": 0}, ValueError),
        ({"tolerance_grad": -1.0}, ValueError),
        ({"first_step": 0.0}, ValueError),
        ({"search": "wolfe"}, TypeError),
    ],
)
@METHODS
def test_arguments_out_of_range_are_refused(method, arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        method([parameter(MANIFOLD)], **arguments)


def test_history_size_out_of_range_is_refused():
    with pytest.raises(ValueError, match="history_size"):
        RiemannianLBFGS([parameter(MANIFOLD)], history_size=0)


@pytest.mark.parametrize(
    "arguments", [{"decrease": 0.0}, {"decrease": 0.3, "curvature": 0.2}, {"max_doublings": 0}]
)
def test_search_constants_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must"):
        WolfeSearch(**arguments)


def test_what_cannot_be_done_is_refused():
    p = parameter(MANIFOLD)
    with pytest.raises(ValueError, match="single parameter group"):
        RiemannianCG([{"params": [p]}, {"params": [parameter(MANIFOLD)]}])
    with pytest.raises(TypeError, match="float32 or float64"):
        RiemannianCG([torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))])
    optimizer = RiemannianCG([p])
    with pytest.raises(TypeError, match="closure"):
        optimizer.step(None)
    with pytest.raises(TypeError, match="RankPolicy"):
        optimizer.adapt_ranks(0.1)
    before = p.detach().clone()
    for rank, match in (((2, 2, 2), "only grow"), ((6, 2, 2), "largest feasible")):
        with pytest.raises(ValueError, match=match):
            optimizer.grow_ranks(rank)
    assert torch.equal(p, before)
    assert is_low_rank(p)
    with pytest.raises(ValueError, match="scale"):
        optimizer.grow_ranks((4, 3, 3), scale=0.0)


@METHODS
def test_a_trial_that_is_not_finite_is_left_again(method):
    """The loss falls up to 1 and is infinite beyond: the search ends at the last finite trial."""
    x = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = method([x], max_iter=1, first_step=1.0)

    def loss():
        value = -x.sum()
        return value if value >= -1 else value + torch.inf

    solve(optimizer, loss)
    assert optimizer.report.loss == loss().item() == -1.0


@METHODS
def test_a_model_of_another_type_goes_on_with_its_state(method):
    p = parameter(MANIFOLD, dtype=torch.float32)
    optimizer = method([p], max_iter=3)
    goal = target(MANIFOLD, dtype=torch.float32)
    before = solve(optimizer, lambda: distance(p, goal))
    p.data = p.data.double()
    p.grad = None
    assert solve(optimizer, lambda: distance(p, goal.double())) < before
    assert all(value.dtype == torch.float64 for value in optimizer.state[p].values())


@METHODS
def test_copies_go_on_alike(method):
    p, goal = parameter(MANIFOLD), target(MANIFOLD)
    optimizer = method([p], max_iter=2)
    for twin in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        solve(optimizer, lambda: distance(p, goal))
        q, other = twin((p, optimizer))
        assert other.report is None
        expected = solve(optimizer, lambda: distance(p, goal))
        assert solve(other, lambda q=q: distance(q, goal)) == expected
