import errno
import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tenfold.atomic import replacing, write_text


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "notes.txt"
    write_text(path, "one")
    write_text(path, "zwei, ≤ 3")
    assert path.read_text(encoding="utf-8") == "zwei, ≤ 3"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_the_former_file(tmp_path, end):
    path = tmp_path / "notes.txt"
    write_text(path, "one")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("tw")
            raise end

    with pytest.raises(end):
        interrupted()
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


class InterruptedFile(io.BytesIO):
    """A file in which the n-th write is interrupted."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def write(self, data) -> int:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().write(data)


@pytest.mark.parametrize("n", range(1, 12))
def test_ctrl_c_within_torch_save_is_ctrl_c(tmp_path, n):
    """From most places ``torch.save`` makes a ``RuntimeError`` of it, about its position in the file."""

    def save() -> None:
        with replacing(tmp_path / "weights.pt"):
            torch.save({"weight": torch.zeros(1000)}, InterruptedFile(n))

    with pytest.raises(KeyboardInterrupt):
        save()
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_file_written_after_ctrl_c_is_not_hidden_by_it(tmp_path):
    def save() -> None:
        with replacing(tmp_path / "weights.pt"):
            raise RuntimeError("this cannot be saved")

    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises((RuntimeError, KeyboardInterrupt)) as caught:  # pytest itself ends with the latter
            save()
    assert caught.type is RuntimeError


def test_the_temporary_name_keeps_the_suffix(tmp_path):
    with replacing(tmp_path / "picture.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path
        temporary.touch()


def dead_pid() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.skipif(os.name != "posix", reason="processes of POSIX")
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "notes.txt"
    stale = [tmp_path / f".notes.{pid}.txt" for pid in (dead_pid(), 2**40)]
    others = [
        tmp_path / f".notes.{os.getppid()}.txt",  # of a writer that is alive
        tmp_path / f".other.{dead_pid()}.txt",
        tmp_path / ".notes.txt",
    ]
    for file in (*stale, *others):
        file.write_text("half")
    write_text(path, "one")
    assert set(tmp_path.iterdir()) == {path, *others}


def test_contents_are_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    path, calls = tmp_path / "notes.txt", []

    def sync(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        calls.append(("folder" if folder else "file", path.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    write_text(path, "one")
    assert calls == [("file", False), *([("folder", True)] if os.name == "posix" else [])]


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from tenfold.atomic import replacing
from tenfold.cli.weights_file import write_weights

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond the limit is then an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
write_weights(Path(sys.argv[1]), {"weight": torch.zeros(100_000)})
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_file_that_cannot_grow_is_an_error_with_path_and_reason(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"OSError: [Errno 27] File too large: '{path}'"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("save", ["text", "torch"])
def test_a_full_disk_is_an_error_with_path_and_reason(tmp_path, save):
    path = tmp_path / "notes.pt"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.symlink_to("/dev/full")
            if save == "text":
                temporary.write_text("new")
            else:
                with temporary.open("wb") as file:
                    torch.save({"weight": torch.zeros(100_000)}, file)

    with pytest.raises(OSError, match="No space left on device") as caught:
        write()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_about_something_else_pass_unchanged(tmp_path):
    def fail(error: Exception) -> None:
        with replacing(tmp_path / "notes.txt"):
            raise error

    for error in (
        RuntimeError("no file is to blame"),
        FileNotFoundError(errno.ENOENT, "missing", "elsewhere"),
        ValueError("os error"),
    ):
        with pytest.raises(type(error)) as caught:
            fail(error)
        assert caught.value is error
