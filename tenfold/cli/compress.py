"""``tenfold compress``."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from tenfold.cli.expression import evaluate
from tenfold.cli.weights_file import dense_layers, read_weights, write_weights
from tenfold.nn import factorize


def compress_command(options: argparse.Namespace) -> int:
    """Decompose the weights in a file or of a model, write them to a file and print what was done.

    The new file holds the state dictionary of the model after ``tenfold.nn.factorize(model, format=...)``.

    Parameters
    ----------
    options : argparse.Namespace
        As :func:`tenfold.cli.arguments.parse` gives it.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    ValueError, OSError
        A mistake of the user, in one line.
    """
    source = Path(options.model)
    named = ":" in options.model and not source.exists()
    if named:
        model = evaluate(options.model, "a model")
        if not isinstance(model, nn.Module):
            raise ValueError(f"{options.model!r} is {type(model).__name__}, not a torch.nn.Module")
        if options.out is None:
            raise ValueError("--out FILE is needed for a model that is named by MODULE:NAME")
        state, out = {}, options.out
    else:
        state = read_weights(source)
        model = dense_layers(state)
        out = options.out or source.with_name(f"{source.stem}-{options.format}{source.suffix}")
        if out.resolve() == source.resolve():
            raise ValueError(f"--out {out} is the file that is read")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"the folder of --out {out} does not exist")
    try:
        report = factorize(
            model,
            format=options.format,
            rank=options.rank,
            tol=options.tol,
            compression=options.compression,
            include=options.include,
            exclude=options.exclude or (),
        )
    except ValueError as error:
        raise ValueError(f"{options.model}: {error}") from error
    if not report.layers and not report.left:
        raise ValueError(f"{options.model} holds no weight of a linear layer or a convolution")
    state.update(model.state_dict())
    write_weights(out, state)
    print(report)
    print(f"{out} is written")
    return 0
