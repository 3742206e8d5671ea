"""A folder of named tensors as safetensors, written and read by all processes together."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tenfold.distributed.registry import has_company
from tenfold.distributed.sharded import is_sharded

__all__ = ["TensorFolder", "first_line", "write_tensors"]


class TensorFolder:
    """What :func:`write_tensors` wrote.

    Parameters
    ----------
    path : pathlib.Path
        The folder, seen by all processes.

    Attributes
    ----------
    path : pathlib.Path
        The folder.
    saved : dict
        What ``torch.distributed.checkpoint`` knows of each tensor, among it ``size`` and type.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is damaged.
    """

    def __init__(self, path: Path):
        import torch.distributed.checkpoint as library  # which takes seconds to import

        if not path.is_dir():
            raise FileNotFoundError(f"there is no checkpoint at {path}")
        self.path = path
        self._reader = library.HuggingFaceStorageReader(str(path))
        with _damages(path):
            self.saved: dict[str, Any] = self._reader.read_metadata().state_dict_metadata

    def read(self, targets: dict[str, torch.Tensor]) -> None:
        """Fill tensors, whole or sharded, with what is saved under their names; all processes call this.

        Parameters
        ----------
        targets : dict
            Tensors of the saved sizes.

        Raises
        ------
        ValueError
            If the folder is damaged.
        """
        with _damages(self.path), _library() as library:
            library.load(targets, storage_reader=self._reader, no_dist=not has_company())


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors to a folder, which appears in one step; all processes call this.

    Each process writes its shards, and process 0 what is whole in all of them.

    Parameters
    ----------
    path : pathlib.Path
        A folder that does not exist yet, seen by all processes; its parent does.
    tensors : dict
        Tensors under the same names in all processes.

    Raises
    ------
    FileExistsError
        If the folder exists.
    OSError
        If the files cannot be written; there is no such folder then.
    KeyboardInterrupt
        If Ctrl-C was pressed in one of the processes while they were writing; nor is there one then.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists: write every checkpoint to a folder of its own")
    _barrier()  # nobody makes the folder before everybody has seen that there is none
    temporary = path.with_name(f".{path.name}.writing")

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)  # of a writer that was killed
        temporary.mkdir()

    _in_first(path, begin)
    try:
        with _library() as library:
            writer = library.HuggingFaceStorageWriter(str(temporary), save_distributed=True)
            # Processes may have buffers of their own, such as running statistics; those of process 0 count.
            planner = library.DefaultSavePlanner(dedup_save_to_lowest_rank=True)
            library.save(
                _contiguous(tensors), storage_writer=writer, planner=planner, no_dist=not has_company()
            )
    except BaseException as error:
        if _first():
            shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        raise OSError(f"{path} cannot be written: {first_line(error)}") from error
    _barrier()
    _in_first(path, lambda: os.replace(temporary, path))


def first_line(error: BaseException) -> str:
    """Kind and first line of an error.

    Parameters
    ----------
    error : BaseException
        Whose message may be long.
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


@contextmanager
def _library() -> Iterator[Any]:
    """``torch.distributed.checkpoint`` without the warning that there is but one process.

    Its own errors are no ``Exception``; here they are, unless they come of Ctrl-C.
    """
    import torch.distributed.checkpoint as library

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)
        try:
            yield library
        except library.api.CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
                raise KeyboardInterrupt from error
            raise OSError(str(causes[0])) from error


@contextmanager
def _damages(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}") from error


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as safetensors wants them: contiguous, and none that shares its memory with another."""
    seen: set[int] = set()
    found = {}
    for name, t in tensors.items():
        if not is_sharded(t):
            t = t.detach().contiguous()
            place = t.untyped_storage().data_ptr()
            if place in seen:
                t = t.clone()
            seen.add(place)
        found[name] = t
    return found


def _first() -> bool:
    return not has_company() or dist.get_rank() == 0


def _in_first(path: Path, action: Callable[[], None]) -> None:
    """What process 0 does for all, which wait for it and fail with it."""
    said: list[str | None] = [None]
    if _first():
        try:
            action()
        except OSError as error:
            said = [first_line(error)]
    if has_company():
        dist.broadcast_object_list(said)
    if said[0] is not None:
        raise OSError(f"{path} cannot be written: {said[0]}")


def _barrier() -> None:
    if has_company():
        dist.barrier()
