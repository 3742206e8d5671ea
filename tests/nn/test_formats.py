"""Every layer in every format and with every option against its dense counterpart."""

import copy

import pytest
import torch

from tenfold.nn import Conv1d, Conv2d, Conv3d, ConvTranspose2d, Embedding, Linear
from tests.nn.cases import CASES, FORMATS, PLAIN

EMBEDDINGS = [name for name, case in CASES.items() if case.cls is Embedding]


def run(layer, x):
    """Output, gradient of the input (if it has one) and gradients of the parameters by name."""
    x = x.clone().requires_grad_(x.is_floating_point())
    y = layer(x)
    y.square().sum().backward()
    return y, x.grad, {name: p.grad for name, p in layer.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_equal_the_dense_layer(name):
    case = CASES[name]
    layer = case.make()
    dense = layer.to_dense()
    assert type(dense) is layer.dense_type
    for batch in [(3,), (), (0,)]:
        x = case.data(*batch)
        torch.testing.assert_close(layer(x), dense(x))
    x = case.data(3)
    y, dx, grads = run(layer, x)
    expected, expected_dx, expected_grads = run(dense, x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(dx, expected_dx)
    if layer.bias is not None:
        torch.testing.assert_close(grads["bias"], expected_grads["bias"])
    manifold, w = layer.manifold, layer.weight.detach()
    torch.testing.assert_close(
        manifold.egrad2rgrad(w, grads["weight"]),
        manifold.project_dense(w, layer.layout.to_tensor(expected_grads["weight"])),
    )


@pytest.mark.parametrize("name", PLAIN)
def test_an_inverse_free_layer_has_the_same_output_and_riemannian_gradient(name):
    case = PLAIN[name]
    layer, lifted = case.make(), case.make(inverse_free=True)
    x = case.data(3)
    y, dx, grads = run(layer, x)
    other_y, other_dx, other_grads = run(lifted, x)
    torch.testing.assert_close(other_y, y)
    torch.testing.assert_close(other_dx, dx)
    w = layer.weight.detach()
    torch.testing.assert_close(
        lifted.manifold.egrad2rgrad(w, other_grads["weight"]),
        layer.manifold.egrad2rgrad(w, grads["weight"]),
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [(3,), (), (0,)])
@pytest.mark.parametrize("inverse_free", [False, True])
def test_the_gradient_of_the_core_without_an_evaluation(name, batch, inverse_free):
    case = CASES[name]
    layer, other = case.make(), case.make(inverse_free=inverse_free)
    x = case.data(*batch)
    y = layer(x)
    grad = torch.randn_like(y)
    root = layer.manifold.tree.root
    expected = layer.manifold.unpack_tensor(torch.autograd.grad(y, layer.weight, grad)[0])[root]
    factors = list(other.manifold.unpack_tensor(other.weight.detach()))
    factors[root] = factors[root].clone().requires_grad_()
    weight = other.manifold.pack_point(*factors)
    weight.manifold = copy.copy(other.manifold)
    weight.manifold.__dict__["factors"] = lambda packed: tuple(factors)
    with torch.no_grad():
        known = other.core_gradient(weight, grad, x)
    if isinstance(layer, Linear):
        knows = layer.format != "tensor-train"
    else:
        regular = case.options.get("padding") not in ("same", "valid") and "padding_mode" not in case.options
        knows = isinstance(layer, (Conv1d, Conv2d, Conv3d)) and regular
    assert (known is not None) == knows
    if knows:
        assert known.shape == expected.shape
        torch.testing.assert_close(known, expected)


@pytest.mark.parametrize("form", FORMATS)
def test_gradients_of_an_inverse_free_layer_for_each_sample(form):
    layer = Linear(8, 6, format=form, rank=2, inverse_free=True, dtype=torch.float64)
    weights, x = torch.stack([layer.weight.detach()] * 2), torch.randn(3, 8, dtype=torch.float64)

    def loss(weight, x):
        return torch.func.functional_call(layer, {"weight": weight}, (x,)).square().sum()

    layer(x).square().sum().backward()
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(layer.weight.detach(), x)
    torch.testing.assert_close(each.sum(0), layer.weight.grad)
    of_both = torch.func.vmap(torch.func.grad(loss), (0, None))(weights, x)
    torch.testing.assert_close(of_both, torch.stack([layer.weight.grad] * 2))


@pytest.mark.parametrize("name", PLAIN)
def test_gradcheck_through_a_functional_call_with_plain_tensors(name):
    case = PLAIN[name]
    layer = case.make()
    x = case.data(2)

    def call(weight, x):
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    plain = layer.weight.detach().clone()
    assert type(plain) is torch.Tensor
    arguments = (plain.requires_grad_(), x.requires_grad_(x.is_floating_point()))
    assert torch.autograd.gradcheck(call, arguments, fast_mode=True)


@pytest.mark.parametrize("name", PLAIN)
def test_from_dense_at_full_rank_is_exact_and_keeps_within_a_tolerance(name):
    case = PLAIN[name]
    dense = case.make(rank=1.0).to_dense()
    options = {"format": case.options.get("format", "tucker")}
    full = case.cls.from_dense(dense, rank=1.0, **options)
    torch.testing.assert_close(full(case.data(2)), dense(case.data(2)))
    for tol in (0.1, 0.5):
        layer = case.cls.from_dense(dense, tol=tol, **options)
        error = (layer.dense_weight() - dense.weight).norm() / dense.weight.norm()
        assert error <= len(layer.rank) ** 0.5 * tol
    assert layer.compression > full.compression


@pytest.mark.parametrize("cls", [Conv1d, Conv2d, ConvTranspose2d, Linear])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rank", [1, 0.5])
def test_initial_weights_have_the_variance_of_the_dense_layer(cls, form, rank):
    torch.manual_seed(0)
    arguments = (64, 96) if cls is Linear else (64, 96, 3)
    layer, dense = cls(*arguments, format=form, rank=rank), cls.dense_type(*arguments)
    assert 0.9 < layer.dense_weight().var() / dense.weight.var() < 1.1
    assert 0.5 * dense.bias.abs().max() < layer.bias.abs().max() <= dense.bias.abs().max() * 1.1


@pytest.mark.parametrize("form", ["fixed-rank", "tensor-train"])
def test_initial_embeddings_have_variance_one_and_a_zero_padding_row(form):
    torch.manual_seed(0)
    layer = Embedding(500, 32, padding_idx=-2, format=form, rank=4)
    assert 0.9 < layer.dense_weight().var() < 1.1
    assert layer.padding_idx == 498
    assert not layer(torch.tensor(498)).any()
    assert not layer.dense_weight()[498].any()


def test_an_embedding_never_holds_the_table():
    for form in ("fixed-rank", "tensor-train"):
        layer = Embedding(5000, 64, format=form, rank=2)
        assert _largest(lambda layer=layer: layer(torch.tensor([1, 4999])).sum().backward()) < 20_000


def _largest(work):
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Probe(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(t))
            return out

    with Probe():
        work()
    return max(sizes)


@pytest.mark.parametrize("form", FORMATS)
def test_a_layer_is_exported_where_there_are_several_processes(form, monkeypatch):
    monkeypatch.setattr("tenfold.nn.layer.has_company", lambda: True)
    layer, x = Linear(8, 6, format=form, rank=2), torch.randn(3, 8)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.parametrize("index", [11, -1, 12])
@pytest.mark.parametrize("form", ["fixed-rank", "tensor-train"])
def test_an_index_outside_is_an_error(form, index):
    with pytest.raises(IndexError):
        Embedding(11, 6, format=form, rank=2)(torch.tensor([0, index]))


@pytest.mark.parametrize("form", ["fixed-rank", "tensor-train"])
def test_gradients_of_an_embedding_for_each_sample(form):
    layer = Embedding(11, 6, format=form, rank=2, dtype=torch.float64)
    weight, index = {"weight": layer.weight.detach().clone()}, torch.tensor([[1, 5], [10, 0], [3, 3]])

    def loss(weight, index):
        return torch.func.functional_call(layer, weight, (index,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, index)["weight"]
    torch.testing.assert_close(each.sum(0), torch.func.grad(loss)(weight, index)["weight"])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", [None, (9, 8), (10, 8)])
def test_a_transposed_convolution_takes_an_output_size(form, size):
    torch.manual_seed(0)
    layer = ConvTranspose2d(4, 3, 3, stride=2, padding=(0, 1), format=form, rank=2, dtype=torch.float64)
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x, size), layer.to_dense()(x, size))
    with pytest.raises(ValueError, match="output size"):
        layer(x, (20, 20))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "options", [{"stride": (2,)}, {"dilation": (2,)}, {"padding": (1,), "dilation": [2]}], ids=str
)
@pytest.mark.parametrize("cls", [Conv2d, ConvTranspose2d])
def test_a_tuple_of_one_is_for_all_axes_as_in_torch(cls, options, form):
    torch.manual_seed(0)
    dense = cls.dense_type(4, 3, (3, 2), **options, dtype=torch.float64)
    layer = cls.from_dense(dense, rank=1.0, format=form)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense(x))
    torch.testing.assert_close(layer.to_dense()(x), dense(x))
    assert layer.multiplications > 0


