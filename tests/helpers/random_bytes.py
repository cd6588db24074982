"""More of the grammar: quantized models."""

from __future__ import annotations

import numpy as np

from tests.helpers.random_families import Family, images, whatever, window
from tests.helpers.random_graphs import Dropped, Graph
from tests.helpers.random_moves import MICROSOFT


def quantize(g: Graph) -> None:
    """Floats to bytes and back."""
    if g.opset < 10:
        raise Dropped
    x = whatever(g, ("float32",), least=1, exact=True)
    if not np.isfinite(g.array(x)).all() or not g.array(x).size:
        raise Dropped  # of nothing ONNX Runtime's scale is what memory was
    if g.opset >= 11 and g.chance(0.3):
        q, scale, zero = g.node("DynamicQuantizeLinear", [x], outputs=3, exact=True)
        g.node("DequantizeLinear", [q, scale, zero])
        return
    zero_type, attributes, size = g.pick(("int8", "uint8")), {}, ()
    if g.opset >= 13 and g.chance(0.5):
        attributes = {"axis": g.axis(g.array(x).ndim)}
        size = (g.array(x).shape[attributes["axis"]],)
    scale = g.new(np.asarray(g.random.uniform(0.02, 0.2, size), np.float32), True)
    zero = g.new(np.asarray(g.random.integers(0, 5, size), zero_type), True)
    q = g.node("QuantizeLinear", [x, scale, zero], exact=True, **attributes)[0]
    if g.chance(0.7):
        g.node("DequantizeLinear", [q, scale, zero], **attributes)


def byte_product(g: Graph) -> None:
    """MatMulInteger, QLinearMatMul, ConvInteger and QLinearConv."""
    if g.opset < 10:
        raise Dropped
    op, left = g.pick(("MatMulInteger", "QLinearMatMul", "ConvInteger", "QLinearConv")), g.pick(("uint8", "int8"))
    scaled, image = op.startswith("Q"), "Conv" in op
    left = "uint8" if op == "ConvInteger" else left
    right = g.pick(("int8", left))
    x = images(g, 2, left) if image else whatever(g, (left,), least=2)
    if not g.array(x).size:
        raise Dropped
    extent, out = g.array(x).shape[1 if image else -1], g.integer(1, 9)
    groups = g.pick([d for d in (1, 1, 2, extent) if extent and extent % d == 0] or [1])
    kernel = (g.integer(1, 3), g.integer(1, 3))
    w = g.weight(right, (out * groups, extent // groups, *kernel) if image else (extent, out))
    zeros = [g.setting(g.integer(0, 4), left), g.setting(g.integer(0, 4) if not image else 0, right)]
    attributes = {"group": groups, **window(g, 2)} if image else {}
    if not scaled:
        g.node(op, [x, w, *zeros[: g.integer(0, 2)]], exact=True, **attributes)
        return
    scales = [g.setting(s, "float32") for s in (0.03, 0.02, 0.05)]
    bias = [g.new(g.draw("int32", (out * groups,)), True)] if image and g.chance(0.6) else []
    y_zero = g.setting(g.integer(0, 9), left)
    g.node(op, [x, scales[0], zeros[0], w, scales[1], zeros[1], scales[2], y_zero, *bias], exact=False, **attributes)


def quantized_layer(g: Graph) -> None:
    """A product between DequantizeLinear and QuantizeLinear, as tools write it.

    Scales are powers of two, so that sums of floats are exact, and the same as those of bytes.
    """
    if g.opset < 13:
        raise Dropped
    op, left = g.pick(("MatMul", "MatMul", "Gemm", "Conv")), g.pick(("uint8", "int8"))
    right = g.pick(("int8", left))
    if op == "Conv":
        x = images(g, 2, left)
    elif op == "Gemm":
        x = g.operand(left, (g.integer(1, 9), g.integer(1, 9)), lambda a: a.ndim == 2 and 0 < a.size < 3000)
    else:
        x = whatever(g, (left,), least=2)
    shape, out, turned = g.array(x).shape, g.integer(1, 9), op == "Gemm" and g.chance(0.5)
    depth = shape[1] if op == "Conv" else shape[-1]
    if not g.array(x).size or depth > 200:
        raise Dropped
    sizes = (out, depth, g.integer(1, 3), g.integer(1, 3)) if op == "Conv" else (depth, out)
    w = g.weight(right, sizes[::-1] if turned else sizes)
    columns = (out,) if g.chance(0.5) else ()
    axis = {"axis": 0 if op == "Conv" or turned else 1} if columns else {}

    def powers(size: tuple[int, ...] = ()) -> np.ndarray:
        return np.asarray(2.0 ** g.random.integers(-6, 0, size), np.float32)

    x_scale, w_scale = powers(), powers(columns)
    points = [np.asarray(g.random.integers(0, 5, size), kind) for size, kind in (((), left), (columns, right))]
    a = g.node("DequantizeLinear", [x, g.new(x_scale, True), g.new(points[0], True)], exact=True)[0]
    b = g.node("DequantizeLinear", [w, g.new(w_scale, True), g.new(points[1], True)], exact=True, **axis)[0]
    bias = []
    if op != "MatMul" and g.chance(0.6):
        unit = x_scale * w_scale if g.chance(0.7) else np.float32(0.5)
        d = g.new(g.random.integers(-99, 99, (out,)).astype(np.int32), True)
        along = {"axis": 0} if np.ndim(unit) else {}
        bias = g.node("DequantizeLinear", [d, g.new(np.asarray(unit, np.float32), True)], exact=True, **along)
    attributes = window(g, 2) if op == "Conv" else {"transB": int(turned)} if op == "Gemm" else {}
    y = g.node(op, [a, b, *bias], exact=True, **attributes)[0]
    if g.chance(0.4):
        y = g.node("Relu", [y], exact=True)[0]
    if g.chance(0.7):
        scale = [g.new(powers() * np.float32(64), True), g.setting(g.pick((0, 0, 4)), left)]
        q = g.node("QuantizeLinear", [y, *scale], exact=True)[0]
        g.node("DequantizeLinear", [q, *scale], exact=True)


def foreign_bytes(g: Graph) -> None:
    names = ("QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax")
    op, kind = g.pick(names), g.pick(("uint8", "int8"))
    x = whatever(g, (kind,), least=1)
    if not g.array(x).size:
        raise Dropped  # of nothing ONNX Runtime crashes
    both = [x, g.operand(kind, g.array(x).shape)] if op in ("QLinearAdd", "QLinearMul") else [x]
    read = [n for each in both for n in (each, g.setting(0.1, "float32"), g.setting(g.integer(0, 3), kind))]
    attributes = {"opset": g.pick((11, 13)), "axis": g.axis(g.array(x).ndim)} if op == "QLinearSoftmax" else {}
    g.node(op, [*read, g.setting(0.07, "float32"), g.setting(4, kind)], domain=MICROSOFT, **attributes)


BYTES: tuple[Family, ...] = (quantize, byte_product, quantized_layer, quantized_layer, foreign_bytes)
