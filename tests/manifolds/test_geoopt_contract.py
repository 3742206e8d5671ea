"""What geoopt asks of a manifold, as in its own ``tests/test_manifold_basic.py``, and its classes on ours."""

import copy
import pickle

import geoopt
import numpy as np
import pytest
import torch

from tenfold.manifolds import (
    FixedRankManifold,
    HierarchicalTuckerManifold,
    LowRankManifold,
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
each_manifold = pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)


@pytest.fixture(params=range(3))
def case(request, manifold):
    """A point, packed numbers that are none, a tangent vector and packed numbers that are none."""
    generator = torch.Generator().manual_seed(request.param)
    x = manifold.random(dtype=torch.float64, generator=generator)
    ex = x + 0.1 * torch.randn(manifold.size, dtype=torch.float64, generator=generator)
    ev = torch.randn(manifold.size, dtype=torch.float64, generator=generator)
    return x, ex, manifold.proju(x, ev), ev


@each_manifold
def test_projection_identity(manifold, case):
    x, _, v, _ = case
    np.testing.assert_allclose(manifold.projx(x), x, atol=1e-12)
    np.testing.assert_allclose(manifold.proju(x, v), v, atol=1e-12)


@each_manifold
def test_projection_via_assert(manifold, case):
    _, ex, _, _ = case
    px = manifold.projx(ex)
    manifold.assert_check_point_on_manifold(px)
    np.testing.assert_allclose(manifold.to_dense(px), manifold.to_dense(ex), atol=1e-12)
    with pytest.raises(ValueError, match="not orthonormal"):
        manifold.assert_check_point_on_manifold(ex)


@each_manifold
def test_vector_projection_via_assert(manifold, case):
    x, _, v, ev = case
    manifold.assert_check_vector_on_tangent(x, v)
    with pytest.raises(ValueError, match="gauge"):
        manifold.assert_check_vector_on_tangent(x, ev)


@each_manifold
def test_broadcast_projections(manifold, case):
    x, ex, _, ev = case
    many = manifold.projx(torch.stack([ex] * 4))
    manifold.assert_check_point_on_manifold(many)
    for one in many:
        np.testing.assert_allclose(one, manifold.projx(ex), atol=1e-12)
    vectors = manifold.proju(torch.stack([x] * 4), torch.stack([ev] * 4))
    manifold.assert_check_vector_on_tangent(torch.stack([x] * 4), vectors)
    for one in vectors:
        np.testing.assert_allclose(one, manifold.proju(x, ev), atol=1e-12)


@each_manifold
def test_broadcast_retr_and_transp(manifold, case):
    x, _, v, _ = case
    many = torch.stack([x] * 4)
    u = torch.stack([0.1 * k * v for k in range(4)])
    y = manifold.retr(many, u)
    q = manifold.transp_follow_retr(many, u, u)
    manifold.assert_check_point_on_manifold(y)
    manifold.assert_check_vector_on_tangent(y, q)
    for k in range(4):
        np.testing.assert_allclose(y[k], manifold.retr(x, u[k]), atol=1e-12)
        np.testing.assert_allclose(q[k], manifold.transp_follow_retr(x, u[k], u[k]), atol=1e-12)


@each_manifold
def test_batches_broadcast_against_each_other(manifold):
    x = manifold.random(3, 1, manifold.size, dtype=torch.float64)
    y = manifold.random(1, 2, manifold.size, dtype=torch.float64)
    u = manifold.proju(x, torch.randn(3, 2, manifold.size, dtype=torch.float64))
    assert manifold.retr(x, u).shape == (3, 2, manifold.size)
    assert manifold.transp(x.expand(3, 2, -1), y.expand(3, 2, -1), u).shape == (3, 2, manifold.size)
    assert manifold.inner(x, u[:, :1], u[:1]).shape == (3, 2)
    assert manifold.norm(x, u, keepdim=True).shape == (3, 2, 1)
    assert manifold.project_dense(x, torch.randn(2, *manifold.shape)).shape == (3, 2, manifold.size)


@each_manifold
def test_expmap_is_retr(manifold, case):
    x, _, v, _ = case
    assert torch.equal(manifold.expmap(x, v), manifold.retr(x, v))
    point, vector = manifold.expmap_transp(x, v, v)
    again, moved = manifold.retr_transp(x, v, v)
    assert torch.equal(point, again)
    np.testing.assert_allclose(vector, moved, atol=1e-12)
    assert not manifold.reversible


