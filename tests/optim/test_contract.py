"""What users rely on: refusals that change nothing, state, schedules, groups, devices."""

import copy
import io

import geoopt
import pytest
import torch

import tenfold
from tenfold.linalg import NonFiniteError
from tenfold.manifolds import TuckerManifold, move_
from tenfold.optim import (
    TDLRT,
    RankAdaptation,
    RiemannianAdam,
    RiemannianCG,
    RiemannianLBFGS,
    RiemannianSGD,
    TangentMuon,
    clip_riemannian_norm_,
)
from tests.optim.problems import (
    MANIFOLDS,
    Tensor,
    dense,
    descend,
    distance,
    generator,
    integrate,
    parameter,
    target,
)

MANIFOLD = MANIFOLDS[0]


def snapshot(p, optimizer):
    return copy.deepcopy(
        (p.detach(), p.manifold.rank, dict(optimizer.state[p]), optimizer.param_groups[0]["step"])
    )


def assert_same(before, after):
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert before[3] == after[3]
    for name, value in before[2].items():
        assert torch.equal(value, after[2][name])


@pytest.mark.parametrize("policy", [None, RankAdaptation(0.1)], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gradient_names_the_parameter_and_changes_nothing(policy, bad):
    p, plain, goal = parameter(MANIFOLD), torch.nn.Parameter(torch.ones(3)), target(MANIFOLD)
    named = [("net.bias", plain), ("net.weight", p)]
    optimizer = RiemannianSGD(named, lr=0.1, momentum=0.9, rank_adaptation=policy)
    descend(optimizer, p, goal, 2)
    before = snapshot(p, optimizer)
    distance(p, goal).backward()
    plain.grad = torch.ones(3)
    p.grad[4] = bad
    with pytest.raises(ValueError, match=r"gradient of parameter 'net\.weight'.*nothing was changed"):
        optimizer.step()
    assert_same(before, snapshot(p, optimizer))
    assert torch.equal(plain, torch.ones(3))
    p.grad = None
    plain.grad[1] = bad
    with pytest.raises(ValueError, match=r"gradient of parameter 'net\.bias'"):
        optimizer.step()
    assert torch.equal(plain, torch.ones(3))


@pytest.mark.parametrize("policy", [None, RankAdaptation(0.1)], ids=["fixed", "adaptive"])
def test_overflowing_step_changes_nothing(policy):
    p, goal = parameter(MANIFOLD, dtype=torch.float32), target(MANIFOLD, dtype=torch.float32)
    optimizer = RiemannianSGD([p], lr=1e30, rank_adaptation=policy)
    distance(p, goal).backward()
    p.grad *= 1e20
    before = snapshot(p, optimizer)
    with pytest.raises(ValueError, match="nothing was changed"):
        optimizer.step()
    assert_same(before, snapshot(p, optimizer))


@pytest.mark.parametrize("policy", [None, RankAdaptation(0.1)], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_extreme_gradients_stay_finite(policy, scale):
    p, goal = parameter(MANIFOLD, dtype=torch.float32), target(MANIFOLD, dtype=torch.float32)
    optimizer = RiemannianSGD([p], lr=0.1, momentum=0.9, rank_adaptation=policy)
    x = p.detach().clone()
    for _ in range(1 if scale > 1 else 3):
        distance(p, goal).backward()
        p.grad *= scale
        optimizer.step()
        optimizer.zero_grad()
    assert torch.isfinite(p).all()
    if scale < 1 and policy is None:
        torch.testing.assert_close(p.detach(), x)


def test_unsupported_arguments_are_refused():
    p = parameter(MANIFOLD)
    for name in ("fused", "capturable", "differentiable"):
        with pytest.raises(TypeError, match=name):
            RiemannianSGD([p], lr=0.1, **{name: True})
    for options in (
        {"lr": -1.0},
        {"momentum": -0.1},
        {"weight_decay": -0.1},
        {"nesterov": True},
        {"stabilize": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            RiemannianSGD([p], **options)
    with pytest.raises(TypeError, match="rank_adaptation"):
        RiemannianSGD([p], rank_adaptation=0.1)
    with pytest.raises(ValueError, match="lr"):
        RiemannianSGD([{"params": [p], "lr": -1.0}])


@pytest.mark.parametrize(
    "options",
    [
        {"tol": 1.0},
        {"tol": -0.1},
        {"tol": 0.1, "min_rank": 0},
        {"tol": 0.1, "max_rank": 1.5},
        {"tol": 0.1, "every": 0},
        {"tol": 0.1, "start": -1},
        {"tol": 0.1, "start": 5, "stop": 4},
    ],
    ids=str,
)
def test_rank_adaptation_refuses_nonsense(options):
    with pytest.raises(ValueError, match=list(options)[-1].replace("tol", "tolerance")):
        RankAdaptation(**options)


def test_rank_adaptation_schedule_and_limits():
    policy = RankAdaptation(0.5, every=3, start=4, stop=12, min_rank=2, max_rank=0.5)
    assert [step for step in range(1, 20) if policy.due(step)] == [7, 10]
    p, goal = parameter(TuckerManifold((8, 7, 6), 4)), target(TuckerManifold((8, 7, 6), 4))
    optimizer = RiemannianSGD([p], lr=0.5, rank_adaptation=policy)
    descend(optimizer, p, 1e-3 * goal, 6)
    assert p.manifold.rank == (4, 4, 4)
    descend(optimizer, p, 100 * goal, 1)
    assert all(2 <= r <= limit for r, limit in zip(p.manifold.rank, (4, 4, 3), strict=True))


def test_sparse_gradient_is_refused():
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = RiemannianSGD(table.parameters(), lr=0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


def test_closure_groups_and_schedulers():
    p, q, goal = parameter(MANIFOLD), parameter(MANIFOLD, 5), target(MANIFOLD)
    policy = RankAdaptation(0.0)
    optimizer = RiemannianSGD(
        [{"params": [p]}, {"params": [q], "lr": 0.0, "rank_adaptation": policy}], lr=0.2
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    start = q.manifold.to_dense(q.detach())

    def closure():
        optimizer.zero_grad()
        loss = distance(p, goal) + distance(q, goal)
        loss.backward()
        return loss

    losses = []
    for _ in range(3):
        losses.append(optimizer.step(closure).item())
        schedule.step()
    assert losses[2] < losses[1] < losses[0]
    torch.testing.assert_close(q.manifold.to_dense(q.detach()), start)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 / 8)


def test_state_survives_a_rank_change_through_plain_data():
    """Save after ranks changed, load into a fresh pair, and go on bit for bit."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            tenfold.nn.declare(self, "weight", MANIFOLD, dtype=torch.float64)

    policy, goal = RankAdaptation(0.05, every=2), target(MANIFOLD)
    net = Net()
    optimizer = RiemannianSGD(net.parameters(), lr=0.3, momentum=0.9, rank_adaptation=policy)
    descend(optimizer, net.weight, goal, 3)
    assert net.weight.manifold != MANIFOLD
    stream = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)

    fresh = Net()
    resumed = RiemannianSGD(fresh.parameters(), lr=1.0)
    before = copy.deepcopy(resumed.state_dict())
    with pytest.raises(ValueError, match="load the model's state before the optimizer's"):
        resumed.load_state_dict(saved["optimizer"])
    assert resumed.state_dict() == before
    fresh.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.param_groups[0]["rank_adaptation"] == policy
    for o, n in ((optimizer, net), (resumed, fresh)):
        descend(o, n.weight, goal, 5)
    assert net.weight.manifold == fresh.weight.manifold
    assert torch.equal(net.weight, fresh.weight)


def test_old_graph_does_not_break_the_step_after_a_rank_change():
    p, goal = parameter(MANIFOLD), target(MANIFOLD)
    optimizer = RiemannianSGD([p], lr=0.3, rank_adaptation=RankAdaptation(0.0))
    losses, ranks = [], [p.manifold.rank]
    for _ in range(3):
        losses.append(distance(p, goal))  # keeps every graph, and its gradient accumulators, alive
        optimizer.zero_grad()
        losses[-1].backward()
        assert p.grad.shape == p.shape
        optimizer.step()
        ranks.append(p.manifold.rank)
        assert (p.grad is None) == (ranks[-1] != ranks[-2])
    assert len(set(ranks)) > 2


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_fixed_rank_steps_run_on_other_devices(manifold, device):
    """The meta device refuses every read of a value: no hidden synchronisation, no CPU constant."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    size = (manifold.size,)
    parameters = [
        geoopt.ManifoldParameter(torch.empty(size, device=device), manifold=manifold) for _ in range(2)
    ]
    if device == "cuda":
        for k, p in enumerate(parameters):
            p.data.copy_(manifold.random(generator=generator(k)))
    optimizer = RiemannianSGD(
        parameters, lr=0.1, momentum=0.9, weight_decay=0.1, check_finite=device != "meta"
    )
    for _ in range(3):
        optimizer.zero_grad()
        sum(p.manifold.to_dense(p).square().sum() for p in parameters).backward()
        optimizer.step()
    assert all(p.device.type == device for p in parameters)


def test_number_of_kernels_does_not_grow_with_the_number_of_layers():
    def kernels(count):
        parameters = [parameter(MANIFOLD, seed) for seed in range(count)]
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer = RiemannianSGD(parameters, lr=0.1, momentum=0.9)
        optimizer.step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            optimizer.step()
        heavy = ("aten::bmm", "aten::mm", "aten::linalg_qr", "aten::linalg_solve_triangular")
        return {e.key: e.count for e in profile.key_averages() if e.key in heavy}

    assert kernels(8) == kernels(2) != {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("damping", [None, 0.1])
def test_a_fixed_rank_step_replays_from_a_cuda_graph(damping):
    """Capture refuses every synchronisation; the replayed steps are those that run eagerly."""
    found = []
    for captured in (False, True):
        p = geoopt.ManifoldParameter(MANIFOLD.random(generator=generator(0)).cuda(), manifold=MANIFOLD)
        optimizer = RiemannianSGD([p], lr=0.1, momentum=0.9, damping=damping, check_finite=False)
        p.grad = torch.ones_like(p)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):  # allocates the state and the workspaces
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
            state = optimizer.state[p]["momentum_buffer"]
            assert state.device.type == "cuda"
            graph.replay()
        else:
            optimizer.step()
        found.append(MANIFOLD.to_dense(p.detach()))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("before", [None, "StepLR"])
def test_a_state_loads_beside_another_scheduler_as_in_torch(before):
    net = torch.nn.Linear(3, 2)
    saved = RiemannianSGD(net.parameters(), lr=0.25, momentum=0.9)
    if before:
        torch.optim.lr_scheduler.StepLR(saved, 1)
    new = RiemannianSGD(net.parameters(), lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(new, 0.3, total_steps=10)
    new.load_state_dict(saved.state_dict())
    assert new.param_groups[0]["lr"] == saved.param_groups[0]["lr"]


@pytest.mark.parametrize("method", [RiemannianSGD, RiemannianCG])
def test_a_hook_brings_a_state_into_shape_before_it_is_checked(method):
    p, q = parameter(MANIFOLD), torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    options = {"momentum": 0.9} if method is RiemannianSGD else {"max_iter": 2}
    saved, swapped = method([p, q], **options), method([q, p], **options)

    def closure():
        saved.zero_grad()
        loss = distance(p, target(MANIFOLD)) + q.square().sum()
        loss.backward()
        return loss

    saved.step(closure)

    def swap(optimizer, state_dict):
        first, second = state_dict["state"].values()
        return {**state_dict, "state": {0: second, 1: first}}

    handle = swapped.register_load_state_dict_pre_hook(swap)
    swapped.load_state_dict(saved.state_dict())
    for parameter_ in (p, q):
        for name, value in saved.state[parameter_].items():
            assert torch.equal(swapped.state[parameter_][name], value)
    handle.remove()
    with pytest.raises(ValueError, match="has the shape"):
        swapped.load_state_dict(saved.state_dict())


@pytest.mark.parametrize("cls", [RiemannianAdam, TangentMuon])
def test_a_model_of_another_type_goes_on_with_its_state(cls):
    p = parameter(MANIFOLD, dtype=torch.float32)
    optimizer = cls([p], lr=0.1)
    descend(optimizer, p, target(MANIFOLD, dtype=torch.float32), 2)
    q = parameter(MANIFOLD)
    with torch.no_grad():
        q.copy_(p)
    twin = cls([q], lr=0.1)
    twin.load_state_dict(optimizer.state_dict())
    p.data = p.data.double()
    assert descend(optimizer, p, target(MANIFOLD), 2) == descend(twin, q, target(MANIFOLD), 2)


@pytest.mark.parametrize("optimizer", ["sgd", "two-pass", "fused", "parallel"])
def test_state_of_another_rank_is_refused_by_name(optimizer):
    nets, policy = [Tensor(MANIFOLD) for _ in "ab"], RankAdaptation(0.01, every=2)
    pair = torch.nn.ModuleList(nets)
    if optimizer == "sgd":
        optimizer = RiemannianSGD(pair.parameters(), lr=0.1, momentum=0.9)
    else:
        optimizer = integrate(optimizer, pair, lr=0.1, momentum=0.9, rank_adaptation=policy)

    def closure():
        optimizer.zero_grad()
        loss = sum((net() - target(MANIFOLD)).square().sum() for net in nets)
        loss.backward()
        return loss

    optimizer.step(closure)
    smaller = MANIFOLD.with_rank((2, 2, 2))
    move_(nets[1].weight, smaller, smaller.random(dtype=torch.float64, generator=generator(2)))
    for _ in range(2):
        with pytest.raises(ValueError, match="momentum_buffer of parameter 1"):
            optimizer.step(closure)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (RiemannianSGD, {"lr": 0.1}),
        (RiemannianAdam, {"lr": 0.1, "rank_adaptation": RankAdaptation(0.01)}),
        (TDLRT, {"lr": 0.1, "rank_adaptation": RankAdaptation(0.01, every=2)}),
        (RiemannianCG, {}),
    ],
)
def test_steps_keep_their_precision_inside_autocast(make, options):
    found = []
    for inside in (False, True):
        net = Tensor(MANIFOLD, MANIFOLD.random(generator=generator(0)))
        goal = target(MANIFOLD, dtype=torch.float32)
        optimizer = make(net.parameters(), **options)

        def closure(net=net, goal=goal, optimizer=optimizer):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = (net().flatten(1) @ torch.ones(20, 3) - goal.flatten(1)[:, :3]).square().mean()
                loss.backward()
            clip_riemannian_norm_(net.parameters(), 10.0)
            return loss

        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                optimizer.step(closure)
        found.append(dense(net.weight))
    assert torch.equal(*found)


def test_complex_gradients_that_are_not_finite_are_refused(recwarn):
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = RiemannianSGD([p], lr=0.1)
    p.grad = torch.tensor([1.0, complex(0.0, torch.inf)])
    with pytest.raises(NonFiniteError):
        optimizer.step()
    p.grad = torch.tensor([1.0, 1.0j])
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.9, 1 - 0.1j]))
    assert not recwarn


@pytest.mark.parametrize("option", ["lr", "momentum", "weight_decay", "damping"])
def test_options_that_are_no_number_are_refused(option):
    with pytest.raises(ValueError, match=option):
        RiemannianSGD([parameter(MANIFOLD)], **{option: torch.nan})


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        (RiemannianSGD, "lr", "0.1"),
        (RiemannianSGD, "momentum", torch.inf),
        (RiemannianSGD, "dampening", torch.nan),
        (RiemannianSGD, "dampening", 1.5),
        (RiemannianSGD, "stabilize", 1.5),
        (RiemannianSGD, "damping", True),
        (RiemannianAdam, "eps", None),
        (RiemannianAdam, "betas", 0.9),
        (RiemannianAdam, "betas", (0.9, None)),
        (TangentMuon, "weight_decay", torch.inf),
        (RiemannianCG, "max_iter", 0),
        (RiemannianCG, "tolerance_grad", torch.nan),
        (RiemannianCG, "first_step", "1"),
        (RiemannianCG, "max_doublings", 1.5),
        (RiemannianLBFGS, "history_size", 0),
    ],
)
def test_options_out_of_range_are_refused_wherever_they_are_given(method, option, value):
    p = parameter(MANIFOLD)
    if option != "max_doublings":
        with pytest.raises(ValueError, match=option):
            method([p], **{option: value})
    with pytest.raises(ValueError, match=option):
        method([{"params": [p], option: value}])
    optimizer = method([p])
    optimizer.param_groups[0][option] = value
    with pytest.raises(ValueError, match=option):
        method([p]).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("core_steps", [0, 1.5, True])
def test_core_steps_that_are_no_number_of_steps_are_refused(core_steps):
    with pytest.raises(ValueError, match="core_steps"):
        TDLRT([parameter(MANIFOLD)], rank_adaptation=RankAdaptation(0.1, every=3), core_steps=core_steps)
