"""R8: batches, and what operations may do to their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from tenfold.testing.check import check
from tenfold.testing.outcome import Measured
from tenfold.testing.points import ranks_of
from tenfold.testing.properties.points import noisy
from tenfold.testing.sample import Sample, holds

__all__: list[str] = []

Operation = tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]


def autograd_gradient(s: Sample) -> torch.Tensor:
    """What autograd gives for a linear function of the tensor."""
    direction, x = s.vector(), s.x.detach().clone().requires_grad_()
    return torch.autograd.grad((direction * s.subject.dense(x)).sum(), x)[0]


@check("R8", "a batch is treated member by member, batches broadcast, and no argument changes")
def batch_is_loop(s: Sample) -> Iterator[Measured]:
    s = s if s.batch else s.but(batch=(2,))
    m, shape = s.manifold, s.subject.point_shape
    u, rough = s.tangent(), s.normal(*shape)
    egrad = autograd_gradient(s)
    together = {
        "retr": m.retr(s.x, u),
        "projx": m.projx(s.x),
        "proju": m.proju(s.x, rough),
        "egrad2rgrad": m.egrad2rgrad(s.x, egrad),
        "inner": s.inner(s.x, u, rough),
        "to_dense": s.subject.dense(s.x),
        "tangent_to_dense": s.subject.tangent(s.x, u),
    }
    points, vectors, roughs, egrads = (part.reshape(-1, *shape) for part in (s.x, u, rough, egrad))
    condition = 1.0 if s.subject.low_rank is None else s.space.condition
    for k in range(min(len(points), 3)):
        x, v, w = points[k], vectors[k], roughs[k]
        alone = {
            "retr": m.retr(x, v),
            "projx": m.projx(x),
            "proju": m.proju(x, w),
            "egrad2rgrad": m.egrad2rgrad(x, egrads[k]),
            "inner": s.inner(x, v, w),
            "to_dense": s.subject.dense(x),
            "tangent_to_dense": s.subject.tangent(x, v),
        }
        for name, want in alone.items():
            got = together[name].reshape(-1, *want.shape)[k]
            scale = max(float(torch.linalg.vector_norm(want)), 1.0)
            yield s.equal(name, got.reshape(1, -1), want.reshape(1, -1), scale=scale, condition=condition)
    if s.subject.low_rank is not None:
        yield from _broadcast(s, rough, egrad)
    yield from _arguments_stay(s, u, egrad)


def _broadcast(s: Sample, rough: torch.Tensor, egrad: torch.Tensor) -> Iterator[Measured]:
    """One point with a batch of vectors, and the other way round, are the same as copies of the one."""
    m, subject, size = s.manifold, s.subject, s.subject.point_shape[-1]
    x, one = s.x.reshape(-1, size)[0], rough.reshape(-1, size)[0]
    u = s.tangent(x.expand_as(s.x).contiguous())
    step = 0.3 * s.reach * u
    y = m.retr(x.expand_as(step).contiguous(), step)
    z, v = y.reshape(-1, size)[-1], u.reshape(-1, size)[-1]
    operations: dict[str, Operation] = {
        "proju(x, batch)": (m.proju, (x, rough)),
        "proju(batch, v)": (m.proju, (s.x, one)),
        "inner(x, batch, batch)": (s.inner, (x, u, rough)),
        "inner(batch, v, batch)": (s.inner, (s.x, one, rough)),
        "egrad2rgrad(x, batch)": (m.egrad2rgrad, (x, egrad)),
        "tangent_to_dense(x, batch)": (subject.tangent, (x, u)),
        "retr(x, batch)": (m.retr, (x, step)),
        "transp(x, batch, batch)": (m.transp, (x, y, u)),
        "transp(x, batch, v)": (m.transp, (x, y, v)),
        "transp(x, y, batch)": (m.transp, (x, z, u)),
        "transp_squares(x, batch, batch)": (m.transp_squares, (x, y, u.square())),
    }
    if ranks_of(m):
        values: Operation = (lambda x, u: torch.cat(m.truncation(x, u).singular_values, -1), (x, step))
        operations["truncation(x, batch)"] = values
    for name, (operation, arguments) in operations.items():
        got = operation(*arguments)
        want = operation(*(item.expand_as(s.x).contiguous() for item in arguments))
        fits = got.shape == want.shape
        yield holds(f"{name} has the shape {tuple(want.shape)}", fits)
        if not fits:
            continue
        got, want = got.reshape(1, -1), want.reshape(1, -1)
        scale = max(float(torch.linalg.vector_norm(want)), 1.0)
        yield s.equal(name, got, want, scale=scale, condition=s.space.condition)


def _arguments_stay(s: Sample, u: torch.Tensor, egrad: torch.Tensor) -> Iterator[Measured]:
    """Operations leave the tensors that they are given as they were."""
    m, rough = s.manifold, noisy(s)
    operations: dict[str, tuple[Callable[..., object], tuple[torch.Tensor, ...]]] = {
        "projx": (m.projx, (rough,)),
        "proju": (m.proju, (s.x, rough)),
        "egrad2rgrad": (m.egrad2rgrad, (s.x, egrad)),
        "inner": (m.inner, (s.x, u, rough)),
        "norm": (m.norm, (s.x, u)),
        "component_inner": (m.component_inner, (s.x, u, rough)),
        "retr": (m.retr, (s.x, u)),
        "expmap": (m.expmap, (s.x, u)),
        "transp": (m.transp, (s.x, m.retr(s.x.clone(), u.clone()), u)),
        "retr_transp": (m.retr_transp, (s.x, u, u)),
    }
    if s.subject.low_rank is not None:
        tensor = m.to_dense(s.x).detach()
        operations |= {
            "to_dense": (m.to_dense, (s.x,)),
            "radial": (m.radial, (s.x,)),
            "tangent_to_dense": (m.tangent_to_dense, (s.x, u)),
            "project_dense": (m.project_dense, (s.x, tensor)),
            "transp_squares": (m.transp_squares, (s.x, s.x.clone(), u.square())),
            "truncate": (m.truncate, (s.x,)),
            "retr_adaptive": (m.retr_adaptive, (s.x, u)),
            "from_dense": (m.from_dense, (tensor,)),
            "approximate": (m.approximate, (tensor,)),
        }
    for name, (operation, given) in operations.items():
        arguments = [item.clone() for item in given]
        try:
            operation(*arguments)
        except NotImplementedError:
            if s.subject.low_rank is not None:
                raise
            continue
        same = all(torch.equal(now, before) for now, before in zip(arguments, given, strict=True))
        yield holds(f"{name} changes none of its arguments", same)
