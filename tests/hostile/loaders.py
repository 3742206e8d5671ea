"""Everything that reads foreign bytes: a valid file of each kind, and how it is read.

A loader reads the file at a path into fresh objects and returns nothing. It raises only what a user can be
told, and asserts that a failed load has changed nothing and that a successful one gave something that works.
"""

import contextlib
import gzip
import io
import json
import pickle
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from tenfold.cli import main
from tenfold.experiments import checkpoint
from tenfold.experiments.checkpoint import TrainingState
from tenfold.experiments.cifar_batches import read_cifar_batch
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.evidence_tables import accuracy_table, robustness_table, time_table
from tenfold.experiments.grid import read_sweep
from tenfold.experiments.idx import read_idx
from tenfold.experiments.metrics import EpochRecord, read_records
from tenfold.experiments.report import table
from tenfold.experiments.result import Result, read_results
from tenfold.experiments.runs import Run, read_config
from tenfold.experiments.summary import settings
from tenfold.experiments.tiny_imagenet import read_picture
from tenfold.nn import Linear, TuckerConv2d
from tenfold.nn.adapters import adapt, export_lora, import_lora, load_adapter, save_adapter
from tenfold.optim import RankAdaptation, RiemannianAdamW
from tests.experiments.conftest import idx_bytes
from tests.hostile import mutations
from tests.hostile.snapshot import everything, same

ALLOWED = (ValueError, OSError)


@dataclass(frozen=True)
class Loader:
    """One kind of file."""

    name: str  # of the file
    valid: bytes
    inputs: st.SearchStrategy
    load: object

    def __call__(self, path):
        self.load(path)


# Checkpoints of runs -------------------------------------------------------------------------

CONFIG = TrainConfig(epochs=3)


def network():
    torch.manual_seed(0)
    body = nn.Sequential(TuckerConv2d(2, 4, 3, rank=2), nn.BatchNorm2d(4), nn.Flatten())
    return nn.Sequential(body, Linear(16, 8, rank=2), nn.Linear(8, 3))


def fresh_state():
    model = network()
    optimizer = RiemannianAdamW(model.parameters(), lr=0.01, rank_adaptation=RankAdaptation(tol=0.1, every=2))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=9, cycle_momentum=False
    )
    return TrainingState(CONFIG, model, optimizer, scheduler)


def a_step(state):
    state.optimizer.zero_grad()
    state.model.train()
    state.model(torch.randn(5, 2, 4, 4)).square().sum().backward()
    state.optimizer.step()
    state.scheduler.step()


RECORD = EpochRecord(
    **dict.fromkeys(("epoch", "step"), 3),
    **dict.fromkeys(("train_loss", "test_loss", "test_accuracy", "seconds_per_step", "lr"), 0.5),
    **dict.fromkeys(("parameters", "dense_parameters"), 100),
    **{f"compression_{part}": 0.5 for part in ("convolutions", "factored", "network")},
    ranks={"0.0": [2, 2], "1": [2]},
    peak_memory=10**8,
    losses=[1.0, 0.5],
)


@cache
def checkpoint_contents():
    state = fresh_state()
    for _ in range(3):
        a_step(state)
    state.epoch, state.step, state.records = 1, 3, [RECORD]
    state.rank_history = [(0, {"0.0": [2, 2], "1": [2]}), (2, {"0.0": [3, 2], "1": [2]})]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "checkpoint.pt", state)
        raw = (Path(folder) / "checkpoint.pt").read_bytes()
    return raw, torch.load(io.BytesIO(raw), weights_only=True)


def load_checkpoint(path):
    state = fresh_state()
    before = everything(state.model, state.optimizer, state.scheduler)
    try:
        contents = checkpoint.read(path)
        checkpoint.check_same_run(path, contents, CONFIG)
        checkpoint.restore(path, contents, state)
    except ALLOWED:
        same(before, state.model, state.optimizer, state.scheduler)
        assert (state.epoch, state.step, state.records, state.rank_history) == (0, 0, [], [])
        raise
    with contextlib.suppress(ValueError):  # absurd but finite weights may overflow in the step
        a_step(state)
    table([Run(path.parent, CONFIG, state.records)])


