"""Fixed-rank operations need no numbers: they run on the meta device, and move nothing between devices."""

import pytest
import torch

from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    TensorTrainManifold,
    TuckerManifold,
)

MANIFOLDS = [
    TuckerManifold((6, 5, 4), (3, 2, 2)),
    TuckerManifold((6, 5, 3, 3), (3, 2), modes=(0, 1)),
    FixedRankManifold((7, 5), 3),
    TensorTrainManifold((4, 5, 4, 3), (2, 3, 2)),
    TensorTrainManifold((3, 4, 4, 3), 3, rows=2),
    HierarchicalTuckerManifold((4, 3, 4, 3), 2),
]
DEVICES = [
    "meta",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
    ),
]
each_manifold = pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
each_device = pytest.mark.parametrize("device", DEVICES)


def fixed_rank_operations(m, x, u):
    return {
        "random": lambda: m.random(*x.shape, dtype=x.dtype, device=x.device),
        "origin": lambda: m.origin(*x.shape, dtype=x.dtype, device=x.device),
        "projx": lambda: m.projx(x),
        "proju": lambda: m.proju(x, u),
        "radial": lambda: m.radial(x),
        "egrad2rgrad": lambda: m.egrad2rgrad(x, u),
        "retr": lambda: m.retr(x, u),
        "expmap": lambda: m.expmap(x, u),
        "transp": lambda: m.transp(x, x, u),
        "retr_transp": lambda: m.retr_transp(x, u, u)[0],
    }


@each_device
@each_manifold
@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
def test_fixed_rank_operations(manifold, device, batch):
    x = (
        torch.empty(*batch, manifold.size, device=device)
        if device == "meta"
        else manifold.random(*batch, manifold.size, device=device)
    )
    for name, action in fixed_rank_operations(manifold, x, torch.zeros_like(x)).items():
        result = action()
        assert (result.device.type, result.shape, result.dtype) == (device, x.shape, x.dtype), name
    assert manifold.inner(x, x, x).shape == batch
    assert manifold.norm(x, x).device.type == device
    assert manifold.component_inner(x, x).shape == (*batch, 1)
    assert manifold.to_dense(x).shape == (*batch, *manifold.shape)
    assert manifold.tangent_to_dense(x, x).device.type == device
    assert manifold.project_dense(x, manifold.to_dense(x)).shape == x.shape


@each_device
@each_manifold
def test_gradients_on_the_device(manifold, device):
    x = manifold.random(dtype=torch.float32).to(device).requires_grad_()
    manifold.to_dense(x).square().sum().backward()
    assert manifold.egrad2rgrad(x, x.grad).device.type == device


@each_manifold
def test_a_default_device_changes_no_number_of_the_origin(manifold):
    origin = manifold.origin(2, manifold.size)
    with torch.device("meta"):
        there, here = manifold.origin(2, manifold.size), manifold.origin(2, manifold.size, device="cpu")
        assert there.device.type == "meta"
        assert manifold.check_point_on_manifold(here)
    assert there.shape == origin.shape
    assert torch.equal(here, origin)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@each_manifold
def test_cuda_agrees_with_the_cpu(manifold):
    x = manifold.random(2, manifold.size, dtype=torch.float64)
    u = manifold.proju(x, torch.randn_like(x))
    y = manifold.retr(x, u)
    torch.testing.assert_close(manifold.retr(x.cuda(), u.cuda()).cpu(), y)
    torch.testing.assert_close(manifold.transp(x.cuda(), y.cuda(), u.cuda()).cpu(), manifold.transp(x, y, u))
    smaller, z = manifold.truncate(x.cuda(), tol=0.1)
    assert smaller == manifold.truncate(x, tol=0.1)[0]
    assert z.device.type == "cuda"


@each_manifold
def test_half_precision_is_refused_with_the_reason(manifold):
    for dtype in (torch.bfloat16, torch.float16):
        x = manifold.random(dtype=torch.float32).to(dtype)
        for action in (lambda x=x: manifold.retr(x, x), lambda x=x: manifold.projx(x)):
            with pytest.raises(TypeError, match="float32 or float64"):
                action()
    assert manifold.to_dense(x).dtype == torch.float16
