"""TDLRT: the three integrators against dense formulas and against each other."""

import copy
import pickle

import geoopt
import pytest
import torch
from torch import nn

import tenfold
from tenfold.manifolds import FixedRankManifold, LowRankManifold, TuckerManifold
from tenfold.optim import TDLRT, RankAdaptation, RiemannianSGD, TDLRTAdamW, TDLRTMuon
from tests.optim.problems import (
    MANIFOLDS,
    Tensor,
    advance,
    dense,
    distance,
    generator,
    integrate,
    run,
    target,
    toy,
)

EXACT = RankAdaptation(0.0)


@pytest.mark.parametrize("integrator", ["two-pass", "fused"])
@pytest.mark.parametrize("manifold", MANIFOLDS[:3], ids=str)
def test_augmented_step_is_the_projected_gradient_step(manifold, integrator):
    """W+ = W - lr G x_i U^_i U^_i^T with U^_i = orth[U_i | g_i], for Tucker and matrices."""
    net, goal = Tensor(manifold), target(manifold)
    w = dense(net.weight)
    g = w - goal
    distance(net.weight, goal).backward()
    projected = g
    factors = manifold.unpack_tensor(net.weight.detach())[1:]
    gradients = manifold.unpack_tensor(net.weight.grad)[1:]
    modes = getattr(manifold, "modes", (0, 1))
    for mode, u, g_u in zip(modes, factors, gradients, strict=True):
        basis = torch.linalg.qr(torch.cat([u, g_u], dim=1))[0]
        projected = torch.tensordot(projected, basis @ basis.T, dims=([mode], [0])).movedim(-1, mode)
    net.zero_grad()
    run(integrate(integrator, net, lr=0.3), net, goal, 1)
    torch.testing.assert_close(dense(net.weight), w - 0.3 * projected)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("cls", [TDLRT, TDLRTAdamW, TDLRTMuon])
def test_fused_and_two_pass_take_the_same_steps(manifold, cls):
    goal = target(manifold)
    options = {"momentum": 0.7, "lr": 0.2} if cls is TDLRT else {"lr": 0.05}
    nets = []
    for integrator in ("two-pass", "fused"):
        net = Tensor(manifold)
        policy = RankAdaptation(0.02, every=3, max_rank=4)
        optimizer = integrate(integrator, net, cls, rank_adaptation=policy, **options)
        losses = run(optimizer, net, goal, 9)
        assert losses[-1] < losses[0]
        nets.append(net)
    assert nets[0].weight.manifold == nets[1].weight.manifold
    torch.testing.assert_close(dense(nets[0].weight), dense(nets[1].weight))


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_parallel_is_the_riemannian_step_with_adaptive_retraction(manifold):
    goal = target(manifold)
    policy = RankAdaptation(0.2)
    net, other = Tensor(manifold), Tensor(manifold)
    ours = integrate("parallel", net, lr=0.3, rank_adaptation=policy)
    theirs = RiemannianSGD(other.parameters(), lr=0.3, rank_adaptation=policy)
    theirs.integrator = "none"
    run(ours, net, goal, 4)
    run(theirs, other, goal, 4)
    assert net.weight.manifold == other.weight.manifold
    torch.testing.assert_close(dense(net.weight), dense(other.weight))


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("integrator", ["two-pass", "fused"])
def test_descent_is_at_least_that_of_the_riemannian_step(manifold, integrator):
    """L(W+) <= L(W) - lr (1 - lr/2) |P G|^2 and |P G| >= |P(W) G|: the tangent space is in the subspace."""
    net, goal = Tensor(manifold), target(manifold)
    x = net.weight.detach().clone()
    tangent = manifold.norm(x, manifold.project_dense(x, dense(net.weight) - goal)).item()
    losses = run(integrate(integrator, net, lr=0.5), net, goal, 2)
    assert losses[1] <= losses[0] - 0.5 * 0.75 * tangent**2 + 1e-10


