"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597) as Buda et al. 2019 publish it: padded, BatchNorm, 32 features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphopt.models.weights import scaled

WIDTHS = (32, 64, 128, 256)


def double(channels: int, width: int) -> nn.Module:
    """Twice 3 x 3 convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Encoder and decoder of four levels each; a decoder level concatenates the features of its encoder level."""

    def __init__(self) -> None:
        """Lay out encoders, bottleneck, decoders and the head."""
        super().__init__()
        self.encoders = nn.ModuleList(
            double(before, after) for before, after in zip((3, *WIDTHS), WIDTHS, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = double(WIDTHS[-1], 2 * WIDTHS[-1])
        rising = WIDTHS[::-1]
        self.ups = nn.ModuleList(scaled(nn.ConvTranspose2d(2 * width, width, 2, stride=2), 1.0) for width in rising)
        self.decoders = nn.ModuleList(double(2 * width, width) for width in rising)
        self.head = scaled(nn.Conv2d(WIDTHS[0], 1, 1), 1.0)

    def forward(self, image: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 1, H, W], each element in 0..1; H and W are multiples of 16."""
        x = image
        skips = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(torch.cat([up(x), skips.pop()], 1))
        return torch.sigmoid(self.head(x))


def unet() -> nn.Module:
    """[N, 3, 256, 256] -> [N, 1, 256, 256], each element in 0..1."""
    return UNet()
