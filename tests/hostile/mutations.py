"""Strategies that damage and forge: bytes, plain data, and the insides of archives."""

import copy
import io
import json
import math
import struct
import warnings
import zipfile

import torch
from hypothesis import strategies as st

HUGE = 2**31


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


PLAIN = [
    *(None, True, False, -1, 0, 1, 2, 7, HUGE, 2**63, 10**400, -(2**70), 0.5, 1.5, -0.1, 1e308, 1e-320),
    *(
        math.nan,
        math.inf,
        -math.inf,
        "",
        "x",
        "nan",
        "1",
        "\x1b[31m",
        "é\n" * 50,
        "a" * 5000,
        [],
        {},
        [1],
        [[]],
    ),
    *([1] * 1000, [HUGE, HUGE], [1.0, 2.0], {"a": 1}, {"": None}, nested(50), {"policy": "os.system"}),
    *({"policy": "RankAdaptation", "tol": 0.1, "every": 0}, {"policy": "RankAdaptation", "harm": 1}),
]


def _quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(4, 8), 0.1, 0, torch.qint8)


def tensors():
    """Tensors that no state holds; made anew, because some of them are views."""
    return [
        torch.zeros(0),
        torch.zeros(()),
        torch.zeros(3),
        torch.zeros(1).expand(HUGE),
        torch.zeros(1).expand(HUGE, HUGE),
        torch.ones(2, dtype=torch.int64).expand(HUGE, 2),
        torch.tensor([HUGE, HUGE]),
        torch.tensor([2.0, 2.0]),
        torch.tensor([True, True]),
        torch.tensor([-1, -1]),
        torch.tensor([1, 1]),
        torch.tensor(2),
        torch.full((4, 8), math.nan),
        torch.full((8,), math.inf),
        torch.zeros(4, 8, dtype=torch.complex64),
        torch.zeros(4, 8, dtype=torch.float16),
        torch.zeros(4, 8, dtype=torch.float64),
        torch.zeros(4, 8, dtype=torch.int8),
        torch.zeros(4, 8).to_sparse(),
        _quantised(),
        torch.empty(4, 8, device="meta"),
        torch.empty(HUGE, 2**20, device="meta"),
        torch.zeros(4, 8, dtype=torch.float8_e4m3fn),
        torch.nn.Parameter(torch.zeros(4, 8)),
    ]


