"""The page of findings: every row names its source, and figures from files are those of the files."""

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from tenfold.experiments.evidence_tables import size_table
from tenfold.experiments.result import read_results
from tenfold.experiments.summary import settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| what ")
]
DECAY = ROOT / "docs" / "evidence" / "mnist-decay" / "results.jsonl"
LENET = ROOT / "docs" / "evidence" / "mnist-lenet5" / "results.jsonl"
CIFAR = ROOT / "docs" / "evidence" / "cifar10-small" / "results.jsonl"
RANKS = ROOT / "docs" / "evidence" / "mnist-ranks" / "results.jsonl"
GIVEN = ROOT / "docs" / "evidence" / "cifar10-ranks" / "results.jsonl"
STARTS = ROOT / "docs" / "evidence" / "mnist-start" / "results.jsonl"
REDUCED = ROOT / "docs" / "evidence" / "cifar10-reduced" / "results.jsonl"
ADAPTERS = ROOT / "docs" / "evidence" / "adapters.jsonl"


def row(beginning: str, column: int = 1) -> str:
    (found,) = (cells for cells in ROWS if cells[0].startswith(beginning))
    return found[column]


@pytest.mark.parametrize("cells", ROWS, ids=lambda cells: cells[0][:40])
def test_every_row_names_a_source_that_is_there(cells):
    assert len(cells) == 4
    source = re.fullmatch(r"\[\w+\]\((\w+\.md)\)|`(docs/[\w./-]+)`", cells[3].strip(" |"))
    assert source is not None
    page, file = source.groups()
    assert (ROOT / "docs" / page if page else ROOT / file).is_file()


@pytest.fixture(scope="module")
def losses():
    """Mean final loss by the name in the report and the decay."""
    return {
        (setting.label, setting.config["decay"]): f"{setting.mean_of(lambda result: result.final_loss):.3f}"
        for setting in settings(read_results(DECAY))
    }


def test_losses_from_the_badly_conditioned_start(losses):
    plain, adamw = "badly conditioned start (decay 10)", "the same, AdamW, final loss"
    assert f": {losses['RiemannianSGD, fixed ranks', 10]}" in row(plain)
    assert f"Tucker {losses['loose Tucker factors, SGD', 10]}," in row(plain, 2)
    assert f"CP {losses['loose CP factors, SGD', 10]}" in row(plain, 2)
    assert f": {losses['RiemannianAdamW, fixed ranks', 10]}" in row(adamw)
    assert f"Tucker {losses['loose Tucker factors, AdamW', 10]}," in row(adamw, 2)
    assert f"CP {losses['loose CP factors, AdamW', 10]}" in row(adamw, 2)
    adapted = row("ranks by tolerance")
    sgd, tdlrt = ("RiemannianSGD, by tolerance", "TDLRT, by tolerance")
    spare = {name: losses[f"{name}, oversampling 4", 10] for name in (sgd, tdlrt)}
    assert f"SGD` {losses[sgd, 10]} (with four {spare[sgd]}), `TDLRT` {losses[tdlrt, 10]} " in f"{adapted} "
    assert f"`TDLRT` {spare[tdlrt]} at" in row("the same, ranks by tolerance with")
    assert f"AdamW {losses['loose Tucker factors, AdamW', 10]} at" in row(
        "the same, ranks by tolerance with", 2
    )
    late = "the same, ranks by tolerance from the middle"
    assert f"SGD` {losses['RiemannianSGD, by tolerance, from step 470', 10]} at" in row(late)
    assert f"AdamW {losses['loose Tucker factors, AdamW', 10]} at" in row(late, 2)
    assert f"decay 10: {losses['TangentMuon, fixed ranks', 10]}" in row("orthogonalised steps")