@each_manifold
def test_unsupported_maps_say_so(manifold, case):
    x, *_ = case
    for action in (lambda: manifold.logmap(x, x), lambda: manifold.dist(x, x)):
        with pytest.raises(NotImplementedError):
            action()
    with pytest.raises(TypeError, match="does not know"):
        manifold.random(manifold.size, mean=1.0)
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(TypeError, match="real and floating"):
            manifold.random(dtype=dtype)


@each_manifold
def test_origin_is_reproducible_and_leaves_the_global_generator_alone(manifold):
    state = torch.random.get_rng_state()
    origin = manifold.origin(2, manifold.size, dtype=torch.float64)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(origin, manifold.origin((2, manifold.size), dtype=torch.float64))
    assert not torch.equal(origin, manifold.origin(2, manifold.size, dtype=torch.float64, seed=1))
    manifold.assert_check_point_on_manifold(origin)


@each_manifold
def test_wrong_sizes_are_refused(manifold):
    for size in [(manifold.size + 1,), (manifold.size, 2), ()]:
        with pytest.raises(ValueError, match=f"packed vector of {manifold.size} numbers"):
            manifold.random(*size) if size else manifold.unpack_tensor(torch.zeros(()))
    with pytest.raises(ValueError, match="factors"):
        manifold.pack_point(torch.zeros(3))
    with pytest.raises(ValueError, match="needs the shape"):
        manifold.pack_point(*(torch.zeros(*shape, 7) for shape in manifold.factor_shapes))
    with pytest.raises(ValueError, match="dense tensor of shape"):
        manifold.from_dense(torch.zeros(*manifold.shape, 2))


@each_manifold
def test_equality_hash_copies_and_pickles(manifold):
    twins = [copy.copy(manifold), copy.deepcopy(manifold), pickle.loads(pickle.dumps(manifold))]
    for twin in twins:
        assert twin == manifold
        assert hash(twin) == hash(manifold)
        assert twin.factor_shapes == manifold.factor_shapes
    assert len({manifold, *twins}) == 1
    assert manifold != manifold.with_rank(manifold.full_rank)
    assert manifold.with_rank(manifold.rank) == manifold
    assert all(manifold != other for other in MANIFOLDS if other is not manifold)
    assert str(manifold.shape) in repr(manifold)


def test_augmented_bases_equal_no_manifold_of_another_size():
    manifold = FixedRankManifold((4, 10), 3)
    x = manifold.random(dtype=torch.float64)
    wide, y = manifold.extended(x, manifold.proju(x, torch.randn_like(x)))
    assert wide.rank == 4
    assert y.shape == (wide.size,) != (FixedRankManifold((4, 10), 4).size,)
    assert wide != FixedRankManifold((4, 10), 4)
    assert wide.feasible(y)[0] == FixedRankManifold((4, 10), 4)


def parameter_on(manifold, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return geoopt.ManifoldParameter(manifold.random(dtype=dtype, generator=generator), manifold=manifold)


@each_manifold
def test_parameters_survive_copies_pickles_and_conversions(manifold):
    module = torch.nn.Module()
    module.weight = parameter_on(manifold)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.deepcopy(module).double()):
        assert isinstance(twin.weight, geoopt.ManifoldParameter)
        assert twin.weight.manifold == manifold
        torch.testing.assert_close(twin.weight.data, module.weight.data.to(twin.weight.dtype))
    other = torch.nn.Module()
    other.weight = parameter_on(manifold, seed=1)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.weight, module.weight)


@pytest.mark.parametrize("lifted", [False, True], ids=["plain", "lifted"])
@each_manifold
def test_operations_on_a_parameter_outside_of_no_grad(manifold, lifted):
    """Only ``to_dense``, ``factors`` and the projection are functions of the point to autograd."""
    manifold = manifold.lifted() if lifted else manifold
    p = parameter_on(manifold, dtype=torch.float64)
    x = p.detach()
    u = 0.1 * manifold.proju(x, torch.randn_like(x))
    manifold.assert_check_point_on_manifold(p)
    manifold.assert_check_vector_on_tangent(p, u)
    y, moved = p.retr_transp(u, u)
    for got, want in (
        (p.retr(u), manifold.retr(x, u)),
        (p.expmap(u), manifold.retr(x, u)),
        (manifold.retr(p, u, frame=manifold.damped_frame(p, 0.1)), None),
        (y, manifold.retr(x, u)),
        (moved, manifold.transp(x, y, u)),
        (p.transp(y, u), moved),
        (manifold.transp(y, p, u), None),
        (manifold.transp_squares(p, y, u.square()), None),
        (manifold.egrad2rgrad(p, u), manifold.egrad2rgrad(x, u)),
        (manifold.tangent_to_dense(p, u), manifold.tangent_to_dense(x, u)),
    ):
        assert not got.requires_grad
        if want is not None:
            torch.testing.assert_close(got, want)


