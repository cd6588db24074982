"""LeNet-5 (LeCun et al. 1998), and the smaller one for 8 x 8 digits."""

from __future__ import annotations

from torch import nn

from graphopt.models.weights import scaled


def lenet5() -> nn.Module:
    """[N, 1, 32, 32] -> [N, 10]: tanh and average pooling as in the paper, full connections in the second stage."""
    return nn.Sequential(
        scaled(nn.Conv2d(1, 6, 5), 1.6),
        nn.Tanh(),
        nn.AvgPool2d(2),
        scaled(nn.Conv2d(6, 16, 5), 2.5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        scaled(nn.Linear(400, 120), 2.5),
        nn.Tanh(),
        scaled(nn.Linear(120, 84), 1.6),
        nn.Tanh(),
        scaled(nn.Linear(84, 10), 1.6),
    )


def lenet_digits() -> nn.Module:
    """[N, 1, 8, 8] -> [N, 10]: LeNet's shape with 3 x 3 filters, ReLU and max pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
