"""The damped geometry: what it computes, that it is a retraction, and that it removes stiffness."""

import math

import geoopt
import pytest
import torch

from tenfold.manifolds import TuckerManifold
from tenfold.optim import IllConditionedWarning, RankAdaptation, RiemannianSGD
from tests.optim.problems import MANIFOLDS, dense, descend, distance, generator, parameter, target, toy

TUCKER = MANIFOLDS[0]


def test_step_is_the_product_formula():
    """W+ = (C - lr g_C) x_i (U_i + E_i),  E_i = -lr (I - U U^T) g_i (M_i M_i^T + delta mu_i I)^{-1}."""
    lr, damping = 0.3, 0.1
    p, goal = parameter(TUCKER), target(TUCKER)
    distance(p, goal).backward()
    core, *factors = TUCKER.unpack_tensor(p.detach())
    g_core, *g_factors = TUCKER.unpack_tensor(p.grad)
    expected = core - lr * g_core
    for mode, (u, g) in enumerate(zip(factors, g_factors, strict=True)):
        m = core.movedim(mode, 0).flatten(1)
        gram = m @ m.T
        gram = gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        e = -lr * (g - u @ (u.T @ g)) @ torch.linalg.inv(gram)
        expected = torch.tensordot(expected, u + e, dims=([mode], [1])).movedim(-1, mode)
    RiemannianSGD([p], lr=lr, damping=damping).step()
    torch.testing.assert_close(dense(p), expected)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_undamped_products_are_a_first_order_retraction_of_the_exact_gradient(manifold):
    x = parameter(manifold).detach()
    g = distance_gradient(manifold, x)
    frame = manifold.damped_frame(x, 0.0)
    rgrad = manifold.egrad2rgrad(x, g, frame=frame)
    torch.testing.assert_close(rgrad, manifold.egrad2rgrad(x, g), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        manifold.undamped(x, rgrad, frame), manifold.egrad2rgrad(x, g), rtol=1e-6, atol=1e-8
    )
    w, v = manifold.to_dense(x), manifold.tangent_to_dense(x, rgrad)
    errors = []
    for t in (1e-3, 1e-4):
        y = manifold.retr(x, t * rgrad, frame=frame)
        assert manifold.check_point_on_manifold(y)
        errors.append((manifold.to_dense(y) - w - t * v).norm().item())
    assert math.log10(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_a_known_exact_frame_changes_nothing_in_the_damped_one(manifold, scale):
    x = parameter(manifold).detach()
    nodes = list(manifold.unpack_tensor(x))
    nodes[manifold.tree.root] = scale * nodes[manifold.tree.root]
    for batch in (manifold.pack_point(*nodes), manifold.pack_point(*nodes).expand(2, -1)):
        want = manifold.damped_frame(batch, 0.1).inverse
        got = manifold.damped_frame(batch, 0.1, frame=manifold.frame(batch)).inverse
        assert want.keys() == got.keys()
        for v, inverse in want.items():
            torch.testing.assert_close(got[v] * scale, inverse * scale, rtol=1e-10, atol=1e-10)


def distance_gradient(manifold, x):
    p = geoopt.ManifoldParameter(x.clone(), manifold=manifold)
    distance(p, target(manifold)).backward()
    return p.grad


@pytest.mark.parametrize("decay", [1.0, 2.0, 10.0, 100.0])
@pytest.mark.parametrize("damping", [0.01, 0.1])
def test_toy_needs_as_many_iterations_at_any_conditioning(decay, damping):
    p, goal = toy(decay)
    losses = descend(RiemannianSGD([p], lr=0.5, damping=damping), p, goal, 25)
    assert min(losses) < 1e-8


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_momentum_and_rank_adaptation_work_in_the_damped_geometry(manifold):
    p, goal = parameter(manifold), target(manifold)
    policy = RankAdaptation(0.01, every=4, min_rank=4)
    optimizer = RiemannianSGD([p], lr=0.1, momentum=0.8, damping=0.05, rank_adaptation=policy)
    losses = descend(optimizer, p, goal, 30)
    assert losses[-1] < 0.6 * losses[0]
    assert p.manifold.rank != manifold.rank
    assert p.manifold.check_point_on_manifold(p.detach())


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_momentum_is_carried_by_projection(manifold, nesterov):
    """b <- P (mu b) + P g, whenever the optimizer projects; with nesterov along g + mu b."""
    lr, mu, damping = 0.1, 0.8, 0.05
    p, goal = parameter(manifold), target(manifold)
    optimizer = RiemannianSGD([p], lr=lr, momentum=mu, damping=damping, nesterov=nesterov, weight_decay=0.1)
    x, b = p.detach().clone(), torch.zeros_like(p.detach())
    for _ in range(5):
        frame = manifold.damped_frame(x, damping)
        g = manifold.egrad2rgrad(x, distance_gradient(manifold, x), frame=frame) + 0.1 * manifold.radial(x)
        b = mu * manifold.proju(x, b) + g
        x = manifold.retr(x, -lr * (g + mu * b if nesterov else b), frame=frame)
        descend(optimizer, p, goal, 1)
        torch.testing.assert_close(p.detach(), x)
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], b)


