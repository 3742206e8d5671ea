"""Convolutions that keep their input only give the same results and gradients from less memory."""

import copy

import pytest
import torch

from tenfold.nn import Conv1d, Conv2d, Conv3d, ConvTranspose2d, recompute_activations

LAYERS = {
    "conv1d": (lambda: Conv1d(12, 10, 3, rank=(3, 4), padding=1), (2, 12, 9)),
    "conv2d": (lambda: Conv2d(12, 10, 3, rank=(3, 4), stride=2, padding=1), (2, 12, 8, 8)),
    "conv2d, tensor train": (lambda: Conv2d(12, 10, 3, rank=3, format="tensor-train"), (2, 12, 8, 8)),
    "conv3d": (lambda: Conv3d(6, 8, 3, rank=2), (2, 6, 5, 5, 5)),
    "transposed": (lambda: ConvTranspose2d(12, 10, 3, rank=(3, 4), stride=2), (2, 12, 5, 5)),
}


def run(layer, x):
    """Output, gradients and the shapes of what is kept for the backward pass."""
    kept = []

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x)
    return y, torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.bias]), kept


@pytest.mark.parametrize("name", LAYERS)
def test_same_numbers_from_the_input_alone(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y, grads, kept = run(layer, x)
    assert recompute_activations(layer) == 1
    again, others, fewer = run(copy.deepcopy(layer), x)
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, others, strict=True))

    def activations(shapes):
        return {shape for shape in shapes if shape[0] == 2 and len(shape) == x.ndim}

    assert activations(fewer) <= {shape}
    assert len(activations(kept)) > 1
    assert recompute_activations(layer, enabled=False) == 1
    assert activations(run(layer, x)[2]) == activations(kept)


def test_trains_and_evaluates():
    layer = Conv2d(4, 4, 3, rank=2)
    recompute_activations(layer)
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        plain = layer.eval()(x)
    layer.train()(x).sum().backward()
    assert torch.equal(layer(x), plain)
    assert layer.weight.grad.abs().sum() > 0
