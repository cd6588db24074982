"""LSTMs (Hochreiter and Schmidhuber 1997): a deep one over feature vectors, and a bidirectional tagger over tokens."""

from __future__ import annotations

from torch import Tensor, nn

from graphopt.models.weights import scaled


class Labeller(nn.Module):
    """An LSTM and a linear layer that scores every step."""

    def __init__(self, features: int, hidden: int, layers: int, labels: int, *, bidirectional: bool) -> None:
        """Lay out `layers` LSTM layers of `hidden` units and the linear layer over `labels`."""
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, layers, batch_first=True, bidirectional=bidirectional)
        # Gates halve the scale of what passes through; the gain gives it back.
        scaled(self.lstm, 2.0)
        self.head = scaled(nn.Linear(hidden * (2 if bidirectional else 1), labels), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, features] -> scores [N, S, labels]."""
        steps, _ = self.lstm(x)
        scores: Tensor = self.head(steps)
        return scores


def lstm() -> nn.Module:
    """[N, 100, 512] -> [N, 100, 128]: five layers of 512."""
    return Labeller(512, 512, 5, 128, bidirectional=False)


def bilstm() -> nn.Module:
    """tokens [N, 100] -> [N, 100, 17]: an embedding and two layers of 256 in each direction, the usual tagger."""
    return nn.Sequential(scaled(nn.Embedding(10_000, 128), 1.0), Labeller(128, 256, 2, 17, bidirectional=True))
