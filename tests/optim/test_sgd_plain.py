"""RiemannianSGD on plain parameters is torch's SGD, on other manifolds it is geoopt's."""

import geoopt
import pytest
import torch

from tenfold.optim import RiemannianSGD
from tests.optim.problems import generator

OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.1},
    {"momentum": 0.5, "weight_decay": 0.01, "maximize": True},
    {"momentum": 0.9, "foreach": True},
    {"momentum": 0.9, "foreach": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_plain_parameters_move_bit_for_bit_as_in_torch(options):
    models = [
        torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2)) for _ in "ab"
    ]
    models[1].load_state_dict(models[0].state_dict())
    ours = RiemannianSGD(models[0].parameters(), lr=0.1, **options)
    theirs = torch.optim.SGD(models[1].parameters(), lr=0.1, **options)
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=10) for o in (ours, theirs)]
    data = torch.randn(10, 16, 5, generator=generator(0))
    for x in data:
        for model, optimizer, schedule in zip(models, (ours, theirs), schedules, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            schedule.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "manifold", [geoopt.Sphere(), geoopt.EuclideanStiefel(), geoopt.Euclidean()], ids=str
)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}], ids=str)
def test_other_manifolds_move_as_in_geoopt(manifold, options):
    point = manifold.projx(torch.randn(6, 3, dtype=torch.float64, generator=generator(0)))
    goal = torch.randn(6, 3, dtype=torch.float64, generator=generator(1))
    pair = [geoopt.ManifoldParameter(point.clone(), manifold=manifold) for _ in "ab"]
    optimizers = [
        RiemannianSGD(pair[:1], lr=0.1, **options),
        geoopt.optim.RiemannianSGD(pair[1:], lr=0.1, **options),
    ]
    for _ in range(5):
        for p, optimizer in zip(pair, optimizers, strict=True):
            optimizer.zero_grad()
            (p - goal).square().sum().backward()
            optimizer.step()
    assert torch.equal(pair[0], pair[1])


def test_momentum_on_other_manifolds_starts_with_the_riemannian_gradient():
    """geoopt seeds its buffer with the Euclidean gradient instead, so the first step differs."""
    sphere = geoopt.Sphere()
    p = geoopt.ManifoldParameter(
        sphere.projx(torch.randn(6, dtype=torch.float64, generator=generator(0))), manifold=sphere
    )
    x, goal = p.detach().clone(), torch.ones(6, dtype=torch.float64)
    (p * goal).sum().backward()
    RiemannianSGD([p], lr=0.1, momentum=0.9).step()
    torch.testing.assert_close(p.detach(), sphere.retr(x, -0.1 * sphere.egrad2rgrad(x, goal)))


def test_stabilize_projects_points_and_momentum():
    sphere = geoopt.Sphere()
    p = geoopt.ManifoldParameter(sphere.projx(torch.ones(4, dtype=torch.float64)), manifold=sphere)
    optimizer = RiemannianSGD([p], lr=0.1, momentum=0.9, stabilize=2)
    for _ in range(2):
        with torch.no_grad():
            p.mul_(1.5)
        optimizer.zero_grad()
        p[0].backward()
        optimizer.step()
    torch.testing.assert_close(p.detach().norm(), torch.tensor(1.0, dtype=torch.float64))
    assert abs(torch.dot(p.detach(), optimizer.state[p]["momentum_buffer"]).item()) < 1e-12
