"""Scenes of sharded training and of checkpoints that all processes write and read."""

from __future__ import annotations

import geoopt
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.fsdp import fully_shard as torchs_fully_shard

from tenfold.distributed import (
    DistributedDataParallel,
    ManifoldReducer,
    fully_shard,
    load_checkpoint,
    reducer_of,
    save_checkpoint,
)
from tenfold.distributed.sharded import is_sharded, whole
from tenfold.nn import Linear
from tenfold.optim import RiemannianAdamW, RiemannianSGD, clip_riemannian_norm_
from tests.distributed.scenes import message
from tests.distributed.trainings import BATCH, TIDES, batch, dense, mine, network, played, ranks

STEPS = 12
SWITCHES = {
    ("", True, True): (True, True),
    ("", False, True): (False, False),
    ("", False, False): (True, False),
    ("0", False, True): (False, True),
    ("0", False, False): (False, True),
    ("5", False, True): (True, True),
}
"""Which reducers are active after a part has been switched, from all active."""
OPTIMIZERS = {
    "sgd": lambda net: RiemannianSGD(net.parameters(), lr=0.02, momentum=0.9, rank_adaptation=TIDES),
    "adamw": lambda net: RiemannianAdamW(net.parameters(), lr=0.01, rank_adaptation=TIDES),
}


def cpu_mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def sharded(seed=0):
    """The network of the other trainings, its layers sharded one by one and then the rest."""
    net = network(seed)
    mesh = cpu_mesh()
    fully_shard(net[0], mesh=mesh)
    fully_shard(net[5], mesh=mesh)
    return fully_shard(net, mesh=mesh)


def wrapped(how, seed=0):
    """The network to call, and the one whose parameters are moved."""
    net = sharded(seed) if how == "fsdp" else network(seed)
    return (DistributedDataParallel(net) if how == "ddp" else net), net


def go_on(model, net, optimizer, steps):
    losses = []
    for number in steps:
        x, y = batch(number)
        optimizer.zero_grad()
        loss = (model(mine(x)) - mine(y)).square().mean()
        loss.backward()
        optimizer.step()
        loss = loss.detach()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        losses.append(loss.item())
    return losses


def everything(net):
    return {name: whole(value) for name, value in dense(net).items()}


def train(how, kind):
    model, net = wrapped(how)
    optimizer = OPTIMIZERS[kind](net)
    losses, seen = [], set()
    for number in range(STEPS):
        losses += go_on(model, net, optimizer, [number])
        seen.add(tuple(ranks(net)))
    return {"losses": losses, "dense": everything(net), "ranks": seen}


def is_cut():
    net = sharded()
    return [(name, is_sharded(p)) for name, p in net.named_parameters()]


def torchs_fully_shard_is_refused():
    net = nn.Sequential(Linear(8, 6, rank=2), nn.Linear(6, 4))
    torchs_fully_shard(net, mesh=cpu_mesh())
    return message(lambda: net(torch.ones(2, 8)))


def accumulated(sync):
    net = sharded()
    optimizer = OPTIMIZERS["sgd"](net)
    x, y = batch(0)
    parts = list(zip(x.chunk(2), y.chunk(2), strict=True))
    for k, (part, goal) in enumerate(parts):
        net.set_requires_gradient_sync(sync or k == 1)
        ((net(mine(part)) - mine(goal)).square().mean() / 2).backward()
    optimizer.step()
    return everything(net)


def switched():
    """Which of the reducers of layer 0 and of the network are active after each switch."""
    net = sharded()
    reducers = [reducer_of(net[0].weight), reducer_of(net[3].weight)]
    states = []
    for part, on, recurse in SWITCHES:
        net.set_requires_gradient_sync(True)
        net.get_submodule(part).set_requires_gradient_sync(requires_gradient_sync=on, recurse=recurse)
        states.append(tuple(reducer.active for reducer in reducers))
    net.set_requires_gradient_sync(False)
    net(mine(batch(0)[0])).square().mean().backward()
    silent = [reducer.bytes_reduced for reducer in reducers]
    net.set_requires_gradient_sync(True)
    net(mine(batch(0)[0])).square().mean().backward()
    return states, silent, [reducer.bytes_reduced > 0 for reducer in reducers]


def switched_beside_a_reducer():
    """A reducer of the whole network does not fall silent with one of its blocks."""
    net = network()
    reducer = ManifoldReducer(net)
    fully_shard(net[0], mesh=cpu_mesh())
    fully_shard(net, mesh=cpu_mesh())
    states = []
    for part in (net[0], net):
        part.set_requires_gradient_sync(False)
        states.append(reducer.active)
    return states


def clipped():
    net = sharded()
    x, y = batch(0)
    (net(mine(x)) - mine(y)).square().mean().backward()
    norm = clip_riemannian_norm_(net.parameters(), 1e-3)
    return norm, clip_riemannian_norm_(net.parameters(), 1e6)


