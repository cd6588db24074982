"""Small networks in PyTorch whose steps are tested, and data for them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers.draws import normal


class LeNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(96, 20), nn.Sigmoid(), nn.Linear(20, 10),
        )  # fmt: skip


class Residual(nn.Module):
    """Training BatchNormalization, a strided shortcut, a grouped convolution, and a global pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped, self.second = nn.Conv2d(8, 16, 3, 2, 1, groups=4, bias=False), nn.BatchNorm2d(16)
        self.short, self.third = nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.stem(x)))
        x = F.relu(self.second(self.grouped(x)) + self.third(self.short(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Block(nn.Module):
    """Embedding, causal attention of two heads, LayerNormalization, GELU; the table is also the last matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.before, self.between = nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        batch, steps, _ = x.shape
        q, k, v = self.qkv(self.before(x)).reshape(batch, steps, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) / 2
        hidden = torch.ones(steps, steps, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, steps, 8))
        x = x + self.down(F.gelu(self.up(self.between(x))))
        return x @ self.table.weight.T


class Recurrent(nn.Module):
    """Two layers of LSTM in both directions, of which the last step is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


NETWORKS: dict[str, tuple[type[nn.Module], Any, int]] = {
    "lenet": (LeNet, normal(0, 3, 1, 28, 28, dtype=np.float32), 10),
    "residual": (Residual, normal(0, 4, 3, 9, 9, dtype=np.float32), 5),
    "transformer": (Block, np.random.default_rng(0).integers(0, 11, (2, 6)), 11),
    "lstm": (Recurrent, normal(0, 3, 7, 6, dtype=np.float32), 4),
}


def exported(module: nn.Module, x: Tensor) -> ir.Model:
    """The module as it is: the exporter's clean-up folds transpositions of weights and merges equal ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module.eval(), (x,), dynamo=True, opset_version=20, optimize=False, verbose=False)
    assert program is not None
    return program.model
