"""Accuracy of the Riemannian gradient against the condition number of the core, in float32.

    python benchmarks/gradient_conditioning.py

Relative error of the tangent blocks D_i of a 40 x 30 x 20 Tucker tensor of rank (8, 8, 8) whose first
unfolding has the given condition number, against a float64 projection of the dense gradient: by the
normal equations (g M^T (M M^T)^-1, for comparison only), by the triangular solve of `egrad2rgrad`, and by
the inverse-free lift. The worst of five seeds.
"""

from __future__ import annotations

import torch

from tenfold.manifolds import TuckerManifold

SHAPE, RANK = (40, 30, 20), (8, 8, 8)


def point(condition: float, seed: int) -> torch.Tensor:
    """A float64 point whose first unfolding has singular values from 1 to 1 / condition."""
    generator = torch.Generator().manual_seed(seed)
    manifold = TuckerManifold(SHAPE, RANK)
    core, *factors = manifold.unpack_tensor(manifold.random(dtype=torch.float64, generator=generator))
    left, _, right = torch.linalg.svd(core.flatten(1), full_matrices=False)
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), RANK[0], dtype=torch.float64)
    return manifold.pack_point((left * values @ right).reshape(RANK), *factors)


def errors(condition: float, seed: int) -> list[float]:
    """Relative errors by normal equations, solve and lift."""
    manifold = TuckerManifold(SHAPE, RANK)
    x = point(condition, seed)
    g = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + seed))
    x32 = x.float()
    # The oracle is taken at the rounded point, so that rounding the input is not counted.
    exact = manifold.unpack_tensor(manifold.project_dense(x32.double(), g))[1]
    found = [_normal_equations(manifold, x32, g.float())]
    for one in (manifold, manifold.lifted()):
        leaf = x32.clone().requires_grad_()
        (one.to_dense(leaf) * g.float()).sum().backward()
        found.append(one.unpack_tensor(one.egrad2rgrad(x32, leaf.grad))[1])
    return [((d.double() - exact).norm() / exact.norm()).item() for d in found]


def _normal_equations(manifold: TuckerManifold, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The Gram inverse, brought to the isometric frame: g (M M^T)^-1 S. Never used by the library."""
    leaf = x.clone().requires_grad_()
    (manifold.to_dense(leaf) * g).sum().backward()
    core, basis, *_ = manifold.unpack_tensor(x)
    grad = manifold.unpack_tensor(leaf.grad)[1]
    unfolding = core.flatten(1)
    s = manifold.frame(x).upper[1].mT
    columns = grad @ torch.linalg.inv(unfolding @ unfolding.T) @ s
    return columns - basis @ (basis.T @ columns)


def main() -> None:
    print("| condition number | normal equations | triangular solve | inverse-free |\n|---|---|---|---|")
    for power in range(1, 7):
        rows = torch.tensor([errors(10.0**power, seed) for seed in range(5)])
        print(f"| 1e{power} | " + " | ".join(f"{value:.1e}" for value in rows.amax(0).tolist()) + " |")


if __name__ == "__main__":
    main()