# Text ----------------------------------------------------------------------------------------


def result_lines():
    """A run on manifolds and a dense one."""
    run = Result.of(CONFIG, "s", None, "run", [RECORD], [(0, RECORD.ranks)], True)
    return (
        run.to_line() + Result.of(CONFIG.dense_twin(), "s", None, "run", [RECORD], [], True).to_line()
    ).encode()


SWEEP = b"""name: s
common: {data: mnist, model: lenet5, epochs: 3}
seeds: 2
rates:
  sgd: [0.02, 0.05]
  adamw: [0.001]
tune: {epochs: 1, seed: 1000}
blocks:
  - {method: dense, optimizer: [sgd, adamw]}
  - {method: tucker, optimizer: sgd, tau: [0.1, 0.2], seeds: [3, 4]}
"""
_YAML = [
    b"a: &a [x, x]\nb: &b [*a, *a]\nblocks: [*b, *b]\n",
    b"!!python/object/apply:os.system ['true']",
    b"blocks: !!python/name:os.system",
    b"[" * 20_000,
    b"seeds: 2147483648\nblocks: [{method: dense, lr: 0.1}]",
    b"x: " + b"9" * 10_000,
    b"x: 2001-99-99",
    b"common: {epochs: [" + b"1," * 400 + b"1], batch_size: [" + b"1," * 400 + b"1]}\nblocks: [{lr: 1}]",
    b"blocks: [{lr: 0.1, seed: 1}]\n? [a]\n: 1",
]


def sweeps():
    import yaml

    tree = yaml.safe_load(SWEEP)
    forged = mutations.forged(tree).map(
        lambda value: yaml.safe_dump(value.value, allow_unicode=True).encode()
    )
    return st.one_of(mutations.edited(SWEEP), forged, forged, st.sampled_from(_YAML))


def load_metrics(path):
    table([Run(path.parent, CONFIG, read_records(path) or [RECORD])])


def load_results(path):
    for setting in settings(read_results(path)):
        if setting.results:
            accuracy_table([setting]), time_table([setting]), robustness_table([setting])


def load_config(path):
    config = read_config(path.parent)
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert config.dense_twin().method == "dense"


# Weights on the command line -----------------------------------------------------------------


@cache
def weights():
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(4, 8),
        "a.bias": torch.zeros(4),
        "b.conv.weight": torch.randn(6, 4, 3, 3),
        **Linear(8, 4, rank=2).state_dict(prefix="c."),
    }


def load_weights(path):
    """``inspect`` and ``compress``: exit code 0, or 2 and one line; nothing is written beside the result."""
    others = {p: p.read_bytes() for p in path.parent.iterdir()}
    for line in (["inspect", str(path)], ["compress", str(path), "--rank", "1"]):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(line)
        left = {p: p.read_bytes() for p in path.parent.iterdir()}
        if code:
            assert code == 2
            assert left == others
            assert err.getvalue().count("\n") == 1
            raise ValueError(err.getvalue())
    for written in left.keys() - others.keys():
        written.unlink()


# Adapters ------------------------------------------------------------------------------------


def frozen():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 8))


@cache
def adapter_files():
    model = frozen()
    adapt(model, rank=2)
    torch.manual_seed(1)
    for p in model.parameters():
        if p.requires_grad:
            p.data.copy_(p.manifold.random())
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, Path(folder) / "a.safetensors")
        export_lora(model, Path(folder) / "peft")
        files = [Path(folder) / "a.safetensors", *(Path(folder) / "peft" / name for name in PEFT)]
        return [file.read_bytes() for file in files]


PEFT = ("adapter_model.safetensors", "adapter_config.json")


