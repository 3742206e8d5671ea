"""Fine-tuning DeBERTa-v3 on GLUE with adapters, beside LoRA and AdaLoRA of PEFT. Made for a GPU.

    pip install 'tenfold[glue]'
    python benchmarks/glue.py --out glue.jsonl
    python benchmarks/glue.py --out glue.jsonl --table

Model and data come from the Hugging Face hub, or from folders in the layout that they have there
(``--model``, ``--data``). Every run is one line of the output file; runs that are there are not repeated.

All linear layers of the encoder are adapted with as many parameters as LoRA of the given rank; pooler and
classifier are trained as they are. Epochs and lengths are those of the AdaLoRA paper (Zhang et al., ICLR
2023). The learning rate of the adapters is chosen by the score on sentences held out of the training set; the
table shows the score on the published validation set, since the labels of the test set are not public.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from adapter_methods import METHODS, Row, autocast, ramp, with_adapters
from adapter_runs import at_best_rate, carry_out, grid, make_parser, markdown, on_a_device, read, spread
from torch.utils.data import DataLoader

Score = Callable[[np.ndarray, np.ndarray], float]


def accuracy(found: np.ndarray, labels: np.ndarray) -> float:
    return float((found == labels).mean())


def matthews(found: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, found))


def correlation(found: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the correlations of Pearson and Spearman; nothing where one side is constant."""
    from scipy.stats import pearsonr, spearmanr

    if np.ptp(found) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float((pearsonr(found, labels)[0] + spearmanr(found, labels)[0]) / 2)


@dataclass(frozen=True)
class Task:
    """A task of GLUE: its columns, its labels (one for a regression), its score and its training."""

    columns: tuple[str, ...]
    epochs: int
    length: int
    labels: int = 2
    score: Score = accuracy
    validation: str = "validation"


PAIR = ("sentence1", "sentence2")
TASKS = {
    "cola": Task(("sentence",), 25, 64, score=matthews),
    "mnli": Task(("premise", "hypothesis"), 7, 256, labels=3, validation="validation_matched"),
    "mrpc": Task(PAIR, 30, 320),
    "qnli": Task(("question", "sentence"), 5, 512),
    "qqp": Task(("question1", "question2"), 5, 320),
    "rte": Task(PAIR, 50, 320),
    "sst2": Task(("sentence",), 24, 128),
    "stsb": Task(PAIR, 25, 128, labels=1, score=correlation),
}
HEAD_LR = 1e-3
ADAPTED = ("*.encoder.layer.*",)
HEADS = ("pooler", "classifier")


