"""GoogLeNet (Szegedy et al. 2015, arXiv:1409.4842) with BatchNorm and no auxiliary classifiers, as torchvision runs it.

Like torchvision's, the "5 x 5" branch has 3 x 3 filters; the parameter count published for the model depends on it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def convolution(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Module:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width, eps=0.001),
        nn.ReLU(),
    )


class Inception(nn.Module):
    """Four branches side by side: 1 x 1, 1 x 1 then 3 x 3, twice, and pooling then 1 x 1."""

    def __init__(self, channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> None:
        """Lay out the branches; `three` and `five` are (reduced channels, output channels)."""
        super().__init__()
        self.branch1 = convolution(channels, one, 1)
        self.branch2 = nn.Sequential(convolution(channels, three[0], 1), convolution(*three, 3))
        self.branch3 = nn.Sequential(convolution(channels, five[0], 1), convolution(*five, 3))
        pooling = nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True)
        self.branch4 = nn.Sequential(pooling, convolution(channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the branches concatenated along the channels."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


def googlenet() -> nn.Module:
    """[N, 3, 224, 224] -> [N, 1000]."""
    return nn.Sequential(
        convolution(3, 64, 7, stride=2),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        convolution(64, 64, 1),
        convolution(64, 192, 3),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Inception(192, 64, (96, 128), (16, 32), 32),
        Inception(256, 128, (128, 192), (32, 96), 64),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Inception(480, 192, (96, 208), (16, 48), 64),
        Inception(512, 160, (112, 224), (24, 64), 64),
        Inception(512, 128, (128, 256), (24, 64), 64),
        Inception(512, 112, (144, 288), (32, 64), 64),
        Inception(528, 256, (160, 320), (32, 128), 128),
        nn.MaxPool2d(2, stride=2, ceil_mode=True),
        Inception(832, 256, (160, 320), (32, 128), 128),
        Inception(832, 384, (192, 384), (48, 128), 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(1024, 1000),
    )
