"""BERT-base with its pooler (Devlin et al. 2019, arXiv:1810.04805), in the shape of Hugging Face's `BertModel`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphopt.models.weights import scaled

VOCABULARY = 30_522
WIDTH = 768
HEADS = 12
DEPTH = 12
POSITIONS = 512
EPSILON = 1e-12


class Attention(nn.Module):
    """Self-attention with three separate projections and an additive mask."""

    def __init__(self) -> None:
        """Lay out the query, key, value and output projections."""
        super().__init__()
        self.query = scaled(nn.Linear(WIDTH, WIDTH), 1.5)
        self.key = scaled(nn.Linear(WIDTH, WIDTH), 1.5)
        self.value = scaled(nn.Linear(WIDTH, WIDTH), 1.0)
        self.output = scaled(nn.Linear(WIDTH, WIDTH), 1.0)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [N, S, 768], additive mask [N, 1, 1, S] -> [N, S, 768]."""
        batch, length, _ = x.shape
        q, k, v = (
            projection(x).view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        merged: Tensor = self.output(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return merged


class Layer(nn.Module):
    """Attention, then two linear layers; a residual connection and LayerNorm after each."""

    def __init__(self) -> None:
        """Lay out attention, the feed-forward layers and both norms."""
        super().__init__()
        self.attention = Attention()
        self.attention_norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.intermediate = nn.Linear(WIDTH, 4 * WIDTH)
        self.output = scaled(nn.Linear(4 * WIDTH, WIDTH), 1.0)
        self.output_norm = nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [N, S, 768], additive mask [N, 1, 1, S] -> [N, S, 768]."""
        x = self.attention_norm(x + self.attention(x, mask))
        normed: Tensor = self.output_norm(x + self.output(functional.gelu(self.intermediate(x))))
        return normed


class Bert(nn.Module):
    """Embeddings, twelve layers, and the pooler on the first token."""

    def __init__(self) -> None:
        """Lay out embeddings, layers and pooler."""
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.pooler = scaled(nn.Linear(WIDTH, WIDTH), 1.0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Three int64 tensors [N, S] -> hidden states [N, S, 768], pooled first token [N, 768]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        x = self.norm(x + self.token_type_embeddings(token_type_ids))
        # A finite penalty: a row whose tokens are all masked still has a softmax.
        kept = attention_mask[:, None, None, :] > 0
        mask = torch.where(kept, 0.0, torch.finfo(x.dtype).min)
        for layer in self.layers:
            x = layer(x, mask)
        return x, torch.tanh(self.pooler(x[:, 0]))


def bert_base() -> nn.Module:
    """input_ids, attention_mask, token_type_ids [N, 128] -> last_hidden_state [N, 128, 768], pooler_output [N, 768]."""
    return Bert()


def bert_layer() -> nn.Module:
    """[N, S, 768] -> [N, S, 768]: one layer without a mask."""
    return Layer()
