"""Muon for dense weights and loose factors, against torch's own where that takes the parameter."""

import pytest
import torch
from torch import nn

from tenfold.experiments.config import TrainConfig
from tenfold.experiments.data import load
from tenfold.experiments.loose_layer import LooseLayer
from tenfold.experiments.methods import make_network, make_optimizer
from tenfold.experiments.plain_muon import PlainMuon

OPTIONS = {"lr": 0.03, "momentum": 0.8, "weight_decay": 0.1}


def moved(optimizer_of, start, steps=4):
    p = nn.Parameter(start.clone())
    optimizer = optimizer_of(p)
    for step in range(steps):
        p.grad = torch.randn(start.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("shape", [(6, 9), (9, 4)])
def test_matrices_move_as_with_torch(shape):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(10))
    ours = moved(lambda p: PlainMuon([p], [], **OPTIONS), start)
    theirs = moved(lambda p: torch.optim.Muon([p], adjust_lr_fn="match_rms_adamw", **OPTIONS), start)
    # Theirs orthogonalises in bfloat16.
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()


def test_steps_are_the_formula_in_float64():
    """With the orthogonalised matrix from its singular vectors and the polynomial of its singular values."""
    generator = torch.Generator().manual_seed(10)
    start, *gradients = torch.randn(3, 5, 8, dtype=torch.float64, generator=generator)
    p = nn.Parameter(start.clone())
    optimizer = PlainMuon([p], [], **OPTIONS)
    x, b = start, torch.zeros_like(start)
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
        b = 0.8 * b + g
        left, sigma, right = torch.linalg.svd(g + 0.8 * b, full_matrices=False)
        sigma = sigma / sigma.norm()
        for _ in range(5):
            sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
        x = (1 - 0.03 * 0.1) * x - 0.03 * 0.2 * 8**0.5 * left @ sigma.diag() @ right
    torch.testing.assert_close(p.detach(), x, rtol=1e-10, atol=1e-12)


def test_a_kernel_moves_as_the_matrix_of_its_first_mode():
    start = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(10))
    kernel = moved(lambda p: PlainMuon([p], [], **OPTIONS), start)
    # As many random numbers in the same order are the same gradients.
    matrix = moved(lambda p: PlainMuon([p], [], **OPTIONS), start.flatten(1))
    torch.testing.assert_close(kernel.flatten(1), matrix)


def test_the_others_move_by_adamw_and_gradients_stay():
    start = torch.randn(7, generator=torch.Generator().manual_seed(10))
    matrix = nn.Parameter(torch.eye(3))
    matrix.grad = torch.ones(3, 3)
    ours = moved(lambda p: PlainMuon([matrix], [p], **OPTIONS), start)
    theirs = moved(lambda p: torch.optim.AdamW([p], lr=0.03, weight_decay=0.1), start)
    assert torch.equal(ours, theirs)
    assert torch.equal(matrix.grad, torch.ones(3, 3))
    assert not torch.equal(matrix, torch.eye(3))


@pytest.mark.parametrize("method", ["dense", "loose-tucker"])
def test_it_moves_what_other_methods_factor(method):
    size = {} if method == "dense" else {"compression": 0.8}
    config = TrainConfig(method=method, optimizer="muon", **size)
    model = make_network(config, load("digits"))
    optimizer = make_optimizer(config, model, 10)
    matrices, others = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert not matrices & others
    assert matrices | others == {id(p) for p in model.parameters()}
    if method == "dense":
        names = {name for name, p in model.named_parameters() if id(p) in matrices}
        assert names == {"conv2.weight", "fc1.weight", "fc2.weight"}
    else:
        layers = [module for module in model.modules() if isinstance(module, LooseLayer)]
        assert matrices == {id(p) for layer in layers for p in layer.factors}
