"""DreamBooth in miniature: a pipeline of random weights in the layout of the hub, three small photos."""

import json

import numpy as np
import pytest

from .scripts import loaded, said_by, save_tokenizer

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("dreambooth")
    names = ["<pad>", "<start>", "<end>", "<unk>", "a", "photo", "of", "sks", "dog"]
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 8}
    save_tokenizer(folder / "model" / "tokenizer", names, **special)
    transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(names),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    ).save_pretrained(folder / "model" / "text_encoder")
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).save_pretrained(folder / "model" / "vae")
    diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    ).save_pretrained(folder / "model" / "unet")
    diffusers.DDPMScheduler().save_pretrained(folder / "model" / "scheduler")
    generator = np.random.default_rng(0)
    for kind in ("subject", "others"):
        (folder / kind).mkdir()
        for k in range(3):
            pixels = generator.integers(256, size=(20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{k}.png")
    return folder


def arguments(folder, *options):
    where = ("--out", folder / "runs.jsonl", "--model", folder / "model", "--images", folder / "subject")
    small = ("--resolution", 16, "--steps", 10, "--batch", 2, "--rank", 2, "--draws", 4)
    one = ("--prompt", "a photo of sks dog", "--lrs", 1e-2, "--seeds", 0)
    return [*where, *small, *one, *options]


def test_every_method_runs_once_and_leaves_its_adapter(folder):
    more = ["--class-images", str(folder / "others"), "--class-prompt", "a photo of a dog"]
    more += ["--save", str(folder / "kept"), "--samples", "1", "--sample-steps", "2"]
    said = said_by("dreambooth.py", folder, *arguments(folder, *more))
    rows = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["tenfold", "tenfold-fixed", "lora"]
    assert len({row["before"] for row in rows}) == 1
    assert all(np.isfinite(row["held_out"]) and row["held_out"] != row["before"] for row in rows)
    budget, fixed, lora = rows
    assert budget["parameters"] <= lora["parameters"]
    assert list(budget["ranks"]) == list(fixed["ranks"])
    kinds = {len(rank) if isinstance(rank, list) else 1 for rank in fixed["ranks"].values()}
    assert kinds == {1, 2}, "matrices and Tucker tensors"
    for method, file in (("tenfold", "adapter.safetensors"), ("lora", "adapter_model.safetensors")):
        assert (folder / "kept" / f"{method}-0.01-0" / file).is_file()
        assert (folder / "kept" / f"{method}-0.01-0" / "0.png").is_file()

    again = said_by("dreambooth.py", folder, *arguments(folder, *more))
    assert again == said[said.index("| method") :]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--images", "none"], "none has no photos"),
        (["--class-images", "none", "--class-prompt", "a dog"], "none has no photos"),
        (["--held-out", "3"], "--held-out must leave some of the 3 photos"),
        (["--class-prompt", "a dog"], "go together"),
    ],
)
def test_photos_that_are_not_there(folder, tmp_path, monkeypatch, capsys, options, complaint):
    """Before any network is loaded: none is at the given place."""
    (tmp_path / "none").mkdir()
    monkeypatch.chdir(tmp_path)
    given = [*arguments(folder), "--model", tmp_path / "nowhere", *options]
    monkeypatch.setattr("sys.argv", ["dreambooth.py", *map(str, given)])
    with loaded("dreambooth.py") as names, pytest.raises(SystemExit) as ending:
        names["main"]()
    assert complaint in f"{ending.value} {capsys.readouterr().err}"
