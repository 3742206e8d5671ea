"""Tables and figures about results that were made up."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tenfold.experiments import evidence_plots
from tenfold.experiments.evidence import read_evidence, write_evidence
from tenfold.experiments.evidence_tables import accuracy_table, size_table
from tenfold.experiments.summary import settings

from .made_up import made_up


def test_tables_average_over_seeds(tmp_path):
    results = [made_up(seed=seed, accuracy=a) for seed, a in enumerate((0.88, 0.9, 0.92))]
    results += [replace(made_up(seed=3), status="diverged", curve=[], losses=[])]
    results += [made_up("dense", accuracy=0.95), replace(made_up(accuracy=0.1), kind="trial")]
    (tmp_path / "a.jsonl").write_text("".join(result.to_line() for result in results))
    written = write_evidence(tmp_path / "out", read_evidence(tmp_path))
    text = (tmp_path / "out" / "report.md").read_text()
    row = next(line for line in text.splitlines() if re.match(r"\| RiemannianSGD *\| compression 0.8", line))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        *("RiemannianSGD", "compression 0.8", "0.1", "3", "90.00 ± 2.00 %", "82.0 %", "80.0 %", "1,000"),
        *("10.0 ms", "1,024 MiB", "1"),
    ]
    assert "5 runs and 1 trials" in text
    times = {
        line.split("|")[1].strip(): line.split("|")[3].strip() for line in text.splitlines() if "| " in line
    }
    assert times["dense, SGD"] == "2"
    assert times["RiemannianSGD"] == "not reached"
    assert all(path.stat().st_size > 1000 for path in written[1:])
    assert {path.name.removeprefix("cifar10-vgg16-") for path in written[1:]} == {
        *("accuracy.png", "variance.png", "ranks.png", "time.png", "memory.png")
    }


def test_sizes_are_columns():
    """Rows in the order of the methods; seeds that some sizes lack are told; what has no size is left out."""
    results = [made_up("loose-cp", optimizer="adamw", compression=0.8, accuracy=0.5), made_up("dense")]
    results += [made_up(compression=c, seed=seed, accuracy=c) for c in (0.9, 0.8) for seed in range(2)]
    results += [made_up(compression=0.9, seed=2, accuracy=0.96), made_up(rank=0.5, tau=0.1, accuracy=0.7)]
    group = settings(results)
    assert size_table(group, "compression") == [
        ["weights, optimizer", "seeds", "compression 0.8", "compression 0.9"],
        ["RiemannianSGD", "2 to 3", "80.00 ± 0.00 (82.0)", "92.00 ± 3.46 (82.0)"],
        ["loose CP factors, AdamW", "1", "50.00 (82.0)", "–"],
    ]
    assert size_table(group, "tau")[1:] == [["RiemannianSGD, by tolerance", "1", "70.00 (82.0)"]]


def test_the_table_of_sizes_tells_starts_apart():
    results = [made_up(rank=rank, tau=0.1, accuracy=rank) for rank in (0.25, 0.5)]
    assert [row[0] for row in size_table(settings(results), "tau")[1:]] == [
        f"RiemannianSGD, by tolerance, rank {rank}" for rank in (0.25, 0.5)
    ]
    results = [made_up(tau=0.1, decay=decay) for decay in (None, 10.0)]
    assert [row[0] for row in size_table(settings(results), "tau")[1:]] == [
        f"RiemannianSGD, by tolerance, decay {decay}" for decay in (1, 10)
    ]


def test_the_table_of_given_ranks(tmp_path):
    small, large = "conv2=2x2,fc1=3", "conv2=4x2,fc1=9"
    results = [made_up(ranks=ranks, adapt_every=0, accuracy=0.9) for ranks in (small, large)]
    results += [made_up("loose-tucker", ranks=large, accuracy=0.8), made_up(compression=0.9)]
    assert size_table(settings(results), "ranks") == [
        ["weights, optimizer", "seeds", f"ranks {small}", f"ranks {large}"],
        ["RiemannianSGD, fixed ranks", "1", "90.00 (82.0)", "90.00 (82.0)"],
        ["loose Tucker factors, SGD", "1", "–", "80.00 (82.0)"],
    ]
    text = write_evidence(tmp_path, results)[0].read_text()
    assert "Test accuracy at given ranks" in text
    assert f"| ranks {large} |" in re.sub(" +", " ", text)


def test_settings_are_told_apart_by_when_ranks_are_adapted():
    results = [made_up(tau=0.1), made_up(tau=0.1, adapt_start=40), made_up(adapt_start=40)]
    results += [made_up(adapt_every=0), made_up(start_compression=0.5), made_up(adapt_every=3)]
    results += [made_up(optimizer="tdlrt", adapt_every=every) for every in (3, 10)]
    results += [made_up(tau=0.1, oversampling=4), made_up(min_rank=1)]
    assert [setting.label for setting in settings(results)] == [
        "RiemannianSGD, by tolerance",
        "RiemannianSGD, by tolerance, from step 40",
        "RiemannianSGD, from step 40",
        "RiemannianSGD, fixed ranks",
        "RiemannianSGD, from compression 0.5",
        "RiemannianSGD, every 3 steps",
        "RiemannianSGD, by tolerance, oversampling 4",
        "RiemannianSGD, ranks of at least 1",
        "TDLRT",
        "TDLRT, every 10 steps",
    ]


def test_runs_at_different_rates_are_no_seeds():
    results = [
        made_up(lr=lr, seed=seed, accuracy=a) for lr, a in ((0.05, 0.9), (0.2, 0.8)) for seed in (0, 1)
    ]
    results += [made_up(compression=0.9, lr=0.2), made_up("dense", lr=0.2)]
    group = settings(results)
    assert [(s.label, s.size, len(s.results), s.mean("test_accuracy")) for s in group] == [
        ("RiemannianSGD, lr 0.05", "compression 0.8", 2, pytest.approx(0.9)),
        ("RiemannianSGD, lr 0.2", "compression 0.8", 2, pytest.approx(0.8)),
        ("RiemannianSGD, lr 0.2", "compression 0.9", 1, pytest.approx(0.9)),
        ("dense, SGD", "–", 1, pytest.approx(0.9)),
    ]


def test_the_time_of_a_step_is_that_of_the_whole_run():
    """A falling budget makes the first epoch expensive, and another process one of the seeds."""
    results = []
    for seed, times in enumerate(((0.030, 0.010), (0.034, 0.010), (0.9, 0.9))):
        result = made_up(seed=seed)
        curve = [{**e, "seconds_per_step": s} for e, s in zip(result.curve, times, strict=True)]
        results.append(replace(result, curve=curve))
    head, row = accuracy_table(settings(results))
    assert dict(zip(head, row, strict=True))["time per step, whole run, median of seeds"] == "22.0 ms"


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({"damping": [0.05, 0.0]}, ["damping 0.05", "damping 0"]),
        ({"epochs": [2, 3]}, ["epochs 2", "epochs 3"]),
        ({"factorize_all": [False, True]}, ["no factorize_all", "factorize_all"]),
        ({"schedule": ["one-cycle", "cosine"]}, ["schedule one-cycle", "schedule cosine"]),
        ({"on_nan": ["raise", "skip"]}, ["on_nan raise", "on_nan skip"]),
        ({"decay": [None, 1.0]}, ["no decay", "decay 1"]),
        ({"lr": [0.1, 0.2], "amp": [False, True]}, ["no amp", "amp"]),
    ],
)
def test_no_setting_hides_another(given, labels):
    """Two at one compression that differ in something that has no place of its own in a label."""
    runs = [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
    results = [made_up(accuracy=a, **run) for run, a in zip(runs, (0.7, 0.8), strict=True)]
    results += [made_up(compression=0.9, accuracy=0.6, **runs[0]), made_up("loose-cp", accuracy=0.5)]
    rows = size_table(settings(results), "compression")[1:]
    assert rows == [
        [f"RiemannianSGD, {labels[0]}", "1", "70.00 (82.0)", "60.00 (82.0)"],
        [f"RiemannianSGD, {labels[1]}", "1", "80.00 (82.0)", "–"],
        ["loose CP factors, SGD", "1", "50.00 (82.0)", "–"],
    ]


def test_a_tolerance_from_a_rank_and_from_a_compression(tmp_path):
    results = [made_up(tau=0.1, rank=0.5), made_up(tau=0.1, compression=0.5)]
    results += [made_up(tau=0.1, compression=0.8)]
    assert [row[0] for row in size_table(settings(results), "tau")[1:]] == [
        "RiemannianSGD, by tolerance, rank 0.5",
        "RiemannianSGD, by tolerance, compression 0.5",
        "RiemannianSGD, by tolerance, compression 0.8",
    ]
    write_evidence(tmp_path, results)


def test_robustness_counts_steps_to_the_best_loose_run(tmp_path):
    results = [
        made_up(m, decay=d, model="lenet5", data="mnist")
        for m in ("tucker", "loose-tucker")
        for d in (None, 2.0)
    ]
    write_evidence(tmp_path, results)
    text = (tmp_path / "report.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| 2 ")
    ]
    steps = {row[1]: int(row[6]) for row in rows}
    assert steps["loose Tucker factors, SGD"] > 1.5 * steps["RiemannianSGD"]
    assert (tmp_path / "mnist-lenet5-robustness.png").exists()


def test_published_points_are_beside_ours():
    from tenfold.experiments.published import published_points

    points = published_points("alexnet", "cifar10")
    assert {p.method for p in points} == {"full", "tdlrt", "tucker", "matrix", "cp"}
    assert next(p.accuracy for p in points if p.method == "full") == 85.45
    assert published_points("lenet5", "mnist") == []


def test_the_lines_of_a_run_in_two_files_are_one_seed(tmp_path):
    lines = "".join(made_up(seed=seed, accuracy=0.9 + 0.01 * seed).to_line() for seed in (0, 1))
    (tmp_path / "here.jsonl").write_text(lines)
    (tmp_path / "there.jsonl").write_text(lines)
    (setting,) = settings(read_evidence(tmp_path))
    assert [result.config["seed"] for result in setting.results] == [0, 1]


@pytest.mark.parametrize(
    ("results", "row"),
    [
        ([made_up(decay=1.0)], r"\| 1 +\| RiemannianSGD"),
        ([replace(made_up(), status="diverged", curve=[], losses=[])], r"\| RiemannianSGD .* 1 +\|$"),
    ],
    ids=["without decay so far", "diverged"],
)
def test_no_run_is_left_out_of_the_report(tmp_path, results, row):
    write_evidence(tmp_path, results)
    assert re.search(row, (tmp_path / "report.md").read_text(), flags=re.MULTILINE)


def drawn(monkeypatch, draw, results):
    """The figure that `draw` makes of the settings of `results`."""
    figures = []
    monkeypatch.setattr(evidence_plots, "write_figure", lambda figure, path: figures.append(figure))
    draw(Path("unused.png"), settings(results))
    return figures[0]


def test_the_legend_has_what_is_not_in_the_first_panel(monkeypatch):
    results = [made_up(decay=1.0), made_up(decay=2.0), made_up("loose-tucker", decay=2.0)]
    (legend,) = drawn(monkeypatch, evidence_plots.plot_robustness, results).legends
    names = {text.get_text().partition(",")[0] for text in legend.get_texts()}
    assert names == {"RiemannianSGD", "loose Tucker factors"}


@pytest.mark.parametrize(
    "draw", [evidence_plots.plot_accuracy, evidence_plots.plot_variance, evidence_plots.plot_time]
)
def test_kinds_of_methods_have_lines_of_their_own(monkeypatch, draw):
    expected = {"tucker": "-", "loose-cp": "--", "prune-snip": "-.", "dense": ":"}
    results = [made_up(method, seed, model="lenet5") for method in expected for seed in (0, 1)]
    (axes,) = drawn(monkeypatch, draw, results).axes
    lines = [line.get_linestyle() for line in axes.lines if line.get_linestyle() != "None"]
    assert sorted(lines) == sorted(expected.values())


def test_every_layer_has_a_panel(monkeypatch):
    more = replace(made_up(factorize_all=True), ranks=[[0, {"first": [2, 2], "a": [4, 3]}]])
    figure = drawn(monkeypatch, evidence_plots.plot_rank_evolution, [made_up(), more])
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == ["a", "first"]
