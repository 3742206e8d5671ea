"""Inputs and output gradients of modules, kept until the optimizer has used them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tenfold.manifolds import TreeManifold, is_low_rank

__all__ = ["Capture"]


@dataclass(eq=False)
class _Call:
    """One call of a module: what went in, and the gradient of what came out.

    ``backward`` is the number of the pass that gave the gradient, ``found`` what the parameter had before.
    """

    module: nn.Module
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: tuple[bool, torch.dtype]
    grad: torch.Tensor | None = None
    backward: int = -1
    found: tuple[int, int] | None = None


class Capture:
    """Watches the modules that own low-rank parameters.

    From the input of a module and the gradient of its output, the gradient with respect to an
    augmented core can be formed without another evaluation of the network.

    Parameters
    ----------
    model : torch.nn.Module
        The network; forward hooks are registered on those of its modules that own a low-rank parameter.

    Notes
    -----
    Inputs and output gradients stay in memory until :meth:`clear`. Modules must return one tensor and must
    compute the same again from the same input. Layers whose ``core_gradient`` knows the gradient from input
    and output gradient are not evaluated again.
    """

    def __init__(self, model: nn.Module):
        self._calls: dict[int, list[_Call]] = {}
        self._handles: list[RemovableHandle] = []
        for module in model.modules():
            if any(is_low_rank(p) for p in module.parameters(recurse=False)):
                # First of all hooks: what it sees is what forward() took and gave.
                handle = module.register_forward_hook(self._watch, prepend=True, with_kwargs=True)
                self._handles.append(handle)

    def _watch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not (torch.is_grad_enabled() and isinstance(output, torch.Tensor) and output.requires_grad):
            return
        kind = output.device.type
        autocast = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        args = tuple(map(_detached, args))
        kwargs = {name: _detached(value) for name, value in kwargs.items()}
        for name, parameter in module.named_parameters(recurse=False):
            if is_low_rank(parameter) and parameter.requires_grad:
                call = _Call(module, name, args, kwargs, autocast)
                self._calls.setdefault(id(parameter), []).append(call)
                output.register_hook(partial(self._received, parameter, call))

    def _received(self, parameter: torch.Tensor, call: _Call, grad: torch.Tensor) -> None:
        """Add up what one backward pass after the other adds to the gradient of a parameter."""
        if not self._handles:
            return
        held, backward = parameter.grad, torch._C._current_graph_task_id()
        calls = self._calls.setdefault(id(parameter), [])
        if held is None:
            # What other passes gave has been dropped since, or was not for the parameters (autograd.grad).
            calls[:] = [known for known in calls if known.grad is None or known.backward == backward]
        found = None if held is None else (id(held), held._version)
        call.grad = grad if call.grad is None or call.found == found or held is None else call.grad + grad
        call.backward, call.found = backward, found
        if call not in calls:
            calls.append(call)

    def core_gradient(
        self, parameter: torch.Tensor, manifold: TreeManifold, point: torch.Tensor
    ) -> torch.Tensor | None:
        """Gradient with respect to the core of another point that represents the same tensor.

        Parameters
        ----------
        parameter : torch.Tensor
            The parameter whose modules were called.
        manifold : TreeManifold
            Where ``point`` lives.
        point : torch.Tensor
            Packed, shape ``(manifold.size,)``.

        Returns
        -------
        torch.Tensor or None
            The gradient in the shape of the core; None if no call has been captured.
        """
        calls = [call for call in self._calls.get(id(parameter), ()) if call.grad is not None]
        if not calls:
            return None
        factors = list(manifold.unpack_tensor(point.detach()))
        core = factors[manifold.tree.root].clone().requires_grad_()
        factors[manifold.tree.root] = core
        total = torch.zeros_like(core)
        for call in calls:
            with torch.enable_grad(), _autocast(point.device.type, call.autocast):
                packed = manifold.pack_point(*factors)
                packed.manifold = _separate(manifold, packed, factors)  # type: ignore[attr-defined]
                grad = _without_evaluation(call, packed)
                if grad is None:
                    bare = _Bare(call.module)
                    # Copies, so that running statistics see each batch once.
                    tensors = {name: buffer.clone() for name, buffer in bare.named_buffers()}
                    tensors[f"module.{call.name}"] = packed
                    output = torch.func.functional_call(bare, tensors, call.args, call.kwargs)
                    grad = torch.autograd.grad(output, core, call.grad)[0]
            total += grad
        return total

    def forget_backward(self) -> None:
        """Forget the calls whose output gradients are known; those of a forward pass under way stay."""
        for key, calls in list(self._calls.items()):
            self._calls[key] = [call for call in calls if call.grad is None]

    def clear(self) -> None:
        """Forget everything that has been captured."""
        self._calls.clear()

    def close(self) -> None:
        """Stop watching."""
        self.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _Bare(nn.Module):
    """A module without its hooks."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


def _without_evaluation(call: _Call, packed: torch.Tensor) -> torch.Tensor | None:
    """The gradient of the core, if the module knows a way."""
    known = getattr(call.module, "core_gradient", None)
    foreign = "forward" in vars(call.module) or call.kwargs or call.autocast[0] or call.name != "weight"
    if known is None or foreign:
        return None
    with torch.no_grad():
        return known(packed, call.grad, *call.args)


def _separate(manifold: TreeManifold, packed: torch.Tensor, factors: Sequence[torch.Tensor]) -> TreeManifold:
    """The manifold, which gives these factors for ``packed`` instead of views of it.

    What wants no gradient then has none computed, while views of one tensor all do; a lifted manifold needs
    no doubled ranks for the core's.
    """
    separate, views = copy.copy(manifold), manifold.factors
    separate.__dict__["factors"] = lambda x: tuple(factors) if x is packed else views(x)
    return separate


def _detached(argument: Any) -> Any:
    return argument.detach() if isinstance(argument, torch.Tensor) else argument


def _autocast(kind: str, state: tuple[bool, torch.dtype]) -> Any:
    enabled, dtype = state
    return torch.autocast(kind, dtype) if enabled else nullcontext()
