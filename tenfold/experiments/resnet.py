"""ResNet18 for 32×32 and 64×64 images."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside the identity (He et al. 2016), or beside a 1×1 one where sizes change.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels before and after.
    stride : int
        Of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                    norm=nn.BatchNorm2d(out_channels),
                )
            )

    def forward(self, x: Tensor) -> Tensor:  # (n, in, h, w) -> (n, out, h / stride, w / stride)
        """Apply the block."""
        inner = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(inner + self.shortcut(x))


def resnet18(in_channels: int, num_classes: int, first_stride: int = 1) -> nn.Module:
    """ResNet18 with a 3×3 first convolution and no pooling before the blocks: 11.2 million parameters.

    Parameters
    ----------
    in_channels, num_classes : int
        Channels of an image, and classes.
    first_stride : int
        Of the first convolution: 1 for 32×32 images, 2 for 64×64.

    Returns
    -------
    nn.Module
        Maps (n, in_channels, h, w) to (n, num_classes).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_channels, 64, 3, stride=first_stride, padding=1, bias=False),
        norm1=nn.BatchNorm2d(64),
        relu1=nn.ReLU(inplace=True),
    )
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in (1, 2):
            stride = 2 if stage > 1 and block == 1 else 1
            layers[f"stage{stage}_block{block}"] = ResidualBlock(channels, width, stride)
            channels = width
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, num_classes)
    return nn.Sequential(layers)
