"""Moving batch normalisations into the low-rank convolutions before them, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from tenfold.nn.convolution import Convolution
from tenfold.nn.layer import LowRankLayer

__all__ = ["fuse_normalization"]

_RECORD = "_fused_normalizations"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fuse_normalization(model: nn.Module, enabled: bool = True) -> int:
    r"""Let low-rank convolutions do the batch normalisations that follow them, forward and backward.

    The last convolution of a low-rank layer is a matrix :math:`K` for each position, and has few input
    channels. With their mean :math:`m` and covariance :math:`C`, its output has the mean :math:`Km` and the
    variances :math:`\mathrm{diag}(KCK^T)`: the matrix is scaled and shifted before it is applied. The
    normalisation then neither reads nor writes an activation, and none is kept for it. That is so in training
    and in evaluation, and a dense convolution cannot do it.

    A normalisation becomes ``conv.norm``, and ``torch.nn.Identity`` takes its old place. Results, gradients
    and running statistics are the same up to rounding, and so are the names in the ``state_dict``.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; changed in place. What follows what is found by ``torch.fx``, which runs the forward method
        without data. Where that fails, as for a method that depends on data, the modules inside are tried
        alone.
    enabled : bool
        False moves the normalisations back.

    Returns
    -------
    int
        Number of normalisations moved.

    Notes
    -----
    Moved are ``BatchNorm1d``, ``BatchNorm2d`` and ``BatchNorm3d`` without hooks, after a convolution without
    hooks whose output nothing else uses, and whose last stage is pointwise: any but a Tucker convolution with
    ``modes`` that leave out the output channels. The cost of the moments is :math:`r^2` multiplications for
    each position, if there are :math:`r` inner channels. Parameters keep their order as long as each
    normalisation is registered next to its convolution.

    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` may come before or after; such a layer is applied as
    usual. So is any module that is put in the place of ``conv.norm``.

    Examples
    --------
    >>> import torch, tenfold
    >>> model = torch.nn.Sequential(
    ...     tenfold.nn.Conv2d(16, 16, 3, rank=4), torch.nn.BatchNorm2d(16), torch.nn.ReLU()
    ... )
    >>> names = list(model.state_dict())
    >>> tenfold.nn.fuse_normalization(model)
    1
    >>> model[0].norm
    BatchNorm2d(16, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
    >>> set(model.state_dict()) == set(names)
    True
    """
    if not enabled:
        return sum(_move_back(module) for module in model.modules())
    names = {module: name for name, module in model.named_modules()}
    pairs = _pairs(model)
    for conv, norm in pairs:
        _move(model, names[conv], names[norm])
    return len(pairs)


def _pairs(model: nn.Module) -> list[tuple[Convolution, nn.Module]]:
    """Convolutions and the normalisations that follow nothing but them, wherever they are called."""
    after: dict[nn.Module, set[nn.Module | None]] = {}
    before: dict[nn.Module, set[nn.Module | None]] = {}
    for root, graph in _graphs(model, set()):
        called = {node: root.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"}
        for node, module in called.items():
            users = {called.get(user) if len(user.all_input_nodes) == 1 else None for user in node.users}
            after.setdefault(module, set()).update(users or {None})
            before.setdefault(module, set()).update(called.get(source) for source in node.all_input_nodes)
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    pairs: list[tuple[Convolution, nn.Module]] = []
    for conv, users in after.items():
        (norm, *others) = users
        if norm is None or others or not isinstance(conv, Convolution) or conv.norm is not None:
            continue
        alone = before[norm] == {conv} and places[conv] == places[norm] == 1
        hooked = any(getattr(module, name) for module in (conv, norm) for name in _HOOKS)
        if alone and not hooked and conv.normalizes(norm):
            pairs.append((conv, norm))
    return pairs


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, LowRankLayer) or not any(True for _ in m.children())
        return whole or super().is_leaf_module(m, module_qualified_name)


def _graphs(module: nn.Module, seen: set[nn.Module]) -> Iterator[tuple[nn.Module, fx.Graph]]:
    """The graph of a module, or those of the modules in it where its own cannot be had."""
    if module in seen or not any(isinstance(part, Convolution) for part in module.modules()):
        return
    seen.add(module)
    try:
        graph = _Tracer().trace(module)
    except Exception:  # whatever a forward method raises if it is given no data
        for child in module.children():
            yield from _graphs(child, seen)
    else:
        yield module, graph


def _move(model: nn.Module, conv: str, norm: str) -> None:
    """Move one normalisation, and let the module above both keep its names."""
    shared = 0
    while conv.split(".")[shared] == norm.split(".")[shared]:
        shared += 1
    above = model.get_submodule(".".join(conv.split(".")[:shared]))
    conv, norm = (".".join(name.split(".")[shared:]) for name in (conv, norm))
    owner, _, name = norm.rpartition(".")
    above.get_submodule(conv)._modules["norm"] = above.get_submodule(norm)
    above.get_submodule(owner)._modules[name] = nn.Identity()
    above.__dict__.setdefault(_RECORD, {})[norm] = conv
    if _save_old_names not in above._state_dict_hooks.values():
        above.register_state_dict_post_hook(_save_old_names)
        above.register_load_state_dict_pre_hook(_load_old_names)


def _move_back(above: nn.Module) -> int:
    record = above.__dict__.pop(_RECORD, {})
    count = 0
    for norm, name in record.items():
        conv = dict(above.named_modules()).get(name)
        if isinstance(conv, Convolution) and conv.norm is not None:
            owner, _, last = norm.rpartition(".")
            above.get_submodule(owner)._modules[last] = conv._modules.pop("norm")
            count += 1
    return count


def _renamed(module: nn.Module, state: dict[str, Any], prefix: str, saving: bool) -> None:
    for norm, conv in module.__dict__.get(_RECORD, {}).items():
        outside, inside = f"{prefix}{norm}.", f"{prefix}{conv}.norm."
        old, new = (inside, outside) if saving else (outside, inside)
        for key in [key for key in state if key.startswith(old)]:
            state[new + key.removeprefix(old)] = state.pop(key)


def _save_old_names(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    _renamed(module, state_dict, prefix, saving=True)


def _load_old_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
    _renamed(module, state_dict, prefix, saving=False)
