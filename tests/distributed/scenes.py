"""What two processes do in the tests of the reducer; each scene returns what the test looks at."""

from __future__ import annotations

import os
import signal
import time

import torch
import torch.distributed as dist
from torch import nn

from tenfold.distributed import DistributedDataParallel, ManifoldReducer, independent, reducer_of
from tenfold.manifolds import move_, rank_tuple
from tenfold.nn import Linear
from tenfold.optim import TDLRT, RankAdaptation, RiemannianCG, RiemannianSGD, clip_riemannian_norm_
from tests.distributed.trainings import TIDES, batch, dense, mine, network, played, ranks, train


def message(action) -> str:
    try:
        action()
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing happened"


def step(model, net, optimizer, number=0):
    x, y = batch(number)
    optimizer.zero_grad()
    (model(mine(x)) - mine(y)).square().mean().backward()
    optimizer.step()


def accumulated(no_sync):
    return train("sgd", accumulate=2, no_sync=no_sync)


def plain_ddp_is_refused():
    net = network()
    optimizer = RiemannianSGD(net.named_parameters(), lr=0.1, rank_adaptation=TIDES)
    before = dense(net)
    said = message(lambda: step(nn.parallel.DistributedDataParallel(net), net, optimizer))
    return said, all(torch.equal(a, b) for a, b in zip(dense(net).values(), before.values(), strict=True))


def independent_processes_go_apart():
    net = network(dist.get_rank())
    independent(net)
    optimizer = RiemannianSGD(net.parameters(), lr=0.1, rank_adaptation=TIDES)
    step(net, net, optimizer)
    return dense(net)


def reducer_with_torchs_ddp():
    net = network(dist.get_rank())
    ManifoldReducer(net)
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = RiemannianSGD(net.parameters(), lr=0.1, rank_adaptation=TIDES)
    for number in range(3):
        step(model, net, optimizer, number)
    return dense(net)


def difference(on_difference):
    net = network()
    model = DistributedDataParallel(net, on_difference=on_difference)
    optimizer = RiemannianSGD(net.parameters(), lr=0.1, momentum=0.9, rank_adaptation=TIDES)
    step(model, net, optimizer)
    if dist.get_rank() == 1:
        optimizer.state[net[3].weight]["momentum_buffer"][0] += 1e-12
    said = message(lambda: step(model, net, optimizer))
    state = optimizer.state[net[3].weight]["momentum_buffer"]
    return said, dense(net), state.clone(), message(lambda: step(model, net, optimizer))


def rank_difference():
    net = network()
    reducer = ManifoldReducer(net)
    weight = net[3].weight
    if dist.get_rank() == 1:
        manifold = weight.manifold.with_rank(1)
        move_(weight, manifold, torch.zeros(manifold.size, dtype=weight.dtype))
    return message(lambda: reducer.check([(weight, {})]))


def state_difference():
    net = network()
    reducer = ManifoldReducer(net)
    weight = net[3].weight
    return message(lambda: reducer.check([(weight, {"momentum_buffer": weight.detach() + dist.get_rank()})]))


def other_structure():
    net = nn.Sequential(Linear(8, 6 + dist.get_rank(), rank=2))
    return message(lambda: ManifoldReducer(net))


def nothing_to_reduce():
    return message(lambda: ManifoldReducer(nn.Linear(2, 2)))


def reduced_twice():
    net = network()
    ManifoldReducer(net)
    return message(lambda: DistributedDataParallel(net))


def wrong_option():
    return message(lambda: ManifoldReducer(network(), on_difference="ignore"))


def joined():
    return message(lambda: DistributedDataParallel(network()).join())


def other_ranks_at_the_start():
    torch.manual_seed(0)
    net = nn.Sequential(Linear(8, 6, rank=2 + dist.get_rank()), nn.Linear(6, 1))
    DistributedDataParallel(net)
    return ranks(net), dense(net)


def used_in_one_process_only():
    torch.manual_seed(0)
    net = nn.ModuleList([Linear(8, 6, rank=2, bias=False), Linear(8, 6, rank=2, bias=False), nn.Linear(6, 1)])
    model = ManifoldReducer(net)
    x = torch.ones(3, 8)
    net[2](net[dist.get_rank() and 0](x)).sum().backward()  # both use the first
    second_unused = net[1].weight.grad is None
    net.zero_grad()
    (net[2](net[dist.get_rank()](x)).sum() if dist.get_rank() else net[2](x[:, :6]).sum()).backward()
    expected = torch.autograd.grad(net[2](net[1](x)).sum(), net[1].weight)[0] / 2
    model.close()
    return second_unused, net[0].weight.grad is None, torch.allclose(net[1].weight.grad, expected)


