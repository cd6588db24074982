"""A perceptron of seven square layers: nothing but matrix products, for GEMM and for pipeline experiments."""

from __future__ import annotations

from torch import nn

WIDTH = 2048
DEPTH = 7


def mlp() -> nn.Module:
    """[N, 2048] -> [N, 2048]: seven linear layers, ReLU between them."""
    layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH)]
    for _ in range(DEPTH - 1):
        layers += [nn.ReLU(), nn.Linear(WIDTH, WIDTH)]
    return nn.Sequential(*layers)
