import pytest
import torch
from torch import nn

from tenfold.experiments.data import load
from tenfold.experiments.methods import make_network
from tenfold.experiments.models import build
from tenfold.experiments.pruning import _sample, _scores, prune_on_schedule, pruned_layers


def network(tiny, method, **given):
    config = tiny(method=method, **{"compression": 0.75, **given})
    torch.manual_seed(config.seed)
    return config, make_network(config, load("mnist", config.data_dir))


def masks(model):
    return {name: layer.weight_mask for name, layer in pruned_layers(model).items()}


@pytest.mark.parametrize("method", ["prune-snip", "prune-grasp"])
def test_the_mask_keeps_what_matters_for_the_loss(tiny, method):
    """Of all weights, the kept ones and the removed ones are told apart by the score of the paper."""
    config, model = network(tiny, method)
    _, full = network(tiny, method, compression=0.0)
    data = load("mnist", config.data_dir)
    found = masks(model)
    assert set(found) == {"conv2", "fc1", "fc2"}
    assert sum(m.sum() for m in found.values()) == round(0.25 * 60_480)
    images, labels = _sample(data, config.seed)
    weights = [layer.weight_orig for layer in pruned_layers(full).values()]
    if method == "prune-snip":
        loss = nn.functional.cross_entropy(full(images), labels)
        scores = [(g * w).abs() for g, w in zip(torch.autograd.grad(loss, weights), weights, strict=True)]
    else:  # the Hessian times the gradient by central differences

        def gradients():
            loss = nn.functional.cross_entropy(full.double()(images.double()) / 200, labels)
            return torch.autograd.grad(loss, weights)

        full.double()
        g, h = gradients(), 1e-3
        with torch.no_grad():
            for w, d in zip(weights, g, strict=True):
                w += h * d
        up = gradients()
        with torch.no_grad():
            for w, d in zip(weights, g, strict=True):
                w -= 2 * h * d
        down = gradients()
        with torch.no_grad():
            for w, d in zip(weights, g, strict=True):
                w += h * d
        scores = [w * (u - d) / (2 * h) for w, u, d in zip(weights, up, down, strict=True)]
    flat = torch.cat([s.flatten() for s in scores]).float()
    kept = torch.cat([m.flatten() for m in found.values()]).bool()
    best = torch.zeros_like(kept)
    best[flat.topk(int(kept.sum())).indices] = True
    assert (best == kept).float().mean() > 0.98


def test_masks_follow_the_seed(tiny):
    (_, one), (_, two), (_, other) = (network(tiny, "prune-snip", seed=s) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(masks(one).values(), masks(two).values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(masks(one).values(), masks(other).values(), strict=True))


def test_magnitude_pruning_follows_its_schedule(tiny):
    config, model = network(tiny, "prune-magnitude", compression=0.9)
    total = sum(mask.numel() for mask in masks(model).values())
    kept = []
    for step in range(1, 101):
        before = {name: mask.clone() for name, mask in masks(model).items()}
        changed = prune_on_schedule(model, config, step, 100)
        assert changed == (step % 5 == 0 and step <= 50)
        assert all((mask <= before[name]).all() for name, mask in masks(model).items()), "nothing comes back"
        kept.append(int(sum(mask.sum() for mask in masks(model).values())) / total)
    assert kept[4] == pytest.approx(0.1**0.1, abs=1e-4)
    assert kept[49] == kept[-1] == pytest.approx(0.1, abs=1e-4)
    survivors = torch.cat(
        [layer.weight_orig[layer.weight_mask == 1].abs() for layer in pruned_layers(model).values()]
    )
    removed = torch.cat(
        [layer.weight_orig[layer.weight_mask == 0].abs() for layer in pruned_layers(model).values()]
    )
    assert survivors.min() >= removed.max()


def test_scoring_leaves_the_network_s_statistics_alone(tiny, cifar10_folder):
    config = tiny(
        method="prune-snip", compression=0.5, model="vgg-small", data="cifar10", data_dir=str(cifar10_folder)
    )
    model = make_network(config, load("cifar10", str(cifar10_folder)))
    assert all(m.running_mean.abs().max() == 0 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("method", ["prune-snip", "prune-grasp"])
def test_scores_of_many_images_are_taken_in_parts(tiny, method, monkeypatch):
    """Without batch normalisation the parts, here of unequal size, add up to what all images at once give."""
    config = tiny(method=method, compression=0.5)
    data = load("mnist", config.data_dir)
    torch.manual_seed(0)
    model = build("lenet5", in_channels=1, num_classes=10, image_size=28)
    layers = {name: model.get_submodule(name) for name in ("conv2", "fc1")}
    whole = _scores(model, config, layers, data)
    monkeypatch.setattr("tenfold.experiments.pruning._MOST_AT_A_TIME", 17)
    parts = _scores(model, config, layers, data)
    assert len(data.train) % 17
    for layer in layers.values():
        scale = whole[layer].abs().max().item()
        torch.testing.assert_close(parts[layer], whole[layer], atol=1e-4 * scale, rtol=0)