def splits(name: str, options: argparse.Namespace, tokenizer: Any) -> dict[str, Any]:
    """Training, held-out and validation sentences of a task, as tokens."""
    from datasets import load_dataset

    task = TASKS[name]
    raw = load_dataset(options.data, name)
    size = min(max(1, len(raw["train"]) // 10), 1000)
    parts = raw["train"].train_test_split(test_size=size, seed=0)
    chosen = {"train": parts["train"], "held_out": parts["test"], "validation": raw[task.validation]}

    def tokens(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = (batch[column] for column in task.columns)
        encoded = tokenizer(*texts, truncation=True, max_length=task.length)
        return {**encoded, "labels": batch["label"]}

    def encoded(rows: Any) -> Any:
        return rows.map(tokens, batched=True, remove_columns=rows.column_names)

    return {part: encoded(rows) for part, rows in chosen.items()}


def loader(rows: Any, options: argparse.Namespace, tokenizer: Any, generator: Any = None) -> DataLoader:
    """Batches of sentences of equal length, shuffled with a generator."""
    from transformers import DataCollatorWithPadding

    shuffled = generator is not None
    collate = DataCollatorWithPadding(tokenizer, return_tensors="pt")
    return DataLoader(rows, options.batch, shuffle=shuffled, generator=generator, collate_fn=collate)


@torch.no_grad()
def evaluate(model: torch.nn.Module, batches: DataLoader, task: Task, options: argparse.Namespace) -> float:
    """The score of the task."""
    model.eval()
    found, labels = [], []
    for batch in batches:
        labels.append(batch.pop("labels"))
        with autocast(options):
            logits = model(**{name: value.to(options.device) for name, value in batch.items()}).logits
        found.append((logits[:, 0] if task.labels == 1 else logits.argmax(1)).float().cpu())
    model.train()
    return task.score(torch.cat(found).numpy(), torch.cat(labels).numpy())


def run(
    task: str,
    method: str,
    lr: float,
    seed: int,
    *,
    parts: dict[str, Any],
    options: argparse.Namespace,
    tokenizer: Any,
) -> Row:
    """Train once, and what came of it."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    this = TASKS[task]
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=this.labels, dtype=torch.float32
    )
    model.to(options.device)
    epochs = options.epochs or this.epochs
    steps = epochs * math.ceil(len(parts["train"]) / options.batch)
    adapted = with_adapters(
        method,
        model,
        ADAPTED,
        rank=options.rank,
        steps=steps,
        lr=lr,
        head=[name for name in HEADS if hasattr(model, name)],
        head_lr=HEAD_LR,
        every=max(5, steps // 200),
    )
    scheduler = ramp(adapted.optimizer, steps)
    adapted.model.train()
    begin, losses = time.perf_counter(), []
    batches = loader(parts["train"], options, tokenizer, generator)
    for step, batch in enumerate(itertools.chain.from_iterable(itertools.repeat(batches, epochs))):
        adapted.optimizer.zero_grad()
        with autocast(options):
            loss = adapted.model(**{name: value.to(options.device) for name, value in batch.items()}).loss
        loss.backward()
        adapted.optimizer.step()
        adapted.after(step)
        scheduler.step()
        losses.append(loss.detach())
    last = torch.stack(losses[-10:]).mean().item()
    seconds = time.perf_counter() - begin
    scores = {
        part: evaluate(adapted.model, loader(parts[part], options, tokenizer), this, options)
        for part in ("held_out", "validation")
    }
    return {**scores, "loss": last, "seconds": round(seconds, 1), "steps": steps, **adapted.found()}


def table(rows: list[Row]) -> str:
    """Each method at its best rate, task by task."""
    head = ["task", "method", "learning rate", "seeds", "validation", "deviation", "held out", "parameters"]
    lines = []
    for task, method in itertools.product(TASKS, METHODS):
        mine = (row for row in rows if (row["task"], row["method"]) == (task, method))
        runs = at_best_rate(mine, "held_out")
        if not runs:
            continue
        scores, held_out, parameters = (
            [run[name] for run in runs] for name in ("validation", "held_out", "parameters")
        )
        lines.append(
            [
                task,
                method,
                f"{runs[0]['lr']:g}",
                str(len(runs)),
                f"{statistics.fmean(scores):.2%}",
                spread(scores),
                f"{statistics.fmean(held_out):.2%}",
                f"{statistics.fmean(parameters):,.0f}",
            ]
        )
    return markdown(head, lines)


def main() -> None:
    parser = make_parser(__doc__, METHODS, rank=8, lrs=[3e-4, 1e-3, 3e-3, 1e-2])
    on_a_device(parser)
    parser.add_argument("--model", default="microsoft/deberta-v3-base", help="name on the hub, or folder")
    parser.add_argument("--data", default="nyu-mll/glue", help="name on the hub, or folder")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, help="instead of those of each task")
    options = parser.parse_args()
    same = {name: getattr(options, name) for name in ("model", "data", "rank", "batch", "epochs", "amp")}
    if options.table:
        print(table(read(options.out, same)))
        return
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # of the new head, in every run
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    parts_of = lru_cache(maxsize=1)(lambda task: splits(task, options, tokenizer))

    def one(task: str, **key: Any) -> Row:
        return run(task, **key, parts=parts_of(task), options=options, tokenizer=tokenizer)

    keys = [{"task": task, **key} for task in options.tasks for key in grid(options)]
    print(table(carry_out(options.out, same, keys, one, ("held_out", "validation", "seconds"))))


if __name__ == "__main__":
    main()