@pytest.mark.parametrize("form", FORMATS)
def test_channels_last_goes_in_and_comes_out(form):
    layer = Conv2d(8, 8, 3, padding=1, format=form, rank=2)
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(4, 4, format="cp", rank=1), "cp"),
        (lambda: Linear(4, 4, rank=5), None),
        (lambda: Linear(4, 4, rank=(5,)), "largest feasible rank"),
        (lambda: Linear(4, 4, rank=0.0), "fraction"),
        (lambda: Linear(4, 4, rank=1, shapes=((2, 2), (2, 2))), "belong to the format 'tensor-train'"),
        (lambda: Linear(4, 4, rank=1, format="tensor-train", shapes=((2, 2), (2, 3))), r"\(4, 4\)"),
        (lambda: Conv2d(4, 4, 3, groups=2, rank=1), "groups=1"),
        (lambda: Conv2d(4, 4, 3, rank=1, format="fixed-rank", modes=(0,)), "belong to the format 'tucker'"),
        (lambda: ConvTranspose2d(4, 4, 3, rank=1, padding_mode="circular"), "padding mode"),
        (lambda: Embedding(4, 4, rank=1, format="tucker"), "fixed-rank"),
        (lambda: Embedding(4, 4, rank=1, max_norm=1.0), "max_norm"),
        (lambda: Embedding(4, 4, rank=1, sparse=True), "sparse"),
        (lambda: Embedding(4, 4, rank=1, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (lambda: Embedding(9, 4, rank=1, format="tensor-train", shapes=((2, 4), (2, 2))), "at least 9"),
        (lambda: Embedding.from_dense(_padded(), rank=1), "padding_idx=1 is not zero"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(make, message):
    if message is None:
        assert make().rank == (4,)
    else:
        with pytest.raises(ValueError, match=message):
            make()


def _padded():
    dense = torch.nn.Embedding(3, 2, padding_idx=1)
    torch.nn.init.ones_(dense.weight)
    return dense


@pytest.mark.parametrize("name", PLAIN)
def test_the_sizes_that_a_layer_reports_are_those_of_its_tensors(name):
    layer = PLAIN[name].make()
    assert layer.weight.numel() == layer.manifold.size
    assert layer.dense_numel == layer.to_dense().weight.numel()
    assert layer.compression == 1 - layer.weight.numel() / layer.dense_numel
    assert layer.multiplications > 0


def test_multiplications_are_those_of_the_convolutions():
    layer = Conv2d(8, 6, 3, stride=2, rank=(3, 2))
    # The first convolution runs at every input position, four for each output position.
    assert layer.multiplications == 4 * 8 * 2 + 3 * 2 * 9 + 3 * 6
    assert layer.dense_multiplications == 8 * 6 * 9
    assert Linear(8, 6, rank=2).multiplications == 8 * 2 + 2 * 2 + 2 * 6
