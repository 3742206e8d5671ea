import pytest

from tenfold.cli import main
from tenfold.experiments.grid import read_sweep
from tenfold.experiments.part import part_of

FILE = """
name: example
common: {data: mnist, model: lenet5}
seeds: 3
tune: {epochs: 1, seed: 1000}
blocks:
  - {method: dense, optimizer: [sgd, adamw], lr: 0.05}
  - {method: [tucker, loose-cp], compression: [0.7, 0.9, 0.8], lr: [0.1, 0.2]}
  - {method: tucker, ranks: ["conv2=5x3,fc1=4x4", "conv2=6x3"], adapt_every: 0, lr: 0.1}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(
    ("conditions", "left", "trials"),
    [
        ([], 30, 4),
        (["seed=0,2"], 20, 4),
        (["method=tucker"], 15, 2),
        (["method=tucker,dense", "seed=1"], 7, 2),
        (["compression=0.90", "method=loose-cp"], 3, 2),
        (["compression=null"], 12, 0),
        (["ranks=conv2=5x3,fc1=4x4"], 3, 0),
        (["per_layer=false", "adapt_every=0"], 6, 0),
    ],
)
def test_what_is_left_meets_all_conditions(file, conditions, left, trials):
    whole = read_sweep(file)
    part = part_of(whole, conditions)
    assert (len(part.entries), len(part.trials)) == (left, trials)
    kept = [entry for entry in whole.entries if entry in part.entries]
    assert list(part.entries) == kept  # with the trials and in the order of the whole
    for condition in conditions:
        key, _, text = condition.partition("=")
        found = {str(getattr(entry.config, key)).lower() for entry in part.entries}
        assert found <= {"0.9", "none", text, *text.split(",")}


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (["seed"], "runs are chosen by KEY=VALUE, not by 'seed'"),
        (["seed="], "runs are chosen by KEY=VALUE, not by 'seed='"),
        (["lr=0.1"], "runs cannot be chosen by 'lr', but by data, model"),
        (["data_dir=x"], "runs cannot be chosen by 'data_dir'"),
        (["seed=0", "seed=1"], "seed is asked for twice: write seed=VALUE,VALUE"),
        (["seed=0,7"], "no run of example has seed=7; there are 0, 1, 2"),
        (["compression=high"], "no run of example has compression=high; there are null, 0.7, 0.9, 0.8"),
        (["per_layer=0"], "no run of example has per_layer=0; there are false"),
        (["method=dense", "compression=0.9"], "no run of example has all of method=dense compression=0.9"),
    ],
)
def test_what_no_run_can_meet_is_refused(file, conditions, message):
    with pytest.raises(ValueError, match="^" + message):
        part_of(read_sweep(file), conditions)


def test_the_command_does_what_is_asked_for(file, tmp_path, capsys):
    command = ["sweep", str(file), "--out", str(tmp_path / "results"), "--dry-run"]
    assert main([*command, "--only", "method=tucker", "seed=0"]) == 0
    assert capsys.readouterr().out == "example: 2 of 2 trials and 5 of 5 runs to do\n"
    assert main([*command, "--only", "seed=9"]) == 2
    assert capsys.readouterr().err == "tenfold: no run of example has seed=9; there are 0, 1, 2\n"
