"""WideResNet-28-2 for CIFAR (Zagoruyko and Komodakis 2016, arXiv:1605.07146): BatchNorm, ReLU, then convolution."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from graphopt.models.weights import scaled

DEPTH = 28
WIDEN = 2


class PreActivation(nn.Module):
    """BN, ReLU, 3 x 3, BN, ReLU, 3 x 3, and a skip; where the shape changes the skip starts after the first ReLU."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        """Lay out a block from `channels` to `width` channels."""
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = scaled(nn.Conv2d(width, width, 3, padding=1, bias=False), 0.6)
        self.shortcut = None if channels == width else nn.Conv2d(channels, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, width, H / stride, W / stride]."""
        y = functional.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(y)
        y = functional.relu(self.bn2(self.conv1(y)))
        total: Tensor = skip + self.conv2(y)
        return total


def wideresnet28_2() -> nn.Module:
    """[N, 3, 32, 32] -> [N, 10]."""
    layers: list[nn.Module] = [scaled(nn.Conv2d(3, 16, 3, padding=1, bias=False), 1.0)]
    channels = 16
    for stage in range(3):
        width = 16 * WIDEN * 2**stage
        for index in range((DEPTH - 4) // 6):
            layers.append(PreActivation(channels, width, stride=2 if stage > 0 and index == 0 else 1))
            channels = width
    head = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*layers, *head)
