"""DreamBooth with Stable Diffusion and adapters, beside LoRA of PEFT. Made for a GPU.

    pip install 'tenfold[dreambooth]'
    python benchmarks/dreambooth.py --images DIR --prompt "a photo of sks dog" --out dreambooth.jsonl
    python benchmarks/dreambooth.py --images DIR --prompt "a photo of sks dog" --out dreambooth.jsonl --table

DIR holds a few photos of one subject; the last ``--held-out`` of them, by name, are not trained on. The
model comes from the Hugging Face hub, or from a folder in the layout that it has there. Every run is one line
of the output file; runs that are there are not repeated. ``--save`` keeps adapters and samples.

Attention and the convolutions of the residual blocks of the denoising network are adapted, by matrices of
fixed rank and by Tucker tensors in the two channel modes, with as many parameters as LoRA of the given rank;
the rest is frozen. The learning rate is chosen by the denoising loss on the photos held out, with the same
noise and the same times for all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from adapter_methods import Row, autocast, ramp, with_adapters
from adapter_runs import at_best_rate, carry_out, grid, make_parser, markdown, on_a_device, read, spread
from torch import nn

from tenfold.nn.adapters import save_adapter

METHODS = ("tenfold", "tenfold-fixed", "lora")
ADAPTED = ("*.to_q", "*.to_k", "*.to_v", "*.to_out.0", "*.resnets.*.conv1", "*.resnets.*.conv2")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass
class Photos:
    """Photos as the encoder sees them, and the prompt that goes with them.

    Attributes
    ----------
    mean, std : torch.Tensor
        Of the latents, shape ``(photos, channels, height, width)``.
    words : torch.Tensor
        The encoded prompt, shape ``(1, tokens, width)``.
    """

    mean: torch.Tensor
    std: torch.Tensor
    words: torch.Tensor

    def part(self, rows: slice | torch.Tensor) -> Photos:
        return Photos(self.mean[rows], self.std[rows], self.words)

    def latents(self, generator: torch.Generator) -> torch.Tensor:
        """A sample of each photo's latents."""
        return self.mean + self.std * _normal(self.mean, generator)


@dataclass
class Frozen:
    """What no method trains."""

    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any


def load(options: argparse.Namespace) -> Frozen:
    from diffusers import AutoencoderKL, DDPMScheduler
    from transformers import AutoTokenizer, CLIPTextModel

    vae = AutoencoderKL.from_pretrained(options.model, subfolder="vae")
    text_encoder = CLIPTextModel.from_pretrained(options.model, subfolder="text_encoder")
    for module in (vae, text_encoder):
        module.requires_grad_(False).eval().to(options.device)
    tokenizer = AutoTokenizer.from_pretrained(options.model, subfolder="tokenizer")
    scheduler = DDPMScheduler.from_pretrained(options.model, subfolder="scheduler")
    return Frozen(vae, text_encoder, tokenizer, scheduler)


def photo_files(folder: Path) -> list[Path]:
    """The photos of a folder; without any, the program ends."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"{folder} has no photos ({', '.join(sorted(SUFFIXES))})")
    return files


@torch.no_grad()
def photos(files: Sequence[Path], prompt: str, frozen: Frozen, options: argparse.Namespace) -> Photos:
    """Photos, cut to squares, through the encoders."""
    from diffusers.image_processor import VaeImageProcessor
    from PIL import Image

    size = options.resolution
    images = [Image.open(path).convert("RGB") for path in files]
    pixels = VaeImageProcessor().preprocess(images, size, size, resize_mode="crop").to(options.device)
    encoded = [frozen.vae.encode(one[None]).latent_dist for one in pixels]
    scale = frozen.vae.config.scaling_factor
    length = frozen.tokenizer.model_max_length
    tokens = frozen.tokenizer(
        prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    words = frozen.text_encoder(tokens.input_ids.to(options.device))[0]
    mean, std = (scale * torch.cat([getattr(one, name) for one in encoded]) for name in ("mean", "std"))
    return Photos(mean, std, words)


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same noise on every device."""
    return torch.randn(like.shape, generator=generator).to(like)


def denoising_loss(
    unet: nn.Module, scheduler: Any, some: Photos, generator: torch.Generator, options: argparse.Namespace
) -> torch.Tensor:
    """Mean squared error of what the network says of noise that was added."""
    latents = some.latents(generator)
    noise = _normal(latents, generator)
    last = scheduler.config.num_train_timesteps
    times = torch.randint(last, (len(latents),), generator=generator).to(latents.device)
    noisy = scheduler.add_noise(latents, noise, times)
    with autocast(options):
        said = unet(noisy, times, some.words.expand(len(latents), -1, -1)).sample
    velocity = scheduler.config.prediction_type == "v_prediction"
    goal = scheduler.get_velocity(latents, noise, times) if velocity else noise
    return nn.functional.mse_loss(said.float(), goal)


@torch.no_grad()
def held_out_loss(unet: nn.Module, scheduler: Any, some: Photos, options: argparse.Namespace) -> float:
    """The loss with the same draws for every network."""
    unet.eval()
    generator = torch.Generator().manual_seed(0)
    losses = [denoising_loss(unet, scheduler, some, generator, options) for _ in range(options.draws)]
    unet.train()
    return torch.stack(losses).mean().item()


