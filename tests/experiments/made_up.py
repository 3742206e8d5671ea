"""Results of runs that never took place."""

from dataclasses import replace

from tenfold.experiments.config import TrainConfig
from tenfold.experiments.result import Result


def made_up(method="tucker", seed=0, accuracy=0.9, model="vgg16", data="cifar10", **given) -> Result:
    """A result as a run would have left it."""
    if method != "dense" and not {"tau", "compression", "ranks"} & set(given):
        given["compression"] = 0.8
    config = TrainConfig.recipe(method=method, seed=seed, model=model, data=data, **given)
    curve = [
        {
            "epoch": epoch,
            "step": 100 * epoch,
            "train_loss": 1.0 / epoch,
            "test_loss": 1.0,
            "test_accuracy": accuracy - 0.1 * (2 - epoch),
            "parameters": 1000,
            "compression_convolutions": 0.8,
            "compression_factored": 0.82,
            "compression_network": 0.7,
            "seconds_per_step": 0.01,
            "lr": 0.1,
        }
        for epoch in (1, 2)
    ]
    scale = {"tucker": 0.5}.get(method, 1.0)
    losses = [[step, scale * 100.0 / step] for step in range(10, 201, 10)]
    ranks = [[0, {"a": [4, 3]}], [50, {"a": [2, 2]}]] if method == "tucker" else []
    result = Result.of(config, "made up", None, "run", [], [], True)
    return replace(result, curve=curve, losses=losses, ranks=ranks, peak_memory=2**30)
