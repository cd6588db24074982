"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381)."""

from __future__ import annotations

from torch import Tensor, nn

from graphopt.models.weights import scaled

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, channels, blocks, stride of the first block), table 2 of the paper."""


def convolution(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution, BatchNorm, ReLU6."""
    padding = (kernel - 1) // 2
    return [
        nn.Conv2d(channels, width, kernel, stride=stride, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
    ]


class InvertedResidual(nn.Module):
    """1 x 1 up, depthwise 3 x 3, linear 1 x 1 down, and a skip where the shapes agree."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int) -> None:
        """Lay out a block from `channels` to `width` channels."""
        super().__init__()
        hidden = channels * expansion
        self.skip = stride == 1 and channels == width
        # Nothing rectifies a block's input, so its first convolution needs no gain; the branch beside a skip is damped.
        expand = convolution(channels, hidden, 1) if expansion != 1 else []
        if expand:
            scaled(expand[0], 1.0)
        self.body = nn.Sequential(
            *expand,
            *convolution(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, width, 1, bias=False),
            scaled(nn.BatchNorm2d(width), 0.5 if self.skip else 1.0),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, width, H / stride, W / stride]."""
        y: Tensor = self.body(x)
        return x + y if self.skip else y


def mobilenetv2() -> nn.Module:
    """[N, 3, 224, 224] -> [N, 1000]."""
    layers = convolution(3, 32, 3, stride=2)
    channels = 32
    for expansion, width, count, stride in STAGES:
        for index in range(count):
            layers.append(InvertedResidual(channels, width, stride if index == 0 else 1, expansion))
            channels = width
    layers += convolution(channels, 1280, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, 1000))