def test_float32_damped_steps_do_not_drift():
    manifold = TuckerManifold((8, 7, 6), (3, 3, 3))
    p, goal = parameter(manifold, dtype=torch.float32), target(manifold, dtype=torch.float32)
    optimizer = RiemannianSGD([p], lr=0.05, momentum=0.9, damping=0.1)
    noise = generator(3)
    for _ in range(2000):
        optimizer.zero_grad()
        distance(p, goal + torch.randn(goal.shape, generator=noise)).backward()
        optimizer.step()
    ok, reason = manifold.check_point_on_manifold(p.detach(), explain=True, atol=1e-5, rtol=0)
    assert ok, reason


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_lifted_gradients_divide_by_nothing_and_step_alike(manifold):
    plain, goal = parameter(manifold), target(manifold)
    lifted = geoopt.ManifoldParameter(plain.detach().clone(), manifold=manifold.lifted())
    for damping in (None, 0.1):
        for p in (plain, lifted):
            policy = RankAdaptation(0.1, every=2)
            descend(
                RiemannianSGD([p], lr=0.2, momentum=0.5, damping=damping, rank_adaptation=policy), p, goal, 3
            )
        torch.testing.assert_close(dense(plain), dense(lifted))
    assert lifted.manifold.is_lifted
    with pytest.raises(ValueError, match=r"factors\(x\)"):
        lifted.manifold.unpack_tensor(lifted)


def test_ill_conditioned_core_warns_once():
    core, *factors = TUCKER.unpack_tensor(TUCKER.random(generator=generator(0)))
    core = core * torch.tensor([1.0, 1e-3, 1e-6])[:, None, None]
    p = geoopt.ManifoldParameter(TUCKER.pack_point(core, *factors), manifold=TUCKER)
    goal = target(TUCKER, dtype=torch.float32)
    optimizer = RiemannianSGD([p], lr=1e-9)
    with pytest.warns(IllConditionedWarning, match="condition number"):
        descend(optimizer, p, goal, 1)
    descend(optimizer, p, goal, 1)
    descend(RiemannianSGD([p], lr=1e-9, damping=0.1), p, goal, 1)


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_lifted_gradients_are_accurate_at_any_conditioning(condition):
    """float32, relative error of the factor blocks against a float64 projection of the dense gradient."""
    manifold = TuckerManifold((20, 15, 12), (6, 6, 6))
    core, *factors = manifold.unpack_tensor(manifold.random(dtype=torch.float64, generator=generator(0)))
    left, _, right = torch.linalg.svd(core.flatten(1), full_matrices=False)
    values = torch.logspace(0, -math.log10(condition), 6, dtype=torch.float64)
    x = manifold.pack_point((left * values @ right).reshape(core.shape), *factors).float()
    goal = target(manifold)
    exact = manifold.unpack_tensor(manifold.project_dense(x.double(), goal))[1]
    errors = {}
    for name, one in (("solve", manifold), ("lift", manifold.lifted())):
        leaf = x.clone().requires_grad_()
        (one.to_dense(leaf) * goal.float()).sum().backward()
        found = one.unpack_tensor(one.egrad2rgrad(x, leaf.grad))[1]
        errors[name] = ((found.double() - exact).norm() / exact.norm()).item()
    assert errors["lift"] < 1e-5
    if condition >= 1e5:
        assert errors["solve"] > 10 * errors["lift"]