def test_losses_from_the_well_conditioned_start(losses):
    plain = {name: loss for (name, decay), loss in losses.items() if decay is None}
    loose = [loss for name, loss in plain.items() if name.startswith("loose")]
    geometry = [
        loss
        for name, loss in plain.items()
        if name.startswith(("RiemannianSGD", "RiemannianAdamW")) and "from step" not in name
    ]
    for column, values in ((1, geometry), (2, loose)):
        assert f"{min(values)} to {max(values)}" in row("well conditioned start", column)
    assert row("`TDLRT` by tolerance") == plain["TDLRT, by tolerance, every 10 steps"]
    assert f"ranks: {plain['TangentMuon, fixed ranks']}," in row("orthogonalised steps")
    assert f"factors {min(loose)}," in row("orthogonalised steps", 2)


def test_adapters():
    runs = defaultdict(lambda: defaultdict(list))
    for line in ADAPTERS.read_text().splitlines():
        run = json.loads(line)
        runs[run["method"]][run["lr"]].append(run)
    names = {
        "tenfold-fixed": (1, "fixed rank"),
        "tenfold": (1, "budget"),
        "lora": (2, "LoRA"),
        "adalora": (2, "AdaLoRA"),
    }
    for method, (column, name) in names.items():
        test = {lr: statistics.fmean(r["test"] for r in of_lr) for lr, of_lr in runs[method].items()}
        validation = {
            lr: round(statistics.mean(r["validation"] for r in of_lr), 9)
            for lr, of_lr in sorted(runs[method].items())
        }
        spread = 100 * (max(test.values()) - min(test.values()))
        assert f"{name} {spread:.1f}" in row("adapters of a sentence encoder, spread", column)
        best = max(validation, key=validation.__getitem__)
        assert f"{name} {test[best]:.2%}".replace("%", " %") in row(
            "adapters of a sentence encoder, test", column
        )


def percent_by_label(found):
    """Mean test accuracy of each setting."""
    return {s.label: f"{100 * s.mean('test_accuracy'):.2f} %" for s in found}


def with_spread(setting):
    """Mean test accuracy in per cent, of several seeds with the standard deviation."""
    mean, deviation = setting.mean("test_accuracy"), setting.deviation("test_accuracy")
    return f"{100 * mean:.2f}" if deviation is None else f"{100 * mean:.2f} ± {100 * deviation:.2f}"


@pytest.fixture(scope="module")
def accuracies():
    """Mean test accuracy by method, optimizer and compression."""
    return {
        (s.config["method"], s.config["optimizer"], s.config["compression"]): 100 * s.mean("test_accuracy")
        for s in settings(read_results(LENET))
        if s.config["tau"] is None and "every 10 steps" not in s.label
    }


@pytest.mark.parametrize(
    ("results", "model", "decides", "rows"),
    [
        (LENET, "lenet5", "compression", 17),
        (LENET, "lenet5", "tau", 2),
        (RANKS, "lenet5", "ranks", 4),
        (CIFAR, "vgg-light", "compression", 18),
        (CIFAR, "alexnet", "compression", 8),
    ],
)
def test_tables_of_accuracies(results, model, decides, rows):
    """The tables of the evidence are those of the report."""
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    table = size_table([s for s in settings(read_results(results)) if s.config["model"] == model], decides)
    assert len(table) == 1 + rows
    for cells in table:
        assert f"| {' | '.join(cells)} |" in page


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        (
            0.9,
            ([("tucker", "sgd"), ("tucker", "tdlrt")], [("loose-tucker", "sgd"), ("loose-tucker", "adamw")]),
        ),
        (0.95, ([("tucker", "sgd")], [("loose-cp", "adamw")])),
        (0.97, ([("tucker", "sgd")], [("prune-magnitude", "sgd"), ("prune-snip", "sgd")])),
    ],
)
def test_accuracies_at_equal_compression(accuracies, size, sides):
    for column, side in enumerate(sides, start=1):
        cell = row(f"LeNet5 on MNIST, 3 epochs, at {size:.0%}".replace("%", " %"), column)
        for method, optimizer in side:
            assert f" {accuracies[method, optimizer, size]:.2f} %" in f" {cell}"


