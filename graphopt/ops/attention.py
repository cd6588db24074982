"""Scaled dot-product attention: y = softmax(q k^T * scale [+ mask]) v (Vaswani et al., 2017, arXiv:1706.03762)."""

from __future__ import annotations

_BODY = """
{name} <scale>({inputs}) => (y)
{{
    scale_float = Constant <value_float: float = @scale>()
    scale_like = CastLike(scale_float, q)
    k_transposed = Transpose <perm = [0, 1, 3, 2]>(k)
    products = MatMul(q, k_transposed)
    scores = Mul(products, scale_like)
    {mask}
    weights = Softmax <axis = -1>({masked})
    y = MatMul(weights, v)
}}
"""

ATTENTION = _BODY.format(name="Attention", inputs="q, k, v", mask="", masked="scores")

ATTENTION_MASKED = _BODY.format(
    name="AttentionMasked", inputs="q, k, v, mask", mask="masked_scores = Add(scores, mask)", masked="masked_scores"
)
"""The mask is added to the scores [B, H, S, S'] and broadcasts against them."""
