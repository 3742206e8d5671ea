"""Moving batch normalisations into the low-rank convolutions before them, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from tenfold.nn.attention import MultiheadAttention
from tenfold.nn.convolution import Convolution
from tenfold.nn.layer import LowRankLayer

__all__ = ["followers", "fuse_normalization", "move", "move_back"]

_RECORD = "_moved_modules"
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
        without data, for training and for evaluation. Where that fails, as for a method that depends on data,
        the modules inside are tried alone, but for every plain ``Sequential``: it may be taken apart there.
    enabled : bool
        False moves the normalisations back, and what :func:`~tenfold.nn.recompute_activations` moved.

    Returns
    -------
    int
        Number of normalisations moved.

    Notes
    -----
    Moved are ``BatchNorm1d``, ``BatchNorm2d`` and ``BatchNorm3d`` without hooks, whose parameters the forward
    method of the model does not read, after a convolution without hooks whose output nothing else uses, and
    whose last stage is pointwise: any but a Tucker convolution with ``modes`` that leave out the output
    channels. The cost of the moments is :math:`r^2` multiplications for each position, if there are :math:`r`
    inner channels. Parameters keep their order as long as each normalisation is registered next to its
    convolution. Code of the model that reaches for a normalisation by its old name, for instance to keep it
    in evaluation mode, finds the identity there.

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
    >>> model[0].parts.keys(), type(model[1])
    (dict_keys(['norm']), <class 'torch.nn.modules.linear.Identity'>)
    >>> set(model.state_dict()) == set(names)
    True
    """
    if not enabled:
        count = move_back(model, "norm")
        move_back(model, "activation", "pooling")  # which come after it
        return count
    pairs = [
        (conv, chain[0])
        for conv, chain in followers(model)
        if chain and not conv.parts and conv.normalizes(chain[0])
    ]
    for conv, norm in pairs:
        move(model, norm, conv, "norm")
    return len(pairs)


def followers(model: nn.Module) -> Iterator[tuple[Convolution, list[nn.Module]]]:
    """Low-rank convolutions, and the modules that are applied to nothing but their output, in order.

    Parameters
    ----------
    model : torch.nn.Module
        Any model.

    Yields
    ------
    conv : Convolution
        Without hooks, and known by one name.
    modules : list of torch.nn.Module
        What follows, each the only user of what is before it; all without hooks and known by one name.
        ``torch.nn.Identity`` is left out.
    """
    after: dict[nn.Module, set[nn.Module | None]] = {}
    before: dict[nn.Module, set[nn.Module | None]] = {}
    for root, graph in _in_both_modes(model):
        called = {node: root.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"}
        for node, module in called.items():
            users = {called.get(user) for user in node.users}
            after.setdefault(module, set()).update(users or {None})
            before.setdefault(module, set()).update(called.get(source) for source in node.all_input_nodes)
        for node in graph.nodes:
            if node.op == "get_attr":  # a parameter is read, and would not be found in another place
                owner = root.get_submodule(node.target.rpartition(".")[0])
                before.setdefault(owner, set()).add(None)
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))

    def plain(module: nn.Module) -> bool:
        changed = "forward" in module.__dict__ or any(getattr(module, name) for name in _HOOKS)
        return places[module] == 1 and not changed

    for conv in after:
        if isinstance(conv, Convolution) and plain(conv):
            chain: list[nn.Module] = [conv]
            while len(after[chain[-1]]) == 1:
                (following,) = after[chain[-1]]
                if following is None or following in chain or not plain(following):
                    break
                if before[following] != {chain[-1]}:
                    break
                chain.append(following)
            yield conv, [module for module in chain[1:] if type(module) is not nn.Identity]


def _in_both_modes(model: nn.Module) -> list[tuple[nn.Module, fx.Graph]]:
    """The graphs of training and of evaluation."""
    modes = {module: module.training for module in model.modules()}
    found: list[tuple[nn.Module, fx.Graph]] = []
    try:
        for training in (True, False):
            for module in modes:
                module.training = training
            found += _graphs(model, set())
    finally:
        for module, training in modes.items():
            module.training = training
    return found


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, LowRankLayer | MultiheadAttention) or not any(True for _ in m.children())
        return whole or super().is_leaf_module(m, module_qualified_name)


def _graphs(
    module: nn.Module, seen: set[nn.Module], whole: bool = True
) -> Iterator[tuple[nn.Module, fx.Graph]]:
    """The graph of a module, or those of the modules in it where its own cannot be had.

    A plain ``Sequential`` in such a module has none: whether it is called as a whole is not known.
    """
    if module in seen or not any(isinstance(part, Convolution) for part in module.modules()):
        return
    seen.add(module)
    graph = None
    if whole or type(module) is not nn.Sequential:
        try:
            graph = _Tracer().trace(module)
        except Exception:  # whatever a forward method raises if it is given no data
            whole = False
    if graph is not None:
        yield module, graph
        return
    for child in module.children():
        yield from _graphs(child, seen, whole)


def move(model: nn.Module, module: nn.Module, conv: Convolution, slot: str) -> None:
    """Make a module a part of a convolution; the module above both keeps the names in its state.

    Parameters
    ----------
    model : torch.nn.Module
        Where both are.
    module : torch.nn.Module
        One that follows the convolution; ``torch.nn.Identity`` takes its place.
    conv : Convolution
        The convolution.
    slot : str
        Its name there.
    """
    names = {module: name for name, module in model.named_modules()}
    old, new = names[module].split("."), [*names[conv].split("."), slot]
    shared = 0
    while old[shared] == new[shared]:
        shared += 1
    above = model.get_submodule(".".join(old[:shared]))
    conv._modules[slot] = module
    model.get_submodule(".".join(old[:-1]))._modules[old[-1]] = nn.Identity()
    above.__dict__.setdefault(_RECORD, {})[".".join(old[shared:])] = ".".join(new[shared:])
    if _save_old_names not in above._state_dict_hooks.values():
        above.register_state_dict_post_hook(_save_old_names)
        above.register_load_state_dict_pre_hook(_load_old_names)


def move_back(model: nn.Module, *slots: str) -> int:
    """Undo :func:`move` for all modules of some slots.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    *slots : str
        As in :func:`move`.

    Returns
    -------
    int
        Number of modules moved.
    """
    count = 0
    for above in model.modules():
        modules, record = dict(above.named_modules()), above.__dict__.get(_RECORD, {})
        for old, new in list(record.items()):
            conv, _, name = new.rpartition(".")
            if name not in slots:
                continue
            del record[old]
            if new in modules and isinstance(modules[conv], Convolution):
                owner, _, last = old.rpartition(".")
                modules[owner]._modules[last] = modules[conv]._modules.pop(name)
                count += 1
    return count


def _renamed(module: nn.Module, state: dict[str, Any], prefix: str, saving: bool) -> None:
    for outside, inside in module.__dict__.get(_RECORD, {}).items():
        old, new = (inside, outside) if saving else (outside, inside)
        for key in [key for key in state if key.startswith(f"{prefix}{old}.")]:
            state[prefix + new + key.removeprefix(prefix + old)] = state.pop(key)


def _save_old_names(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    _renamed(module, state_dict, prefix, saving=True)


def _load_old_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
    _renamed(module, state_dict, prefix, saving=False)