def test_spread_over_seeds():
    spread = {
        s.label: f"{100 * s.deviation('test_accuracy'):.2f}"
        for s in settings(read_results(LENET))
        if s.config["compression"] == 0.95
    }
    beginning = "standard deviation over 10 seeds, LeNet5"
    assert row(beginning) == "`RiemannianSGD` {} points, `TDLRT` {}".format(
        *(spread[name] for name in ("RiemannianSGD", "TDLRT"))
    )
    loose = (spread[f"loose Tucker factors, {optimizer}"] for optimizer in ("SGD", "AdamW"))
    assert row(beginning, 2) == "loose Tucker, SGD {}, AdamW {}".format(*loose)


@pytest.mark.parametrize(
    ("size", "beginning"),
    [
        (0.97, "high compression, LeNet5 on MNIST, 3 epochs, at 97 %"),
        (0.95, "the same at 95 % compression"),
    ],
)
def test_accuracies_at_high_compression(size, beginning):
    found = {
        s.label: f"{with_spread(s)} %"
        for s in settings(read_results(LENET))
        if s.config["compression"] == size
    }
    geometry = ("TangentMuon", "RiemannianSGD", "TDLRT")
    assert row(beginning) == ", ".join(f"`{name}` {found[name]}" for name in geometry)
    loose = (found[f"loose {name} factors, AdamW"] for name in ("CP", "Tucker"))
    assert row(beginning, 2) == "loose CP, AdamW {}, loose Tucker, AdamW {}".format(*loose)


@pytest.mark.parametrize(
    ("ranks", "beginning"),
    [
        (
            "conv2=5x2,fc1=8x8,fc2=7x7",
            "LeNet5 on MNIST, 3 epochs, at the ranks that `RiemannianSGD` found at 90 %",
        ),
        (
            "conv2=3x3,fc1=4x4,fc2=3x3",
            "LeNet5 on MNIST, 3 epochs, at the ranks that `RiemannianSGD` found at 95 %",
        ),
        ("conv2=3x3,fc1=2x2,fc2=2x2", "the same at 97 % compression"),
    ],
)
def test_accuracies_at_given_ranks(ranks, beginning):
    found = [s for s in settings(read_results(RANKS)) if s.value("ranks") == ranks]
    assert all(len(s.results) == 5 for s in found)
    percent = {label.split(", fixed")[0]: accuracy for label, accuracy in percent_by_label(found).items()}
    both = ("RiemannianSGD", "RiemannianAdamW")
    assert row(beginning) == "`RiemannianSGD` {}, `RiemannianAdamW` {}".format(*(percent[n] for n in both))
    loose = (percent[f"loose Tucker factors, {optimizer}"] for optimizer in ("SGD", "AdamW"))
    assert row(beginning, 2) == "loose Tucker, SGD {}, AdamW {}".format(*loose)


@pytest.mark.parametrize(
    ("optimizers", "word", "name"),
    [
        (("muon", "muon"), "Muon", "TangentMuon"),
        (("adamw", "adamw"), "AdamW", "RiemannianAdamW"),
        (("sgd", "tdlrt"), "SGD, on manifolds TDLRT", None),
    ],
)
def test_accuracies_of_the_light_vgg_at_given_ranks(optimizers, word, name):
    """Loose factors without and with the ranks that geometry found; geometry given them, and finding them."""
    loose, riemannian = optimizers
    before = [s for s in settings(read_results(CIFAR)) if s.config["model"] == "vgg-light"]
    before = [s for s in before if s.config["compression"] == 0.85]
    given = settings(read_results(GIVEN))
    (fraction,) = of(before, "loose-tucker", loose)
    (loose_given,) = of(given, "loose-tucker", loose)
    fixed = of(given, "tucker", riemannian)
    (found,) = [s for s in of(before, "tucker", riemannian) if s.config.get("start_compression")]
    (first,) = (r for r in found.results if r.config["seed"] == 0)
    ranks = ",".join(f"{layer}={a}x{b}" for layer, (a, b) in first.ranks[-1][1].items())
    assert {s.config["ranks"] for s in (loose_given, *fixed)} == {ranks}
    columns = (fraction, loose_given, *fixed, found)
    assert all(len(s.results) == 3 for s in columns)
    cells = [with_spread(s) for s in columns]
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    shown = cells if fixed else [*cells[:2], "–", *cells[2:]]
    assert f"| {word} | {' | '.join(shown)} |" in page
    if name:
        beginning = "light VGG on CIFAR-10, 10 epochs, at 85 % compression, at the ranks"
        assert f"`{name}` {cells[2]} %" in row(beginning)
        assert f"{word} {cells[1]} %" in row(beginning, 2)


