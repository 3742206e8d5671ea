"""A StepGuard beside a GradScaler: each counts its own."""

import copy

import pytest
import torch

from tenfold.optim import RiemannianSGD, StepGuard, StepOutcome

NAN = float("nan")


def scaled(scale):
    net = torch.nn.Linear(3, 1)
    optimizer = RiemannianSGD(net.parameters(), lr=0.1)
    return net, StepGuard(optimizer, "skip"), torch.amp.GradScaler("cpu", init_scale=scale)


def test_steps_that_a_scaler_leaves_out_are_not_counted():
    net, guard, scaler = scaled(2.0**127)
    outcomes = []
    while not outcomes or outcomes[-1] is StepOutcome.UNSCALED:
        guard.optimizer.zero_grad()
        loss = 100 * net(torch.ones(4, 3)).square().sum()
        scaler.scale(loss).backward()
        outcomes.append(guard.step(loss, scaler=scaler))
        scaler.update()
    assert len(outcomes) > 2
    assert outcomes[-1] is StepOutcome.TAKEN
    assert guard.state_dict() == {"taken": 1, "skipped": 0, "in_a_row": 0, "rollbacks": 0}


@pytest.mark.parametrize("unscaled", [False, True])
def test_a_loss_that_is_not_finite_is_counted_once_beside_a_scaler(unscaled):
    net, guard, scaler = scaled(8.0)
    before = copy.deepcopy(net.state_dict())
    loss = NAN * net(torch.ones(4, 3)).sum()
    scaler.scale(loss).backward()
    if unscaled:  # to clip
        scaler.unscale_(guard.optimizer)
    assert guard.step(loss, scaler=scaler) is StepOutcome.SKIPPED
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert (guard.taken, guard.skipped) == (0, 1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
