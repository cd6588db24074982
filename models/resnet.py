"""ResNet-18 and ResNet-50 (He et al. 2016, arXiv:1512.03385), the stride on the 3 x 3 convolution as in torchvision."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from graphopt.models.weights import scaled

BRANCH_GAIN = 0.4
"""Scale of a residual branch beside its skip: sixteen of them grow the variance by (1 + 0.16)^16, about tenfold."""


class Basic(nn.Module):
    """Two 3 x 3 convolutions and a skip."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        """Lay out a block from `channels` to `width` channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = scaled(nn.BatchNorm2d(width), BRANCH_GAIN)
        self.downsample = projection(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, width, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1 x 1 down, 3 x 3, 1 x 1 up, and a skip."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        """Lay out a block from `channels` to 4 `width` channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = scaled(nn.BatchNorm2d(4 * width), BRANCH_GAIN)
        self.downsample = projection(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, 4 width, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + self.downsample(x))


def projection(channels: int, width: int, stride: int) -> nn.Module:
    """The skip: nothing where the shapes agree, else a strided 1 x 1 convolution."""
    if stride == 1 and channels == width:
        return nn.Identity()
    return nn.Sequential(
        scaled(nn.Conv2d(channels, width, 1, stride=stride, bias=False), 1.0),
        nn.BatchNorm2d(width),
    )


def residual_network(block: type[Basic] | type[Bottleneck], counts: tuple[int, ...]) -> nn.Module:
    """Stem, four stages of `counts` blocks, global pooling and the classifier: [N, 3, 224, 224] -> [N, 1000]."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    channels = 64
    for stage, count in enumerate(counts):
        width = 64 * 2**stage
        for index in range(count):
            layers.append(block(channels, width, stride=2 if stage > 0 and index == 0 else 1))
            channels = width * block.expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def resnet18() -> nn.Module:
    """[N, 3, 224, 224] -> [N, 1000]."""
    return residual_network(Basic, (2, 2, 2, 2))


def resnet50() -> nn.Module:
    """[N, 3, 224, 224] -> [N, 1000]."""
    return residual_network(Bottleneck, (3, 4, 6, 3))
