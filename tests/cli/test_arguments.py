import pytest

from tenfold.cli.arguments import parse
from tenfold.experiments.config import TrainConfig


def test_options_that_are_not_given_are_absent():
    options = vars(parse(["train"]))
    others = {"out": None, "resume": False, "beside_dense": False, "timeout": 600.0}
    assert options == {"command": "train", **others}


def test_every_field_of_a_run_has_its_option():
    line = (
        "train --data cifar10 --data-dir d --model vgg16 --method tucker --tau 0.2 --optimizer muon "
        "--compression 0.5 --start-compression 0.2 --per-layer --decay 2 --rank 0.25 --ranks fc1=3x3 "
        "--adapt-every 5 --adapt-start 20 --min-rank 3 --oversampling 4 --damping 0.1 --factorize-all "
        "--epochs 3 --batch-size 8 --lr 0.1 --momentum 0.5 --weight-decay 1e-4 --schedule cosine --seed 7 "
        "--device cpu --amp --on-nan skip --checkpoint-every 100"
    )
    options = vars(parse(line.split()))
    given = {name: options[name] for name in TrainConfig().to_dict()}  # KeyError if one were missing
    assert (given.pop("compression"), given.pop("start_compression")) == (0.5, 0.2)  # not with a rank
    assert given.pop("per_layer") is True
    assert given.pop("ranks") == "fc1=3x3"  # not with a rank, either
    assert TrainConfig(**given) == TrainConfig(
        data="cifar10",
        data_dir="d",
        model="vgg16",
        method="tucker",
        optimizer="muon",
        decay=2.0,
        tau=0.2,
        rank=0.25,
        adapt_every=5,
        adapt_start=20,
        min_rank=3,
        oversampling=4,
        damping=0.1,
        factorize_all=True,
        epochs=3,
        batch_size=8,
        lr=0.1,
        momentum=0.5,
        weight_decay=1e-4,
        schedule="cosine",
        seed=7,
        device="cpu",
        amp=True,
        on_nan="skip",
        checkpoint_every=100,
    )


@pytest.mark.parametrize(("text", "rank"), [("0.5", 0.5), ("1.0", 1.0), ("16", 16), ("1", 1)])
def test_a_rank_is_a_fraction_or_a_number(text, rank):
    got = parse(["train", "--rank", text]).rank
    assert got == rank
    assert type(got) is type(rank)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("fit", "invalid choice: 'fit'"),
        ("train --data imagenet", "argument --data: invalid choice: 'imagenet'"),
        ("train --rank half", "argument --rank: must be a fraction in (0, 1] or a whole number, not 'half'"),
        ("train --epochs few", "argument --epochs: invalid int value: 'few'"),
        ("train --taw 0.1", "unrecognized arguments: --taw"),
        ("compare", "the following arguments are required: DIR"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(capsys, line, message):
    with pytest.raises(SystemExit) as caught:
        parse(line.split())
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert error.startswith("tenfold")