def run(
    method: str, lr: float, seed: int, frozen: Frozen, subject: Photos, others: Photos | None, options: Any
) -> Row:
    """Train once, and what came of it."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(options.model, subfolder="unet").to(options.device)
    if options.recompute:
        unet.enable_gradient_checkpointing()
    count = len(subject.mean) - options.held_out
    train, held_out = subject.part(slice(count)), subject.part(slice(count, None))
    before = held_out_loss(unet, frozen.scheduler, held_out, options)
    every = max(5, options.steps // 100)
    adapted = with_adapters(method, unet, ADAPTED, rank=options.rank, steps=options.steps, lr=lr, every=every)
    scheduler = ramp(adapted.optimizer, options.steps)
    adapted.model.train()
    begin = time.perf_counter()
    for step in range(options.steps):
        adapted.optimizer.zero_grad()
        losses = []
        for some, weight in ((train, 1.0), (others, options.prior_weight)):
            if some is not None:
                rows = torch.randint(len(some.mean), (options.batch,), generator=generator)
                part = some.part(rows.to(some.mean.device))
                loss = denoising_loss(adapted.model, frozen.scheduler, part, generator, options)
                losses.append(weight * loss)
        torch.stack(losses).sum().backward()
        adapted.optimizer.step()
        adapted.after(step)
        scheduler.step()
    seconds = time.perf_counter() - begin
    after = held_out_loss(adapted.model, frozen.scheduler, held_out, options)
    if options.save is not None:
        keep(options.save / f"{method}-{lr:g}-{seed}", adapted.model, unet, frozen, options)
    return {"before": before, "held_out": after, "seconds": round(seconds, 1), **adapted.found()}


def keep(folder: Path, model: nn.Module, unet: Any, frozen: Frozen, options: argparse.Namespace) -> None:
    """The adapter in the format of its library, and samples of the prompt."""
    from diffusers import StableDiffusionPipeline

    folder.mkdir(parents=True, exist_ok=True)
    if model is unet:
        save_adapter(model, folder / "adapter.safetensors")
    else:
        model.save_pretrained(folder)
    if options.samples:
        unet.eval()
        pipeline = StableDiffusionPipeline(
            **vars(frozen),
            unet=unet,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        for k in range(options.samples):
            image = pipeline(
                options.prompt,
                height=options.resolution,
                width=options.resolution,
                num_inference_steps=options.sample_steps,
                generator=torch.Generator().manual_seed(k),
            ).images[0]
            image.save(folder / f"{k}.png")


def table(rows: list[Row]) -> str:
    """Each method at its best rate."""
    head = ["method", "learning rate", "seeds", "held-out loss", "deviation", "before"]
    head += ["parameters", "seconds"]
    lines = []
    for method in METHODS:
        runs = at_best_rate((row for row in rows if row["method"] == method), "held_out", lowest=True)
        if not runs:
            continue
        losses, before, parameters, seconds = (
            [run[name] for run in runs] for name in ("held_out", "before", "parameters", "seconds")
        )
        lines.append(
            [
                method,
                f"{runs[0]['lr']:g}",
                str(len(runs)),
                f"{statistics.fmean(losses):.5f}",
                spread(losses, ".5f"),
                f"{statistics.fmean(before):.5f}",
                f"{statistics.fmean(parameters):,.0f}",
                f"{statistics.median(seconds):.0f}",
            ]
        )
    return markdown(head, lines)


def main() -> None:
    parser = make_parser(__doc__, METHODS, rank=8, lrs=[1e-4, 3e-4, 1e-3, 3e-3])
    on_a_device(parser)
    parser.add_argument("--model", default="stable-diffusion-v1-5/stable-diffusion-v1-5")
    parser.add_argument("--images", type=Path, required=True, help="folder of photos of the subject")
    parser.add_argument("--prompt", required=True, help="what names the subject")
    parser.add_argument("--class-images", type=Path, help="photos of others of its kind, to be remembered")
    parser.add_argument("--class-prompt", help="what names its kind")
    parser.add_argument("--prior-weight", type=float, default=1.0, help="of the loss on others of its kind")
    parser.add_argument("--held-out", type=int, default=1, help="photos that are not trained on")
    parser.add_argument("--draws", type=int, default=64, help="of noise and time for the held-out loss")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--recompute", action="store_true", help="activations again in the backward pass")
    parser.add_argument("--save", type=Path, help="folder for the adapters and samples of every run")
    parser.add_argument("--samples", type=int, default=0, help="images of the prompt to save with each")
    parser.add_argument("--sample-steps", type=int, default=50)
    options = parser.parse_args()
    if (options.class_images is None) is not (options.class_prompt is None):
        parser.error("--class-images and --class-prompt go together")
    names = ("model", "prompt", "class_prompt", "prior_weight", "held_out", "draws")
    names += ("rank", "steps", "batch", "resolution", "amp")
    same = {name: getattr(options, name) for name in names} | {"images": options.images.name}
    if options.table:
        print(table(read(options.out, same)))
        return
    files = photo_files(options.images)
    if not 0 < options.held_out < len(files):
        parser.error(f"--held-out must leave some of the {len(files)} photos, and take one")
    of_others = [] if options.class_images is None else photo_files(options.class_images)
    frozen = load(options)
    subject = photos(files, options.prompt, frozen, options)
    others = photos(of_others, options.class_prompt, frozen, options) if of_others else None
    one = partial(run, frozen=frozen, subject=subject, others=others, options=options)
    print(table(carry_out(options.out, same, grid(options), one, ("before", "held_out", "seconds"))))


if __name__ == "__main__":
    main()
