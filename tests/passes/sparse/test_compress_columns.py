"""Products of few rows with sparse matrices of few values read compressed columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.compiler import compile_model
from graphopt.errors import GraphoptError
from graphopt.graph import analysis
from graphopt.passes import CompressColumns
from graphopt.pipeline.pass_base import PassResult
from graphopt.verify.oracle import random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal
from tests.helpers.text_models import listing, parse


def model(body: str, rows: int = 1, density: float = 0.1, values: int = 31, nan: bool = False) -> ir.Model:
    """x [rows, 96], w [96, 128] and its transpose v, with that share of weights other than zero, and bias b [128]."""
    text = (
        f"g (float[{rows},96] x, float[96,128] w, float[128,96] v, float[128] b) => (float[{rows},128] y) {{ {body} }}"
    )
    parsed = parse(text, {"w": (96, 128), "v": (128, 96), "b": (128,)})
    generator = np.random.default_rng(0)
    weights = (generator.integers(1, values + 1, (96, 128)) / values).astype(np.float32)
    weights[generator.random((96, 128)) >= density] = 0
    if nan:
        weights[0, 0] = np.nan
    for name, array in (("w", weights), ("v", np.ascontiguousarray(weights.T))):
        if name in parsed.graph.initializers:
            parsed.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    return parsed


def rewritten(given: ir.Model, **options: Any) -> tuple[str, PassResult]:
    feeds = random_inputs(given, 0)
    expected = run_onnxruntime(given, feeds)
    each = CompressColumns(**options)
    result = each(given)
    require_equal(expected, run_onnxruntime(given, feeds), "after the pass")
    assert not each(given).modified
    assert isinstance(result, PassResult)
    return listing(given), result


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul(x, w)", "y = Gemm(x, w)", "y = Gemm(x, w, b)", "y = Gemm <transB = 1> (x, v, b)",
        "t = MatMul(x, w) y = Add(t, b)",
    ],
)  # fmt: skip
def test_products(body: str, rows: int) -> None:
    given = model(body, rows)
    dense = analysis.flops(given)
    after, result = rewritten(given)
    assert "= CompressedColumnsMatMul(x, const[" in after
    assert "{outputs=[128]}" in after
    assert ("Add(" in after) == ("b)" in body)
    assert analysis.flops(given) < dense / 5
    assert result.modified
    (note,) = result.notes
    assert "of the weights are not zero; they take" in note


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"rows": 5}, {}), ({"density": 0.3}, {}), ({}, {"min_weights": 1 << 20}), ({}, {"min_sparsity": 0.95}),
        ({"rows": 2}, {"max_rows": 1}),
    ],
)  # fmt: skip
def test_what_stays_dense(changes: dict[str, Any], options: dict[str, Any]) -> None:
    after, result = rewritten(model("y = MatMul(x, w)", **changes), **options)
    assert not result.modified
    assert "= MatMul(" in after
    assert result.refusals == ()


@pytest.mark.parametrize(
    ("changes", "reason"), [({"values": 5000}, "more than 255 values; share them"), ({"nan": True}, "not finite")]
)
def test_what_is_refused(changes: dict[str, Any], reason: str) -> None:
    given = model("y = MatMul(x, w)", **changes)
    result = CompressColumns()(given)
    assert not result.modified
    assert isinstance(result, PassResult)
    (refusal,) = result.refusals
    assert reason in refusal.reason


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_rows": 0}, "max-rows must be a number from 1 on, not 0"),
        ({"min_sparsity": -0.5}, "min-sparsity must be a share from 0 to 1, not -0.5"),
        ({"min_sparsity": float("nan")}, "min-sparsity must be a share from 0 to 1, not nan"),
        ({"min_weights": -1}, "min-weights must be a number from 0 on, not -1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GraphoptError, match=sentence):
        CompressColumns(**options)


def test_zeros_alone() -> None:
    after, _ = rewritten(model("y = MatMul(x, w)", density=0.0))
    assert "const[0], const[0], const[97], const[16]" in after


def test_the_program_agrees() -> None:
    """Whether or not a target has a kernel for it."""
    given = model("t = Relu(x) y = Gemm(t, w, b)")
    compiled = compile_model(given, passes="normalize,fuse,compress-columns", costs="roofline", verify="each")
    assert compiled.failure == ""
