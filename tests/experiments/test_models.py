import pytest
import torch
from torch import nn

from tenfold.experiments.config_checks import MODELS
from tenfold.experiments.models import build, dense_by_default


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "channels", "size", "count"),
    [
        ("lenet5", 1, 28, 61_706),
        ("lenet5", 1, 32, 61_706),
        ("vgg-light", 3, 32, 1_129_514),
        ("vgg-small", 3, 32, 1_148_874),
        ("vgg16", 3, 32, 14_724_042),
        ("resnet18", 3, 32, 11_173_962),
        ("alexnet", 3, 32, 23_272_266),
    ],
)
def test_sizes(name, channels, size, count):
    with torch.device("meta"):
        assert parameters(build(name, in_channels=channels, num_classes=10, image_size=size)) == count


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_images_to_logits(name, channels, size):
    with torch.device("meta"):
        model = build(name, in_channels=channels, num_classes=7, image_size=size)
        assert model(torch.randn(3, channels, size, size)).shape == (3, 7)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "lenet5"])
def test_networks_for_64_pixels_differ_in_the_classifier_alone(name):
    """Same weights, and features of the same size before the classifier, as for 32×32 images."""
    with torch.device("meta"):
        small = build(name, in_channels=3, num_classes=200, image_size=32)
        large = build(name, in_channels=3, num_classes=200, image_size=64)
        assert large(torch.randn(2, 3, 64, 64)).shape == (2, 200)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (small, large)]
    assert shapes[0] == shapes[1]
    convolution = large.get_submodule("conv1")
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.stride == (2, 2)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("lenet5", ["conv1", "fc3"]),
        ("vgg-light", ["conv1", "fc"]),
        ("vgg-small", ["conv1", "fc"]),
        ("vgg16", ["conv1", "fc"]),
        ("alexnet", ["conv1", "fc3"]),
        ("resnet18", ["conv1", "fc"]),
    ],
)
def test_first_convolution_and_last_linear_layer_stay_dense(name, kept):
    with torch.device("meta"):
        assert dense_by_default(build(name, in_channels=3, num_classes=10, image_size=32)) == kept


def test_networks_without_such_layers():
    assert dense_by_default(nn.ReLU()) == []
    assert dense_by_default(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == ["1"]


def test_weights_follow_torch_s_seed():
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build("lenet5", in_channels=1, num_classes=10, image_size=28).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["fc1.weight"], states[2]["fc1.weight"])


def test_unknown_names_and_sizes():
    with pytest.raises(ValueError, match="not 'vgg19'"):
        build("vgg19", in_channels=3, num_classes=10, image_size=32)
    with pytest.raises(
        ValueError, match="image_size: the model 'lenet5' takes 28×28 or 32×32 pixels, not 224×224"
    ):
        build("lenet5", in_channels=3, num_classes=10, image_size=224)
    with pytest.raises(ValueError, match="'lenet5' takes 28×28 or 32×32 pixels, not 64×64"):
        build("lenet5", in_channels=3, num_classes=200, image_size=64)
    with pytest.raises(ValueError, match="'vgg16' takes 28×28 or 32×32 or 64×64 pixels, not 48×48"):
        build("vgg16", in_channels=3, num_classes=200, image_size=48)