@each_manifold
def test_a_retraction_has_no_wrong_derivative(manifold):
    """Bases are not differentiated through; what was left of the derivative along a curve was wrong."""
    x = manifold.random(dtype=torch.float64)
    u = manifold.proju(x, torch.randn_like(x))
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    for frame in (None, manifold.damped_frame(x, 0.1)):
        assert not manifold.retr(x, t * u, frame=frame).requires_grad
    length = manifold.norm(x, manifold.transp(x, x, t * u))  # linear in the vector
    torch.testing.assert_close(torch.autograd.grad(length, t)[0], manifold.norm(x, u))


OPTIMIZERS = {
    "sgd": lambda p: geoopt.optim.RiemannianSGD(p, lr=0.3),
    "momentum": lambda p: geoopt.optim.RiemannianSGD(p, lr=0.1, momentum=0.5, weight_decay=1e-4),
    "nesterov": lambda p: geoopt.optim.RiemannianSGD(p, lr=0.1, momentum=0.5, nesterov=True),
    "adam": lambda p: geoopt.optim.RiemannianAdam(p, lr=0.3),
    "amsgrad": lambda p: geoopt.optim.RiemannianAdam(p, lr=0.3, amsgrad=True, stabilize=5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@each_manifold
def test_geoopt_optimizers_run_and_reduce_a_loss(manifold, name):
    target = manifold.to_dense(manifold.random(generator=torch.Generator().manual_seed(5)))
    parameter = parameter_on(manifold)
    optimizer = OPTIMIZERS[name]([parameter])

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (manifold.to_dense(parameter) - target).square().sum()
        loss.backward()
        return loss

    start = closure().item()
    for _ in range(20):
        closure()
        optimizer.step()
    assert closure().item() < 0.7 * start
    manifold.assert_check_point_on_manifold(parameter.detach(), atol=1e-4)
    optimizer.stabilize()
    manifold.assert_check_point_on_manifold(parameter.detach(), atol=2e-6)


@pytest.mark.parametrize(("line_search", "cg"), [("armijo", "steepest"), ("wolfe", "fr"), ("wolfe", "pr")])
@each_manifold
def test_geoopt_line_search_runs_and_reduces_a_loss(manifold, line_search, cg):
    generator = torch.Generator().manual_seed(5)
    target = manifold.to_dense(manifold.random(dtype=torch.float64, generator=generator))
    parameter = parameter_on(manifold, dtype=torch.float64)
    optimizer = geoopt.optim.RiemannianLineSearch([parameter], line_search_method=line_search, cg_method=cg)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (manifold.to_dense(parameter) - target).square().sum()
        loss.backward()
        return loss.item()

    start = closure()
    for _ in range(10):
        optimizer.step(closure)
        if optimizer.last_step_size is None or closure() < 1e-3 * start:
            break
    assert closure() < 0.3 * start
    manifold.assert_check_point_on_manifold(parameter.detach())


def test_nesting_in_a_product():
    first, second = TuckerManifold((4, 3, 3), 2), TensorTrainManifold((4, 3, 2), 2)
    product = geoopt.ProductManifold((first, (first.size,)), (geoopt.Sphere(), 4), (second, (second.size,)))
    x = product.random(5, product.n_elements)
    product.assert_check_point_on_manifold(x)
    product.assert_check_point_on_manifold(product.origin(product.n_elements))
    u = product.proju(x, torch.randn_like(x))
    y, moved = product.retr_transp(x, u, u)
    product.assert_check_point_on_manifold(y)
    product.assert_check_vector_on_tangent(y, moved, atol=1e-4)
    want = first.norm(x, product.take_submanifold_value(u, 0)) ** 2
    want = want + product.take_submanifold_value(u, 1).square().sum(-1)
    want = want + product.take_submanifold_value(u, 2).square().sum(-1)
    torch.testing.assert_close(product.inner(x, u), want)
    parameter = geoopt.ManifoldParameter(x[0].clone(), manifold=product)
    optimizer = geoopt.optim.RiemannianAdam([parameter], lr=0.2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        low, point, train = (product.take_submanifold_value(parameter, k) for k in range(3))
        loss = (first.to_dense(low) - 1).square().sum() + second.to_dense(train).square().sum() + point[0]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    product.assert_check_point_on_manifold(parameter.detach(), atol=1e-4)


def test_a_manifold_is_a_module_without_state():
    for manifold in MANIFOLDS:
        assert isinstance(manifold, (geoopt.Manifold, LowRankManifold))
        assert not list(manifold.state_dict())
        assert geoopt.ismanifold(manifold, geoopt.Manifold)
