"""All that a load may change, before and after."""

import copy

import torch


def everything(model, optimizer=None, scheduler=None):
    """All that a load may change, to compare."""
    state = {
        name: (value, value.detach().clone()) for name, value in model.state_dict(keep_vars=True).items()
    }
    ranks = {name: p.manifold for name, p in model.named_parameters() if hasattr(p, "manifold")}
    others = [copy.deepcopy(part.state_dict()) for part in (optimizer, scheduler) if part is not None]
    return state, ranks, others, [name for name, _ in model.named_modules()]


def same(before, model, optimizer=None, scheduler=None):
    now = everything(model, optimizer, scheduler)
    assert before[0].keys() == now[0].keys()
    for name, (tensor, value) in before[0].items():
        assert name.endswith("_rank") or now[0][name][0] is tensor, name
        assert torch.equal(now[0][name][1], value), name
    assert before[1] == now[1]
    assert before[3] == now[3]
    assert _plain(before[2]) == _plain(now[2])


def _plain(value):
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
