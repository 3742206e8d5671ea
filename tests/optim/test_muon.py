"""TangentMuon: what its direction maximises, gauge, AdamW elsewhere, ranks, state."""

import copy

import geoopt
import pytest
import torch

import tenfold
from tenfold.manifolds import FixedRankManifold, TuckerManifold
from tenfold.optim import RankAdaptation, RiemannianAdamW, TangentMuon
from tests.optim.problems import MANIFOLDS, dense, descend, distance, generator, parameter, target


def direction(manifold, x, rgrad, **options):
    """The first direction of an optimizer at a point."""
    p = geoopt.ManifoldParameter(x.clone(), manifold=manifold)
    optimizer = TangentMuon([p], damping=None, weight_decay=0.0, **options)
    return optimizer._direction(optimizer.param_groups[0], manifold, x, rgrad, {})[0]


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_tangent_matrices_have_the_singular_values_of_the_terms_of_the_tangent_tensor(manifold):
    x = manifold.random(dtype=torch.float64, generator=generator(0))
    u = manifold.proju(x, torch.randn(manifold.size, dtype=torch.float64, generator=generator(1)))
    blocks = manifold.tangent_matrices(u)
    assert sum(block.numel() for block in blocks) == manifold.size
    assert torch.equal(torch.cat([block.flatten() for block in blocks]), u)
    for k, block in enumerate(blocks):
        alone = manifold.pack_point(
            *(b if j == k else torch.zeros_like(b) for j, b in enumerate(manifold.unpack_tensor(u)))
        )
        term = manifold.tangent_to_dense(x, alone)
        torch.testing.assert_close(term.norm(), torch.linalg.matrix_norm(block))
    if isinstance(manifold, TuckerManifold) and len(manifold.modes) == 3:
        for mode, block in zip(manifold.modes, blocks[1:], strict=True):
            alone = manifold.pack_point(
                *(
                    b if b.data_ptr() == block.data_ptr() else torch.zeros_like(b)
                    for b in manifold.unpack_tensor(u)
                )
            )
            term = manifold.tangent_to_dense(x, alone).movedim(mode, 0).flatten(1)
            values = torch.linalg.svdvals(term)[: block.shape[-1]]
            torch.testing.assert_close(values, torch.linalg.svdvals(block))


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_direction_is_tangent_and_steepest_under_the_spectral_norm_of_the_blocks(manifold):
    x = manifold.random(dtype=torch.float64, generator=generator(0))
    g = manifold.proju(x, torch.randn(manifold.size, dtype=torch.float64, generator=generator(1)))
    d = direction(manifold, x, g)
    torch.testing.assert_close(manifold.proju(x, d), d)
    for block, raw in zip(manifold.tangent_matrices(d), manifold.tangent_matrices(g), strict=True):
        values = torch.linalg.svdvals(raw)
        if values[0] == 0:  # a square basis cannot turn
            assert not block.any()
            continue
        factor = 0.2 * max(raw.shape) ** 0.5
        # The iteration leaves singular values in [0.68, 1.21]; the best possible is the nuclear norm.
        length = torch.linalg.svdvals(block).max()
        assert length <= 1.21 * factor
        kept = values[values > 0.002 * values.norm()].sum()
        assert (block * raw).sum() >= 0.68 * factor * kept


