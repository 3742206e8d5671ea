import io

import pytest
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tenfold.cli.display import Bar, Lines, display, print_table
from tenfold.experiments.compression import Compression
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.metrics import EpochRecord
from tenfold.experiments.observer import Step

RANKS = {"conv2": [8, 3], "fc1": [12, 12]}
COMPRESSION = Compression(10_000, 61_706, 0.75, 0.875, 0.838)
RECORD = EpochRecord(
    epoch=2,
    step=20,
    train_loss=0.25,
    test_loss=0.3,
    test_accuracy=0.9412,
    parameters=10_000,
    dense_parameters=61_706,
    compression_convolutions=0.75,
    compression_factored=0.875,
    compression_network=0.838,
    ranks=RANKS,
    seconds_per_step=0.0123,
    lr=0.1,
    peak_memory=None,
)
EPOCH_LINE = (
    "epoch  2 of 10  loss 0.2500  test 94.12 %  12.3 ms/step  compression 87.5 %  ranks conv2 8×3 fc1 12×12"
)


def test_lines():
    console = Console(file=io.StringIO(), width=40)
    lines = Lines(console)
    lines.started(TrainConfig(epochs=10), 10, 1)
    lines.epoch_finished(RECORD)
    lines.noted("take [care]")
    assert console.file.getvalue().splitlines() == [
        "lenet5, tucker, on digits: 10 epochs of 10 steps, going on after epoch 1",
        EPOCH_LINE,  # not wrapped
        "take [care]",
    ]


def test_the_bar_shows_loss_accuracy_compression_and_ranks():
    file = io.StringIO()
    console = Console(file=file, width=150, force_terminal=True, color_system=None)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bar = Bar(progress)
        bar.started(TrainConfig(epochs=10), 10, 1)
        (task,) = progress.tasks
        assert (task.total, task.completed) == (100, 10)
        bar.epoch_finished(RECORD)
        bar.stepped(Step(epoch=3, step=4, loss=0.125, ranks=RANKS, compression=COMPRESSION))
        assert task.completed == 24
        progress.refresh()
    shown = file.getvalue()
    assert EPOCH_LINE in shown
    assert "epoch 3" in shown
    assert "loss 0.125  test 94.1 %  compression 87.5 %  ranks conv2 8×3 fc1 12×12" in shown


def test_without_a_terminal_there_is_no_bar(capsys):
    with display() as observer:
        assert type(observer) is Lines


def test_in_a_terminal_there_is_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with display() as observer:
        assert type(observer) is Bar


@pytest.mark.parametrize("cell", ["[red]", "94.1 %"])
def test_tables_print_their_cells_as_they_are(capsys, cell):
    print_table([["", "a", "b"], ["accuracy", cell, "–"]])
    assert capsys.readouterr().out.split("\n")[2].split("  ")[0] == "accuracy"
    print_table([["", "a", "b"], ["accuracy", cell, "–"]])
    assert cell in capsys.readouterr().out
