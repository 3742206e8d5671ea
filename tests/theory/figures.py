"""Draw the figures of docs/theory.md from the problems that the tests run.

    python -m tests.theory.figures docs/theory

Takes about a minute.
"""

import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tenfold.manifolds import FixedRankManifold, TuckerManifold
from tests.theory import problems


def descent(axes: Axes) -> None:
    rates = [k / 20 for k in range(1, 50)]
    decrease, guaranteed = zip(*(problems.descent(lr, 1) for lr in rates), strict=True)
    axes.plot(rates, decrease, label="decrease")
    axes.plot(rates, guaranteed, "k:", label="guaranteed")
    axes.axhline(0, color="k", linewidth=0.5)
    axes.set(xlabel="λ", ylabel="decrease of the loss in one step")


def robbins_monro(axes: Axes) -> None:
    sizes = problems.stochastic_gradient_norms(2000)
    steps = range(1, len(sizes) + 1)
    axes.loglog(steps, sizes, label="norm of the Riemannian gradient")
    dim = problems.TENSORS.dim
    axes.loglog(steps, [(dim / k) ** 0.5 for k in steps], "k:", label="$\\sqrt{\\dim / k}$")
    axes.set(xlabel="step k")


def flow(axes: Axes) -> None:
    counts = (10, 20, 40, 80, 160)
    for smallest in (1e-2, 1e-6, 1e-12):
        errors = [problems.flow_error(smallest, steps) for steps in counts]
        axes.loglog([1 / n for n in counts], errors, "o-", label=f"$\\sigma_{{min}}$ = {smallest:.0e}")
    axes.loglog([1 / n for n in counts], [0.02 / n for n in counts], "k:", label="slope 1")
    axes.set(xlabel="λ", ylabel="distance from the gradient flow at time 1")


def robustness(axes: Axes) -> None:
    decays = (1.0, 2.0, 10.0, 100.0)
    needed: dict[str, list[float]] = {}
    for decay in decays:
        for name, losses in problems.toy_losses(decay, 1200).items():
            reached = (k for k, loss in enumerate(losses) if loss < 1e-8)
            needed.setdefault(name, []).append(next(reached, float("nan")))
    for name, counts in needed.items():
        print(f"{name}: {counts} iterations to 1e-8 for the decays {decays}")
        axes.loglog(decays, counts, "o-", label=name)
    axes.set(xlabel="decay of the singular values per index", ylabel="iterations to a loss of 1e-8")


def gauge(axes: Axes) -> None:
    for name, gap in zip(
        ("Riemannian steps", "gradient descent on the factors"), problems.gauge_gap(30), strict=True
    ):
        axes.semilogy(range(1, len(gap) + 1), gap, label=name)
    axes.set(xlabel="step", ylabel="relative distance of two gauges")


def integrators(axes: Axes) -> None:
    for name, gap in problems.integrator_gaps(20).items():
        axes.semilogy(range(1, len(gap) + 1), [max(item, 1e-17) for item in gap], label=name)
    axes.set(xlabel="step", ylabel="relative distance")


def projection(axes: Axes) -> None:
    rates = (1e-3, 1e-2, 1e-1, 1.0)
    for name, manifold in (
        ("Tucker", TuckerManifold((8, 7, 6), 3)),
        ("partial Tucker", TuckerManifold((7, 6, 3, 3), (3, 4), modes=(0, 1))),
        ("matrix", FixedRankManifold((9, 8), 3)),
    ):
        axes.loglog(rates, [problems.projection_gap(manifold, lr) for lr in rates], "o-", label=name)
    axes.set(xlabel="λ", ylabel="relative distance from $W - \\lambda P G$")


FIGURES: tuple[Callable[[Axes], None], ...] = (
    descent,
    robbins_monro,
    flow,
    robustness,
    gauge,
    integrators,
    projection,
)


def draw(folder: Path, figures: Iterable[Callable[[Axes], None]] = FIGURES) -> None:
    """Write one image per figure to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        image, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
        figure(axes)
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
        image.savefig(folder / f"{figure.__name__}.png", dpi=110)
        plt.close(image)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    draw(Path(sys.argv[1]))
