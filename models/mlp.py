"""Perceptrons: seven square layers, for GEMM and for pipeline experiments, and a small one for 8 x 8 digits."""

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


def mlp_digits() -> nn.Module:
    """[N, 1, 8, 8] -> [N, 10]: two hidden layers of 256, which blocks of 16 outputs divide."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )
