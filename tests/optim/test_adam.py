"""RiemannianAdam and AdamW: torch on plain parameters, geoopt elsewhere, dense oracles on low rank."""

import geoopt
import pytest
import torch

from tenfold.manifolds import TuckerManifold
from tenfold.optim import RankAdaptation, RiemannianAdam, RiemannianAdamW
from tests.optim.problems import MANIFOLDS, dense, descend, distance, generator, parameter, target

PAIRS = [(RiemannianAdam, torch.optim.Adam), (RiemannianAdamW, torch.optim.AdamW)]
OPTIONS = [
    {},
    {"betas": (0.8, 0.99), "eps": 1e-6},
    {"weight_decay": 0.1},
    {"amsgrad": True, "maximize": True},
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_plain_parameters_move_bit_for_bit_as_in_torch(ours, theirs, options):
    nn = torch.nn
    models = [nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)) for _ in "ab"]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [
        ours(models[0].parameters(), lr=0.01, **options),
        theirs(models[1].parameters(), lr=0.01, **options),
    ]
    for x in torch.randn(6, 16, 5, generator=generator(0)):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("manifold", [geoopt.Sphere(), geoopt.EuclideanStiefel()], ids=str)
def test_other_manifolds_move_as_in_geoopt(manifold):
    point = manifold.projx(torch.randn(6, 3, dtype=torch.float64, generator=generator(0)))
    goal = torch.randn(6, 3, dtype=torch.float64, generator=generator(1))
    pair = [geoopt.ManifoldParameter(point.clone(), manifold=manifold) for _ in "ab"]
    optimizers = [RiemannianAdam(pair[:1], lr=0.1), geoopt.optim.RiemannianAdam(pair[1:], lr=0.1)]
    for _ in range(5):
        for p, optimizer in zip(pair, optimizers, strict=True):
            optimizer.zero_grad()
            (p - goal).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(pair[0].detach(), pair[1].detach())


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_first_exact_step_has_unit_coordinates(manifold):
    """After bias correction the first direction is the sign of the Riemannian gradient."""
    p, goal = parameter(manifold), target(manifold)
    x = p.detach().clone()
    rgrad = manifold.project_dense(x, dense(p) - goal)
    descend(RiemannianAdam([p], lr=0.01, eps=1e-15, damping=None), p, goal, 1)
    signs = manifold.proju(x, torch.where(rgrad.abs() > 1e-12, rgrad.sign(), 0.0))
    torch.testing.assert_close(
        dense(p), manifold.to_dense(manifold.retr(x, -0.01 * signs)), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_first_scalar_step_is_a_multiple_of_the_gradient(manifold):
    p, goal = parameter(manifold), target(manifold)
    x = p.detach().clone()
    rgrad = manifold.project_dense(x, dense(p) - goal)
    descend(RiemannianAdam([p], lr=0.01, damping=None, second_moment="scalar"), p, goal, 1)
    step = -0.01 * rgrad / rgrad.square().mean().sqrt()
    torch.testing.assert_close(p.detach(), manifold.retr(x, step), atol=1e-7, rtol=1e-6)


def test_scalar_trajectory_does_not_depend_on_the_gauge():
    manifold, goal = TuckerManifold((6, 5), (3, 3)), target(TuckerManifold((6, 5), (3, 3)))
    p = parameter(manifold)
    core, left, right = manifold.unpack_tensor(p.detach())
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=p.dtype, generator=generator(5)))[0]
    q = geoopt.ManifoldParameter(manifold.pack_point(turn.mT @ core, left @ turn, right), manifold=manifold)
    for other in (p, q):
        policy = RankAdaptation(0.05, every=4)
        options = {"second_moment": "scalar", "damping": None, "rank_adaptation": policy}
        descend(RiemannianAdam([other], lr=0.05, **options), other, goal, 6)
    torch.testing.assert_close(dense(p), dense(q))


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("damping", [None, 0.1])
@pytest.mark.parametrize("second_moment", ["coordinate", "scalar"])
def test_loss_falls_through_rank_changes_and_state_follows(manifold, damping, second_moment):
    p, goal = parameter(manifold), target(manifold)
    policy = RankAdaptation(0.01, every=5, start=10, min_rank=4)
    options = {"damping": damping, "second_moment": second_moment, "rank_adaptation": policy}
    optimizer = RiemannianAdam([p], lr=0.1, amsgrad=True, **options)
    losses = descend(optimizer, p, goal, 40)
    assert losses[-1] < 0.8 * losses[0]
    assert p.manifold.rank != manifold.rank
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert optimizer.state[p][name].shape == p.shape
    assert (optimizer.state[p]["exp_avg_sq"] >= 0).all()
    assert optimizer.state[p]["step"] == 40
    assert p.manifold.check_vector_on_tangent(p.detach(), optimizer.state[p]["exp_avg"])