class Bypass(nn.Module):
    """Uses its low-rank layer in process 1 only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.side, self.main = Linear(4, 4, rank=2, bias=False).double(), nn.Linear(4, 4).double()

    def forward(self, x):
        return self.main(x) + (self.side(x) if dist.get_rank() == 1 else 0)


def used_in_one_process_only():
    net = fully_shard(Bypass(), mesh=cpu_mesh())
    net(torch.eye(4, dtype=torch.float64)).sum().backward()
    expected = torch.autograd.grad(net.side(torch.eye(4, dtype=torch.float64)).sum(), net.side.weight)[0]
    return net.side.weight.grad, expected / 2


def other_manifold():
    """What is said of a parameter on a sphere, and what is left of it when it is ignored."""
    net = nn.Sequential(Linear(4, 4, rank=2), nn.Linear(4, 4))
    sphere = geoopt.Sphere()
    net.point = geoopt.ManifoldParameter(sphere.random(3), manifold=sphere)
    said = message(lambda: fully_shard(net, mesh=cpu_mesh()))
    untouched = reducer_of(net[0].weight) is None
    fully_shard(net, mesh=cpu_mesh(), ignored_params={net.point})
    return said, untouched, isinstance(net.point, geoopt.ManifoldParameter)


def half_precision_under_autocast():
    """The types of gradients where torch's policy casts plain parameters and inputs."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    net = fully_shard(network().float(), mesh=cpu_mesh(), mp_policy=policy)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(mine(batch(0)[0]).float())
    out.square().mean().backward()
    return {p.grad.dtype for p in net.parameters()}


def saved_statistics(folder):
    """Running statistics that differ between the processes: those of this one, and those that were saved."""
    torch.manual_seed(0)
    net = nn.Sequential(Linear(4, 6, rank=2), nn.BatchNorm1d(6), nn.Linear(6, 90), nn.BatchNorm1d(90))
    net(torch.randn(8, 4) * (1 + dist.get_rank()))
    here = {name: value.clone() for name, value in net.named_buffers()}
    save_checkpoint(folder, net)
    load_checkpoint(folder, net)
    return here, dict(net.named_buffers())


def saved_nowhere(folder="/no/such/folder/step"):
    return message(lambda: save_checkpoint(folder, network()))


def nan_in_one_shard():
    net = sharded()
    optimizer = OPTIMIZERS["sgd"](net)
    x, y = batch(0)
    (net(mine(x)) - mine(y)).square().mean().backward()
    if dist.get_rank() == 1:
        net[5].weight.grad.to_local().view(-1)[0] = float("nan")
    before = everything(net)
    said = message(optimizer.step)
    return said, all(
        torch.equal(a, b) for a, b in zip(everything(net).values(), before.values(), strict=True)
    )


SCENES = {
    **{f"fsdp {kind}": (lambda kind=kind: train("fsdp", kind)) for kind in OPTIMIZERS},
    "cut": is_cut,
    "torch's fully_shard": torchs_fully_shard_is_refused,
    "accumulated": lambda: accumulated(sync=True),
    "accumulated without sync": lambda: accumulated(sync=False),
    "switched": switched,
    "switched beside a reducer": switched_beside_a_reducer,
    "clipped": clipped,
    "used in one process only": used_in_one_process_only,
    "other manifold": other_manifold,
    "autocast": half_precision_under_autocast,
    "nowhere": saved_nowhere,
    "nan": nan_in_one_shard,
}


def play():
    return played(SCENES)


def train_and_save(folder):
    """Every kind of training, saved half-way; the losses of all steps."""
    results = {}
    for how in ("ddp", "fsdp"):
        for kind in OPTIMIZERS:
            model, net = wrapped(how)
            optimizer = OPTIMIZERS[kind](net)
            losses = go_on(model, net, optimizer, range(STEPS // 2))
            save_checkpoint(f"{folder}/{how}-{kind}", model, optimizer, {"step": STEPS // 2, "tags": ["a"]})
            losses += go_on(model, net, optimizer, range(STEPS // 2, STEPS))
            results[how, kind] = {"losses": losses, "dense": everything(net)}
    results["statistics"] = saved_statistics(f"{folder}/statistics")
    results["again"] = message(lambda: save_checkpoint(f"{folder}/ddp-sgd", model, optimizer))
    return results


def load_and_go_on(folder):
    """What :func:`train_and_save` saved, gone on with in as many processes as there are now."""
    results = {}
    hows = ("ddp", "fsdp") if dist.is_initialized() else ("alone",)
    for how in hows:
        for saved in ("ddp", "fsdp"):
            for kind in OPTIMIZERS:
                model, net = wrapped(how, seed=5)
                optimizer = OPTIMIZERS[kind](net)
                extra = load_checkpoint(f"{folder}/{saved}-{kind}", model, optimizer)
                losses = go_on(model, net, optimizer, range(extra["step"], STEPS))
                results[how, saved, kind] = {"losses": losses, "dense": everything(net), "extra": extra}
    return results


assert BATCH % 8 == 0  # two accumulated parts for each of four processes
