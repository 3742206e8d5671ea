import pytest

from tenfold.experiments.grid import read_sweep, run_id

FILE = """
name: example
common: {data: mnist, model: lenet5, epochs: 3}
seeds: 2
rates: {sgd: [0.02, 0.05], adamw: 0.005}
tune: {epochs: 1, seed: 1000}
blocks:
  - {method: dense, optimizer: [sgd, adamw], seeds: 1}
  - {method: [tucker, loose-cp], compression: [0.7, 0.9, 0.8], lr: [0.1, 0.2, 0.4]}
  - {method: tucker, optimizer: tdlrt, tau: [0.1, 0.2], decay: [null, 2], lr: [0.05, 0.1], seeds: [5]}
"""


@pytest.fixture
def sweep(tmp_path):
    def read(text=FILE):
        (tmp_path / "file.yaml").write_text(text)
        return read_sweep(tmp_path / "file.yaml")

    return read


def test_every_combination_once(sweep):
    entries = sweep().entries
    assert len(entries) == 2 + 2 * 3 * 2 + 2 * 2
    assert len({run_id(entry.config) for entry in entries}) == len(entries)
    assert [entry.config.seed for entry in entries] == sorted(entry.config.seed for entry in entries)
    assert all(entry.config.epochs == 3 for entry in entries)


def test_runs_of_one_method_share_their_trials(sweep):
    trials = {}
    for entry in sweep().entries:
        key = (entry.config.method, entry.config.optimizer, entry.config.decay)
        trials.setdefault(key, set()).add(entry.trials)
    assert all(len(of_method) == 1 for of_method in trials.values())
    (cp,) = trials["loose-cp", "sgd", None]
    assert [(t.lr, t.compression, t.epochs, t.seed) for t in cp] == [
        (rate, 0.8, 1, 1000) for rate in (0.1, 0.2, 0.4)
    ]
    assert trials["dense", "adamw", None] == {()}
    assert {t.decay for t in next(iter(trials["tucker", "tdlrt", 2]))} == {2}
    assert len(sweep().trials) == 2 + 3 + 3 + 2 + 2


def test_the_place_does_not_matter(tmp_path):
    (tmp_path / "file.yaml").write_text(FILE)
    here, there = (read_sweep(tmp_path / "file.yaml", folder) for folder in ("a", "b"))
    assert [run_id(e.config) for e in here.entries] == [run_id(e.config) for e in there.entries]
    assert here.entries[0].config.data_dir == "a"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("name: example", "nome: example", "the file has no key 'nome'; there are name, common, seeds"),
        ("model: lenet5", "modell: lenet5", "common has no key 'modell'; there are data, model, method"),
        ("tau: [0.1, 0.2]", "tua: [0.1]", r"blocks\[2\] has no key 'tua'; there are"),
        ("tau: [0.1, 0.2]", "tau: [0.1, 2]", r"blocks\[2\]: tau must be a number in \[0, 1\), not 2"),
        ("tau: [0.1, 0.2]", "tau: []", r"blocks\[2\].tau is an empty list"),
        ("tau: [0.1, 0.2]", "tau: [null, 0.1]", r"blocks\[2\].tau must not have null among several values"),
        ("tau: [0.1, 0.2]", "rank: [0.5, big]", r"blocks\[2\]: rank must be a fraction .*, not 'big'"),
        ("tau: [0.1, 0.2]", "tau: [[0.1]]", r"blocks\[2\]: tau must be a number in .*, not a value of"),
        ("lr: [0.1, 0.2, 0.4]", "lr: []", r"blocks\[1\].lr is an empty list"),
        ("adamw: 0.005", "adamw: []", "rates.adamw is an empty list"),
        ("adamw: 0.005", "adamw: 0.005, adam: 0.1", "rates has no key 'adam'; there are sgd, adamw, muon"),
        ("model: lenet5,", "model: lenet5, lr: [],", r"blocks\[0\].lr is an empty list"),
        ("method: dense", "method: dense, tau: 0.1", r"blocks\[0\]: tau has no effect on the method 'dense'"),
        ("lr: [0.1, 0.2, 0.4]", "lr: [0.1, fast]", r"blocks\[1\]: lr must be a positive number, not 'fast'"),
        (
            "seeds: 2",
            "seeds: two",
            r"blocks\[1\].seeds must be a number of seeds or a list of them, not 'two'",
        ),
        (
            "tune: {epochs: 1, seed: 1000}",
            "",
            r"tune is missing: blocks\[0\] has the learning rates 0.02, 0.05",
        ),
        ("epochs: 1, seed: 1000", "epochs: 1", "tune has no seed: give the epochs and the seed"),
        ("seed: 1000", "seed: 1", r"tune.seed 1 is also a seed of blocks\[1\]"),
        ("lr: [0.05, 0.1], ", "", "rates has no 'tdlrt': it must have every optimizer of blocks"),
        ("epochs: 1,", "epochs: 0,", "tune: epochs must be at least 1, not 0"),
        (
            "name: example",
            "name: !!python/object/apply:os.getcwd []",
            "is not YAML: could not determine a constructor",
        ),
        ("name: example", "name: [", "is not YAML"),
        ("name: example", "name: example\nname: other", "is not YAML: line 3 has the key 'name' again"),
        ("epochs: 3", "epochs: 3, epochs: 4", "is not YAML: line 3 has the key 'epochs' again"),
    ],
)
def test_mistakes_name_the_key(sweep, before, after, message):
    assert before in FILE
    with pytest.raises(ValueError, match=message) as caught:
        sweep(FILE.replace(before, after))
    assert "file.yaml" in str(caught.value)


def test_a_file_without_blocks(sweep):
    with pytest.raises(ValueError, match="blocks must be a list of at least one block, not None"):
        sweep("name: nothing")


def test_rank_1_and_the_full_rank_have_trials_of_their_own(sweep):
    asked = sweep(
        "{common: {method: loose-tucker, lr: [0.1, 0.2]}, tune: {epochs: 1, seed: 9}, "
        "blocks: [{rank: 1}, {rank: 1.0}]}"
    )
    assert [repr(trial.rank) for trial in asked.trials] == ["1", "1", "1.0", "1.0"]


def test_a_trial_is_not_the_run_of_another_block(sweep):
    file = (
        "{common: {method: dense}, tune: {epochs: 1, seed: 9}, "
        "blocks: [{lr: [0.1, 0.2], epochs: 3}, {lr: 0.1, epochs: 1, seeds: [9]}]}"
    )
    with pytest.raises(ValueError, match=r"tune\.seed 9 makes a trial of a run that is asked for"):
        sweep(file)
    assert len(sweep(file.replace("epochs: 1, seeds", "epochs: 2, seeds")).entries) == 2


def test_a_folder_is_for_the_data_that_is_read_from_it(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("blocks: [{method: dense, lr: 0.1, data: [digits, mnist]}]")
    assert [entry.config.data_dir for entry in read_sweep(path, "there").entries] == [None, "there"]
    path.write_text("blocks: [{method: dense, lr: 0.1}]")
    with pytest.raises(ValueError, match="data_dir has no effect on the data set 'digits'"):
        read_sweep(path, "there")
