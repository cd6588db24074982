"""VGG-16, configuration D without BatchNorm (Simonyan and Zisserman 2015, arXiv:1409.1556)."""

from __future__ import annotations

from torch import nn

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def vgg16() -> nn.Module:
    """[N, 3, 224, 224] -> [N, 1000]."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in STAGES:
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 1000),
    )
