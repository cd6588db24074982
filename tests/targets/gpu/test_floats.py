"""Floats on GPUs: NaN and infinities where ONNX Runtime has them, constant rows without variance, sums in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import graphopt
from graphopt.verify.oracle import run_onnxruntime


def both(text: str, feeds: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """ONNX Runtime's results and ours."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    session = graphopt.compile(model, target="opencl", fallback=False).session()
    return run_onnxruntime(ir.from_proto(model), feeds), session.run(feeds)


def test_nothing_is_simplified_as_if_floats_were_real_numbers(opencl: Any) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 0.0, 1.5, -2.5, 0.1, 12345.678], np.float32)
    feeds = {"x": np.repeat(values, 8), "z": np.tile(values, 8)}
    want, got = both(
        """
        g (float[64] x, float[64] z) => (float[64] a, float[64] b, bool[64] c, bool[64] d, float[64] e, float[64] f)
        <float big = {1e8}, float zero = {0}> {
            a0 = Add(x, big) a = Sub(a0, big)
            b = Mul(x, zero)
            c0 = Less(x, z) c = Not(c0)
            d0 = Equal(x, x) d = Not(d0)
            e0 = Add(x, zero) e = Max(e0, z)
            f0 = Max(x, z) f = LeakyRelu<alpha=0.0>(f0)
        }
        """,
        feeds,
    )
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, name)


@pytest.mark.parametrize("value", [0.1, 1.0, 1e4])
def test_constant_rows(opencl: Any, value: float) -> None:
    """Their mean is exact, so that nothing is divided by almost 0."""
    want, got = both(
        """
        g (float[3, 768] x, float[1, 4, 24, 32] z) => (float[3, 768] a, float[1, 4, 24, 32] b, float[3, 1] c) {
            w = ConstantOfShape<value = float[1] {1}>(shape) a = LayerNormalization(x, w)
            one = ConstantOfShape<value = float[1] {1}>(few) none = ConstantOfShape(few)
            b = InstanceNormalization(z, one, none)
            c = ReduceMean<keepdims=1>(x, axis)
        }
        """.replace(
            "{\n            w", "<int64[1] shape = {768}, int64[1] few = {4}, int64[1] axis = {1}> {\n            w"
        ),
        {"x": np.full((3, 768), value, np.float32), "z": np.full((1, 4, 24, 32), value, np.float32)},
    )
    assert not got["a"].any()
    assert not got["b"].any()
    np.testing.assert_allclose(got["c"], want["c"], rtol=2e-7)
