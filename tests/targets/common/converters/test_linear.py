"""QuantizeLinear and DequantizeLinear agree with ONNX Runtime, special values too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 0.025, 0.075, -0.025, 1e-40, 3e38]


def floats() -> Any:
    """[7, 24, 5], with ties and special values."""
    x = np.random.default_rng(0).standard_normal((7, 24, 5)).astype(np.float32) * 4
    x.flat[: len(SPECIAL)] = SPECIAL
    return x


def integers(dtype: str, *shape: int) -> Any:
    limits = np.iinfo(dtype)
    return np.random.default_rng(1).integers(limits.min, limits.max + 1, shape).astype(dtype)


def scales(*shape: int) -> Any:
    return (np.random.default_rng(2).random(shape) * 0.1 + 0.01).astype(np.float32)


@pytest.mark.parametrize("opset", [10, 13, 19, 21])
def test_one_scale(lab: Any, opset: int) -> None:
    """As every opset has it; without a zero point the result is uint8."""
    x, s = floats(), np.array(0.05, np.float32)
    body = """
        u = QuantizeLinear(x, s, uz) i = QuantizeLinear(x, s, iz) n = QuantizeLinear(x, s)
        du = DequantizeLinear(u, s, uz) di = DequantizeLinear(i, s, iz) dn = DequantizeLinear(n, s)
        dw = DequantizeLinear(w, s)
    """
    feeds = {"x": x, "w": integers("int32", 33)}
    constants = {"s": s, "uz": np.array(100, np.uint8), "iz": np.array(-3, np.int8)}
    outputs = ("u", "i", "n", "du", "di", "dn", "dw")
    lab.check(lab.model(body, feeds, constants, outputs, opset), feeds)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_a_scale_for_each_entry_of_an_axis(lab: Any, axis: int, dtype: str) -> None:
    x = floats()
    x[~np.isfinite(x)] = 0  # of 16 bits ONNX Runtime makes other numbers of these
    entries = x.shape[axis]
    body = f"q = QuantizeLinear<axis={axis}>(x, s, z) d = DequantizeLinear<axis={axis}>(q, s, z)"
    constants = {"s": scales(entries), "z": integers(dtype, entries)}
    lab.check(lab.model(body, {"x": x}, constants, ("q", "d")), {"x": x})


@pytest.mark.parametrize(("axis", "block"), [(1, 4), (1, 5), (0, 3), (-1, 5)])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_scale_for_each_block(lab: Any, axis: int, block: int, dtype: str) -> None:
    """Of numbers that an int32 holds: ONNX Runtime casts others, which are to saturate, as the processor does."""
    x = floats()
    x[~(np.abs(x) < 1e6)] = 0
    shape = list(x.shape)
    shape[axis] = -(-shape[axis] // block)
    options = f"axis={axis}, block_size={block}"
    body = f"q = QuantizeLinear<{options}>(x, s, z) d = DequantizeLinear<{options}>(q, s, z)"
    feeds = {"x": x, "s": scales(*shape)}
    lab.check(lab.model(body, feeds, {"z": integers(dtype, *shape)}, ("q", "d")), feeds)


def test_halves(lab: Any) -> None:
    x = floats()
    x[~(np.abs(x) < 1e4)] = 0  # of these ONNX Runtime makes other numbers
    x = x.astype(np.float16)
    body = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) f = Cast<to=1>(d)"
    constants = {"s": np.array(0.05, np.float16), "z": np.array(100, np.uint8)}
    lab.check(lab.model(body, {"x": x}, constants, ("q", "f")), {"x": x})


def test_the_type_may_be_an_attribute(lab: Any) -> None:
    lab.same("y = QuantizeLinear<output_dtype=3>(x, s)", {"x": floats(), "s": np.array(0.05, np.float32)})


def test_quantization_is_fused_behind_what_computes(lab: Any) -> None:
    body = "t = Add(x, x) q = QuantizeLinear(t, s, z) y = DequantizeLinear(q, s, z)"
    constants = {"s": np.array(0.05, np.float32), "z": np.array(7, np.int8)}
    assert len(lab.same(body, {"x": floats()}, constants).calls) == 1


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (3, 5)])
def test_differences_of_a_few_rows_keep_their_sign(lab: Any, dtype: str, shape: tuple[int, ...]) -> None:
    """Rows that are unrolled around zero points that are literals: LLVM took the difference for one without a sign."""
    count = shape[-2]
    limits = np.iinfo(dtype)
    feeds = {"x": integers(dtype, *shape), "low": np.full(shape, limits.min, dtype)}
    constants = {"s": scales(count), "z": np.array([0, 4, 3, 1, limits.max], dtype)[:count]}
    body = "y = DequantizeLinear<axis = -2>(x, s, z) t = DequantizeLinear<axis = -2>(low, s, z)"
    lab.check(lab.model(body, feeds, constants, ("y", "t"), 13 if "8" in dtype else 21), feeds)
