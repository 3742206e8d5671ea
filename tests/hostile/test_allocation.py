"""What claims to be large is refused before memory is asked for.

The claims are made to a process that at each of them has room for 256 MiB beyond what it has by then; an
allocation that is refused gives another answer than the one that is expected.
"""

import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.hostile.limits import HEADROOM
from tests.hostile.loaders import adapter_files, checkpoint_contents
from tests.hostile.mutations import pickle_of, repacked, saved

ROOT = Path(__file__).parents[2]
RUN = """
import json, sys
from pathlib import Path
from tests.hostile.limits import headroom, ran_out
from tests.hostile.loaders import loaders
for kind, path, size in json.loads(sys.argv[1]):
    try:
        with headroom(size):
            loaders()[kind].load(Path(path))
        answer = "it was read"
    except (ValueError, OSError, MemoryError) as error:
        answer = f"memory was asked for: {error!r}" if ran_out(error) else str(error)
    print(json.dumps(answer))
"""


def answers(cases):
    """What reading each (kind, path, bytes of room) ended with."""
    command = [sys.executable, "-c", RUN, json.dumps(cases)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


def forged_rank(key):
    contents = checkpoint_contents()[1]
    state = {**contents["model"], key: torch.full_like(contents["model"][key], 2**31)}
    return saved({**contents, "model": state})


def larger_storage():
    """A tensor whose pickle claims 2^40 entries."""
    raw = saved({"a.weight": torch.zeros(200)})
    data = pickle_of(raw)
    assert data.count(b"K\xc8") == 2  # of the storage and the shape
    return repacked(raw, data.replace(b"K\xc8", b"\x8a\x06\0\0\0\0\0\x01"))


def combinations():
    axes = ", ".join(f"{axis}: {[1] * 99}" for axis in ("epochs", "batch_size", "momentum", "rank"))
    return f"blocks: [{{lr: 1.0, {axes}}}]".encode()


def doubled():
    lines = ["x0: &x0 [1]"] + [f"x{n + 1}: &x{n + 1} [*x{n}, *x{n}]" for n in range(40)]
    return "\n".join(lines).encode()


def compressed():
    raw = saved({"a.weight": torch.zeros(10**7)})
    return repacked(raw, pickle_of(raw), zipfile.ZIP_DEFLATED)


def overlapping():
    """Many records, all of which are the same bytes of the file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(1))
        archive.writestr("archive/data/0", b"\0" * 10**6)
        first = archive.infolist()[1]
        for number in range(1, 1000):
            info = zipfile.ZipInfo(f"archive/data/{number}")
            info.header_offset, info.CRC = first.header_offset, first.CRC
            info.file_size = info.compress_size = first.file_size
            archive.filelist.append(info)
            archive._didModify = True
    return stream.getvalue()


def without_a_file():
    """Calls ``torch.Tensor(2**40)``, which ``weights_only`` alone admits."""
    call = b"\x80\x02ctorch\nTensor\n\x8a\x06\0\0\0\0\0\x01\x85R."
    return repacked(saved({"a.weight": torch.zeros(2)}), call)


def larger_header():
    raw = adapter_files()[0]
    (length,) = struct.unpack("<Q", raw[:8])
    assert length < 2**20
    return struct.pack("<Q", 2**40) + raw[8:]


CLAIMS = {
    "rank 2^31 in a checkpoint": ("checkpoint", "c.pt", lambda: forged_rank("1.weight_rank"), "feasible"),
    "ranks 2^31 in a checkpoint": ("checkpoint", "c.pt", lambda: forged_rank("0.0.weight_rank"), "feasible"),
    "a storage of 2^40": ("weights", "w.pt", larger_storage, "should have 4398046511104 bytes"),
    "a compressed archive": ("weights", "w.pt", compressed, "compressed"),
    "overlapping records": ("weights", "w.pt", overlapping, "claim more than"),
    "a tensor without a storage": ("weights", "w.pt", without_a_file, "torch.Tensor, which is not admitted"),
    "a shape of stride 0": (
        "weights",
        "w.pt",
        lambda: saved({"a.weight": torch.zeros(1).expand(2**31, 2**20)}),
        "but only 1 numbers are there",
    ),
    "a memo of 2^31": ("cifar", "batch", lambda: b"\x80\x02Nr\xff\xff\xff\x7f.", "2147483647 objects"),
    "a string of 2^40": ("cifar", "batch", lambda: b"\x80\x04\x8e\0\0\0\0\0\x01\0\0abc.", "not a complete"),
    "an array of 2^40": (
        "cifar",
        "batch",
        lambda: b"\x80\x02cnumpy\nndarray\n\x8a\x06\0\0\0\0\0\x01\x85R.",
        "not a complete",
    ),
    "a gzip bomb": (
        "idx-gz",
        "images.gz",
        lambda: gzip.compress(b"\0\0\x08\x01\0\0\0\x05" + b"\0" * 10**8, 1),
        "holds more than",
    ),
    "an IDX header": ("idx", "images", lambda: b"\0\0\x08\x03" + b"\xff" * 12, "claims the shape"),
    "seeds": ("sweep", "s.yaml", lambda: b"seeds: 2147483648\nblocks: [{lr: 1.0}]", "must be at most"),
    "combinations": (
        "sweep",
        "s.yaml",
        combinations,
        "combinations",
    ),
    "aliases": (
        "sweep",
        "s.yaml",
        doubled,
        "uses the alias",
    ),
    "the header of an adapter": ("adapter", "a.safetensors", larger_header, "is no safetensors file"),
    "a configuration": ("config", "config.json", lambda: b" " * 2**21, "is larger than"),
}  # fmt: skip


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """The answers of one process to all claims; the last one does need more than its room."""
    cases = []
    for number, (kind, name, make, _) in enumerate(CLAIMS.values()):
        folder = tmp_path_factory.mktemp(f"claim{number}")
        (folder / name).write_bytes(make())
        cases.append((kind, str(folder / name), HEADROOM))
    large = tmp_path_factory.mktemp("large") / "w.pt"
    large.write_bytes(saved({"a.weight": torch.zeros(5000, 5000)}))
    cases.append(("weights", str(large), 2**25))
    return dict(zip([*CLAIMS, None], answers(cases), strict=True))


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_is_refused_before_memory_is_asked_for(refusals, claim):
    _, name, _, message = CLAIMS[claim]
    assert message in refusals[claim]
    assert name in refusals[claim]


def test_the_room_is_limited(refusals):
    """The measuring instrument: what does not fit is noticed, on the command line as one line."""
    assert "memory was asked for" in refusals[None]
