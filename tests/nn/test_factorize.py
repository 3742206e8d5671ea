"""Factorizing and densifying models of every kind of layer, in every format."""

import copy
import itertools

import pytest
import torch
from torch import nn

from tenfold.nn import Conv2d, Embedding, Format, Linear, MultiheadAttention, Start, densify, factorize
from tenfold.nn import convert as convert_module
from tenfold.nn.layer import LowRankLayer
from tenfold.nn.sites import counterpart


class Everything(nn.Module):
    """All layers that can be low-rank."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(13, 8, padding_idx=0)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.line = nn.Conv1d(8, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2)
        self.flat = nn.Conv2d(4, 5, 3, padding=1)
        self.deep = nn.Conv3d(5, 4, (1, 3, 3))
        self.head = nn.Linear(4, 3)

    def forward(self, index):
        x = self.line(self.encoder(self.words(index)).mT)
        x = self.flat(self.up(x.unsqueeze(-1)))
        return self.head(self.deep(x.unsqueeze(2)).mean((2, 3, 4)))


def everything():
    torch.manual_seed(0)
    return Everything().double()


INDEX = torch.tensor([[1, 5, 0, 12], [3, 3, 7, 0]])
PROJECTIONS = [f"encoder.self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
LAYERS = ["words", *PROJECTIONS, "encoder.linear1", "encoder.linear2", "line", "up", "flat", "deep", "head"]


def state(model):
    return {name: (type(module), module.training) for name, module in model.named_modules()}, {
        name: value.clone() for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("training", [True, False])
def test_full_rank_reproduces_the_model_and_densify_gives_it_back(form, training):
    model = everything().train(training)
    model.head.weight.requires_grad_(False)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(INDEX)
    report = factorize(model, format=form, rank=1.0)
    without = ["words"] if form is Format.TUCKER else []
    assert [layer.name for layer in report.layers] == [n for n in LAYERS if n not in without]
    assert list(report.left) == without
    assert all(layer.error < 1e-12 for layer in report.layers)
    assert isinstance(model.encoder.self_attn, MultiheadAttention)
    with torch.no_grad():
        torch.testing.assert_close(model(INDEX), expected)
    assert densify(model) is model
    with torch.no_grad():
        torch.testing.assert_close(model(INDEX), expected)
    assert state(model)[0] == state(twin)[0]
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    trained = {name: p.requires_grad for name, p in twin.named_parameters()}
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    assert model.encoder.activation_relu_or_gelu == twin.encoder.activation_relu_or_gelu


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("tol", [0.05, 0.3, 0.7])
def test_the_error_of_each_layer_is_within_the_tolerance(form, tol):
    model = everything()
    twin = copy.deepcopy(model)
    report = factorize(model, format=form, tol=tol)
    dense = dict(densify(copy.deepcopy(model)).named_modules())
    assert set(report.left) | {layer.name for layer in report.layers} == set(LAYERS)
    for layer in report.layers:
        assert layer.error <= tol
        assert layer.stored < layer.dense
        if layer.name not in PROJECTIONS:
            weight = twin.get_submodule(layer.name).weight
            error = (dense[layer.name].weight - weight).norm() / weight.norm()
            assert error.item() == pytest.approx(layer.error)
    assert all("larger" in reason or "no format" in reason for reason in report.left.values())
    if tol == 0.7:
        assert report.layers
    if tol == 0.05:
        assert report.left


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("compression", [0.0, 0.3, 0.5])
def test_compression_is_reached_and_not_overshot_by_much(form, compression):
    model = everything()
    dense = sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1)
    if form is Format.TUCKER:
        dense -= model.words.weight.numel()
    report = factorize(model, format=form, compression=compression)
    saved = sum(layer.dense - layer.stored for layer in report.layers) / dense
    assert compression <= saved < compression + 0.25


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("compression", [0.0, 0.1, 0.3])
def test_at_random_every_layer_has_the_compression_by_itself(form, compression):
    model = everything()
    report = factorize(model, format=form, compression=compression, init="random")
    assert report.layers
    for layer in report.layers:
        assert layer.stored <= (1 - compression) * layer.dense
        low = model.get_submodule(layer.name)
        cls, options = counterpart(low.dense_type, form)
        # No larger fraction of the full rank fits: the next one at which a rank changes does not.
        sizes = [
            cls.like(low.to_dense(), rank=k / 2520, **options).manifold.size for k in range(20, 2521, 20)
        ]
        assert layer.stored == max(size for size in sizes if size <= (1 - compression) * layer.dense)


@pytest.mark.parametrize("options", [{}, {"init": "random"}])
def test_compression_that_cannot_be_reached_changes_nothing(options):
    model = everything()
    before = state(model)
    with pytest.raises(ValueError, match=r"cannot be reached: at the lowest ranks it is 0\.\d"):
        factorize(model, compression=0.99, **options)
    assert state(model)[0] == before[0]
    torch.testing.assert_close(state(model)[1], before[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "tol": 0.1}, "one of rank, tol and compression"),
        ({"init": "random", "tol": 0.1}, "init='random' needs a rank or a compression"),
        ({"init": "random", "compression": -0.5}, r"\[0, 1\)"),
        ({"format": "cp"}, "cp"),
        ({"tol": 1.5}, "tol"),
        ({"compression": 1.0}, r"\[0, 1\)"),
        ({"include": ["encoder.self_attn.x"]}, "x"),
        ({"rank": (90, 90)}, "feasible"),
        ({"example_input": torch.zeros(2, 2)}, None),
    ],
)
def test_errors_leave_the_model_as_it_was(options, message):
    model = everything()
    before = state(model)
    with pytest.raises((ValueError, RuntimeError), match=message):
        factorize(model, **options)
    assert state(model)[0] == before[0]
    torch.testing.assert_close(state(model)[1], before[1], rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"rank": 2}, {"tol": 0.1}, {"compression": 0.1}])
def test_weights_that_are_not_finite_are_refused_by_name(options):
    model = everything()
    with torch.no_grad():
        model.flat.weight[0, 0, 0, 0] = float("nan")
    before = state(model)[0]
    with pytest.raises(ValueError, match=r"flat: .*NaN"):
        factorize(model, **options)
    assert state(model)[0] == before


@pytest.mark.parametrize("options", [{"rank": 2}, {"tol": 0.1}, {"compression": 0.1}])
def test_weights_without_numbers_are_drawn_and_not_decomposed(options):
    with torch.device("meta"):
        model = everything()
    before = state(model)[0]
    with pytest.raises(ValueError, match=r"^encoder\.self_attn\.q_proj: .* meta device"):
        factorize(model, **options)
    assert state(model)[0] == before
    factorize(model, rank=2, init="random")
    assert model.head.weight.is_meta


def test_patterns_may_come_one_by_one_but_not_as_a_string():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(13)))
    for name in ("include", "exclude"):
        with pytest.raises(TypeError, match=f"{name} must be a sequence .*'12'"):
            factorize(model, rank=2, **{name: "12"})
    report = factorize(model, rank=2, include=iter(["0", "1", "2"]), exclude=iter(["1"]))
    assert [layer.name for layer in report.layers] == ["0", "2"]


def test_tied_weights_and_modules():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(11, 8)
            self.first = nn.Linear(8, 8)
            self.again = self.first
            self.out = nn.Linear(8, 11, bias=False)
            self.out.weight = self.words.weight

        def forward(self, x):
            return self.out(self.again(self.first(self.words(x))))

    torch.manual_seed(0)
    model, x = Tied().double(), torch.tensor([1, 2, 10])
    expected = model(x)
    report = factorize(model, format="fixed-rank", rank=1.0)
    assert [layer.name for layer in report.layers] == ["first"]
    assert report.left == {
        "words": "it shares a parameter with 'out'",
        "out": "it shares a parameter with 'words'",
    }
    assert model.again is model.first
    assert isinstance(model.first, Linear)
    assert model.out.weight is model.words.weight
    torch.testing.assert_close(model(x), expected)
    densify(model)
    assert model.again is model.first
    torch.testing.assert_close(model(x), expected)


def test_layers_that_would_lose_something_stay():
    model = nn.ModuleDict(
        {
            "hooked": nn.Linear(4, 4),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "short": nn.Linear(4, 4).bfloat16(),
            "grouped": nn.Conv1d(4, 4, 3, groups=4),
            "renormed": nn.Embedding(4, 4, max_norm=1.0),
            "padded": nn.Embedding.from_pretrained(torch.ones(4, 4), padding_idx=1),
        }
    )
    model["hooked"].register_forward_hook(lambda *_: None)
    model["patched"] = nn.Linear(4, 4)
    model["patched"].forward = lambda x: x
    model["attention"] = nn.MultiheadAttention(4, 2)
    model["attention"].out_proj.register_forward_hook(lambda *_: None)
    report = factorize(model, format="fixed-rank", rank=1)
    assert report.layers == ()
    reasons = {
        "hooked": "hooks",
        "attention.out_proj": "hooks",
        "patched": "forward method of its own",
        "normed": "ParametrizedLinear",
        "short": "bfloat16",
        "grouped": "4 groups",
        "renormed": "max_norm",
        "padded": "padding_idx=1 is not zero",
    }
    assert all(reasons[name] in report.left[name] for name in reasons)
    assert report.compression == 0.0
    assert "dense: it has hooks" in str(report)


def test_attention_may_be_factorized_in_part():
    model = everything()
    report = factorize(model, rank=2, include=["encoder.self_attn.q_proj", "encoder.self_attn.out_proj"])
    assert [layer.name for layer in report.layers] == [PROJECTIONS[0], PROJECTIONS[3]]
    attention = model.encoder.self_attn
    kinds = [isinstance(attention.get_submodule(n), LowRankLayer) for n in ("q_proj", "k_proj", "v_proj")]
    assert kinds == [True, False, False]
    dense = copy.deepcopy(model)
    densify(dense)
    model.eval(), dense.eval()
    torch.testing.assert_close(model(INDEX), dense(INDEX))
    # The rest can follow, and a name of the attention means all of it.
    again = factorize(model, rank=2, include=["encoder.self_attn*"])
    assert [layer.name for layer in again.layers] == PROJECTIONS[1:3]
    assert len(factorize(everything(), rank=2, include=["encoder.self_attn"]).layers) == 4


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_torchs_fused_inference_is_left_where_a_weight_is_low_rank():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(2, 3, 8), torch.tensor([[False, False, True], [False, False, False]])
    with torch.no_grad():
        expected = model(x)
        masked = model(x, src_key_padding_mask=padding)[~padding]
        factorize(model, rank=1.0, include=["*linear1"])
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(model(x, src_key_padding_mask=padding)[~padding], masked)


def test_layers_that_get_slower_stay_dense_when_measured(monkeypatch):
    model = everything().train()
    times = {nn.Conv1d: (2.0, 1.0), nn.MultiheadAttention: (2.0, 1.0)}
    monkeypatch.setattr(
        convert_module, "seconds_side_by_side", lambda new, old, call: times.get(type(old), (1.0, 3.0))
    )
    before = model.state_dict()
    report = factorize(model, format="fixed-rank", rank=1, example_input=INDEX)
    slow = ["line", *PROJECTIONS]
    assert [layer.name for layer in report.layers] == [n for n in LAYERS if n not in slow]
    assert all("slower, 2e+03 ms instead of 1e+03 ms" in report.left[name] for name in slow)
    assert "x3.00" in str(report)
    assert type(model.line) is nn.Conv1d
    assert type(model.encoder.self_attn) is nn.MultiheadAttention
    assert all(module.training for module in model.modules() if module is not model)
    assert torch.equal(model.line.weight, before["line.weight"])


def test_measured_times_are_those_of_the_layers():
    model = nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 4), nn.ReLU(), nn.Linear(4, 4))
    report = factorize(
        model, rank=2, format="fixed-rank", init="random", example_input=(torch.randn(256, 1024),)
    )
    assert report.layers[0].name == "0"
    assert 0 < report.layers[0].seconds < report.layers[0].dense_seconds
    assert "slower" in report.left["3"]
    unused = nn.ModuleDict({"a": nn.Linear(8, 8)})
    unused.forward = lambda x: x
    assert factorize(unused, rank=1, example_input=torch.zeros(1)).layers[0].seconds is None


def test_the_table_has_a_row_for_every_layer():
    model = everything()
    text = str(factorize(model, rank=2))
    assert text.splitlines()[0].split() == [
        "layer",
        "rank",
        "error",
        "stored",
        "dense",
        "mults",
        "dense",
        "mults",
    ]
    for name in LAYERS:
        assert any(line.startswith(f"{name} ") for line in text.splitlines())
    assert "words                       dense: Embedding has no format 'tucker'" in text


def test_random_start_needs_no_decomposition_and_draws_other_weights():
    model = everything()
    weight = model.flat.weight.detach().clone()
    report = factorize(model, rank=1.0, init=Start.RANDOM)
    assert all(layer.error is None for layer in report.layers)
    assert (model.flat.dense_weight() - weight).norm() > 0.5 * weight.norm()
    assert isinstance(model.flat, Conv2d)


def test_a_layer_alone_is_densified_too():
    assert type(densify(Embedding(5, 4, rank=1))) is nn.Embedding
    assert type(densify(MultiheadAttention(4, 2, rank=1))) is nn.MultiheadAttention


@pytest.mark.parametrize("form", Format)
def test_ranks_change_in_training_and_the_state_loads_elsewhere(form):
    from tenfold.optim import RankAdaptation, RiemannianSGD

    model = everything()
    factorize(model, format=form, rank=4)
    fresh = everything()
    factorize(fresh, format=form, rank=1, init="random")
    ranks = {name: m.rank for name, m in model.named_modules() if isinstance(m, LowRankLayer)}
    optimizer = RiemannianSGD(model.parameters(), lr=0.05, rank_adaptation=RankAdaptation(tol=0.6, every=1))
    for _ in itertools.repeat(None, 2):
        optimizer.zero_grad()
        model(INDEX).square().mean().backward()
        optimizer.step()
    now = {name: m.rank for name, m in model.named_modules() if isinstance(m, LowRankLayer)}
    assert now != ranks
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(INDEX), model(INDEX), rtol=0, atol=0)


@pytest.mark.parametrize("trained", [False, True])
def test_the_extra_keys_of_attention_stay_frozen_or_not(trained):
    model = nn.ModuleDict({"a": nn.MultiheadAttention(16, 4, add_bias_kv=True)}).requires_grad_(trained)
    for change in (lambda: factorize(model, rank=4), lambda: densify(model)):
        change()
        assert {p.requires_grad for p in model.parameters()} == {trained}


def test_parametrized_attention_stays_dense():
    model = nn.ModuleDict({"a": nn.MultiheadAttention(16, 4), "b": nn.Linear(8, 8)})
    nn.utils.parametrizations.weight_norm(model["a"].out_proj)
    names = set(model["a"].state_dict())
    report = factorize(model, rank=2)
    assert set(model["a"].state_dict()) == names
    assert "parametrized" in report.left["a.out_proj"]
    assert isinstance(model["b"], Linear)


def test_a_subclass_of_attention_stays_dense_and_is_in_nobodys_way():
    class Own(nn.MultiheadAttention):
        def __init__(self):
            nn.Module.__init__(self)
            self.q = nn.Linear(4, 4)

    model = nn.ModuleDict({"a": Own(), "b": nn.Linear(8, 8)})
    report = factorize(model, rank=2)
    assert "Own may compute something else" in report.left["a"]
    assert isinstance(model["b"], Linear)
