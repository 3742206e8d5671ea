"""Public methods for the same problem: tensorly's masked Tucker and CP decompositions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from completion_data import Problem

NAMES = ("tucker", "parafac")


def run(
    name: str, problem: Problem, rank: Sequence[int], iterations: int, tolerance: float, seed: int
) -> tuple[torch.Tensor, dict[str, object]]:
    """Complete with a peer; both of them replace the unseen entries by their own guess in every iteration.

    Returns
    -------
    estimate : torch.Tensor
        The dense tensor.
    numbers : dict
        What to report.
    """
    import tensorly
    from tensorly.decomposition import parafac, tucker

    tensor, mask = problem.tensor.numpy(), problem.mask.numpy()
    # The unseen entries must not be in what the peer is given: it starts from an SVD of all of it.
    start = np.where(mask, tensor, tensor[mask].mean())
    options = {"n_iter_max": iterations, "tol": tolerance, "mask": mask.astype(float), "random_state": seed}
    if name == "tucker":
        found, errors = tucker(start, list(rank), init="svd", return_errors=True, **options)
        estimate, parameters = tensorly.tucker_to_tensor(found), found[0].size
        parameters += sum(factor.size for factor in found[1])
    else:
        if len(rank) != 1:
            raise SystemExit(f"--peer parafac takes one --rank, got {list(rank)}")
        found, errors = parafac(start, rank[0], init="svd", return_errors=True, **options)
        estimate, parameters = tensorly.cp_to_tensor(found), sum(factor.size for factor in found[1])
    return torch.from_numpy(np.asarray(estimate)), {
        "rank": tuple(rank),
        "iterations": len(errors),
        "parameters": parameters,
    }
