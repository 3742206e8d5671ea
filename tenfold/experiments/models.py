"""The networks of the experiments, by name, and which of their layers stay dense."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from tenfold.experiments.resnet import resnet18

_VGG_LIGHT = (32, "pool", 64, "pool", 128, 128, "pool", 256, 256, "pool")
_VGG_SMALL = (64, 64, "pool", 128, 128, "pool", 256, 256, "pool")
_VGG16 = (
    *(64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool"),
    *(512, 512, 512, "pool", 512, 512, 512, "pool"),
)
_CIFAR_SIZE = 32
_SIZES = (28, _CIFAR_SIZE, 64)


def build(name: str, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """A network with fresh weights drawn from torch's global generator.

    Parameters
    ----------
    name : {"lenet5", "vgg-light", "vgg-small", "vgg16", "alexnet", "resnet18"}
        ``"lenet5"`` has 61,706 parameters for one channel and ten classes. ``"vgg-light"`` has as many
        weights as ``"vgg-small"`` and a quarter of its work. All but ``"lenet5"`` are made for 32×32 images;
        smaller images are framed with zeros up to that size. For 64×64 images the first convolution of the
        VGGs and of ResNet18 has stride 2, and AlexNet averages its features to 2×2, so that all weights but
        the classifier's have the shapes that they have for 32×32.
    in_channels, num_classes : int
        Channels of an image, and classes.
    image_size : int
        Height and width of an image, in pixels: 28, 32 or, except for ``"lenet5"``, 64.

    Returns
    -------
    nn.Module
        Maps (n, in_channels, image_size, image_size) to (n, num_classes) logits.

    Raises
    ------
    ValueError
        No such network, or an image size that it does not take.
    """
    if name not in _BUILDERS:
        raise ValueError(f"model must be one of {', '.join(_BUILDERS)}, not {name!r}")
    sizes = _SIZES[:2] if name == "lenet5" else _SIZES
    if image_size not in sizes:
        listed = " or ".join(f"{size}×{size}" for size in sizes)
        raise ValueError(
            f"image_size: the model {name!r} takes {listed} pixels, not {image_size}×{image_size}"
        )
    return _BUILDERS[name](in_channels, num_classes, image_size)


def dense_by_default(model: nn.Module) -> list[str]:
    """Names of the layers that stay dense by default: the first convolution and the last linear layer.

    They are small, and what they lose to a low rank the other layers cannot restore.
    """
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return convolutions[:1] + linears[-1:]


def _lenet5(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """LeNet5 as in LeCun et al. 1998, with the full connection table, ReLU and maximum pooling."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 6, 5, padding=2 if image_size == 28 else 0),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(400, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, num_classes),
        )
    )


def _vgg(plan: tuple[int | str, ...], in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """3×3 convolutions with batch normalisation as in Simonyan and Zisserman 2015, and one linear layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(frame=_frame(image_size))
    channels, count = in_channels, 0
    for item in plan:
        if isinstance(item, str):
            layers[f"pool{count}"] = nn.MaxPool2d(2)
            continue
        count += 1
        stride = _first_stride(image_size) if count == 1 else 1
        layers[f"conv{count}"] = nn.Conv2d(channels, item, 3, stride=stride, padding=1, bias=False)
        layers[f"norm{count}"] = nn.BatchNorm2d(item)
        layers[f"relu{count}"] = nn.ReLU(inplace=True)
        channels = item
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, num_classes)
    return nn.Sequential(layers)


def _alexnet(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """AlexNet (Krizhevsky et al. 2012) with the windows and strides of 32×32 images."""
    return nn.Sequential(
        OrderedDict(
            frame=_frame(image_size),
            conv1=nn.Conv2d(in_channels, 64, 3, stride=2, padding=1),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(64, 192, 3, padding=1),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(192, 384, 3, padding=1),
            relu3=nn.ReLU(inplace=True),
            conv4=nn.Conv2d(384, 256, 3, padding=1),
            relu4=nn.ReLU(inplace=True),
            conv5=nn.Conv2d(256, 256, 3, padding=1),
            relu5=nn.ReLU(inplace=True),
            pool5=nn.MaxPool2d(2),
            average=nn.AdaptiveAvgPool2d(2),  # of 64×64 images; leaves the 2×2 of 32×32 ones as they are
            flatten=nn.Flatten(),
            drop1=nn.Dropout(),
            fc1=nn.Linear(1024, 4096),
            relu6=nn.ReLU(inplace=True),
            drop2=nn.Dropout(),
            fc2=nn.Linear(4096, 4096),
            relu7=nn.ReLU(inplace=True),
            fc3=nn.Linear(4096, num_classes),
        )
    )


def _resnet18(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    network = resnet18(in_channels, num_classes, _first_stride(image_size))
    return nn.Sequential(OrderedDict([("frame", _frame(image_size)), *network.named_children()]))


def _frame(image_size: int) -> nn.Module:
    return nn.ZeroPad2d(max(0, _CIFAR_SIZE - image_size) // 2)


def _first_stride(image_size: int) -> int:
    return max(1, image_size // _CIFAR_SIZE)


_BUILDERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "lenet5": _lenet5,
    "vgg-light": lambda *sizes: _vgg(_VGG_LIGHT, *sizes),
    "vgg-small": lambda *sizes: _vgg(_VGG_SMALL, *sizes),
    "vgg16": lambda *sizes: _vgg(_VGG16, *sizes),
    "alexnet": _alexnet,
    "resnet18": _resnet18,
}
