"""A training run on the screen: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from tenfold.experiments.config import TrainConfig
from tenfold.experiments.metrics import EpochRecord
from tenfold.experiments.observer import Observer, Step
from tenfold.experiments.report import Table, brief_ranks, percent

_PLAIN_WIDTH = 160  # columns where there is no terminal to ask


class Lines(Observer):
    """One line at the start and one per epoch.

    Parameters
    ----------
    console : Console
        To print to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._epochs = 0

    def started(self, config: TrainConfig, steps_per_epoch: int, epochs_done: int) -> None:
        """Say what is being trained."""
        self._epochs = config.epochs
        progress = f"{config.epochs} epochs of {steps_per_epoch} steps"
        after = f", going on after epoch {epochs_done}" if epochs_done else ""
        self._print(f"{config.model}, {config.method}, on {config.data}: {progress}{after}")

    def epoch_finished(self, record: EpochRecord) -> None:
        """Say what the epoch gave."""
        width = len(str(self._epochs))
        line = (
            f"epoch {record.epoch:{width}} of {self._epochs}  loss {record.train_loss:.4f}  "
            f"test {100 * record.test_accuracy:.2f} %  {1000 * record.seconds_per_step:.1f} ms/step"
        )
        if record.ranks or record.compression_factored:
            line += f"  compression {percent(record.compression_factored)}"
        if record.ranks:
            line += f"  ranks {brief_ranks(record.ranks)}"
        self._print(line)

    def noted(self, message: str) -> None:
        """Pass the message on."""
        self._print(message)

    def _print(self, line: str) -> None:
        self.console.print(escape(line), highlight=False, soft_wrap=True)


class Bar(Lines):
    """The same lines above a bar that follows the steps.

    Parameters
    ----------
    progress : Progress
        A started display.
    """

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress.console)
        self.progress = progress
        self._task: TaskID | None = None
        self._steps_per_epoch = 0
        self._accuracy = ""

    def started(self, config: TrainConfig, steps_per_epoch: int, epochs_done: int) -> None:
        """Say what is being trained and show the bar."""
        super().started(config, steps_per_epoch, epochs_done)
        self._steps_per_epoch = steps_per_epoch
        total = config.epochs * steps_per_epoch
        self._task = self.progress.add_task(
            "", total=total, completed=epochs_done * steps_per_epoch, state=""
        )

    def stepped(self, step: Step) -> None:
        """Move the bar."""
        state = f"loss {step.loss:.3f}{self._accuracy}"
        if step.ranks or step.compression.factored:
            state += f"  compression {percent(step.compression.factored)}"
        if step.ranks:
            state += f"  ranks {brief_ranks(step.ranks)}"
        assert self._task is not None  # started() comes first
        done = (step.epoch - 1) * self._steps_per_epoch + step.step
        self.progress.update(
            self._task, completed=done, description=f"epoch {step.epoch}", state=escape(state)
        )

    def epoch_finished(self, record: EpochRecord) -> None:
        """Say what the epoch gave, and keep its accuracy beside the bar."""
        super().epoch_finished(record)
        self._accuracy = f"  test {100 * record.test_accuracy:.1f} %"


@contextmanager
def display() -> Iterator[Lines]:
    """An observer fit for where the standard output goes; what it shows is closed properly at the end."""
    console = _console()
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=4, transient=True) as progress:
        yield Bar(progress)


def print_table(rows: Table) -> None:
    """Print a table whose first row and first column are headings."""
    table = RichTable(box=None, pad_edge=False, header_style="bold")
    for i, heading in enumerate(rows[0]):
        table.add_column(escape(heading), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*(escape(cell) for cell in row))
    console = _console()
    console.print()
    console.print(table)
    console.print()


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)