def skipping(processes, captured=True):
    """An augmented step from what was captured, of processes of which the last alone uses a layer.

    One process may play them all.
    """
    torch.manual_seed(0)
    net = nn.ModuleList([Linear(6, 6, rank=2), nn.Linear(6, 1)]).double()
    if dist.is_initialized():
        ManifoldReducer(net)
    seen = net if captured else nn.Identity()
    policy = RankAdaptation(0.0)
    optimizer = TDLRT(net.parameters(), lr=0.1, integrator="fused", model=seen, rank_adaptation=policy)
    for k in processes:
        x = batch(k)[0].flatten(1)[:, :6]
        (net[1](net[0](x) if k else x).square().mean() / (1 if dist.is_initialized() else 2)).backward()
    said = message(optimizer.step)
    return said, net[0].weight.manifold.to_dense(net[0].weight.detach())


def grown():
    """New directions drawn by each process without a generator."""
    net = nn.Sequential(Linear(8, 6, rank=2), nn.Linear(6, 1))
    DistributedDataParallel(net)
    before = dense(net)["0.weight"]
    torch.manual_seed(dist.get_rank())
    said = message(lambda: RiemannianCG(net.parameters()).grow_ranks(4, scale=0.1))
    return said, before, dense(net)["0.weight"]


def clipped():
    net = network()
    model = DistributedDataParallel(net)
    x, y = batch(0)
    (model(mine(x)) - mine(y)).square().mean().backward()
    return clip_riemannian_norm_(net.parameters(), 1e-3)


def closed():
    net = network()
    reducer = ManifoldReducer(net)
    had = reducer_of(net[3].weight) is reducer
    reducer.close()
    x, y = batch(0)
    (net(mine(x)) - mine(y)).square().mean().backward()
    return had, reducer_of(net[3].weight) is None, net[3].weight.grad.clone()


def traffic():
    torch.manual_seed(0)
    net = nn.Sequential(Linear(64, 64, rank=8), nn.ReLU(), Linear(64, 32, rank=8))
    model = DistributedDataParallel(net)
    optimizer = RiemannianSGD(net.parameters(), lr=0.1, rank_adaptation=TIDES)
    rows = []
    for _ in range(4):
        before, size = model.manifolds.bytes_reduced, sum(4 * net[k].weight.numel() for k in (0, 2))
        optimizer.zero_grad()
        model(torch.randn(4, 64)).square().mean().backward()
        optimizer.step()
        rows.append((model.manifolds.bytes_reduced - before, size))
    return rows, [rank_tuple(net[k].weight.manifold.rank) for k in (0, 2)]


def stopped_backward():
    """A backward pass that fails half-way does not keep the next one from being averaged."""
    net = network()
    model = DistributedDataParallel(net)
    x, y = batch(0)

    def fail(_):
        raise RuntimeError("on purpose")

    handle = net[0].weight.register_hook(fail)
    said = message(lambda: model.module(mine(x)).sum().backward())
    handle.remove()
    net.zero_grad()
    (model(mine(x)) - mine(y)).square().mean().backward()
    return said, net[3].weight.grad.clone()


SCENES = {
    "accumulated": lambda: accumulated(no_sync=False),
    "accumulated without sync": lambda: accumulated(no_sync=True),
    "plain ddp": plain_ddp_is_refused,
    "independent": independent_processes_go_apart,
    "torch's ddp": reducer_with_torchs_ddp,
    "difference": lambda: difference("raise"),
    "difference broadcast": lambda: difference("broadcast"),
    "rank difference": rank_difference,
    "state difference": state_difference,
    "other structure": other_structure,
    "nothing to reduce": nothing_to_reduce,
    "reduced twice": reduced_twice,
    "wrong option": wrong_option,
    "join": joined,
    "other ranks at the start": other_ranks_at_the_start,
    "used in one process only": used_in_one_process_only,
    "skipping a layer": lambda: skipping([dist.get_rank()]),
    "captured nowhere": lambda: skipping([dist.get_rank()], captured=False),
    "grown": grown,
    "clipped": clipped,
    "closed": closed,
    "traffic": traffic,
    "stopped backward": stopped_backward,
}


def play():
    return played(SCENES)


def one_dies():
    """Process 1 is killed between two steps; how long process 0 waits, and what it says."""
    net = network()
    model = DistributedDataParallel(net)
    optimizer = RiemannianSGD(net.parameters(), lr=0.1, rank_adaptation=TIDES)
    step(model, net, optimizer)
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    started = time.monotonic()
    said = message(lambda: step(model, net, optimizer))
    return said, time.monotonic() - started
