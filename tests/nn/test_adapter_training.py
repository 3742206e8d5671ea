"""The first steps from the zero update against dense oracles in float64, and ranks under a budget."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tenfold.nn.adapters import adapt, describe
from tenfold.optim import BudgetAdaptation, RankAdaptation, RiemannianAdam, RiemannianAdamW, RiemannianSGD

LR = 0.01
DATA = torch.randn(20, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
GOAL = torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def start():
    """A linear layer with a zero update of rank 3, after one backward pass, and what an oracle needs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 7)).double()
    adapt(model, rank=3)
    loss = F.mse_loss(model(DATA), GOAL, reduction="sum")
    loss.backward()
    weight = model[0].weight.detach().clone().requires_grad_()
    F.mse_loss(F.linear(DATA, weight, model[0].bias), GOAL, reduction="sum").backward()
    update = model[0].adapters["default"].update
    core, u, v = update.manifold.unpack_tensor(update.weight.detach().clone())
    assert not core.any()
    return model, update, weight.grad, u, v


def projected(grad, u, v):
    p, q = u @ u.mT, v @ v.mT
    return p @ grad + grad @ q - p @ grad @ q


def stepped(model, optimizer, update):
    optimizer([p for p in model.parameters() if p.requires_grad]).step()
    assert update.manifold.check_point_on_manifold(update.weight.detach())
    return update.manifold.to_dense(update.weight.detach())


def test_the_gradient_at_zero_is_the_projected_dense_gradient(start):
    _, update, grad, u, v = start
    manifold, x = update.manifold, update.weight
    found = manifold.tangent_to_dense(x.detach(), manifold.egrad2rgrad(x.detach(), x.grad))
    torch.testing.assert_close(found, projected(grad, u, v))


def test_the_gradient_of_a_convolution_at_zero_is_the_projected_dense_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(5, 6, 3, padding=1)).double()
    adapt(model, rank=2)
    x = torch.randn(4, 5, 6, 6, dtype=torch.float64)
    model(x).square().sum().backward()
    update = model[0].adapters["default"].update
    manifold, point = update.manifold, update.weight.detach()
    weight = model[0].weight.detach().clone().requires_grad_()
    F.conv2d(x, weight, model[0].bias, padding=1).square().sum().backward()
    found = manifold.egrad2rgrad(point, update.weight.grad)
    torch.testing.assert_close(found, manifold.project_dense(point, weight.grad))
    _, u, v = manifold.unpack_tensor(point)
    core = torch.einsum("oikl,op,iq->pqkl", weight.grad, u, v)
    torch.testing.assert_close(manifold.unpack_tensor(found)[0], core)
    assert all(block.abs().max() > 0.1 for block in manifold.unpack_tensor(found))


def retracted(step, u, v):
    """From zero, one subspace iteration: the step seen in its own ranges, which the bases sample."""
    left, right = torch.linalg.qr(step @ v)[0], torch.linalg.qr(step.mT @ u)[0]
    return left @ left.mT @ step @ right @ right.mT


def test_the_first_exact_step_is_a_range_finder_on_the_projected_gradient(start):
    model, update, grad, u, v = start
    found = stepped(model, lambda p: RiemannianSGD(p, LR), update)
    torch.testing.assert_close(found, retracted(-LR * projected(grad, u, v), u, v))


def test_the_first_damped_step_moves_the_core_alone(start):
    model, update, grad, u, v = start
    found = stepped(model, lambda p: RiemannianSGD(p, LR, damping=0.1), update)
    torch.testing.assert_close(found, -LR * u @ u.mT @ grad @ v @ v.mT)


def test_the_first_step_of_adam(start):
    model, update, grad, u, v = start
    found = stepped(model, lambda p: RiemannianAdam(p, LR, eps=1e-30), update)
    torch.testing.assert_close(found, -LR * u @ torch.sign(u.mT @ grad @ v) @ v.mT)