def _load_adapter(load, path):
    model = frozen()
    before = everything(model)
    try:
        load(model, path)
    except ALLOWED:
        same(before, model)
        raise
    assert model(torch.randn(2, 2, 4, 4)).shape == (2, 8)


def load_own_adapter(path):
    _load_adapter(load_adapter, path)


def load_peft(path):
    _, *peft = adapter_files()
    for name, raw in zip(PEFT, peft, strict=True):
        if not (path.parent / name).exists():
            (path.parent / name).write_bytes(raw)
    _load_adapter(import_lora, path.parent)


# Images --------------------------------------------------------------------------------------

_IMAGES = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)


def load_idx(path):
    images = read_idx(path)
    assert images.dtype == torch.uint8
    assert images.numel() <= 2**28


def batch_file():
    data = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)
    return pickle.dumps({b"data": data, b"labels": [1, 2]}, protocol=2)


def load_batch(path):
    images, labels = read_cifar_batch(path)
    assert images.shape == (len(labels), 3, 32, 32)
    assert images.dtype == torch.uint8
    assert all(0 <= label < 10 for label in labels.tolist())


def picture_file():
    with io.BytesIO() as file:
        Image.linear_gradient("L").resize((64, 64)).save(file, "JPEG")
        return file.getvalue()


def load_picture(path):
    pixels = read_picture(path)
    assert pixels.shape == (3, 64, 64)
    assert pixels.dtype == torch.uint8


_HARM = [
    b"\x80\x02cos\nsystem\nU\x04true\x85R.",
    b"\x80\x02cnumpy\nndarray\n\x8a\x05\0\0\0\0\x10\x85\x85R.",
    b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of 2^31 entries
    b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",  # a string of 2^63 bytes
    b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",
    b"(" * 10_000 + b".",
]

# ---------------------------------------------------------------------------------------------


@cache
def loaders():
    """All of them, by what they read."""
    import safetensors.torch

    raw, contents = checkpoint_contents()
    own, peft_weights, peft_config = adapter_files()
    plain, packed = idx_bytes(_IMAGES), gzip.compress(idx_bytes(_IMAGES))
    bomb = gzip.compress(b"\0\0\x08\x01\xff\xff\xff\xff" + b"\0" * 10**6)
    results = result_lines()
    metrics = 2 * (json.dumps(RECORD.to_dict()) + "\n").encode()
    config = json.dumps(CONFIG.to_dict()).encode()
    batch, state = batch_file(), weights()
    tensors = safetensors.torch.save({k: v.detach().contiguous() for k, v in state.items()})
    m = mutations
    found = {
        "checkpoint": Loader("checkpoint.pt", raw, m.archives(raw, contents), load_checkpoint),
        "config": Loader("config.json", config, m.json_files(config), load_config),
        "metrics": Loader("metrics.jsonl", metrics, m.json_files(metrics), load_metrics),
        "results": Loader("results.jsonl", results, m.json_files(results), load_results),
        "sweep": Loader("sweep.yaml", SWEEP, sweeps(), read_sweep),
        "weights": Loader("weights.pt", m.saved(state), m.archives(m.saved(state), state), load_weights),
        "safetensors": Loader("weights.safetensors", tensors, m.safetensors_files(tensors), load_weights),
        "adapter": Loader("a.safetensors", own, m.safetensors_files(own), load_own_adapter),
        "peft-weights": Loader(PEFT[0], peft_weights, m.safetensors_files(peft_weights), load_peft),
        "peft-config": Loader(PEFT[1], peft_config, m.json_files(peft_config), load_peft),
        "idx": Loader("images", plain, m.edited(plain), load_idx),
        "idx-gz": Loader("images.gz", packed, st.one_of(m.edited(packed), st.just(bomb)), load_idx),
        "cifar": Loader("batch", batch, st.one_of(m.edited(batch), st.sampled_from(_HARM)), load_batch),
        "jpeg": Loader("image.JPEG", picture_file(), m.edited(picture_file()), load_picture),
    }
    return found
