"""``tenfold compress``."""

from __future__ import annotations

import argparse

from tenfold.cli.weights_file import dense_layers, read_weights, write_weights
from tenfold.nn import factorize


def compress_command(options: argparse.Namespace) -> int:
    """Decompose the weights in a file, write them to another and print what was done.

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
    state = read_weights(options.file)
    out = options.out or options.file.with_name(f"{options.file.stem}-{options.format}{options.file.suffix}")
    if out.resolve() == options.file.resolve():
        raise ValueError(f"--out {out} is the file that is read")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"the folder of --out {out} does not exist")
    model = dense_layers(state)
    report = factorize(
        model,
        format=options.format,
        rank=options.rank,
        tol=options.tol,
        compression=options.compression,
        include=options.include,
        exclude=options.exclude or (),
    )
    if not report.layers and not report.left:
        raise ValueError(f"{options.file} holds no weight of a linear layer or a convolution")
    state.update(model.state_dict())
    write_weights(out, state)
    print(report)
    print(f"{out} is written")
    return 0