def of(found, method, optimizer):
    """The settings of one method with one optimizer."""
    return [s for s in found if (s.config["method"], s.config["optimizer"]) == (method, optimizer)]


def on_cifar10(model, size):
    """The settings at one compression, and the dense ones."""
    found = settings(read_results(CIFAR))
    return [s for s in found if s.config["model"] == model and s.config["compression"] in (None, size)]


def test_accuracies_on_cifar10():
    """Budgets that fall and budgets from the start, beside loose factors and the dense network."""
    found = on_cifar10("vgg-light", 0.9)
    percent = percent_by_label(found)
    spread = {s.label: f"{100 * s.deviation('test_accuracy'):.2f}" for s in found if len(s.results) == 3}
    falling = "from compression 0.5"
    vgg = "| light VGG on CIFAR-10, 10 epochs, at 90 % compression"

    def line(beginning):
        (found,) = (line for line in PAGE.splitlines() if line.startswith(beginning))
        return found

    adamw, sgd, dense = line(f"{vgg}, AdamW"), line("| the same, SGD |"), line(f"{vgg} |")
    for rows, plain in ((adamw, "AdamW"), (sgd, "SGD"), (line("| the same, Muon |"), "Muon")):
        name = f"{'Tangent' if plain == 'Muon' else 'Riemannian'}{plain}"
        assert f": {percent[f'{name}, {falling}']}, budget from the start: {percent[name]}" in rows
        assert f"loose Tucker {percent[f'loose Tucker factors, {plain}']}" in rows
    frequent = percent[f"TDLRT, {falling}"]
    rare = [percent[f"TDLRT, {how}every 10 steps"] for how in (f"{falling}, ", "")]
    assert f"`TDLRT` {frequent}, with bases that move in every tenth step {' and '.join(rare)} " in sgd
    assert f"loose CP {percent['loose CP factors, AdamW']}" in adamw
    assert f"loose matrix {percent['loose matrix factors, AdamW']}" in adamw
    assert f": {percent[f'RiemannianAdamW, {falling}']} | dense, SGD {percent['dense, SGD']}" in dense
    against_cp = line(f"{vgg}, against CP factors with Muon")
    assert (
        f": {frequent}, `RiemannianSGD` {percent[f'RiemannianSGD, {falling}']} | loose CP, Muon" in against_cp
    )
    for rows in (against_cp, line("| the same, Muon |")):
        assert f"{percent['loose CP factors, Muon']} |" in rows
    pruning = line(f"{vgg}, beside pruning")
    ours = [percent[f"{name}, {falling}"] for name in ("TangentMuon", "RiemannianAdamW")]
    assert f": {ours[0]}, `RiemannianAdamW` {ours[1]} | pruned" in pruning
    assert f"magnitude {percent['pruned by magnitude, SGD']} |" in pruning
    both = line("| the same, both with Muon |")
    assert f": {percent[f'TangentMuon, {falling}']} | dense, Muon {percent['dense, Muon']} |" in both
    against_muon = line(f"{vgg} from the start, against Muon")
    for name in ("RiemannianSGD", "RiemannianAdamW", "TDLRT, every 10 steps"):
        assert f" {percent[name]}" in against_muon
    assert f"| loose Tucker, Muon {percent['loose Tucker factors, Muon']} |" in against_muon
    tie, spreads = line(f"{vgg}, 3 seeds |"), line(f"{vgg.partition(', at')[0]}, standard deviation")
    assert f": {frequent} | loose Tucker, Muon {percent['loose Tucker factors, Muon']} |" in tie
    assert f": {spread[f'TDLRT, {falling}']} points | loose Tucker" in spreads
    others = ("loose Tucker factors, AdamW", "loose Tucker factors, Muon", "loose CP factors, AdamW")
    assert "AdamW {}, Muon {}, loose CP, AdamW {} |".format(*(spread[name] for name in others)) in spreads


