"""Attention against torch's, alone and inside torch's transformer layers."""

import copy
import itertools

import pytest
import torch
from torch import nn

from tenfold.nn import Format, MultiheadAttention, factorize

OPTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "sizes": {"kdim": 6, "vdim": 5},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
}


def pair(**options):
    torch.manual_seed(0)
    ours = MultiheadAttention(8, 2, rank=3, dtype=torch.float64, **options)
    return ours, ours.to_dense()


def inputs(ours, batch=3):
    length, keys = 4, 5
    shapes = [(length, batch, 8), (keys, batch, ours.kdim), (keys, batch, ours.vdim)]
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return [t.transpose(0, 1) if ours.batch_first else t for t in tensors]


def masks(batch=3):
    causal = torch.ones(4, 5, dtype=torch.bool).triu(1)
    padding = torch.zeros(batch, 5, dtype=torch.bool)
    padding[:, -1] = True
    return {
        "none": {},
        "boolean": {"attn_mask": causal},
        "added": {"attn_mask": torch.randn(4, 5, dtype=torch.float64)},
        "per head": {"attn_mask": torch.randn(batch * 2, 4, 5, dtype=torch.float64)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
        "causal": {"attn_mask": causal, "is_causal": True},
    }


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_the_dense_layer(options, mask):
    ours, dense = pair(**options)
    arguments = masks()[mask]
    if mask == "causal" and "add_bias_kv" in options:
        pytest.skip("torch then takes the hint in the place of the mask, and hides the learned key")
    for need, average in itertools.product([True, False], [True, False]):
        tensors = [t.requires_grad_() for t in inputs(ours)]
        more = {"need_weights": need, "average_attn_weights": average, **arguments}
        found, expected = ours(*tensors, **more), dense(*tensors, **more)
        torch.testing.assert_close(found[0], expected[0])
        assert (found[1] is None) == (expected[1] is None)
        if need:
            torch.testing.assert_close(found[1], expected[1])
        torch.testing.assert_close(
            torch.autograd.grad(found[0].square().sum(), tensors),
            torch.autograd.grad(expected[0].square().sum(), tensors),
        )


@pytest.mark.parametrize("need", [True, False])
def test_without_a_batch_and_with_an_empty_one(need):
    ours, dense = pair()
    tensors = [t[:, 0] for t in inputs(ours)]
    mask = torch.tensor([False, False, True, False, True])
    for found, expected in zip(
        ours(*tensors, key_padding_mask=mask, need_weights=need),
        dense(*tensors, key_padding_mask=mask, need_weights=need),
        strict=True,
    ):
        torch.testing.assert_close(found, expected) if expected is not None else None
    assert ours(*inputs(ours, batch=0), need_weights=need)[0].shape == (4, 0, 8)


@pytest.mark.parametrize("form", Format)
def test_gradcheck(form):
    ours = pair(format=form)[0]
    weights = {name: p.detach().clone().requires_grad_() for name, p in ours.named_parameters()}
    tensors = inputs(ours, batch=1)

    def call(*values):
        return torch.func.functional_call(ours, dict(zip(weights, values, strict=True)), tuple(tensors))[0]

    assert torch.autograd.gradcheck(call, tuple(weights.values()), fast_mode=True)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("form", Format)
def test_from_dense_at_full_rank_is_exact(options, form):
    dense = nn.MultiheadAttention(8, 2, dtype=torch.float64, **options).eval()
    ours = MultiheadAttention.from_dense(dense, rank=1.0, format=form)
    tensors = inputs(ours)
    for twin in (ours, ours.to_dense(), MultiheadAttention.split(dense), copy.deepcopy(ours)):
        torch.testing.assert_close(twin(*tensors), dense(*tensors))
        assert not twin.training
    assert ours.q_proj.rank
    assert MultiheadAttention.from_dense(dense, tol=0.5).q_proj.rank < (8,)


def test_initial_statistics_are_those_of_torch():
    torch.manual_seed(0)
    for sizes in ({}, {"kdim": 48, "vdim": 96}):
        ours, dense = MultiheadAttention(64, 4, rank=16, **sizes), nn.MultiheadAttention(64, 4, **sizes)
        merged = ours.to_dense()
        for name, parameter in dense.named_parameters():
            other = merged.get_parameter(name)
            if parameter.ndim == 1:
                assert torch.equal(other, parameter)
            else:
                assert 0.9 < other.var() / parameter.var() < 1.1


def test_dropout_follows_the_mode():
    ours = MultiheadAttention(8, 2, dropout=0.5, rank=2)
    x = torch.randn(6, 2, 8)
    assert not torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])
    ours.eval()
    assert torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_inside_torchs_encoder_in_training_and_inference(batch_first, norm_first):
    torch.manual_seed(0)
    options = {"dropout": 0.0, "batch_first": batch_first, "norm_first": norm_first, "dtype": torch.float64}
    dense = nn.TransformerEncoderLayer(8, 2, 16, **options)
    ours = copy.deepcopy(dense)
    ours.self_attn = MultiheadAttention.from_dense(dense.self_attn, rank=1.0)
    encoders = [nn.TransformerEncoder(layer, 2, enable_nested_tensor=False) for layer in (ours, dense)]
    x = torch.randn(3, 3, 8, dtype=torch.float64)
    padding = torch.tensor([[False, False, True]] * 3)
    causal = nn.Transformer.generate_square_subsequent_mask(3, dtype=torch.float64)
    for arguments in [{}, {"src_key_padding_mask": padding}, {"mask": causal, "is_causal": True}]:
        for training in (True, False):
            ours_out, dense_out = (encoder.train(training)(x, **arguments) for encoder in encoders)
            torch.testing.assert_close(ours_out, dense_out)
        with torch.no_grad():
            # Here torch's own layer takes its fused path.
            torch.testing.assert_close(encoders[0](x, **arguments), encoders[1](x, **arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attn_mask": torch.zeros(5, 4)}, "attn_mask must have"),
        ({"key_padding_mask": torch.zeros(5, 3)}, "key_padding_mask must have"),
        ({"is_causal": True}, "is_causal"),
    ],
)
def test_masks_that_do_not_fit_are_refused(arguments, message):
    ours = pair()[0]
    with pytest.raises(ValueError, match=message):
        ours(*inputs(ours), **arguments)
    with pytest.raises(ValueError, match="num_heads"):
        MultiheadAttention(8, 3, rank=1)
    with pytest.raises(TypeError, match=r"needs a torch\.nn\.MultiheadAttention"):
        MultiheadAttention.from_dense(nn.Linear(3, 3), rank=1)


