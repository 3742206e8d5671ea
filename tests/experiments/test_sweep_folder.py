"""The folder of a sweep: what is written to it when, and by how many."""

import os
import signal
import subprocess
import sys

import pytest

from tenfold.cli import main
from tenfold.experiments import sweep_lock
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.grid import Entry, Sweep
from tenfold.experiments.result import read_results
from tenfold.experiments.sweep import RESULTS, SweepRunner, threads_of_each
from tenfold.experiments.sweep_lock import locked

from .made_up import made_up

FILE = "blocks: [{data: cifar10, model: vgg16, method: dense, lr: 0.1}]"
DONE = [made_up("dense"), made_up(compression=0.9)]
needs_locks = pytest.mark.skipif(sweep_lock.fcntl is None, reason="the system has no flock")


def runner(folder, results=DONE, told=None):
    """A sweep of which these are the results, so that nothing is trained."""
    configs = [TrainConfig.from_dict({**r.config, "device": "cpu", "data_dir": None}) for r in results]
    sweep = Sweep("s", tuple(Entry(config) for config in configs))
    return SweepRunner(sweep, folder, 1, [].append if told is None else told.append)


def test_asking_what_is_left_writes_nothing(tmp_path, capsys):
    torn = "".join(result.to_line() for result in (*DONE, DONE[0])) + '{"id": "half a li'
    (tmp_path / RESULTS).write_text(torn)
    (tmp_path / "file.yaml").write_text(FILE)
    assert main(["sweep", str(tmp_path / "file.yaml"), "--out", str(tmp_path), "--dry-run"]) == 0
    assert "0 of 0 trials and 0 of 1 runs to do" in capsys.readouterr().out
    assert (tmp_path / RESULTS).read_text() == torn
    assert {path.name for path in tmp_path.iterdir()} == {RESULTS, "file.yaml"}


def test_a_torn_or_doubled_line_is_mended_when_the_sweep_runs(tmp_path):
    whole = "".join(result.to_line() for result in DONE)
    for damaged in (whole + '{"id": "half a li', whole + DONE[0].to_line()):
        (tmp_path / RESULTS).write_text(damaged)
        assert runner(tmp_path).run()
        assert (tmp_path / RESULTS).read_text() == whole


def test_a_whole_file_stays_the_one_that_it_is(tmp_path):
    path = tmp_path / RESULTS
    path.write_text("".join(result.to_line() for result in DONE))
    before = path.stat()
    assert runner(tmp_path).run()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [entry.name for entry in tmp_path.iterdir()] == [RESULTS]


def test_lines_that_come_after_the_first_look_are_kept(tmp_path):
    (tmp_path / RESULTS).write_text(DONE[0].to_line() + '{"id": "half a li')
    later = runner(tmp_path)
    (tmp_path / RESULTS).write_text("".join(result.to_line() for result in DONE))
    assert later.run()
    assert [result.id for result in read_results(tmp_path / RESULTS)] == [result.id for result in DONE]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_on_a_full_disk_the_error_names_the_file_and_no_result_is_lost(tmp_path):
    for result in DONE:
        folder = tmp_path / "runs" / result.id
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(result.to_line())
    (tmp_path / RESULTS).symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / RESULTS}'"):
        runner(tmp_path).run()
    (tmp_path / RESULTS).unlink()
    assert runner(tmp_path).run()
    assert [result.id for result in read_results(tmp_path / RESULTS)] == [result.id for result in DONE]


@needs_locks
def test_a_second_sweep_in_the_folder_is_refused(tmp_path):
    torn = DONE[0].to_line() + '{"id": "half a li'
    (tmp_path / RESULTS).write_text(torn)
    with (
        locked(tmp_path),
        pytest.raises(ValueError, match=r"another sweep is running in .*: wait"),
    ):
        runner(tmp_path, DONE[:1]).run()
    assert (tmp_path / RESULTS).read_text() == torn
    assert runner(tmp_path, DONE[:1]).run()


@needs_locks
def test_a_killed_sweep_locks_nobody_out(tmp_path):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tenfold.experiments.sweep_lock import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="another sweep"), locked(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    with locked(tmp_path):
        assert os.listdir(tmp_path) == [".sweep.lock"]
    assert os.listdir(tmp_path) == []


def test_where_there_are_no_locks_nobody_is_kept_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_lock, "fcntl", None)
    with locked(tmp_path), locked(tmp_path):
        assert os.listdir(tmp_path) == []


def test_the_line_after_ctrl_c_has_the_options(tmp_path, capsys, monkeypatch):
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(SweepRunner, "run", stopped)
    (tmp_path / "file.yaml").write_text(FILE)
    command = ["sweep", str(tmp_path / "file.yaml"), "--out", str(tmp_path / "out")]
    more = ["--jobs", "3", "--data-dir", str(tmp_path / "my data")]
    for options in ([], more):
        assert main(command + options) == 130
        said = capsys.readouterr().err
        shown = " ".join(command + options).replace(str(tmp_path / "my data"), f"'{tmp_path / 'my data'}'")
        assert said == f"tenfold: stopped. Go on with: tenfold {shown}\n"


def test_nothing_is_called_written_that_is_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(SweepRunner, "run", lambda _: False)
    (tmp_path / "file.yaml").write_text(FILE)
    command = ["sweep", str(tmp_path / "file.yaml"), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "is written" not in capsys.readouterr().out
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RESULTS).write_text("")
    assert main(command) == 1
    assert "results.jsonl is written\n" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "threads"), [("3", 3), ("2,1", 2), ("many", 4), ("0", 4), (None, 4)])
def test_the_threads_of_a_process(monkeypatch, given, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads_of_each(2) == threads


def test_a_run_that_two_blocks_come_to_is_done_once(tmp_path, monkeypatch):
    worked = []
    monkeypatch.setattr(SweepRunner, "_work_off", lambda _, jobs: worked.extend(jobs))
    runner(tmp_path, [DONE[0], DONE[0], DONE[1]]).run()
    assert [job.config.method for job in worked] == ["dense", "tucker"]