def test_accuracies_on_cifar10_at_85_percent():
    percent = percent_by_label(on_cifar10("vgg-light", 0.85))
    falling, vgg = "from compression 0.5", "light VGG on CIFAR-10, 10 epochs, at 85 % compression"
    adamw, muon = (percent[f"{name}, {falling}"] for name in ("RiemannianAdamW", "TangentMuon"))
    loose = [percent[f"loose {name}"] for name in ("Tucker factors, AdamW", "Tucker factors, Muon")]
    same = f"{vgg}, the same optimizer"
    assert f"falls: {adamw}, `TangentMuon` {muon}" in row(same)
    cp = [percent[f"loose CP factors, {optimizer}"] for optimizer in ("AdamW", "Muon")]
    assert row(same, 2) == (
        f"loose Tucker, AdamW {loose[0]}, Muon {loose[1]}; loose CP, AdamW {cp[0]}, Muon {cp[1]}"
    )
    assert f"falls: {muon}" in row(f"{vgg}, beside dense")
    assert row(f"{vgg}, beside dense", 2) == f"dense, SGD {percent['dense, SGD']}"
    assert row(f"{vgg}, `TDLRT`") == f"budget that falls: {percent[f'TDLRT, {falling}']}"
    inside = (f"`{name}` {percent[f'{name}, {falling}']}" for name in ("TDLRTAdamW", "TDLRTMuon"))
    with_adam = f"{vgg}, TDLRT with Adam"
    assert row(with_adam) == f"budgets that fall: {', '.join(inside)}"
    assert row(f"{vgg}, SGD") == f"`TDLRT`, budget that falls: {percent[f'TDLRT, {falling}']}"
    assert row(f"{vgg}, SGD", 2) == f"loose Tucker {percent['loose Tucker factors, SGD']}"
    assert row(with_adam, 2) == f"loose Tucker, AdamW {loose[0]}, Muon {loose[1]}; loose CP, Muon {cp[1]}"
    others = f"loose Tucker, Muon {loose[1]}, loose CP, Muon {cp[1]}"
    assert row(f"{vgg}, `TDLRT`", 2) == f"dense, SGD {percent['dense, SGD']}; {others}"


@pytest.mark.parametrize("size", [0.8, 0.95])
@pytest.mark.parametrize(
    ("optimizer", "name", "kinds"),
    [
        ("Muon", "TangentMuon", ("Tucker", "CP")),
        ("AdamW", "RiemannianAdamW", ("Tucker", "CP")),
        ("SGD", "TDLRT", ("Tucker",)),
    ],
)
def test_accuracies_on_cifar10_at_the_outer_compressions(size, optimizer, name, kinds):
    found = {s.label: s for s in on_cifar10("vgg-light", size)}
    percent = {label: f"{with_spread(s)} %" for label, s in found.items()}
    geometry, loose = (
        f"{name}, from compression 0.5",
        [f"loose {kind} factors, {optimizer}" for kind in kinds],
    )
    seeds = {len(found[label].results) for label in (geometry, *loose)}
    number = "seed 0" if seeds == {1} else f"{' to '.join(str(n) for n in sorted(seeds))} seeds"
    beginning = f"light VGG on CIFAR-10, 10 epochs, at {100 * size:.0f} % compression, {optimizer}, {number}"
    assert row(beginning) == f"`{name}`, budget that falls: {percent[geometry]}"
    assert row(beginning, 2) == ", ".join(
        f"loose {kind} {percent[label]}" for kind, label in zip(kinds, loose, strict=True)
    )


