"""What can be done with every layer: the support matrix of the documentation, as functions that must pass."""

import copy
import io
import pickle

import torch

from tenfold.nn import AveragedModel, MultiheadAttention, factor_state_dict, load_factor_state_dict
from tests.nn.cases import PLAIN, Case


class SelfAttention(torch.nn.Module):
    """Attention with one argument, as the other layers have."""

    def __init__(self, *arguments, **options):
        super().__init__()
        self.attention = MultiheadAttention(*arguments, **options)

    def forward(self, x):
        return self.attention(x, x, x)[0]


ATTENTION = {
    f"attention-{form}-plain": Case(SelfAttention, (8, 2), (3, 8), {"format": form, "batch_first": True})
    for form in ("fixed-rank", "tucker", "tensor-train")
}
LAYERS = {**PLAIN, **ATTENTION}
NAMES = {
    "linear": "Linear",
    "conv1d": "Conv1d",
    "conv2d": "Conv2d",
    "conv3d": "Conv3d",
    "transposed": "ConvTranspose2d",
    "embedding": "Embedding",
    "attention": "MultiheadAttention",
}


def same(layer, case, other):
    x = case.data(2)
    torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)


def trains(layer, case):
    layer(case.data(2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in layer.parameters())


def deepcopy(case):
    layer = case.make()
    twin = copy.deepcopy(layer)
    same(layer, case, twin)
    trains(twin, case)
    assert all(p.grad is None for p in layer.parameters())


def pickled(case):
    layer = case.make()
    twin = pickle.loads(pickle.dumps(layer))
    same(layer, case, twin)
    trains(twin, case)


def conversion(case):
    layer = case.make()
    x = case.data(2)
    single = copy.deepcopy(layer).to(torch.float32)
    y = single(x.float() if x.is_floating_point() else x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, layer(x).float())
    trains(single.double(), case)


def meta_then_load(case):
    layer = case.make()
    assigned, emptied = case.make(device="meta"), case.make(device="meta").to_empty(device="cpu")
    assigned.load_state_dict(layer.state_dict(), assign=True)
    emptied.load_state_dict(layer.state_dict())
    for twin in (assigned, emptied):
        same(layer, case, twin)
        trains(twin, case)


def state_across_ranks(case):
    layer, other = case.make(rank=2), case.make(rank=1)
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True))
    same(layer, case, other)
    trains(other, case)


def named_factors(case):
    layer, other = case.make(rank=2), case.make(rank=1)
    state = factor_state_dict(layer)
    assert all(value.is_contiguous() for value in state.values())
    assert not any(name.endswith("weight") for name in state)
    load_factor_state_dict(other, state)
    same(layer, case, other)
    trains(other, case)


def safetensors(case):
    import pytest

    files = pytest.importorskip("safetensors.torch")
    layer, other = case.make(rank=2), case.make(rank=1)
    load_factor_state_dict(other, files.load(files.save(factor_state_dict(layer))))
    same(layer, case, other)
    other = case.make(rank=1)
    other.load_state_dict(files.load(files.save(dict(layer.state_dict()))))
    same(layer, case, other)


def functional_call(case):
    layer, values = case.make(), case.make(rank=2)
    with torch.no_grad():
        for parameter in values.parameters():
            parameter.mul_(0.5)
    plain = {name: p.detach().clone() for name, p in values.named_parameters()}
    assert not any(hasattr(value, "manifold") for value in plain.values())
    x = case.data(2)
    found = torch.func.functional_call(layer, plain, (x,))
    torch.testing.assert_close(found, values(x))
    stacked = {name: torch.stack([value, value]) for name, value in plain.items()}
    many = torch.func.vmap(lambda p: torch.func.functional_call(layer, p, (x,)))(stacked)
    torch.testing.assert_close(many[1], found)


def averaging(case):
    layer = case.make()
    average = AveragedModel(layer, decay=0.5)
    average.update_parameters(layer)
    average.update_parameters(layer)
    x = case.data(2)
    torch.testing.assert_close(average(x), layer(x))


def compiled(case):
    torch._dynamo.reset()
    layer, x = case.make(), case.data(2)
    faster = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(faster(x), layer(x))
    trains(faster, case)


def exported(case):
    layer = case.make().eval()
    program = torch.export.export(layer, (case.data(2),), dynamic_shapes=_first_axis())
    dense = max(value.numel() for value in program.state_dict.values())
    assert dense <= max(p.numel() for p in layer.parameters())
    for batch in (2, 5):
        x = case.data(batch)
        torch.testing.assert_close(program.module()(x), layer(x))


def onnx(case, folder):
    import pytest

    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    layer = case.make(dtype=torch.float32).eval()
    x = case.data(2)
    x = x.float() if x.is_floating_point() else x
    program = torch.onnx.export(layer, (x,), dynamo=True, verbose=False, dynamic_shapes=_first_axis())
    program.save(folder / "model.onnx")
    session = runtime.InferenceSession(folder / "model.onnx")
    for data in (x, torch.cat([x, x, x])):
        found = session.run(None, {session.get_inputs()[0].name: data.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), layer(data).detach(), atol=1e-5, rtol=1e-4)


def _first_axis():
    return ({0: torch.export.Dim.DYNAMIC},)


OPERATIONS = {
    "deepcopy": deepcopy,
    "pickle": pickled,
    "`.to`, `.double()`": conversion,
    "meta, then load": meta_then_load,
    "state across ranks": state_across_ranks,
    "named factors": named_factors,
    "safetensors": safetensors,
    "functional_call, vmap": functional_call,
    "averaging": averaging,
    "compile, full graph": compiled,
    "export": exported,
    "ONNX": onnx,
}
# Layers and operations that are known not to go together, with the reason; they must fail.
UNSUPPORTED: dict[tuple[str, str], str] = {}


def table():
    """The support matrix in Markdown, as it stands in the documentation."""
    lines = ["| | " + " | ".join(NAMES.values()) + " |", "|---" * (len(NAMES) + 1) + "|"]
    for operation in OPERATIONS:
        cells = ["no" if (layer, operation) in UNSUPPORTED else "yes" for layer in NAMES]
        lines.append(f"| {operation} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