def test_trajectory_does_not_depend_on_the_gauge():
    manifold = TuckerManifold((6, 5), (3, 3))
    goal = target(manifold)
    p = parameter(manifold)
    core, left, right = manifold.unpack_tensor(p.detach())
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=p.dtype, generator=generator(5)))[0]
    q = geoopt.ManifoldParameter(manifold.pack_point(turn.mT @ core, left @ turn, right), manifold=manifold)
    for item in (p, q):
        descend(TangentMuon([item], lr=0.1, damping=None), item, goal, 5)
    torch.testing.assert_close(dense(p), dense(q))


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("damping", [None, 0.1])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_tensor_of_the_rank_is_found(manifold, damping, nesterov):
    p = parameter(manifold)
    goal = manifold.to_dense(manifold.random(dtype=torch.float64, generator=generator(7)))
    optimizer = TangentMuon([p], lr=1.5, nesterov=nesterov, damping=damping, momentum=0.8, weight_decay=0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    losses = []
    for _ in range(80):
        losses += descend(optimizer, p, goal, 1)
        schedule.step()
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("nesterov", [False, True])
def test_one_projection_leaves_direction_and_momentum_tangent(nesterov):
    """The direction exactly; what is left of the momentum shrinks with the steps that turn the bases."""
    manifold = TuckerManifold((12, 10, 3), (4, 3, 3))
    left = []
    for lr in (0.0, 1e-4, 1e-3):
        p = parameter(manifold)
        optimizer = TangentMuon([p], lr=lr, nesterov=nesterov, momentum=0.9, damping=0.1)
        descend(optimizer, p, target(manifold), 20)
        b = optimizer.state[p]["momentum_buffer"]
        group, frame = optimizer.param_groups[0], manifold.damped_frame(p.detach(), 0.1)
        noise = torch.randn(manifold.size, dtype=p.dtype, generator=generator(3))
        d, _ = optimizer._tangent_direction(
            group, manifold, p.detach(), noise, 0.0, frame, {"momentum_buffer": b}
        )
        torch.testing.assert_close(manifold.proju(p.detach(), d), d)
        left.append((b - manifold.proju(p.detach(), b)).norm() / b.norm())
    assert left[0] < 1e-14
    assert left[1] < 1e-3
    assert left[1] < left[2] / 5


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_ranks_change_and_momentum_is_carried(manifold):
    p, goal = parameter(manifold), target(manifold)
    optimizer = TangentMuon([p], lr=0.05, rank_adaptation=RankAdaptation(0.6, every=4))
    before = p.manifold.rank
    descend(optimizer, p, goal, 12)
    assert p.manifold.rank != before
    state = optimizer.state[p]["momentum_buffer"]
    assert state.shape == p.shape
    assert state.norm() > 0
    torch.testing.assert_close(p.manifold.proju(p.detach(), state), state)


def test_other_parameters_move_as_in_adamw():
    sphere = geoopt.Sphere()
    point = sphere.projx(torch.randn(6, dtype=torch.float64, generator=generator(0)))
    pairs = [
        [torch.nn.Parameter(torch.ones(4)), geoopt.ManifoldParameter(point.clone(), manifold=sphere)]
        for _ in "ab"
    ]
    optimizers = [TangentMuon(pairs[0], lr=0.1), RiemannianAdamW(pairs[1], lr=0.1)]
    for _ in range(4):
        for pair, optimizer in zip(pairs, optimizers, strict=True):
            optimizer.zero_grad()
            ((pair[0] - 3).square().sum() + (pair[1] - 1).square().sum()).backward()
            optimizer.step()
    for ours, theirs in zip(*pairs, strict=True):
        assert torch.equal(ours, theirs)


def test_decay_is_decoupled_and_state_round_trips():
    manifold = MANIFOLDS[0]
    p = parameter(manifold)
    optimizer = TangentMuon([p], lr=0.1, weight_decay=0.5)
    before = dense(p)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(dense(p), 0.95 * before)
    twin = copy.deepcopy(p)
    other = TangentMuon([twin], lr=0.7)
    other.load_state_dict(optimizer.state_dict())
    goal = target(manifold)
    assert descend(optimizer, p, goal, 3) == descend(other, twin, goal, 3)
    assert torch.equal(p, twin)


def test_a_network_trains():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Tanh(), torch.nn.Linear(30, 3))
    tenfold.nn.factorize(model, rank=0.5)
    x = torch.randn(64, 20)
    y = x[:, :3].argmax(1)
    optimizer = TangentMuon(model.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss < 0.15


def test_fixed_rank_steps_run_on_the_meta_device():
    for manifold in MANIFOLDS:
        p = geoopt.ManifoldParameter(torch.empty(manifold.size, device="meta"), manifold=manifold)
        optimizer = TangentMuon([p], check_finite=False)
        for _ in range(2):
            distance(p, torch.empty(manifold.shape, device="meta")).backward()
            optimizer.step()


@pytest.mark.parametrize("bad", [{"momentum": 1.0}, {"momentum": -0.1}, {"lr": -1.0}, {"eps": -1.0}])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TangentMuon([parameter(FixedRankManifold((4, 3), 2))], **bad)


@pytest.mark.parametrize("scheduler", ["OneCycleLR", "CyclicLR"])
def test_schedulers_cycle_the_momentum_of_low_rank_parameters(scheduler):
    p, plain = parameter(MANIFOLDS[0]), torch.nn.Parameter(torch.ones(3))
    optimizer = copy.deepcopy(TangentMuon([p], betas=(0.5, 0.9)))
    optimizer.add_param_group({"params": [plain]})
    ends = {"total_steps": 10} if scheduler == "OneCycleLR" else {"max_lr": 0.1}
    schedule = getattr(torch.optim.lr_scheduler, scheduler)(optimizer, 0.01, **ends)
    found = set()
    for _ in range(5):
        optimizer.step()
        schedule.step()
        found.add(optimizer.param_groups[0]["momentum"])
    assert len(found) == 5
    assert all(group["betas"] == (0.5, 0.9) for group in optimizer.param_groups)