def test_tdlrt_against_muon_and_the_spread_on_cifar10_at_95_percent():
    found = {s.label.partition(", from")[0]: s for s in on_cifar10("vgg-light", 0.95)}
    spread = {label: f"{100 * (s.deviation('test_accuracy') or 0):.2f}" for label, s in found.items()}
    at_95 = "light VGG on CIFAR-10, 10 epochs, at 95 % compression"
    against = f"{at_95}, `TDLRT` with SGD inside against Muon, 3 seeds"
    assert row(against) == f"`TDLRT`, budget that falls: {with_spread(found['TDLRT'])} %"
    loose = {kind: found[f"loose {kind} factors, Muon"] for kind in ("Tucker", "CP")}
    assert row(against, 2) == ", ".join(f"loose {kind} {with_spread(s)} %" for kind, s in loose.items())
    spreads = f"{at_95}, standard deviation over 3 seeds"
    assert row(spreads) == "`TDLRT` {} points, `RiemannianAdamW` {}, `TangentMuon` {}".format(
        *(spread[name] for name in ("TDLRT", "RiemannianAdamW", "TangentMuon"))
    )
    tucker = (f"{name} {spread[f'loose Tucker factors, {name}']}" for name in ("SGD", "AdamW", "Muon"))
    cp = (f"{name} {spread[f'loose CP factors, {name}']}" for name in ("AdamW", "Muon"))
    assert row(spreads, 2) == f"loose Tucker, {', '.join(tucker)}; loose CP, {', '.join(cp)}"


def test_accuracies_of_alexnet():
    percent = percent_by_label(on_cifar10("alexnet", 0.85))
    alone, loose = "compressed per layer", ("Tucker factors, Muon", "CP factors, Muon")
    every = "AlexNet on CIFAR-10, 10 epochs, every layer at 85 % compression from the start, Muon"
    assert row(every) == f"`TangentMuon` {percent[f'TangentMuon, {alone}']}"
    assert row(every, 2) == "loose Tucker {}, loose CP {}".format(
        *(percent[f"loose {name}, {alone}"] for name in loose)
    )
    inside = f"{every.removesuffix('Muon')}TDLRT with Muon inside"
    assert row(inside) == f"`TDLRTMuon` {percent['TDLRTMuon, compressed per layer']}"
    assert row(inside, 2) == f"{row(every, 2)}, dense, SGD {percent['dense, SGD']}"
    beside = "the same, beside dense, one dense seed"
    assert row(beside) == row(every)
    assert row(beside, 2) == f"dense, SGD {percent['dense, SGD']}"
    starts = "the same, where the ranks start"
    assert row(starts) == f"every layer at 85 %: {percent[f'TangentMuon, {alone}']}"
    assert row(starts, 2).endswith(f": {percent['TangentMuon']}")
    alexnet = (
        "AlexNet on CIFAR-10, 10 epochs, at 85 % compression from the start, one fraction for all layers"
    )
    for beginning, other in ((f"{alexnet}, Muon", "Tucker"), (f"{alexnet}, against CP", "CP")):
        assert row(beginning) == f"`TangentMuon` {percent['TangentMuon']}"
        assert row(beginning, 2).endswith(percent[f"loose {other} factors, Muon"])


