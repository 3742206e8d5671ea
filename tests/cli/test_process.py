"""The command line as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import tenfold
from tenfold.cli.twin import train_apart
from tenfold.experiments.config import TrainConfig

TENFOLD = [sys.executable, "-m", "tenfold"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TENFOLD, *arguments], capture_output=True, text=True, timeout=180, env=ENVIRONMENT, check=False
    )


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tenfold {tenfold.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["compare", "--help"]])
def test_help_does_not_wait_for_torch(arguments):
    code = (
        "import sys\n"
        "from tenfold.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage: tenfold" in done.stdout


def test_a_mistake_is_one_line_without_a_traceback(tmp_path):
    done = run("train", "--data", "mnist", "--data-dir", str(tmp_path), "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "MNIST/raw/train-images-idx3-ubyte is missing; the data directory should hold" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_keeps_the_last_epoch_and_exits_130(quick, tmp_path):
    folder = tmp_path / "run"
    command = [*TENFOLD, *quick("--epochs", "100000", "--method", "dense", "--out", str(folder))]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        # A shell starts what runs in the background with the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 180
        while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=180)
    assert process.returncode == 130
    assert error.count("\n") == 1
    assert error.endswith(f"epochs are kept. Go on with: tenfold train --resume --out {folder}\n")
    kept = int(error.split()[2])
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] == kept
    assert len(records) in (kept, kept + 1)  # the checkpoint is written last
    assert [record["epoch"] for record in records] == list(range(1, len(records) + 1))
    assert {path.name for path in folder.iterdir()} == {"config.json", "metrics.jsonl", "checkpoint.pt"}


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_reaches_the_network_that_trains_apart(tmp_path, data_folder, capfd, request):
    config = TrainConfig(
        data="mnist", data_dir=str(data_folder), method="dense", epochs=100_000, batch_size=16, device="cpu"
    )

    def interrupt_when_it_trains() -> None:
        deadline = time.monotonic() + 180
        while not (tmp_path / "checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    watcher = threading.Thread(target=interrupt_when_it_trains)
    watcher.start()
    assert train_apart(config, tmp_path, False, "tenfold train --again") == 130
    watcher.join()
    assert capfd.readouterr().err.endswith("of 100000 epochs are kept. Go on with: tenfold train --again\n")


@pytest.mark.parametrize("more", [["--help"], ["--epochs", "1", "--beside-dense"]])
def test_what_the_terminal_cannot_show_ends_nothing(quick, tmp_path, more):
    arguments = quick("--out", str(tmp_path / "run"), *more)
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*TENFOLD, *arguments], capture_output=True, timeout=180, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
