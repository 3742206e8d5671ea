"""Benchmarks as a user runs them: in processes of their own, without the network."""

import os
import runpy
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@contextmanager
def loaded(script):
    """The names of a script in this process, while it can import the files beside it."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield runpy.run_path(str(BENCHMARKS / script))
    finally:
        sys.path.remove(str(BENCHMARKS))


def said_by(script, folder, *options):
    """What a script prints, on one thread of the processor."""
    alone = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / script), "--device", "cpu", *map(str, options)]
    done = subprocess.run(command, env=os.environ | alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def save_tokenizer(folder, words, template=None, **options):
    """A tokenizer that knows some words, in the layout of the hub; the unknown is among the options."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=options["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if template is not None:
        tokenizer.post_processor = template
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(folder)