@pytest.mark.parametrize("integrator", ["two-pass", "fused"])
def test_ranks_grow_at_small_steps_where_the_parallel_integrator_stays(integrator):
    truth = TuckerManifold((12, 12, 12), 4)
    goal = truth.to_dense(truth.random(dtype=torch.float64, generator=generator(0)))
    ranks = {}
    for kind in (integrator, "parallel"):
        net = Tensor(TuckerManifold((12, 12, 12), 2))
        policy = RankAdaptation(0.01, every=2)
        run(integrate(kind, net, lr=0.05, rank_adaptation=policy), net, goal, 6)
        ranks[kind] = sum(net.weight.manifold.rank)
    assert ranks[integrator] > ranks["parallel"]


@pytest.mark.parametrize("decay", [1.0, 2.0, 10.0, 100.0])
@pytest.mark.parametrize("integrator", ["two-pass", "fused"])
def test_toy_converges_at_any_conditioning_and_finds_the_true_rank(decay, integrator):
    start, goal = toy(decay)
    net = Tensor(start.manifold, start.detach())
    losses = run(integrate(integrator, net, lr=0.5, rank_adaptation=RankAdaptation(1e-3)), net, goal, 20)
    assert min(losses) < 1e-8
    assert net.weight.manifold.rank == (4, 4, 4)


