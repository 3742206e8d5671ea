import json

import pytest
from torch import nn

from tenfold.experiments.combinations import METHODS, optimizers_of
from tenfold.experiments.config import TrainConfig
from tenfold.experiments.config_checks import DATA_SETS
from tenfold.experiments.methods import make_optimizer


@pytest.mark.parametrize("data", DATA_SETS)
def test_a_recipe_is_complete_and_what_is_given_wins(data):
    config = TrainConfig.recipe(data=data, epochs=3)
    assert (config.data, config.epochs) == (data, 3)
    assert config.rank is not None
    assert config.tau is not None
    assert config.adapt_every is not None
    assert config.damping is not None
    dense = TrainConfig.recipe(data=data, method="dense", epochs=3)
    assert dense == config.dense_twin()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "data",
            "imagenet",
            "data must be one of digits, mnist, cifar10, cifar100, tinyimagenet, not 'imagenet'",
        ),
        ("model", "lenet", "model must be one of"),
        ("method", "svd", "method must be one of tucker, dense"),
        ("schedule", "step", "schedule must be one of"),
        ("tau", 1.0, r"tau must be a number in \[0, 1\), not 1.0"),
        ("tau", -0.1, "tau must be"),
        ("tau", float("nan"), "tau must be"),
        ("rank", 0, "rank must be a fraction"),
        ("rank", 1.5, "rank must be a fraction"),
        ("rank", 0.0, "rank must be a fraction"),
        ("rank", True, "rank must be a fraction"),
        ("adapt_every", -1, "adapt_every must be at least 0"),
        ("damping", -0.1, "damping must be a number, at least 0"),
        (
            "optimizer",
            "lion",
            "optimizer must be one of sgd, adamw, muon, tdlrt, tdlrt-adamw, tdlrt-muon, not 'lion'",
        ),
        ("compression", 1.0, r"compression must be a number in \[0, 1\), not 1.0"),
        ("compression", 0, "compression must be above 0 for the method 'tucker'"),
        ("decay", 0.5, "decay must be a number, at least 1, not 0.5"),
        ("epochs", 0, "epochs must be at least 1, not 0"),
        ("batch_size", 0, "batch_size must be at least 1"),
        ("seed", -1, "seed must be at least 0"),
        ("lr", 0.0, "lr must be a positive number"),
        ("lr", float("inf"), "lr must be a positive number"),
        ("momentum", 1.0, r"momentum must be a number in \[0, 1\)"),
        ("weight_decay", -1e-4, "weight_decay must be a number, at least 0"),
        ("data_dir", "somewhere", "data_dir has no effect on the data set 'digits'"),
    ],
)
def test_values_out_of_range_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.recipe(**{field: value})


@pytest.mark.parametrize("given", [{"adapt_every": 0}, {"tau": 0.1}, {"method": "loose-cp"}])
def test_where_ranks_share_no_budget_a_compression_of_nothing_is_a_start(given):
    assert TrainConfig.recipe(compression=0, **given).compression == 0


def test_a_number_of_epochs_is_whole():
    with pytest.raises(TypeError, match=r"epochs must be a whole number, not 2\.5"):
        TrainConfig(epochs=2.5)  # type: ignore[arg-type]


def test_an_unknown_field_is_named():
    with pytest.raises(TypeError, match="no field epoch"):
        TrainConfig.recipe(epoch=3)