def test_accuracies_of_the_reduced_protocol():
    """The table of the evidence, and the rows of the findings."""
    cells = defaultdict(dict)
    percent = defaultdict(dict)
    for setting in settings(read_results(REDUCED)):
        c, accuracy = setting.config, f"{100 * setting.mean('test_accuracy'):.2f}"
        compression = f"{100 * setting.mean('compression_factored'):.1f}"
        cells[setting.label, setting.size][c["model"]] = f"{accuracy} ({compression})"
        percent[c["model"]][c["method"], c["optimizer"], c["tau"]] = f"{accuracy} %"
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    for names, of_model in cells.items():
        line = [*names, *(of_model.get(model, "–") for model in ("vgg16", "resnet18", "alexnet"))]
        assert f"| {' | '.join(line)} |" in page
    both = "VGG16 and ResNet18 on CIFAR-10"
    for column, side in ((1, ("tucker", "adamw", None)), (2, ("loose-tucker", "sgd", None))):
        assert f"{percent['vgg16'][side]} and {percent['resnet18'][side]}" in row(both, column)
    muon = "the same with Muon, VGG16"
    assert f"falls: {percent['vgg16']['tucker', 'muon', None]}" in row(muon)
    sides = (("loose-tucker", "muon", None), ("dense", "sgd", None))
    assert row(muon, 2) == "loose Tucker {}, dense, SGD {}".format(*(percent["vgg16"][s] for s in sides))
    for model, name in (("vgg16", "VGG16"), ("resnet18", "ResNet18")):
        beside_dense = f"{name} on CIFAR-10, 2 epochs, at"
        assert f": {percent[model]['tucker', 'adamw', None]}" in row(beside_dense)
        assert percent[model]["dense", "sgd", None] in row(beside_dense, 2)
    alexnet = "AlexNet on CIFAR-10, 2 epochs, at"
    assert f"falls: {percent['alexnet']['tucker', 'adamw', None]}" in row(alexnet)
    for name, optimizer in (("SGD", "sgd"), ("AdamW", "adamw"), ("Muon", "muon")):
        assert f"{name} {percent['alexnet']['loose-tucker', optimizer, None]}" in row(alexnet, 2)
    against_muon = "ResNet18 on CIFAR-10, 2 epochs, against Muon"
    assert f"falls: {percent['resnet18']['tucker', 'adamw', None]}," in row(against_muon)
    assert f"0.07: {percent['resnet18']['tucker', 'tdlrt', 0.07]}" in row(against_muon)
    assert f"Muon {percent['resnet18']['loose-tucker', 'muon', None]}" in row(against_muon, 2)
    by_tolerance = "VGG16 on CIFAR-10, 2 epochs, by"
    assert f"0.07: {percent['vgg16']['tucker', 'tdlrt', 0.07]}" in row(by_tolerance)
    for optimizer in ("sgd", "muon"):
        assert percent["vgg16"]["loose-tucker", optimizer, None] in row(by_tolerance, 2)
    by_tolerance = "ResNet18 on CIFAR-10, 2 epochs, by"
    assert f"0.07: {percent['resnet18']['tucker', 'tdlrt', 0.07]}" in row(by_tolerance)
    assert f"SGD {percent['resnet18']['loose-tucker', 'sgd', None]}" in row(by_tolerance, 2)


def test_table_of_starts():
    cells = defaultdict(dict)
    for setting in settings(read_results(STARTS)):
        accuracy, spread = setting.mean("test_accuracy"), setting.deviation("test_accuracy")
        compression = 100 * setting.mean("compression_factored")
        cells[setting.label][setting.config["rank"]] = (
            f"{100 * accuracy:.2f} ± {100 * spread:.2f} ({compression:.1f})"
        )
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert len(cells) == 6
    for label, of_rank in cells.items():
        assert f"| {label} | {' | '.join(of_rank[rank] for rank in (0.05, 0.2, 0.5))} |" in page
    spare, without = row("ranks at a twentieth"), row("ranks at a twentieth", 2)
    for optimizer in ("RiemannianSGD", "TDLRT"):
        accuracy = cells[f"{optimizer}, by tolerance, oversampling 4"][0.05].split()[0]
        assert f"`{optimizer}` {accuracy} %" in spare
        assert f"{cells[f'{optimizer}, by tolerance'][0.05].split()[0]} %" in without