def test_between_augmentations_only_the_core_moves():
    manifold, goal = MANIFOLDS[0], target(MANIFOLDS[0])
    net = Tensor(manifold)
    before = [f.clone() for f in manifold.unpack_tensor(net.weight.detach())]
    run(
        integrate("two-pass", net, lr=0.2, momentum=0.9, rank_adaptation=RankAdaptation(0.1, every=10)),
        net,
        goal,
        3,
    )
    after = manifold.unpack_tensor(net.weight.detach())
    assert not torch.equal(before[0], after[0])
    for a, b in zip(before[1:], after[1:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("cls", [TDLRT, TDLRTAdamW, TDLRTMuon])
def test_the_truncation_waits_for_the_core_steps(manifold, cls):
    """Augmented in steps 4, 8, ..., truncated two steps later; both integrators alike."""
    goal = target(manifold)
    policy = RankAdaptation(0.3, every=4, max_rank=2)
    ranks, nets = [], []
    for integrator in ("two-pass", "fused"):
        net = Tensor(manifold)
        optimizer = integrate(integrator, net, cls, lr=0.02, rank_adaptation=policy, core_steps=3)
        sizes = []
        for _ in range(12):
            run(optimizer, net, goal, 1)
            sizes.append(net.weight.numel())
        ranks.append(sizes)
        nets.append(net)
    sizes = ranks[0]
    assert ranks[1] == sizes
    assert sizes[2] == manifold.size
    assert sizes[3] == sizes[4] > manifold.size
    assert sizes[5] == sizes[6] < sizes[4]
    assert sizes[7] == sizes[8] > sizes[9]
    torch.testing.assert_close(dense(nets[0].weight), dense(nets[1].weight))
    twin = Tensor(nets[0].weight.manifold, nets[0].weight.detach())
    assert twin.weight.manifold.check_point_on_manifold(twin.weight.detach())


@pytest.mark.parametrize("manifold", MANIFOLDS[:3], ids=str)
@pytest.mark.parametrize("core_steps", [1, 3])
@pytest.mark.parametrize("cls", [TDLRT, TDLRTAdamW, TDLRTMuon])
def test_the_policy_sees_the_singular_values_of_the_stepped_tensor(cls, core_steps, manifold):
    seen = []

    class Watching(RankAdaptation):
        def wanted(self, pending, limits, step):
            seen.append(pending[0].truncation.singular_values)
            return super().wanted(pending, limits, step)

    net, goal = Tensor(manifold), target(manifold)
    options = {"momentum": 0.7, "lr": 0.3} if cls is TDLRT else {"lr": 0.1}
    policy = Watching(0.0, every=3)
    optimizer = integrate("fused", net, cls, rank_adaptation=policy, core_steps=core_steps, **options)
    while not seen:
        run(optimizer, net, goal, 1)
    # Nothing has been discarded, so that the tensor is the one that was stepped.
    stepped = dense(net.weight)
    for mode, values in zip(getattr(manifold, "modes", (0,)), seen[0], strict=True):
        want = torch.linalg.svdvals(stepped.movedim(mode, 0).flatten(1))
        torch.testing.assert_close(values[: len(want)], want[: len(values)])


def test_directions_that_one_step_cannot_prove_grow_in_several():
    truth = TuckerManifold((12, 12, 12), 4)
    goal = truth.to_dense(truth.random(dtype=torch.float64, generator=generator(0)))
    ranks = []
    for core_steps in (1, 8):
        net = Tensor(TuckerManifold((12, 12, 12), 2))
        policy = RankAdaptation(0.1, every=8)
        run(integrate("fused", net, lr=0.02, rank_adaptation=policy, core_steps=core_steps), net, goal, 15)
        ranks.append(sum(net.weight.manifold.rank))
    assert ranks[1] > ranks[0]


def test_training_goes_on_between_augmentation_and_truncation():
    goal = target(MANIFOLDS[0])
    nets = [Tensor(MANIFOLDS[0]) for _ in "ab"]
    policy = RankAdaptation(0.2, every=4)
    first, second = (
        integrate("two-pass", net, lr=0.1, momentum=0.9, rank_adaptation=policy, core_steps=4) for net in nets
    )
    run(first, nets[0], goal, 6)
    nets[1].load_state_dict(nets[0].state_dict())
    second.load_state_dict(first.state_dict())
    assert run(first, nets[0], goal, 5) == run(second, nets[1], goal, 5)
    assert torch.equal(nets[0].weight, nets[1].weight)


@pytest.mark.parametrize("core_steps", [0, 6])
def test_core_steps_fit_into_the_interval(core_steps):
    net = Tensor(MANIFOLDS[0])
    with pytest.raises(ValueError, match=f"between 1 and the 5 steps .* got {core_steps}"):
        integrate("two-pass", net, rank_adaptation=RankAdaptation(0.1, every=5), core_steps=core_steps)


@pytest.mark.parametrize("core_steps", [1, 2])
def test_the_bases_move_at_fixed_rank_before_the_first_decision(core_steps):
    manifold, goal = MANIFOLDS[0], target(MANIFOLDS[0])
    net = Tensor(manifold)
    bases = manifold.unpack_tensor(net.weight.detach().clone())[1:]
    policy = RankAdaptation(0.0, every=2, start=4)
    optimizer = integrate("two-pass", net, lr=0.1, rank_adaptation=policy, core_steps=core_steps)
    run(optimizer, net, goal, 4)
    assert net.weight.manifold == manifold
    assert not torch.allclose(manifold.unpack_tensor(net.weight.detach())[1], bases[0])
    run(optimizer, net, goal, 3)
    assert net.weight.manifold.rank > manifold.rank


def test_final_phase_moves_the_bases_at_fixed_rank():
    manifold, goal = MANIFOLDS[0], target(MANIFOLDS[0])
    net = Tensor(manifold)
    optimizer = integrate(
        "two-pass", net, lr=0.2, momentum=0.5, rank_adaptation=RankAdaptation(0.0, every=2, stop=2)
    )
    run(optimizer, net, goal, 2)
    rank, basis = net.weight.manifold.rank, net.weight.manifold.unpack_tensor(net.weight.detach())[1].clone()
    losses = run(optimizer, net, goal, 4)
    assert net.weight.manifold.rank == rank != manifold.rank
    assert losses[-1] < losses[0]
    assert not torch.allclose(net.weight.manifold.unpack_tensor(net.weight.detach())[1], basis)


def network(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(8 * 4 * 4, 10)
    )
    net = net.double()
    tenfold.nn.factorize(net, rank=0.5, exclude=["0"], init="random")
    return net


def train(net, optimizer, steps, seed=1):
    source = generator(seed)
    losses = []
    for _ in range(steps):
        x = torch.randn(16, 2, 6, 6, dtype=torch.float64, generator=source)
        y = x.sum((1, 2, 3)).abs().long().clamp(max=9)
        losses.append(advance(optimizer, lambda x=x, y=y: nn.functional.cross_entropy(net(x), y)))
    return losses


def test_network_with_plain_parameters_trains_alike_under_both_integrators():
    nets = [network(), network()]
    policy = RankAdaptation(0.1, every=2)
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3, "rank_adaptation": policy}
    for net, kind in zip(nets, ("two-pass", "fused"), strict=True):
        losses = train(net, integrate(kind, net, **options), 8)
        assert losses[-1] < losses[0]
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        a, b = (dense(p) if hasattr(p, "manifold") else p.detach() for p in (a, b))
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize("first", ["hooks", "optimizer"])
def test_hooks_of_the_layers_are_part_of_the_captured_function_once(first):
    def hook(net):
        for layer in net:
            layer.register_forward_pre_hook(lambda layer, args: (args[0].sin(),))
            layer.register_forward_hook(lambda layer, args, output: output.exp())

    nets = [network(), network()]
    for net, kind in zip(nets, ("two-pass", "fused"), strict=True):
        if first == "hooks":
            hook(net)
        optimizer = integrate(kind, net, lr=0.05, rank_adaptation=RankAdaptation(0.1, every=2))
        if first == "optimizer":
            hook(net)
        train(net, optimizer, 4)
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        a, b = (dense(p) if hasattr(p, "manifold") else p.detach() for p in (a, b))
        torch.testing.assert_close(a, b, msg=name)


def test_running_statistics_see_a_captured_batch_once():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 16, 10)).double()
    tenfold.nn.factorize(net, rank=0.5, exclude=["3"], init="random")
    assert tenfold.nn.fuse_normalization(net) == 1
    norm = net[0].parts["norm"]
    optimizer = integrate("fused", net, lr=0.05)
    for step in range(1, 4):
        train(net, optimizer, 1)
        assert norm.num_batches_tracked == step
    statistics = norm.running_mean.clone()
    x = torch.randn(16, 2, 6, 6, dtype=torch.float64, generator=generator(1))
    optimizer.zero_grad()
    net(x).square().sum().backward()
    seen = norm.running_mean.clone()
    optimizer.step()
    assert torch.equal(norm.running_mean, seen)
    assert not torch.equal(seen, statistics)