@pytest.mark.parametrize(
    "given", [{"tau": 0.1}, {"rank": 0.5}, {"adapt_every": 5}, {"damping": 0.1}, {"factorize_all": True}]
)
def test_nothing_is_silently_ignored_by_the_dense_method(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} has no effect on the method 'dense'"):
        TrainConfig(method="dense", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"method": "prune-snip", "optimizer": "muon"},
            "one of sgd, adamw for the method 'prune-snip', not 'muon'",
        ),
        ({"method": "loose-cp", "optimizer": "tdlrt"}, "one of sgd, adamw, muon for the method 'loose-cp'"),
        ({"method": "loose-tt", "tau": 0.1}, "tau has no effect on the method 'loose-tt'"),
        (
            {"method": "prune-snip", "compression": 0.5, "rank": 3},
            "rank has no effect on the method 'prune-snip'",
        ),
        ({"method": "prune-snip", "compression": 0.5, "decay": 2.0}, "decay has no effect on the method"),
        ({"method": "prune-grasp"}, "compression is needed by the method 'prune-grasp'"),
        ({"optimizer": "tdlrt", "damping": 0.1}, "damping has no effect on the optimizer 'tdlrt'"),
        (
            {"optimizer": "tdlrt", "adapt_every": 0},
            "adapt_every must be at least 1 for the optimizer 'tdlrt'",
        ),
        ({"adapt_every": 0, "adapt_start": 5}, "adapt_start has no effect where adapt_every=0"),
        ({"adapt_every": 0, "tau": 0.3}, "tau has no effect where adapt_every=0 keeps the ranks for good"),
        ({"adapt_every": 0, "tau": 0.3, "compression": 0.5}, "tau has no effect where adapt_every=0"),
        ({"adapt_start": 0}, "adapt_start must be at least 1"),
        ({"adapt_every": 0, "oversampling": 2}, "oversampling has no effect where adapt_every=0"),
        ({"oversampling": 0}, "oversampling must be at least 1"),
        ({"min_rank": 0}, "min_rank must be at least 1"),
        ({"adapt_every": 0, "min_rank": 2}, "min_rank has no effect where adapt_every=0"),
        ({"method": "loose-cp", "min_rank": 2}, "min_rank has no effect on the method 'loose-cp'"),
        ({"method": "dense", "oversampling": 2}, "oversampling has no effect on the method 'dense'"),
        ({"method": "loose-cp", "adapt_start": 5}, "adapt_start has no effect on the method 'loose-cp'"),
        (
            {"method": "loose-cp", "compression": 0.5, "start_compression": 0.2},
            "start_compression has no effect on the method 'loose-cp'",
        ),
        ({"start_compression": 0.5}, "start_compression needs a compression to fall to, and no tau"),
        (
            {"start_compression": 0.5, "compression": 0.9, "tau": 0.1},
            "needs a compression to fall to, and no",
        ),
        ({"start_compression": 0.9, "compression": 0.5}, r"\(0, compression\] = \(0, 0\.5\], not 0\.9"),
        ({"start_compression": 0, "compression": 0.5}, r"start_compression must be a number in \(0, "),
        (
            {"start_compression": 0.2, "compression": 0.5, "adapt_every": 0},
            "start_compression needs adapt_every to be at least 1",
        ),
        ({"per_layer": True}, "per_layer needs a compression"),
        ({"method": "dense", "per_layer": True}, "per_layer has no effect on the method 'dense'"),
        (
            {"method": "prune-snip", "compression": 0.5, "per_layer": True},
            "per_layer has no effect on the method 'prune-snip'",
        ),
        ({"rank": 0.5, "compression": 0.5}, "rank and compression both say how large the factors are"),
        ({"ranks": "fc1=3", "compression": 0.5}, "ranks and compression both say how large the factors are"),
        ({"ranks": "fc1=3", "rank": 3}, "rank and ranks both say how large the factors are"),
        ({"ranks": "fc1=3", "method": "dense"}, "ranks has no effect on the method 'dense'"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        TrainConfig.recipe(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_recipe_with_each_of_its_optimizers(method):
    compression = {} if method == "dense" else {"compression": 0.9}
    for optimizer in optimizers_of(method):
        config = TrainConfig.recipe(method=method, optimizer=optimizer, **compression)
        assert config.lr == (0.05 if optimizer in ("sgd", "tdlrt") else 0.005)
        assert config.adapt_every == (
            None if method != "tucker" else 3 if optimizer.startswith("tdlrt") else 10
        )
        assert config.tau is None  # the compression decides
        twins = {"tdlrt": "sgd", "tdlrt-adamw": "adamw", "tdlrt-muon": "muon"}
        assert config.dense_twin().optimizer == twins.get(optimizer, optimizer)


def test_runs_of_earlier_versions_are_understood():
    later = ("optimizer", "compression", "decay", "adapt_start", "on_nan", "checkpoint_every")
    later += ("start_compression", "oversampling", "per_layer", "ranks", "min_rank")
    old = {k: v for k, v in TrainConfig().to_dict().items() if k not in later}
    assert TrainConfig.from_dict(old) == TrainConfig()
    youngest = {
        "adapt_start",
        "min_rank",
        "oversampling",
        "on_nan",
        "start_compression",
        "per_layer",
        "ranks",
    }
    assert not youngest & set(TrainConfig().identity())  # which is what a sweep goes by
    assert TrainConfig(adapt_start=5).identity()["adapt_start"] == 5
    falling = TrainConfig(compression=0.9, start_compression=0.5)
    assert falling.identity()["start_compression"] == 0.5
    assert falling.dense_twin().start_compression is None
    alone = TrainConfig(compression=0.9, per_layer=True)
    assert alone.identity()["per_layer"] is True
    assert alone.dense_twin().per_layer is False
    given = TrainConfig(ranks="fc1=3")
    assert given.rank is None
    assert given.identity()["ranks"] == "fc1=3"
    assert given.dense_twin().ranks is None


def test_a_tolerance_that_nobody_gave_stays_in_what_an_id_is_made_from():
    fixed = TrainConfig.recipe(adapt_every=0)
    assert fixed.identity()["tau"] == 0.15
    assert TrainConfig.from_dict(fixed.to_dict()) == fixed
    assert TrainConfig.recipe(adapt_every=0, tau=None).tau == 0.15


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adapt_start": 100_000}, "adapt_start=100000 leaves no step that decides on ranks"),
        ({"adapt_start": 35}, "adapt_every=10 there is none after step 35 and up to step 44 of the 44"),
        ({"adapt_every": 45}, "adapt_every=45 leaves no step that decides on ranks"),
        ({"adapt_every": 45, "compression": 0.5}, "adapt_every=45 leaves no step that decides on ranks"),
        ({"optimizer": "tdlrt", "adapt_every": 23}, "none after step 0 and up to step 21 of the 44"),
        ({"optimizer": "tdlrt", "adapt_every": 100}, "none after step 0 and up to step 0 of the 44"),
        ({"optimizer": "tdlrt", "adapt_start": 39}, "adapt_start=39 leaves no step"),
        ({"oversampling": 2, "adapt_every": 23}, "oversampling=2 has no end"),
    ],
)
def test_ranks_are_decided_at_least_once(given, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(TrainConfig.recipe(**given), nn.Linear(2, 2), 44)


@pytest.mark.parametrize(
    "given",
    [
        {"adapt_start": 34},
        {"adapt_every": 44},
        {"optimizer": "tdlrt", "adapt_every": 22},
        {"optimizer": "tdlrt", "adapt_start": 38},
        {"adapt_every": 0},
    ],
)
def test_one_decision_is_enough(given):
    config = TrainConfig.recipe(**given)
    optimizer = make_optimizer(config, nn.Linear(2, 2), 44)
    policy = optimizer.param_groups[0]["rank_adaptation"]
    due = [] if policy is None else [step for step in range(1, 45) if policy.due(step)]
    assert len(due) == (0 if config.adapt_every == 0 else 1)


def test_the_dense_twin_differs_in_the_weights_alone():
    config = TrainConfig.recipe(seed=3, lr=0.07, factorize_all=True)
    changed = {name for name, _, _ in config.differences(config.dense_twin())}
    assert changed == {"method", "rank", "tau", "adapt_every", "damping", "factorize_all"}


def test_a_run_may_move_to_another_place():
    here = TrainConfig(data="mnist", data_dir="a", device="cpu")
    assert here.differences(TrainConfig(data="mnist", data_dir="b", device="cuda")) == []
    assert here.differences(TrainConfig(data="mnist", seed=1)) == [("seed", 0, 1)]


def test_through_json_and_back():
    config = TrainConfig.recipe(rank=0.25, tau=0.05)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="field momenta is missing or unknown"):
        TrainConfig.from_dict({**config.to_dict(), "momenta": 1})


def test_rank_1_is_not_the_full_rank():
    number, fraction = (TrainConfig.recipe(rank=rank) for rank in (1, 1.0))
    assert number.differences(fraction) == [("rank", 1, 1.0)]
