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


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """In double precision."""
    wide = [array.astype(np.float64) for array in (q, k, v)]
    scores = wide[0] @ wide[1].transpose(0, 1, 3, 2) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ wide[2]


def test_scores_of_halves_are_not_rounded_before_the_exponential(run_node) -> None:
    """Scores of some hundred, of which a half keeps an eighth: their exponentials would be off by as much."""
    generator = np.random.default_rng(1)
    q, k, v = (generator.standard_normal(s).astype(np.float16) for s in ((1, 2, 5, 64), (1, 2, 7, 64), (1, 2, 7, 8)))
    actual = run_node("Attention", [q, k, v], {"scale": 12.0})
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual, attended(q, k, v, 12.0), rtol=4e-3, atol=4e-3)


def test_doubles_stay_doubles(run_node) -> None:
    generator = np.random.default_rng(2)
    q, k, v = (generator.standard_normal(s) for s in ((1, 2, 5, 8), (1, 2, 7, 8), (1, 2, 7, 8)))
    actual = run_node("Attention", [q, k, v], {"scale": 0.5, "compute": 11})
    np.testing.assert_allclose(actual, attended(q, k, v, 0.5), rtol=1e-12, atol=1e-12)
