"""ViT-B/16 (Dosovitskiy et al. 2021, arXiv:2010.11929), in the shape of torchvision's `vit_b_16`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt.models.weights import scaled, uniform

IMAGE = 224
PATCH = 16
WIDTH = 768
HEADS = 12
DEPTH = 12
EPSILON = 1e-6


class Block(nn.Module):
    """LayerNorm, attention with one packed projection, LayerNorm, two linear layers; a skip around each half."""

    def __init__(self) -> None:
        """Lay out norms, attention projections and the feed-forward layers."""
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.in_proj = scaled(nn.Linear(WIDTH, 3 * WIDTH), 1.2)
        self.out_proj = scaled(nn.Linear(WIDTH, WIDTH), 0.7)
        self.ln_2 = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), scaled(nn.Linear(4 * WIDTH, WIDTH), 0.7))

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention: [N, S, 768] -> [N, S, 768]."""
        batch, length, _ = x.shape
        q, k, v = self.in_proj(x).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        merged: Tensor = self.out_proj(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return merged

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, 768] -> [N, S, 768]."""
        x = x + self.attend(self.ln_1(x))
        y: Tensor = self.mlp(self.ln_2(x))
        return x + y


class VisionTransformer(nn.Module):
    """Patches by a strided convolution, a class token, learned positions, twelve blocks, a linear head."""

    def __init__(self) -> None:
        """Lay out patch projection, class token, positions, blocks and head."""
        super().__init__()
        self.conv_proj = scaled(nn.Conv2d(3, WIDTH, PATCH, stride=PATCH), 1.0)
        self.class_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.empty(1, (IMAGE // PATCH) ** 2 + 1, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.head = scaled(nn.Linear(WIDTH, 1000), 1.0)

    def draw(self, generator: torch.Generator) -> None:
        """Draw the class token and the positions; the other modules are drawn by their kind."""
        uniform(self.class_token, generator, 1.0)
        uniform(self.positions, generator, 0.3)

    def forward(self, image: Tensor) -> Tensor:
        """[N, 3, 224, 224] -> [N, 1000]."""
        x = self.conv_proj(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        scores: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return scores


def vit_b16() -> nn.Module:
    """[N, 3, 224, 224] -> [N, 1000]."""
    return VisionTransformer()
