"""What the processes of a training agree on: ranks, and that they have not drifted apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import geoopt
import torch

from tenfold.distributed.reducer import ManifoldReducer
from tenfold.distributed.registry import has_company, is_known, reducer_of
from tenfold.manifolds import is_low_rank
from tenfold.optim.rank_policy import Pending, RankPolicy

__all__ = ["agreed_generators", "agreed_mean", "agreed_ranks", "check_agreement", "require_company"]


def agreed_ranks(
    policy: RankPolicy,
    parameters: Sequence[geoopt.ManifoldParameter],
    pending: Sequence[Pending],
    step: int,
) -> list[tuple[int, ...]]:
    """Decide on ranks, in process 0 if there are several.

    Parameters
    ----------
    policy : RankPolicy
        Who decides.
    parameters, pending : sequence
        The parameters and what the policy looks at.
    step : int
        Number of the step, counted from 1.
    """
    ranks = policy.decide(pending, step)
    for reducer, places in _by_reducer(parameters).items():
        for k, rank in zip(places, reducer.first([ranks[k] for k in places]), strict=True):
            ranks[k] = rank
    return ranks


def require_company(parameters: Iterable[torch.Tensor], name: Callable[[torch.Tensor], str]) -> None:
    """Refuse to adapt ranks that other processes would not follow.

    Parameters
    ----------
    parameters : iterable of torch.Tensor
        Parameters of a group whose ranks are adapted.
    name : callable
        Names a parameter in the error.

    Raises
    ------
    ValueError
        If there are other processes and nobody averages the gradients of a low-rank parameter.
    """
    if not has_company():
        return
    for p in parameters:
        if is_low_rank(p) and not is_known(p):
            raise ValueError(
                f"{name(p)} would change its rank in this process alone: wrap the model in "
                "tenfold.distributed.DistributedDataParallel, or build a ManifoldReducer on it; "
                "tenfold.distributed.independent(model) declares that processes train for themselves"
            )


def agreed_mean(parameters: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Means over the processes of one tensor for each parameter; the tensors themselves where there are none.

    Parameters
    ----------
    parameters, tensors : sequence of torch.Tensor
        Whose reducers are asked, and what is averaged.
    """
    means = list(tensors)
    for reducer, places in _by_reducer(parameters).items():
        for k, mean in zip(places, reducer.mean([tensors[k] for k in places]), strict=True):
            means[k] = mean
    return means


def agreed_generators(parameters: Sequence[torch.Tensor]) -> dict[ManifoldReducer | None, torch.Generator]:
    """For the reducers of some parameters a source of random numbers that are the same in all processes.

    Parameters
    ----------
    parameters : sequence of torch.Tensor
        Whose reducers are asked; torch's own generator of process 0 gives the seeds.
    """
    generators: dict[ManifoldReducer | None, torch.Generator] = {}
    for reducer in _by_reducer(parameters):
        ((seed,),) = reducer.first([[int(torch.randint(2**62, ()))]])
        generators[reducer] = torch.Generator().manual_seed(seed)
    return generators


def check_agreement(parameters: Iterable[geoopt.ManifoldParameter], states: Any) -> None:
    """Compare points and state between the processes; see :meth:`ManifoldReducer.check`.

    Parameters
    ----------
    parameters : iterable of geoopt.ManifoldParameter
        Parameters whose ranks have been decided.
    states : mapping
        The optimizer's state.

    Raises
    ------
    RuntimeError
        If a process differs.
    """
    members = list(parameters)
    for reducer, places in _by_reducer(members).items():
        reducer.check([(members[k], states[members[k]]) for k in places])


def _by_reducer(parameters: Sequence[torch.Tensor]) -> dict[ManifoldReducer, list[int]]:
    groups: dict[ManifoldReducer, list[int]] = {}
    for k, p in enumerate(parameters):
        reducer = reducer_of(p)
        if reducer is not None:
            groups.setdefault(reducer, []).append(k)
    return groups