def test_the_first_exact_step_of_adam(start):
    model, update, grad, u, v = start
    found = stepped(model, lambda p: RiemannianAdam(p, LR, eps=1e-30, damping=None), update)
    # The coordinates of K = U S and K = V S^T; at a zero core the surroundings are V and U themselves.
    rows, columns = (grad @ v - u @ (u.mT @ grad @ v)).sign(), (grad.mT @ u - v @ (v.mT @ grad.mT @ u)).sign()
    rows, columns = rows - u @ (u.mT @ rows), columns - v @ (v.mT @ columns)
    step = -LR * (u @ (u.mT @ grad @ v).sign() @ v.mT + rows @ v.mT + u @ columns.mT)
    torch.testing.assert_close(found, retracted(step, u, v))


@pytest.mark.parametrize("damping", [None, 0.1])
def test_a_first_step_that_adapts_ranks_truncates_the_exact_sum(start, damping):
    model, update, grad, u, v = start
    policy = RankAdaptation(tol=0.0, max_rank=5)
    found = stepped(model, lambda p: RiemannianSGD(p, LR, rank_adaptation=policy, damping=damping), update)
    if damping is None:
        left, values, right = torch.linalg.svd(-LR * projected(grad, u, v), full_matrices=False)
        assert update.rank == (5,)
        torch.testing.assert_close(found, left[:, :5] @ values[:5].diag() @ right[:5])
    else:
        torch.testing.assert_close(found, -LR * u @ u.mT @ grad @ v @ v.mT)


def test_exact_steps_of_adam_from_zero_are_no_longer_than_they_say():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 50)).double()
    adapt(model, rank=3)
    update = model[0].adapters["default"].update
    optimizer = RiemannianAdam([update.weight], LR, damping=None)  # damped ones are several times as long
    before = update.dense_weight().detach()
    for _ in range(6):
        # Gradients that have nothing to do with each other turn the bases as fast as it goes.
        x = torch.randn(8, 60, dtype=torch.float64)
        optimizer.zero_grad()
        model(x).mul(torch.randn(8, 50, dtype=torch.float64)).sum().backward()
        optimizer.step()
        after = update.dense_weight().detach()
        assert torch.linalg.vector_norm(after - before) <= 1.01 * LR * update.manifold.size**0.5
        before = after


def network(dtype):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 24),
        nn.ReLU(),
        nn.Linear(24, 8),
    ).to(dtype)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p, a: RiemannianSGD(p, 0.04, momentum=0.9, rank_adaptation=a),
        lambda p, a: RiemannianSGD(p, 0.04, momentum=0.9, damping=0.1, rank_adaptation=a),
        lambda p, a: RiemannianAdam(p, 0.01, damping=None, rank_adaptation=a),
        lambda p, a: RiemannianAdamW(p, 0.01, rank_adaptation=a),
    ],
    ids=["sgd", "sgd-damped", "adam", "adamw-damped"],
)
def test_fine_tuning_moves_ranks_within_the_budget(dtype, optimizer):
    model = network(dtype)
    report = adapt(model, rank=4)
    allowed = int(0.7 * report.stored)
    policy = BudgetAdaptation(compression=report.compression(allowed), every=2)
    optimizer = optimizer([p for p in model.parameters() if p.requires_grad], policy)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 3, 4, 4, dtype=dtype, generator=generator)
    y = torch.randint(8, (32,), generator=generator)
    losses, ranks = [], []
    for _ in range(24):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        now = describe(model)
        assert len(losses) == 1 or now.stored <= allowed
        ranks.append([layer.rank for layer in now.layers])
    assert losses[-1] < 0.9 * losses[0]
    assert max(losses) < 1.02 * losses[0]
    # What a rank costs and what it is worth differs from layer to layer.
    linear = [rank for layer in ranks[-1][1:] for rank in layer]
    assert min(linear) < max(linear)


def test_a_budget_is_kept_to_the_parameter():
    report = adapt(network(torch.float64), rank=3)
    for parameters in (1, 17, report.stored, report.dense - 1):
        allowed = (1 - report.compression(parameters)) * report.dense
        assert int(allowed) == parameters
    for parameters in (0, report.dense):
        with pytest.raises(ValueError, match="a budget must lie between"):
            report.compression(parameters)
