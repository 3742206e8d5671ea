"""Files of named tensors in the safetensors format: checked before anything is read, replaced in one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tenfold.atomic import replacing

__all__ = ["TensorFile", "opened", "write"]

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorFile:
    """An open file whose header is known; tensors are read one by one, when they are asked for.

    Parameters
    ----------
    path : Path
        For messages.
    handle
        What ``safetensors.safe_open`` gave.

    Attributes
    ----------
    shapes : dict
        Name and shape of every tensor.
    metadata : dict
        The strings in the header.

    Raises
    ------
    ValueError
        If a tensor is not of a floating type.
    """

    def __init__(self, path: Path, handle: Any):
        self.path, self._handle = path, handle
        self.metadata: dict[str, str] = dict(handle.metadata() or {})
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in handle.keys():  # noqa: SIM118 - the handle is no mapping
            header = handle.get_slice(name)
            if header.get_dtype() not in _FLOATS:
                raise ValueError(f"{path}: {name!r} is of the type {header.get_dtype()}, not a floating one")
            self.shapes[name] = tuple(header.get_shape())

    def read(self, name: str) -> torch.Tensor:
        """A tensor, on the CPU in float64.

        Raises
        ------
        ValueError
            If it holds NaN or infinity.
        """
        tensor: torch.Tensor = self._handle.get_tensor(name).double()
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{self.path}: {name!r} holds NaN or infinity")
        return tensor


@contextmanager
def opened(path: Path) -> Iterator[TensorFile]:
    """Open a file; nothing but its header is read.

    Parameters
    ----------
    path : Path
        The file.

    Yields
    ------
    TensorFile
        Its names and shapes.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a safetensors file, or the sizes in its header are not those of the file.
    """
    library = _library()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        handle = library.safe_open(path, framework="pt", device="cpu")
    except (library.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file, or is corrupt: {error}") from error
    with handle as entered:
        yield TensorFile(path, entered)


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors beside ``path`` and rename the file to it, which is all or nothing.

    Parameters
    ----------
    path : Path
        The file to create or to replace; its folder must exist.
    tensors : mapping
        Name and tensor.
    metadata : mapping
        Strings for the header.
    """
    _library()
    from safetensors.torch import save_file

    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(contents, temporary, dict(metadata))


def _library() -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise ImportError("files of adapters need safetensors: pip install 'tenfold[adapters]'") from error
    return safetensors
