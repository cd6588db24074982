"""DenseNet-121 (Huang et al. 2017, arXiv:1608.06993)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROWTH = 32
BOTTLENECK = 4
COUNTS = (6, 12, 24, 16)


class Dense(nn.Module):
    """BN, ReLU, 1 x 1, BN, ReLU, 3 x 3; the result is appended to the input."""

    def __init__(self, channels: int) -> None:
        """Lay out a dense layer for `channels` input channels."""
        super().__init__()
        width = BOTTLENECK * GROWTH
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, GROWTH, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + 32, H, W]."""
        return torch.cat([x, self.body(x)], 1)


def transition(channels: int) -> list[nn.Module]:
    """Halve the channels and the image."""
    convolution = nn.Conv2d(channels, channels // 2, 1, bias=False)
    return [nn.BatchNorm2d(channels), nn.ReLU(), convolution, nn.AvgPool2d(2)]


def densenet121() -> nn.Module:
    """[N, 3, 224, 224] -> [N, 1000]."""
    channels = 2 * GROWTH
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    for stage, count in enumerate(COUNTS):
        for _ in range(count):
            layers.append(Dense(channels))
            channels += GROWTH
        if stage < len(COUNTS) - 1:
            layers += transition(channels)
            channels //= 2
    head = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return nn.Sequential(*layers, *head)
