"""How weights are stored and how they move: which goes with which, and what is left to choose then."""

from __future__ import annotations

METHODS = (
    "tucker",
    "dense",
    "loose-tucker",
    "loose-cp",
    "loose-tt",
    "loose-matrix",
    "prune-snip",
    "prune-grasp",
    "prune-magnitude",
    "prune-imp",
)
"""``tucker``: on the manifold; ``loose-…``: factors as plain parameters; ``prune-…``: dense with a mask."""

OPTIMIZERS = ("sgd", "adamw", "muon", "tdlrt", "tdlrt-adamw", "tdlrt-muon")

_OPTIMIZER_NAMES = {
    "sgd": "RiemannianSGD",
    "adamw": "RiemannianAdamW",
    "muon": "TangentMuon",
    "tdlrt": "TDLRT",
    "tdlrt-adamw": "TDLRTAdamW",
    "tdlrt-muon": "TDLRTMuon",
}
_PLAIN_NAMES = {"sgd": "SGD", "adamw": "AdamW", "muon": "Muon"}
_METHOD_NAMES = {
    "dense": "dense",
    "loose-tucker": "loose Tucker factors",
    "loose-cp": "loose CP factors",
    "loose-tt": "loose Tensor Train factors",
    "loose-matrix": "loose matrix factors",
    "prune-snip": "pruned by SNIP",
    "prune-grasp": "pruned by GraSP",
    "prune-magnitude": "pruned by magnitude",
    "prune-imp": "pruned in rounds (IMP)",
}

_EVERYWHERE = ("sgd", "adamw")
_UNMASKED = (*_EVERYWHERE, "muon")
_ADAPTIVE = ("adamw", "muon", "tdlrt-adamw", "tdlrt-muon")
_TDLRT = ("tdlrt", "tdlrt-adamw", "tdlrt-muon")


def optimizers_of(method: str) -> tuple[str, ...]:
    """The optimizers that can move weights stored by `method`."""
    if method == "tucker":
        return OPTIMIZERS
    return _EVERYWHERE if is_pruned(method) else _UNMASKED


def name_of(method: str, optimizer: str) -> str:
    """What tables and figures call weights that are stored by `method` and moved by `optimizer`."""
    if method == "tucker":
        return _OPTIMIZER_NAMES[optimizer]
    return f"{_METHOD_NAMES[method]}, {_PLAIN_NAMES[optimizer]}"


def choices_of(method: str, optimizer: str) -> frozenset[str]:
    """The fields of a run that only some methods have, for this method and optimizer.

    Among ``rank``, ``ranks``, ``compression``, ``start_compression``, ``per_layer``, ``decay``,
    ``factorize_all``, ``tau``, ``adapt_every``, ``adapt_start``, ``min_rank``, ``oversampling`` and
    ``damping``.
    """
    if method == "dense":
        return frozenset()
    choices = {"compression", "factorize_all"}
    if not is_pruned(method):
        choices |= {"rank", "ranks", "decay", "per_layer"}
    if method == "tucker":
        choices |= {"tau", "adapt_every", "adapt_start", "min_rank", "oversampling", "start_compression"}
        if not moves_on_the_beat(optimizer):
            choices.add("damping")
    return frozenset(choices)


def is_loose(method: str) -> bool:
    """Whether the factors of the weights are plain parameters."""
    return method.startswith("loose-")


def is_pruned(method: str) -> bool:
    """Whether the weights are dense with a mask."""
    return method.startswith("prune-")


def is_adaptive(optimizer: str) -> bool:
    """Whether step lengths do not depend on the scale of the gradient, so that rates are those of Adam."""
    return optimizer in _ADAPTIVE


def moves_on_the_beat(optimizer: str) -> bool:
    """Whether bases move only in the steps that decide on ranks (TDLRT)."""
    return optimizer in _TDLRT


def dense_counterpart(optimizer: str) -> str:
    """What moves dense weights most like `optimizer` moves those on manifolds."""
    if optimizer in _UNMASKED:
        return optimizer
    return optimizer.removeprefix("tdlrt-") if is_adaptive(optimizer) else "sgd"