def test_state_goes_on_identically_across_rank_changes():
    net = network()
    optimizer = integrate("fused", net, TDLRTAdamW, lr=0.01, rank_adaptation=RankAdaptation(0.1, every=2))
    train(net, optimizer, 3)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    fresh = network(seed=5)
    resumed = integrate("fused", fresh, TDLRTAdamW, lr=1.0)
    fresh.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(net, optimizer, 4, seed=2)
    train(fresh, resumed, 4, seed=2)
    for a, b in zip(net.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_failed_second_evaluation_restores_the_parameters():
    net, goal = Tensor(MANIFOLDS[0]), target(MANIFOLDS[0])
    optimizer = integrate("two-pass", net, lr=0.1, momentum=0.9)
    x, calls = net.weight.detach().clone(), []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of data")
        optimizer.zero_grad()
        distance(net.weight, goal).backward()

    with pytest.raises(RuntimeError, match="out of data"):
        optimizer.step(closure)
    assert net.weight.manifold == MANIFOLDS[0]
    assert torch.equal(net.weight, x)


def test_refusals():
    net = Tensor(MANIFOLDS[0])
    with pytest.raises(ValueError, match="model goes with"):
        TDLRT(net.parameters(), integrator="fused", rank_adaptation=EXACT)
    with pytest.raises(ValueError, match="model goes with"):
        TDLRT(net.parameters(), integrator="parallel", model=net, rank_adaptation=EXACT)
    with pytest.raises(ValueError, match="sideways"):
        TDLRT(net.parameters(), integrator="sideways", rank_adaptation=EXACT)
    with pytest.raises(ValueError, match="needs a rank_adaptation"):
        TDLRT(net.parameters(), rank_adaptation=None)
    with pytest.raises(ValueError, match="damping"):
        TDLRT(net.parameters(), rank_adaptation=EXACT, damping=0.1)
    with pytest.raises(ValueError, match=r"step\(closure\)"):
        TDLRT(net.parameters(), rank_adaptation=EXACT).step()
    stranger = Tensor(MANIFOLDS[0], MANIFOLDS[0].random(dtype=torch.float64, generator=generator(3)))
    optimizer = TDLRT(net.parameters(), integrator="fused", model=stranger, rank_adaptation=EXACT)
    distance(net.weight, target(MANIFOLDS[0])).backward()
    with pytest.raises(ValueError, match="nothing was captured"):
        optimizer.step()


class Watched(nn.Module):
    """A matrix that is applied from its factors, and which of these have wanted a gradient."""

    def __init__(self, manifold):
        super().__init__()
        point = manifold.random(dtype=torch.float64, generator=generator(0))
        tenfold.nn.declare(self, "weight", manifold, point)
        self.wanted = []

    def forward(self, x):
        core, left, right = self.weight.manifold.factors(self.weight)
        self.wanted.append([factor.requires_grad for factor in (core, left, right)])
        self.columns = core.shape[1]
        return x @ right @ core.mT @ left.mT


@pytest.mark.parametrize("lifted", [False, True])
def test_captured_gradients_are_computed_for_the_core_alone(lifted):
    manifold = FixedRankManifold((7, 5), 2)
    nets = [Watched(manifold.lifted() if lifted else manifold) for _ in range(2)]
    x, goal = (torch.randn(9, n, dtype=torch.float64, generator=generator(n)) for n in (5, 7))
    for net, integrator in zip(nets, ("fused", "two-pass"), strict=True):
        optimizer = integrate(integrator, net, lr=0.1)

        def closure(net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (net(x) - goal).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert net.columns == (8 if lifted and integrator == "two-pass" else 4)  # the augmented bases, twice
    assert nets[0].wanted == [[True, True, True], [True, False, False]]
    torch.testing.assert_close(dense(nets[0].weight), dense(nets[1].weight))


def test_of_frozen_parameters_nothing_is_kept():
    net, goal = Tensor(MANIFOLDS[0]), target(MANIFOLDS[0]).requires_grad_()
    optimizer = integrate("fused", net, lr=0.1)
    net.weight.requires_grad_(False)
    (net() * goal).sum().backward()
    assert not optimizer._capture._calls


def test_captured_arguments_hold_no_graph():
    net = network()
    optimizer = integrate("fused", net, lr=0.1)
    x = torch.randn(2, 128, dtype=torch.float64, requires_grad=True)
    for y in (net[4](x.sin()), net[4](input=x.sin())):
        y.sum().backward()
    (calls,) = optimizer._capture._calls.values()
    for call in calls:
        (held,) = [*call.args, *call.kwargs.values()]
        assert not held.requires_grad


def test_closed_capture_keeps_nothing():
    net, goal = Tensor(MANIFOLDS[0]), target(MANIFOLDS[0])
    optimizer = integrate("fused", net, lr=0.1)
    run(optimizer, net, goal, 1)
    optimizer.close()
    (net() - goal).sum().backward()
    assert not optimizer._capture._calls


@pytest.mark.parametrize("cls", [TDLRT, TDLRTAdamW, TDLRTMuon])
def test_momentum_of_the_bases_is_kept(cls):
    """What the bases have seen between two beats decides where they go, not the last gradient alone."""
    manifold = TuckerManifold((8, 7, 6), 2)
    net, goal = Tensor(manifold), target(manifold)
    options = {"momentum": 0.9, "lr": 0.05} if cls is TDLRT else {"lr": 0.01}
    optimizer = integrate("parallel", net, cls, rank_adaptation=RankAdaptation(0.0, every=4), **options)
    run(optimizer, net, goal, 3)
    x = net.weight.detach().clone()
    memory = optimizer.state[net.weight]["exp_avg" if cls is TDLRTAdamW else "momentum_buffer"]
    assert memory.shape == x.shape
    assert all(block.abs().amax() > 0 for block in manifold.unpack_tensor(memory))
    manifold._check_vector_on_tangent(x, memory)
    net.weight.grad = torch.zeros_like(x)
    optimizer.step()
    assert net.weight.manifold.rank == (4, 4, 4)
    moved = dense(net.weight) - manifold.to_dense(x)
    along = manifold.tangent_to_dense(x, memory)
    aligned = torch.nn.functional.cosine_similarity(moved.flatten(), -along.flatten(), dim=0)
    assert aligned > (0.99 if cls is TDLRT else 0.7)  # Adam divides every coordinate by its own size


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_between_the_beats_muon_orthogonalises_the_gradient_of_the_core(manifold):
    net, goal = Tensor(manifold), target(manifold)
    policy, root = RankAdaptation(0.0, every=4), manifold.tree.root
    optimizer = integrate(
        "parallel", net, TDLRTMuon, rank_adaptation=policy, lr=0.1, momentum=0.5, weight_decay=0.3
    )
    buffer = 0.0
    for _ in range(3):
        before = manifold.unpack_tensor(net.weight.detach().clone())
        run(optimizer, net, goal, 1)
        grad = net.weight.grad
        buffer = 0.5 * buffer + manifold.tangent_matrices(grad)[root]
        d = manifold.tangent_matrices(grad)[root] + 0.5 * buffer
        step = 0.2 * max(d.shape) ** 0.5 * tenfold.linalg.orthogonalize(d).reshape(before[root].shape)
        expected = [*before]
        expected[root] = before[root] - 0.1 * (step + 0.3 * before[root])
        for block, wanted in zip(manifold.unpack_tensor(net.weight.detach()), expected, strict=True):
            torch.testing.assert_close(block, wanted)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("scale", [2.0**-20, 1.0, 2.0**20])
def test_captured_gradients_follow_the_scale_of_the_others(manifold, scale):
    """As behind a GradScaler, whose scale the parameters' gradients have lost before the step."""
    nets = []
    for factor in (1.0, scale):
        net, goal = Tensor(manifold), target(manifold)
        optimizer = integrate("fused", net, lr=0.1, momentum=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            (factor * 0.5 * (net() - goal).square().sum()).backward()
            for p in net.parameters():
                p.grad /= factor
            optimizer.step()
        nets.append(net)
    torch.testing.assert_close(dense(nets[0].weight), dense(nets[1].weight))


def test_a_grad_scaler_and_clipping_go_with_captured_gradients():
    nets, scaler = [network(), network()], torch.amp.GradScaler("cpu", init_scale=1024.0)
    for net in nets:
        optimizer = integrate(
            "fused", net, lr=0.05, momentum=0.9, rank_adaptation=RankAdaptation(0.1, every=2)
        )
        for step in range(5):
            x = torch.randn(16, 2, 6, 6, dtype=torch.float64, generator=generator(step))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), torch.arange(16) % 10)
            if net is nets[0]:
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
                scaler.step(optimizer)
                scaler.update()
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        a, b = (dense(p) if hasattr(p, "manifold") else p.detach() for p in (a, b))
        torch.testing.assert_close(a, b, msg=name)


def test_hooks_run_once_for_each_step_whatever_else_there_is():
    """torch puts the hooks around the step of every class that has instances."""
    RiemannianSGD([torch.nn.Parameter(torch.zeros(1))])
    net, calls = Tensor(MANIFOLDS[0]), []
    optimizer = integrate("two-pass", net, lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    run(optimizer, net, target(MANIFOLDS[0]), 2)
    assert calls == ["pre", "post"] * 2


def test_hysteresis_is_refused_where_it_would_see_augmented_ranks():
    policy = RankAdaptation(0.1, every=5, hysteresis=0.5)
    net = Tensor(MANIFOLDS[0])
    integrate("two-pass", net, rank_adaptation=policy)
    with pytest.raises(ValueError, match=r"hysteresis=0\.5 .* core_steps=1, got 2"):
        integrate("two-pass", net, rank_adaptation=policy, core_steps=2)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("missing", [(5,), (9,), (5, 9), (4, 5)])
def test_augmented_bases_are_truncated_without_a_gradient_too(missing, momentum):
    """Opened in steps 4 and 8, closed in 5 and 9; the last decision is that of step 9."""
    net, goal = Tensor(MANIFOLDS[0]), target(MANIFOLDS[0])
    frozen = Tensor(MANIFOLDS[0])
    both = torch.nn.ModuleList([net, frozen])
    before = frozen.weight.detach().clone()
    policy = RankAdaptation(0.3, every=4, stop=8, max_rank=2)
    optimizer = TDLRT(
        both.parameters(), 0.1, momentum, integrator="parallel", rank_adaptation=policy, core_steps=2
    )
    for step in range(1, 13):
        optimizer.zero_grad()
        if step not in missing:
            distance(net.weight, goal).backward()
        optimizer.step()
        opened = "open" in optimizer.state[net.weight]
        assert opened == (step in (4, 8) and step not in missing)
        if step not in (4, 8):
            assert max(net.weight.manifold.rank) <= 3
    assert max(net.weight.manifold.rank) <= 2
    assert torch.equal(frozen.weight, before)


@pytest.mark.parametrize("cls", [TDLRT, TDLRTAdamW, TDLRTMuon])
@pytest.mark.parametrize("integrator", ["two-pass", "fused", "parallel"])
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_of_model_and_optimizer_go_on_alike(cls, integrator, twin):
    net, goal = Tensor(MANIFOLDS[0]), target(MANIFOLDS[0])
    policy = RankAdaptation(0.05, every=2)
    optimizer = integrate(integrator, net, cls, lr=0.1, rank_adaptation=policy, core_steps=2)
    run(optimizer, net, goal, 3)
    net_twin, other = twin((net, optimizer))
    assert run(optimizer, net, goal, 4) == run(other, net_twin, goal, 4)
    other.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    assert other.param_groups[1]["core_steps"] == 2


def test_a_refused_group_leaves_no_trace():
    class Coreless(LowRankManifold):
        shape, rank = (3,), (1,)

    Coreless.__abstractmethods__ = frozenset()
    optimizer = TDLRT(Tensor(MANIFOLDS[0]).parameters(), integrator="parallel", rank_adaptation=EXACT)
    coreless = geoopt.ManifoldParameter(torch.ones(3))
    coreless.manifold = Coreless()
    with pytest.raises(TypeError, match="formats with a core"):
        optimizer.add_param_group({"params": [coreless]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("dropped_by", ["optimizer", "model"])
@pytest.mark.parametrize("passes", ["one", "two through one graph", "one beside torch.autograd.grad"])
def test_captured_gradients_are_those_of_the_parameters(passes, dropped_by):
    """Those of every backward pass since gradients were dropped, by whomever, and of no other."""
    found, goal = [], target(MANIFOLDS[0])
    for integrator in ("two-pass", "fused"):
        net = Tensor(MANIFOLDS[0])
        optimizer = integrate(integrator, net, lr=0.05, rank_adaptation=RankAdaptation(0.05, every=2))
        drop = optimizer.zero_grad if dropped_by == "optimizer" else net.zero_grad

        def closure(net=net, drop=drop):
            drop()
            tensor = net()
            if passes == "two through one graph":
                tensor.square().mean().backward(retain_graph=True)
            if passes == "one beside torch.autograd.grad":
                torch.autograd.grad(tensor.sum(), tensor, retain_graph=True)
            (tensor - goal).square().sum().backward()

        for _ in range(4):
            net().pow(3).sum().backward()  # the closure drops its gradients
            if integrator == "two-pass":
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        found.append(dense(net.weight))
    torch.testing.assert_close(*found)
