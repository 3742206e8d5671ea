"""Files of adapters: round trips, PEFT in both directions, and what is refused before anything changes."""

import copy
import json

import pytest
import torch
from torch import nn

from tenfold.nn.adapters import adapt, describe, export_lora, import_lora, load_adapter, merge, save_adapter
from tests.nn.test_adapters import X, snapshot, stir, unchanged

safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")


def network(dtype=torch.float64):
    """Layers that PEFT adapts as well, with a name that ends like another's."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, (3, 1), stride=2, bias=False), nn.Flatten()
    )
    return nn.Sequential(body, nn.Linear(6 * 3 * 4, 10), nn.Tanh(), nn.Linear(10, 4)).to(dtype)


def adapted(dtype=torch.float64, **options):
    model = network(dtype)
    adapt(model, **{"rank": 2, "name": "one", "scale": 0.3, **options})
    return stir(model)


# Our own files -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_adapter_comes_back_with_its_ranks(tmp_path, dtype):
    model = adapted(dtype, dropout=0.1)
    adapt(model, rank=4, name="two", include=["1"])
    save_adapter(model, tmp_path / "a.safetensors", "one")
    names = set(safetensors.load_file(tmp_path / "a.safetensors"))
    assert {"1.S", "1.U", "1.V", "0.0.core", "0.0.U0", "0.0.U1"} <= names
    assert len(names) == 12
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"]
    twin = network(dtype)
    report = load_adapter(twin, tmp_path / "a.safetensors")
    assert report == describe(model, "one")
    assert twin[1].adapters["one"].dropout.p == 0.1
    assert [name for name, p in twin.named_parameters() if p.requires_grad] == [
        f"{layer}.adapters.one.update.weight" for layer in ("0.0", "0.2", "1", "3")
    ]
    x = X.to(dtype)
    assert torch.equal(twin.eval()(x), model.eval()(x))
    load_adapter(twin, tmp_path / "a.safetensors", name="again")
    merge(twin)


def test_a_model_on_the_meta_device_takes_no_adapter_from_a_file(tmp_path):
    save_adapter(adapted(), tmp_path / "a.safetensors", "one")
    twin = network().to("meta")
    with pytest.raises(ValueError, match="meta device"):
        load_adapter(twin, tmp_path / "a.safetensors")
    assert all(p.requires_grad for p in twin.parameters())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    model, path = adapted(), tmp_path / "a.safetensors"
    save_adapter(model, path, "one")
    old = path.read_bytes()

    def broken(tensors, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        save_adapter(model, path, "one")
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def _rewritten(path, change):
    """Apply a change to the tensors and the header of a file."""
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    header = json.loads(metadata["adapter"])
    change(tensors, header)
    safetensors.save_file(tensors, path, {**metadata, "adapter": json.dumps(header)})


DAMAGE = {
    "no such layer": lambda t, h: h["layers"].update({"9": {"scale": 1.0, "dropout": 0.0}}),
    "the model itself": lambda t, h: h["layers"].update({"": {"scale": 1.0, "dropout": 0.0}}),
    "another type of layer": lambda t, h: h["layers"].update({"2": {"scale": 1.0, "dropout": 0.0}}),
    "missing factor": lambda t, h: t.pop("1.V"),
    "missing layer": lambda t, h: h["layers"].pop("1"),
    "foreign tensor": lambda t, h: t.update({"other": torch.zeros(3)}),
    "wrong shape": lambda t, h: t.update({"1.U": torch.eye(9, 2)}),
    "ranks that differ": lambda t, h: t.update({"1.V": torch.eye(72, 3)}),
    "infeasible rank": lambda t, h: t.update({"3.S": torch.eye(5), "3.U": torch.eye(4, 5)}),
    "scalar": lambda t, h: t.update({"1.S": torch.tensor(1.0)}),
    "integers": lambda t, h: t.update({"1.S": torch.eye(2, dtype=torch.int64)}),
    "nan": lambda t, h: t.update({"1.S": torch.full((2, 2), torch.nan)}),
    "not orthonormal": lambda t, h: t.update({"1.U": 2 * t["1.U"]}),
    "later version": lambda t, h: h.update(version=2),
    "no version": lambda t, h: h.pop("version"),
    "no layers": lambda t, h: h.update(layers={}),
    "layers of another type": lambda t, h: h.update(layers=[1]),
    "scale of another type": lambda t, h: h["layers"]["1"].update(scale="1"),
    "infinite scale": lambda t, h: h["layers"]["1"].update(scale=float("inf")),
    "bad dropout": lambda t, h: h["layers"]["1"].update(dropout=1.0),
    "unknown option": lambda t, h: h["layers"]["1"].update(other=1.0),
    "bad name": lambda t, h: h.update(name="a.b"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_changes_nothing(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    save_adapter(adapted(), path, "one")
    _rewritten(path, DAMAGE[damage])
    model = network()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"a\.safetensors|name of an adapter"):
        load_adapter(model, path)
    unchanged(model, before)


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\xff" * 64, None])
def test_a_foreign_file_changes_nothing(tmp_path, content):
    path = tmp_path / "a.safetensors"
    save_adapter(adapted(), path, "one")
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    model = network()
    before = snapshot(model)
    with pytest.raises(ValueError, match="is no safetensors file, or is corrupt"):
        load_adapter(model, path)
    safetensors.save_file(model.state_dict(), path)
    with pytest.raises(ValueError, match="was not written by save_adapter"):
        load_adapter(model, path)
    with pytest.raises(FileNotFoundError):
        load_adapter(model, tmp_path / "b.safetensors")
    unchanged(model, before)


def test_sizes_are_compared_before_a_tensor_is_read(tmp_path, monkeypatch):
    from tenfold.nn.adapters.tensor_file import TensorFile

    path = tmp_path / "a.safetensors"
    save_adapter(adapted(), path, "one")
    _rewritten(path, lambda tensors, header: tensors.update({"0.0.core": torch.zeros(2, 2, 300, 300)}))
    monkeypatch.setattr(TensorFile, "read", lambda self, name: pytest.fail(f"{name} was read"))
    with pytest.raises(ValueError, match=r"'0.0.core' has the shape \(2, 2, 300, 300\)"):
        load_adapter(network(), path)


def test_an_adapter_that_is_there_is_not_replaced(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path / "a.safetensors", "one")
    with pytest.raises(ValueError, match="has an adapter of the name 'one'"):
        load_adapter(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no adapter 'two'"):
        save_adapter(model, tmp_path / "a.safetensors", "two")


# PEFT ----------------------------------------------------------------------------------------


def peft_config(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("ranks", ["equal", "different"])
@pytest.mark.parametrize("scale", [1.0, 0.3, -2.0])
def test_peft_computes_the_same_with_our_export(tmp_path, ranks, scale):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = adapted(scale=scale, include=["0.0", "1", "3"])
    if ranks == "different":
        model = network()
        for layer, rank in {"0.0": 3, "0.2": 1, "1": 5, "3": 2}.items():
            adapt(model, rank=rank, include=[layer], name="one", scale=scale * rank)
        stir(model)
    export_lora(model, tmp_path / "lora", "one")
    assert sorted(p.name for p in (tmp_path / "lora").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = peft.PeftModel.from_pretrained(network(), tmp_path / "lora")
    torch.testing.assert_close(loaded(X), model(X))
    assert not torch.allclose(loaded(X), network()(X))
    twin = network()
    import_lora(twin, tmp_path / "lora")
    torch.testing.assert_close(twin(X), model(X))


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 6, "target_modules": "1|3"},
        {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": r"0\.0|0\.2|1"},
        {"r": 3, "target_modules": r"0\.0|1|3", "rank_pattern": {"1": 2}, "alpha_pattern": {"3": 5}},
        {"r": 12, "target_modules": r"0\.0|3"},
    ],
    ids=["plain", "rslora", "patterns", "higher than the weight has"],
)
def test_we_compute_the_same_with_pefts_adapter(tmp_path, options):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = network()
    theirs = peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False, **options)).eval()
    theirs.save_pretrained(tmp_path)
    model = network()
    report = import_lora(model, tmp_path, name="theirs")
    torch.testing.assert_close(model(X), theirs(X))
    assert not torch.allclose(model(X), network()(X))
    assert all(max(layer.rank) <= 12 for layer in report.layers)
    for layer in report.layers:
        update = model.get_submodule(layer.name).adapters["theirs"].update
        assert update.manifold.check_point_on_manifold(update.weight.detach(), atol=1e-10)
    model(X).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_fresh_adapter_of_peft_is_zero_and_trains(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    theirs = peft.get_peft_model(network(), peft.LoraConfig(r=2, target_modules=r"0\.0|1"))
    theirs.save_pretrained(tmp_path)
    model = network()
    import_lora(model, tmp_path)
    torch.testing.assert_close(model(X), network()(X))
    model(X).square().sum().backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


def _exported(tmp_path):
    export_lora(adapted(include=["1", "3"]), tmp_path, "one")
    path = tmp_path / "adapter_model.safetensors"
    return safetensors.load_file(path), peft_config(tmp_path)


LORA_DAMAGE = {
    "not lora": (lambda t, c: c.update(peft_type="IA3"), "no LoRA adapter"),
    "dora": (lambda t, c: c.update(use_dora=True), "more than plain LoRA: .*use_dora"),
    "bias": (lambda t, c: c.update(bias="all"), "more than plain LoRA"),
    "another start": (lambda t, c: c.update(init_lora_weights="pissa"), "more than plain LoRA"),
    "a variant to come": (lambda t, c: c.update(use_novelty=1), "more than plain LoRA"),
    "trained head": (lambda t, c: c.update(modules_to_save=["3"]), "more than plain LoRA"),
    "another rank": (lambda t, c: c.update(r=3), "the configuration says 3"),
    "alpha of another type": (lambda t, c: c.update(lora_alpha="8"), "corrupt"),
    "bad pattern": (lambda t, c: c.update(rank_pattern={"(": 2}), "corrupt"),
    "missing B": (lambda t, c: t.pop("base_model.model.1.lora_B.weight"), "has no .*lora_B"),
    "foreign tensor": (lambda t, c: t.update(other=torch.zeros(2)), "not a LoRA factor: \\['other'\\]"),
    "no tensors": (lambda t, c: t.clear(), "not a LoRA factor: nothing"),
    "other layer": (
        lambda t, c: t.update({"base_model.model.9.lora_A.weight": torch.zeros(2, 2)}),
        "no layer '9'",
    ),
    "wrong shape": (
        lambda t, c: t.update({"base_model.model.1.lora_A.weight": torch.zeros(2, 9)}),
        "do not make \\(10, 72\\)",
    ),
    "nan": (
        lambda t, c: t.update({"base_model.model.1.lora_A.weight": torch.full((2, 72), torch.inf)}),
        "holds NaN or infinity",
    ),
}


@pytest.mark.parametrize("damage", LORA_DAMAGE)
def test_what_is_not_plain_lora_changes_nothing(tmp_path, damage):
    tensors, config = _exported(tmp_path)
    change, message = LORA_DAMAGE[damage]
    change(tensors, config)
    safetensors.save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = network()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        import_lora(model, tmp_path)
    unchanged(model, before)


def test_missing_and_unreadable_files_change_nothing(tmp_path):
    model = network()
    before = snapshot(model)
    with pytest.raises(FileNotFoundError, match="adapter_config"):
        import_lora(model, tmp_path)
    for text in ("{", "[]", "\x00"):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match="adapter_config"):
            import_lora(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(FileNotFoundError, match="adapter_model"):
        import_lora(model, tmp_path)
    unchanged(model, before)


@pytest.mark.parametrize("options", [{"padding_mode": "reflect"}, {"dilation": 2}])
def test_convolutions_that_peft_computes_otherwise_are_not_exported(tmp_path, options):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, **options))
    adapt(model, rank=2)
    with pytest.raises(ValueError, match="PEFT ignores"):
        export_lora(model, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_pretrained_transformer_goes_to_peft_and_back(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    base = transformers.BertModel(config).eval()
    model = copy.deepcopy(base)
    adapt(model, rank=3, include=["*.query", "*.value", "*.dense"], exclude=["pooler*"])
    stir(model)
    words = torch.randint(30, (2, 7))
    expected = model(words).last_hidden_state
    export_lora(model, tmp_path / "ours", task_type="FEATURE_EXTRACTION")
    assert "encoder.layer.0.attention.self.query" in peft_config(tmp_path / "ours")["target_modules"]
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours")
    torch.testing.assert_close(loaded(words).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
    loaded.save_pretrained(tmp_path / "theirs")
    twin = copy.deepcopy(base)
    import_lora(twin, tmp_path / "theirs")
    torch.testing.assert_close(twin(words).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