def test_decoupled_decay_moves_the_tensor():
    manifold = MANIFOLDS[0]
    p = parameter(manifold)
    w = dense(p)
    p.grad = torch.zeros_like(p)
    RiemannianAdamW([p], lr=0.1, weight_decay=0.5, damping=None).step()
    torch.testing.assert_close(dense(p), 0.95 * w)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_second_moments_follow_a_rotation_and_fill_new_directions(manifold):
    x = manifold.random(dtype=torch.float64, generator=generator(0))
    squares = torch.rand(manifold.size, dtype=torch.float64, generator=generator(1))
    torch.testing.assert_close(manifold.transp_squares(x, x, squares), squares)
    # Uniform second moments stay uniform under any change of bases and any rank.
    u = manifold.proju(x, torch.randn(manifold.size, dtype=torch.float64, generator=generator(2)))
    bigger, y = manifold.retr_adaptive(x, u, tol=0.0)
    uniform = torch.full_like(x, 0.3)
    moved = manifold.transp_squares(x, y, uniform, target=bigger)
    torch.testing.assert_close(moved, torch.full_like(y, 0.3))
    # The total over a rotated core is preserved: rotations have unit rows and columns.
    smaller, z = manifold.truncate(x)
    rotated = manifold.transp_squares(x, z, squares, target=smaller)
    torch.testing.assert_close(rotated.sum(), squares.sum())


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_small_second_moments_stay_small_and_positive(manifold):
    """Also where the mean of a block is more than 1 / eps times an entry, which a difference to it loses."""
    draw = generator(0)
    x = manifold.random(generator=draw)
    squares = 10.0 ** (-20 * torch.rand(manifold.size, generator=draw))
    for y in (x, manifold.retr(x, 1e-4 * manifold.proju(x, torch.randn(manifold.size, generator=draw)))):
        moved = manifold.transp_squares(x, y, squares)
        assert (moved > 0).all()
        largest = squares.max()
        assert ((moved >= 0.99 * squares) | (moved <= 1e-4 * largest)).all()
    assert (manifold.transp_squares(x, x, squares) <= 1.001 * squares + 1e-6 * largest).all()


def test_refusals():
    p = parameter(MANIFOLDS[0])
    for options in (
        {"betas": (1.0, 0.9)},
        {"betas": (0.9,)},
        {"eps": -1.0},
        {"second_moment": "block"},
        {"damping": -1.0},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))}|block"):
            RiemannianAdam([p], **options)
    with pytest.raises(TypeError, match="fused"):
        RiemannianAdamW([p], fused=True)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_steps_run_on_the_meta_device(manifold):
    p = geoopt.ManifoldParameter(torch.empty(manifold.size, device="meta"), manifold=manifold)
    optimizer = RiemannianAdamW([p], check_finite=False, amsgrad=True)
    for _ in range(3):
        optimizer.zero_grad()
        distance(p, torch.empty(manifold.shape, device="meta")).backward()
        optimizer.step()
    assert p.device.type == "meta"


@pytest.mark.parametrize("cls", [RiemannianAdam, RiemannianAdamW])
def test_a_tensor_lr_is_refused_beside_foreach_before_any_step(cls):
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="foreach=True and a tensor lr"):
        cls([p], lr=torch.tensor(0.1), foreach=True)
    cls([p], lr=torch.tensor(0.1))


def test_steps_are_counted_exactly_whatever_the_default_type():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = RiemannianAdam([p])
    p.grad = torch.ones(2)
    torch.set_default_dtype(torch.bfloat16)
    try:
        for _ in range(258):
            optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert optimizer.state[p]["step"] == 258
