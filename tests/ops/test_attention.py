import numpy as np
import pytest


@pytest.mark.parametrize("masked", [False, True])
def test_attention(run_node, masked: bool) -> None:
    generator = np.random.default_rng(0)
    q, k, v, mask = (
        generator.standard_normal(s).astype(np.float32)
        for s in ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8), (2, 1, 1, 7))
    )
    scores = q @ k.transpose(0, 1, 3, 2) * np.float32(0.3) + (mask if masked else 0)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    inputs = [q, k, v, mask] if masked else [q, k, v]
    actual = run_node("AttentionMasked" if masked else "Attention", inputs, {"scale": 0.3})
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