def like(value):
    """Tensors of a shape that fits, but nothing else."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.is_meta:
        return []
    if value.layout != torch.strided or value.numel() > 10_000 or value.element_size() == 1:
        return []
    return [
        torch.full_like(value, math.nan),
        torch.full_like(value, math.inf),
        torch.full_like(value, 1e4),
        torch.zeros_like(value),
        value.new_zeros(1).expand(value.numel()).reshape(value.shape) if value.numel() else value,
        value.to(torch.complex64),
        value.double(),
        value.half(),
        value[None],
        value.flatten()[:-1],
        -3.0 * value,
    ]


# Bytes ---------------------------------------------------------------------------------------

_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "insert", "splice", "repeat", "number"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=4,
)
_NUMBERS = [b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\x80", b"\x7f" + b"\xff" * 7, b"\0" * 8]


def _edited(raw, edits):
    for kind, where, byte, length in edits:
        at = int(where * len(raw))
        if kind == "flip":
            raw = raw[:at] + bytes([raw[at] ^ (1 << byte % 8)]) + raw[at + 1 :] if raw else raw
        elif kind == "set":
            raw = raw[:at] + bytes([byte]) + raw[at + 1 :]
        elif kind == "cut":
            raw = raw[:at] if byte % 2 else raw[:at] + raw[at + length :]
        elif kind == "insert":
            raw = raw[:at] + bytes([byte]) * length + raw[at:]
        elif kind == "splice":
            raw = raw[:at] + raw[byte : byte + length] + raw[at:]
        elif kind == "repeat":
            raw = raw[:at] + raw[at : at + length] * (byte % 5) + raw[at + length :]
        else:
            number = _NUMBERS[byte % len(_NUMBERS)]
            raw = raw[:at] + number + raw[at + len(number) :]
    return raw


def edited(raw):
    """A file with a few bytes flipped, set, cut out, put in or moved; now and then nothing, or foreign."""
    foreign = st.sampled_from([b"", b"\0", b"PK\5\6" + b"\0" * 18, b"<html>", raw + raw, b"\x80\x02."])
    return st.one_of(
        st.builds(_edited, st.just(raw), _EDITS), st.builds(_edited, st.just(raw), _EDITS), foreign
    )


# Plain data ----------------------------------------------------------------------------------


def places(tree, path=()):
    """Paths to everything in nested dictionaries and lists."""
    if isinstance(tree, dict):
        for key in tree:
            yield (*path, key)
            yield from places(tree[key], (*path, key))
    elif isinstance(tree, (list, tuple)):
        for position, item in enumerate(tree):
            yield (*path, position)
            yield from places(item, (*path, position))


def _changed(tree, path, change):
    """A copy of the tree in which what is at the path became ``change`` of it, or is gone."""
    inner = _changed(tree[path[0]], path[1:], change) if len(path) > 1 else change(tree[path[0]])
    if isinstance(tree, dict):
        new = {key: value for key, value in tree.items() if key != path[0] or inner is not _GONE}
        if inner is not _GONE:
            new[path[0]] = inner
        return new
    items = list(tree)
    items[path[0] : path[0] + 1] = [] if inner is _GONE else [inner]
    return items if isinstance(tree, list) else tuple(items)


_GONE = object()


class Tree:
    """Nested data whose representation is short: to print a forged tensor may take as much as it claims."""

    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return f"Tree({type(self.value).__name__})"


def forged(tree, values=None):
    """Strategy of :class:`Tree`: data in which a few places hold something else."""
    return _forged(Tree(tree), values)


@st.composite
def _forged(draw, original, values):
    """A tree with up to three values replaced by foreign ones, removed, added or exchanged."""
    tree = original.value
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(tree))
        if not known:
            break
        path = known[draw(st.integers(0, len(known) - 1))]
        here = tree
        for key in path:
            here = here[key]
        foreign = [*PLAIN, *((tensors() + like(here)) if values == "tensors" else [])]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "exchange"]))
        if kind == "add" and isinstance(here, dict):
            name = draw(st.sampled_from(["x", "", "step", 0, -1, HUGE, "weight", "a.b"]))
            added = foreign[draw(st.integers(0, len(foreign) - 1))]
            tree = _changed(tree, path, lambda old, n=name, v=added: {**old, n: v})
        elif kind == "remove":
            tree = _changed(tree, path, lambda old: _GONE)
        elif kind == "exchange":
            other = tree
            for key in known[draw(st.integers(0, len(known) - 1))]:
                other = other[key]
            tree = _changed(
                tree, path, lambda old, o=other: o if isinstance(o, torch.Tensor) else copy.copy(o)
            )
        else:
            new = foreign[draw(st.integers(0, len(foreign) - 1))]
            tree = _changed(tree, path, lambda old, v=new: v)
    return Tree(tree)


# Files with an inside ------------------------------------------------------------------------


def json_files(raw):
    """JSON lines whose data is forged, or whose bytes are."""
    lines = [json.loads(line) for line in raw.decode().splitlines()] if raw.count(b"}\n") > 1 else None
    tree = lines if lines is not None else json.loads(raw)

    def text(forged_tree):
        value = forged_tree.value
        if lines is not None and isinstance(value, list):
            return "".join(json.dumps(line) + "\n" for line in value).encode()
        return json.dumps(value).encode()

    deep = st.sampled_from([b"[" * 10**5, b'{"a":' * 10**5, b"9" * 10**5, b'{"rank": 1' + b"0" * 5000 + b"}"])
    return st.one_of(edited(raw), forged(tree).map(text), forged(tree).map(text), deep)


def archives(raw, contents):
    """Files of torch.save: damaged; with other bytes in their records but right sums; with other contents."""
    inside = edited(pickle_of(raw)).map(lambda data: repacked(raw, data))
    packed = st.just(repacked(raw, pickle_of(raw), zipfile.ZIP_DEFLATED))
    return st.one_of(edited(raw), inside, inside, packed, *[forged(contents, "tensors").map(saved)] * 4)


def _records(raw):
    archive = zipfile.ZipFile(io.BytesIO(raw))
    return {name: archive.read(name) for name in archive.namelist()}


def pickle_of(raw):
    """The pickle in a file of torch.save."""
    return next(data for name, data in _records(raw).items() if name.endswith("/data.pkl"))


def repacked(raw, data, compression=zipfile.ZIP_STORED):
    """A file of torch.save with another pickle, and sums that are right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as new:
        for name, old in _records(raw).items():
            new.writestr(name, data if name.endswith("/data.pkl") else old)
    return stream.getvalue()


def saved(value):
    """A file of torch.save."""
    value = value.value if isinstance(value, Tree) else value
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of quantised tensors
        torch.save(value, stream)
    return stream.getvalue()


def safetensors_files(raw):
    """Files whose header is forged, damaged, or claims another length."""
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]

    def rebuilt(new):
        new = new.value if isinstance(new, Tree) else new
        text = json.dumps(new).encode()
        return struct.pack("<Q", len(text)) + text + data

    def with_adapter(change):
        return {**header, "__metadata__": {**header["__metadata__"], "adapter": json.dumps(change.value)}}

    strategies = [edited(raw), *[forged(header).map(rebuilt)] * 2]
    if "adapter" in header.get("__metadata__", {}):
        inner = json.loads(header["__metadata__"]["adapter"])
        strategies += [forged(inner).map(with_adapter).map(rebuilt)] * 2
    return st.one_of(*strategies)
