"""GPT-2 small (Radford et al. 2019) with its tied head, in the shape of Hugging Face's `GPT2LMHeadModel`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt.models.weights import scaled, uniform

VOCABULARY = 50_257
WIDTH = 768
HEADS = 12
DEPTH = 12
POSITIONS = 1024


class Conv1D(nn.Module):
    """A linear layer with its weight stored [in, out], as OpenAI's checkpoints have it; a Gemm on [N * S, in]."""

    def __init__(self, features: int, width: int, gain: float) -> None:
        """Lay out a weight [features, width] and a bias [width], drawn with `gain`."""
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.empty(features, width))
        self.bias = nn.Parameter(torch.empty(width))

    def draw(self, generator: torch.Generator) -> None:
        """Draw the weight with standard deviation gain / sqrt(fan-in), and a small bias."""
        uniform(self.weight, generator, self.gain / math.sqrt(self.weight.shape[0]))
        uniform(self.bias, generator, 0.05)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return y.view(*x.shape[:-1], y.shape[-1])


class Block(nn.Module):
    """LayerNorm, causal attention, LayerNorm, two linear layers; a residual connection around each half.

    Attention is spelled out ("eager"), which is what Hugging Face's exports to ONNX hold.
    """

    def __init__(self) -> None:
        """Lay out norms, attention projections and the feed-forward layers."""
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.c_attn = Conv1D(WIDTH, 3 * WIDTH, 1.2)
        self.attn_proj = Conv1D(WIDTH, WIDTH, 0.7)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.c_fc = Conv1D(WIDTH, 4 * WIDTH, 1.4)
        self.mlp_proj = Conv1D(4 * WIDTH, WIDTH, 0.7)

    def attend(self, x: Tensor) -> Tensor:
        """Causal self-attention: [N, S, 768] -> [N, S, 768]."""
        batch, length, _ = x.shape
        parts = self.c_attn(x).split(WIDTH, dim=2)
        q, k, v = (part.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2) for part in parts)
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(WIDTH // HEADS)
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        scores = torch.where(causal, scores, torch.finfo(scores.dtype).min)
        y = torch.matmul(torch.softmax(scores, dim=-1), v)
        merged: Tensor = self.attn_proj(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return merged

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, 768] -> [N, S, 768]."""
        x = x + self.attend(self.ln_1(x))
        hidden = functional.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")
        projected: Tensor = self.mlp_proj(hidden)
        return x + projected


class Gpt2(nn.Module):
    """Token and position embeddings, twelve blocks, LayerNorm, and scores against the token embedding."""

    def __init__(self) -> None:
        """Lay out embeddings, blocks and the last norm."""
        super().__init__()
        self.wte = scaled(nn.Embedding(VOCABULARY, WIDTH), 0.05)
        self.wpe = scaled(nn.Embedding(POSITIONS, WIDTH), 0.05)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.ln_f = nn.LayerNorm(WIDTH)

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids [N, S] -> logits [N, S, 50257]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        x = self.wte(input_ids) + self.wpe(positions)
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.ln_f(x), self.wte.weight)


def gpt2_small() -> nn.Module:
    """input_ids [N, 128] int64 -> logits [N, 128, 50257]."""
    return Gpt2()
