"""What two processes do in the tests of wrapped modules: what is averaged, over whom, for how long."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from tenfold.distributed import DistributedDataParallel, ManifoldReducer, fully_shard, independent, reducer_of
from tenfold.manifolds import move_
from tenfold.nn import Linear
from tests.distributed.scenes import message
from tests.distributed.trainings import mine, played

RANKS = (2, 3, 1)


def root():
    return Linear(6, 6, rank=2).double()


def tied():
    net = nn.Sequential(Linear(6, 6, rank=2), nn.Tanh(), Linear(6, 6, rank=2)).double()
    net[2].weight = net[0].weight
    return net


def shared():
    """One layer in two places."""
    layer = Linear(6, 6, rank=2)
    return nn.Sequential(layer, nn.Tanh(), nn.Sequential(layer)).double()


def nested():
    """A block that has a reducer before the network is wrapped."""
    net = nn.Sequential(Linear(6, 6, rank=2), nn.Tanh(), Linear(6, 6, rank=2)).double()
    if dist.is_initialized():
        ManifoldReducer(net[0])
    return net


WRAPPED = {"root": root, "tied": tied, "shared": shared, "nested": nested}


def gradients(kind):
    """Those of all parameters at each of some ranks, the processes with different data."""
    torch.manual_seed(0)
    net = WRAPPED[kind]()
    model = DistributedDataParallel(net) if dist.is_initialized() else net
    weights = [p for name, p in net.named_parameters() if name.endswith("weight")]
    x = torch.randn(8, 6, dtype=torch.float64)
    found = []
    for rank in RANKS:
        for weight in weights:
            manifold = weight.manifold.with_rank(rank)
            move_(weight, manifold, manifold.random(dtype=weight.dtype))
        net.zero_grad()
        model(mine(x)).square().mean().backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters()})
    return found


def averaged(kind):
    """The gradients, or what was said instead."""
    found = []
    said = message(lambda: found.extend(gradients(kind)))
    return found if said == "nothing happened" else said


def local_gradients(how):
    """Each process in a group of its own: nothing is averaged."""
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "other"))["data"]
    torch.manual_seed(0)
    net = nn.Sequential(Linear(6, 6, rank=2)).double()
    if how == "device_mesh":
        model = DistributedDataParallel(net, device_mesh=mesh)
    elif how == "keyword":
        model = DistributedDataParallel(net, process_group=mesh.get_group())
    else:
        model = DistributedDataParallel(net, None, None, 0, None, True, mesh.get_group())
    x = torch.full((3, 6), 1.0 + dist.get_rank(), dtype=torch.float64)
    model(x).sum().backward()
    expected = torch.autograd.grad(net(x).sum(), list(net.parameters()))
    return model.manifolds.processes, all(
        torch.allclose(p.grad, grad) for p, grad in zip(net.parameters(), expected, strict=True)
    )


def wrong_groups():
    """Refused before a reducer has been built."""
    net = nn.Sequential(Linear(6, 6, rank=2))
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "other"))
    one = mesh["data"]
    return (
        message(lambda: DistributedDataParallel(net, device_mesh=mesh)),
        message(lambda: DistributedDataParallel(net, device_mesh=one, process_group=one.get_group())),
        message(lambda: DistributedDataParallel(net, no_such_option=True)),
        reducer_of(net[0].weight) is None,
    )


def left_behind(how):
    """What is alive of parameter, reducer and network when nobody needs them any more."""
    net = nn.Sequential(Linear(6, 6, rank=2), nn.Linear(6, 2))
    if how == "reducer":
        model = net
        ManifoldReducer(net)
    elif how == "ddp":
        model = DistributedDataParallel(net)
    else:
        model = fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    watched = [weakref.ref(x) for x in (net[0].weight, reducer_of(net[0].weight), net)]
    gc.collect()
    kept = [reference() is not None for reference in watched]
    before = reducer_of(net[0].weight).bytes_reduced
    model(torch.ones(3, 6)).sum().backward()
    sent = reducer_of(net[0].weight).bytes_reduced - before
    del net, model
    gc.collect()
    return kept, sent > 0, [reference() is not None for reference in watched]


def copied():
    """Copies of a network go without the reducer."""
    net = nn.Sequential(Linear(6, 6, rank=2))
    group = dist.new_group([0, 1])
    ManifoldReducer(net, group)
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    return [reducer_of(each[0].weight) is None for each in copies], reducer_of(net[0].weight) is not None


def copy_of_a_wrapper():
    """The gradients of a copy that process 0 makes before the others."""
    torch.manual_seed(0)
    model = DistributedDataParallel(root())
    if dist.get_rank() == 0:
        copies = copy.deepcopy(model)
    dist.barrier()
    if dist.get_rank() == 1:
        copies = copy.deepcopy(model)
    copies(mine(torch.eye(6, dtype=torch.float64))).square().sum().backward()
    return copies.module.weight.grad, model.module.weight.grad is None


def independent_part():
    """A part that each process trains for itself stays so when the whole is wrapped, by either wrapper."""
    parts = []
    for wrap in (DistributedDataParallel, lambda net: fully_shard(net, mesh=init_device_mesh("cpu", (2,)))):
        torch.manual_seed(dist.get_rank())
        net = nn.Sequential(Linear(6, 6, rank=2), nn.Tanh(), Linear(6, 6, rank=2)).double()
        independent(net[0])
        wrap(net)
        parts.append([net[k].weight.detach().clone() for k in (0, 2)])
    alone = Linear(6, 6, rank=2)
    independent(alone)
    return parts, message(lambda: DistributedDataParallel(alone))


def independent_too_late():
    net = nn.Sequential(Linear(6, 6, rank=2), Linear(6, 6, rank=2))
    ManifoldReducer(net[1])
    said = message(lambda: independent(net))
    ManifoldReducer(net)  # nothing was declared
    return said, reducer_of(net[0].weight) is not None


def frozen_in_one_process():
    net = nn.Sequential(Linear(6, 6, rank=2), nn.Linear(6, 2))
    net[0].weight.requires_grad_(dist.get_rank() == 0)
    return message(lambda: DistributedDataParallel(net))


def thawed():
    """Trained after a reducer has been built on parameters that were all frozen."""
    torch.manual_seed(0)
    net = root().requires_grad_(False)
    ManifoldReducer(net)
    frozen = not any(p.requires_grad for p in net.parameters())
    net.requires_grad_(True)
    net(mine(torch.eye(6, dtype=torch.float64))).square().sum().backward()
    return frozen, net.weight.grad


def failed():
    """What stands in the way of a second try after torch's constructor has refused."""
    net = nn.Sequential(Linear(6, 6, rank=2))
    said = message(lambda: DistributedDataParallel(net, device_ids=[0, 1]))
    return said, message(lambda: DistributedDataParallel(net))


def closed_twice():
    """A reducer that is closed again leaves its successor alone."""
    net = nn.Sequential(Linear(6, 6, rank=2))
    first = ManifoldReducer(net)
    first.close()
    second = ManifoldReducer(net)
    first.close()
    return reducer_of(net[0].weight) is second


SCENES = {
    **{kind: (lambda kind=kind: averaged(kind)) for kind in WRAPPED},
    **{how: (lambda how=how: local_gradients(how)) for how in ("device_mesh", "keyword", "positional")},
    "wrong groups": wrong_groups,
    **{f"left by {how}": (lambda how=how: left_behind(how)) for how in ("reducer", "ddp", "fsdp")},
    "copied": copied,
    "copy of a wrapper": copy_of_a_wrapper,
    "independent part": independent_part,
    "independent too late": independent_too_late,
    "frozen in one process": frozen_in_one_process,
    "thawed": thawed,
    "failed": failed,
    "no plain parameter": lambda: message(lambda: DistributedDataParallel(Linear(6, 6, rank=2, bias=False))),
    "closed twice": closed_twice,
}


def play():
    return played(SCENES)
