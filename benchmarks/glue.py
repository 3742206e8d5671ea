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
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapter_runs import METHODS, Row, at_best_rate, missing, ramp, read, record, spread, with_adapters
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


def autocast(options: argparse.Namespace) -> Any:
    return torch.autocast(torch.device(options.device).type, torch.bfloat16) if options.amp else nullcontext()


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
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for task, method in itertools.product(TASKS, METHODS):
        mine = (row for row in rows if (row["task"], row["method"]) == (task, method))
        runs = at_best_rate(mine, "held_out")
        if not runs:
            continue
        scores, held_out, parameters = (
            [run[name] for run in runs] for name in ("validation", "held_out", "parameters")
        )
        lines.append(
            f"| {task} | {method} | {runs[0]['lr']:g} | {len(runs)} | {statistics.fmean(scores):.2%} | "
            f"{spread(scores)} | {statistics.fmean(held_out):.2%} | {statistics.fmean(parameters):,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each run")
    parser.add_argument(
        "--table", action="store_true", help="only print the table of the runs that are there"
    )
    parser.add_argument("--model", default="microsoft/deberta-v3-base", help="name on the hub, or folder")
    parser.add_argument("--data", default="nyu-mll/glue", help="name on the hub, or folder")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=[m for m in METHODS if m != "tenfold-damped"]
    )
    parser.add_argument("--lrs", nargs="+", type=float, default=[3e-4, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--rank", type=int, default=8, help="rank of LoRA, which fixes the parameters of all")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, help="instead of those of each task")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true", help="forward pass in bfloat16 autocast")
    options = parser.parse_args()
    same = {name: getattr(options, name) for name in ("model", "data", "rank", "batch", "epochs", "amp")}
    done = [row for row in read(options.out) if row["protocol"] == same]
    keys = [
        {"task": task, "method": method, "lr": lr, "seed": seed}
        for task in options.tasks
        for seed in options.seeds
        for lr in options.lrs
        for method in options.methods
    ]
    if not options.table:
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()  # of the new head, in every run
        logging.disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        for task, wanted in itertools.groupby(missing(done, keys), key=lambda key: key["task"]):
            parts = splits(task, options, tokenizer)
            for key in wanted:
                found = run(**key, parts=parts, options=options, tokenizer=tokenizer)
                row = {**key, "protocol": same, **found}
                done.append(row)
                record(options.out, row, (*key, "held_out", "validation", "seconds"))
    print(table(done))


if __name__ == "__main__":
    main()
