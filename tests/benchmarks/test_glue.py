"""GLUE with DeBERTa in miniature: a network of random weights, a few sentences, everything from folders."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from .scripts import loaded, said_by, save_tokenizer

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("datasets")

WORDS = ("good", "bad", "film", "plot", "very", "not")


@pytest.fixture(scope="module")
def glue():
    with loaded("glue.py") as names:
        yield SimpleNamespace(**names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model and data in the layout of the hub."""
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("glue")
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]
    template = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    save_tokenizer(folder / "model", names, template, **special)
    config = transformers.DebertaV2Config(
        vocab_size=len(names),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        relative_attention=True,
        position_buckets=8,
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        type_vocab_size=0,
    )
    transformers.DebertaV2Model(config).save_pretrained(folder / "model")
    generator = np.random.default_rng(0)
    configs = ["configs:"]
    for task, columns, label in (("sst2", ["sentence"], int), ("stsb", ["sentence1", "sentence2"], float)):
        configs += [f"- config_name: {task}", "  data_files:"]
        for split, count in (("train", 40), ("validation", 12)):
            rows = []
            for k in range(count):
                texts = {column: " ".join(generator.choice(WORDS, 4)) for column in columns}
                rows.append({**texts, "label": label(k % 2), "idx": k})
            file = folder / "data" / task / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(map(json.dumps, rows)))
            configs += [f"  - split: {split}", f"    path: {task}/{split}.jsonl"]
    (folder / "data" / "README.md").write_text("\n".join(["---", *configs, "---"]))
    return folder


def run(folder, *options):
    where = ("--out", folder / "glue.jsonl", "--model", folder / "model", "--data", folder / "data")
    small = ("--batch", 8, "--rank", 2, "--epochs", 2, "--lrs", 1e-2, "--seeds", 0)
    return said_by("glue.py", folder, *where, *small, *options)


def test_every_method_runs_once_with_the_parameters_of_lora(folder):
    said = run(folder, "--tasks", "sst2", "stsb")
    rows = [json.loads(line) for line in (folder / "glue.jsonl").read_text().splitlines()]
    methods = ["tenfold", "tenfold-fixed", "lora", "adalora"]
    assert [(row["task"], row["method"]) for row in rows] == [
        (t, m) for t in ("sst2", "stsb") for m in methods
    ]
    layers = 2 * (4 * 2 * (16 + 16) + 2 * 2 * (16 + 24))
    for row in rows:
        assert np.isfinite(row["loss"])
        assert -1 <= row["validation"] <= 1
        if row["method"] == "lora":
            assert row["parameters"] == layers
        else:
            assert len(row["ranks"]) == 12
    budgets = [row["parameters"] for row in rows if row["method"] == "tenfold"]
    assert all(0.8 * layers <= parameters <= layers for parameters in budgets)
    assert said.count("| sst2 |") == 4

    again = run(folder, "--tasks", "sst2", "stsb")
    assert "task=" not in again
    assert again.splitlines() == said.splitlines()[-len(again.splitlines()) :]


def test_scores(glue):
    labels = np.array([0, 0, 1, 1])
    assert glue.accuracy(np.array([0, 1, 1, 1]), labels) == 0.75
    assert glue.matthews(labels, labels) == 1.0
    assert glue.correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])) == pytest.approx(1.0)
    assert glue.correlation(np.zeros(3), np.arange(3.0)) == 0.0


def test_the_best_rate_is_that_of_the_held_out_sentences(glue):
    rows = [
        {"task": "rte", "method": "lora", "lr": lr, "seed": seed, "held_out": held_out, "validation": other}
        for lr, held_out, other in ((1e-3, 0.6, 0.5), (1e-2, 0.5, 0.9))
        for seed in (0, 1)
    ]
    for row in rows:
        row["parameters"] = 1000
    assert glue.table(rows).splitlines()[2:] == [
        "| rte | lora | 0.001 | 2 | 50.00% | 0.00% | 60.00% | 1,000 |"
    ]
    # A rate with fewer seeds does not count.
    assert "| 0.01 | 2 |" in glue.table(rows[1:])
