"""Full disks, closed folders, data that has vanished: one line, exit code 2, the last checkpoint whole."""

import os
import shutil
import subprocess
import sys

import pytest

from tenfold.cli import main
from tenfold.cli.arguments import parse
from tenfold.experiments import checkpoint
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.observer import Observer
from tenfold.experiments.runs import read_run
from tenfold.experiments.training import train

POSIX = pytest.mark.skipif(os.name != "posix", reason="limits and permissions of POSIX")

# Writing beyond the limit is an error then, as on a full disk, and not the end of the process.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from tenfold.cli import main
sys.exit(main(sys.argv[2:]))
"""


class Stop(Observer):
    """Ends a run in its second epoch."""

    def stepped(self, step):
        if step.epoch == 2:
            raise KeyboardInterrupt


@pytest.fixture
def begun(quick, tmp_path):
    """The arguments of a run of which one epoch is done, and its folder."""
    arguments, folder = quick("--method", "dense"), tmp_path / "run"
    options = vars(parse(arguments))
    fields = {name: value for name, value in options.items() if name in TrainConfig().to_dict()}
    with pytest.raises(KeyboardInterrupt):
        train(TrainConfig.recipe(**fields), folder, observer=Stop())
    return folder, ["train", "--resume", "--out", str(folder)]


def limited(size, arguments):
    command = [sys.executable, "-c", LIMITED, str(size), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)


def names(folder):
    return {path.name for path in folder.iterdir()}


@POSIX
@pytest.mark.parametrize(
    ("size", "file"), [(100_000, "checkpoint.pt"), (400, "config.json")], ids=["checkpoint", "text"]
)
def test_a_full_disk(begun, size, file):
    folder, resume = begun
    before = (folder / "checkpoint.pt").read_bytes()
    done = limited(size, resume)
    assert done.returncode == 2
    assert done.stderr == f"tenfold: [Errno 27] File too large: '{folder / file}'\n"
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert names(folder) == {"config.json", "metrics.jsonl", "checkpoint.pt"}
    assert checkpoint.read(folder / "checkpoint.pt")["epoch"] == 1
    assert main(resume) == 0
    assert read_run(folder).last.epoch == 2


@POSIX
def test_a_full_disk_at_the_very_start(quick, tmp_path):
    folder = tmp_path / "run"
    done = limited(300, quick("--method", "dense", "--out", str(folder)))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "File too large" in done.stderr
    assert names(folder) == set()


@POSIX
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(begun, capsys):
    folder, resume = begun
    before = (folder / "checkpoint.pt").read_bytes()
    folder.chmod(0o555)
    try:
        assert main(resume) == 2
    finally:
        folder.chmod(0o755)
    assert capsys.readouterr().err == f"tenfold: [Errno 13] Permission denied: '{folder / 'config.json'}'\n"
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert names(folder) == {"config.json", "metrics.jsonl", "checkpoint.pt"}


@pytest.mark.parametrize("where", ["file", "system"])
def test_a_place_where_no_folder_can_be_made(quick, tmp_path, capsys, where):
    if where == "system" and not os.path.isdir("/proc/self"):
        pytest.skip("there is no /proc, in which even root makes no folders")
    (tmp_path / "file").write_text("in the way")
    out = str(tmp_path / "file" / "run") if where == "file" else "/proc/self/run"
    assert main(quick("--out", out)) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), out in error) == (1, True)


def test_data_that_has_vanished(begun, data_folder, tmp_path, capsys):
    folder, resume = begun
    before = (folder / "checkpoint.pt").read_bytes()
    shutil.copytree(data_folder, tmp_path / "data")
    gone = tmp_path / "data" / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    gone.unlink()
    assert main([*resume, "--data-dir", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tenfold: {gone} is missing; the data directory should hold")
    assert error.count("\n") == 1
    assert (folder / "checkpoint.pt").read_bytes() == before
    shutil.copy(data_folder / gone.relative_to(tmp_path / "data"), gone)
    assert main([*resume, "--data-dir", str(tmp_path / "data")]) == 0