@pytest.mark.parametrize("name", ["attn_mask", "key_padding_mask"])
def test_masks_of_integers_are_refused_as_in_torch(name):
    ours, theirs = pair()
    mask = {"attn_mask": torch.zeros(4, 5), "key_padding_mask": torch.zeros(3, 5)}[name].long()
    with pytest.raises(AssertionError):
        theirs(*inputs(ours), **{name: mask})
    with pytest.raises(ValueError, match=rf"{name} must be boolean or floating, got torch\.int64"):
        ours(*inputs(ours), **{name: mask})


def test_weights_are_drawn_anew_where_some_projections_are_dense():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.MultiheadAttention(64, 4, kdim=48))
    factorize(ours, rank=8, exclude=["*.k_proj", "*.out_proj"])
    dense = nn.MultiheadAttention(64, 4, kdim=48)
    ours[0].q_proj.bias.data.fill_(1.0)
    ours[0].reset_parameters()
    for name, parameter in ours[0].to_dense().named_parameters():
        if parameter.ndim == 1:
            assert not parameter.any()
        else:
            assert 0.9 < parameter.var() / dense.get_parameter(name).var() < 1.1


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(4, 2, 8), (5, 1, 8), (5, 1, 8)], "the same batch"),
        ([(4, 1, 8), (5, 2, 8), (5, 2, 8)], "the same batch"),
        ([(4, 2, 8), (5, 2, 8), (4, 2, 8)], "one length"),
        ([(4, 8), (5, 2, 8), (5, 2, 8)], "two axes"),
        ([(1, 4, 2, 8)] * 3, "two axes"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused_as_in_torch(shapes, message):
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    ours, theirs = pair()
    with pytest.raises((AssertionError, RuntimeError)):
        theirs(*tensors)
    with pytest.raises(ValueError, match=message):
        ours(*tensors)
