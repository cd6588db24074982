"""Scaled dot-product attention: y = softmax(q k^T * scale [+ mask]) v (Vaswani et al., 2017, arXiv:1706.03762).

Scores and weights have the dtype `compute`, float32 unless a node says otherwise (float64 where its operands are): fp16
or bf16 scores, rounded before the exponential, would cause errors of several percent.
"""

from __future__ import annotations

_BODY = """
{name} <scale, compute: int = 1>({inputs}) => (y)
{{
    q_wide = Cast <to: int = @compute>(q)
    k_wide = Cast <to: int = @compute>(k)
    scale_float = Constant <value_float: float = @scale>()
    scale_wide = Cast <to: int = @compute>(scale_float)
    k_transposed = Transpose <perm = [0, 1, 3, 2]>(k_wide)
    products = MatMul(q_wide, k_transposed)
    scores = Mul(products, scale_wide)
    {mask}
    weights_wide = Softmax <axis = -1>({masked})
    weights = CastLike(weights_wide, v)
    y = MatMul(weights, v)
}}
"""

ATTENTION = _BODY.format(name="Attention", inputs="q, k, v", mask="", masked="scores")

ATTENTION_MASKED = _BODY.format(
    name="AttentionMasked",
    inputs="q, k, v, mask",
    mask="mask_wide = Cast <to: int = @compute>(mask)\n    masked_scores = Add(scores, mask_wide)",
    masked="masked_scores",
)
"""The mask is added to the scores [B, H, S, S'] and broadcasts against them."""
