"""The grammar of random graphs: one function per family of operators, in the form that the graph's opset has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tests.helpers.random_graphs import Dropped, Graph
from tests.helpers.random_programs import proto

Family = Callable[[Graph], object]

FLOATS = ("float32",) * 6 + ("float64", "float16")
INTEGERS = ("int32", "int64", "int8", "uint8")
ANY = (*FLOATS, *INTEGERS, "bool")
SHAPES = ((2, 3, 8), (4, 6), (1, 4, 6), (2, 4, 5, 7), (6,), (3, 1, 5), (2, 16), (1, 8, 6, 6), (1,), ())


def shape_of(g: Graph) -> tuple[int, ...]:
    """Mostly a usual shape, seldom one with an empty axis."""
    shape = list(g.pick(SHAPES))
    if shape and g.chance(0.03):
        shape[g.integer(0, len(shape) - 1)] = 0
    return tuple(shape)


def whatever(g: Graph, dtypes: Sequence[str] = FLOATS, least: int = 0, exact: bool = False, most: int = 5) -> str:
    """A value of any shape with `least` to `most` axes."""
    shape = shape_of(g)
    shape = (2, 3, 4)[: max(0, least - len(shape))] + shape
    return g.operand(g.pick(dtypes), shape[-most:], lambda a: least <= a.ndim <= most and a.size < 4000, exact)


def images(g: Graph, rank: int, dtype: str, finite: bool = False) -> str:
    """[n, c, spatial...]."""
    sides = tuple(g.integer(3, {1: 16, 2: 9, 3: 5}[rank]) for _ in range(rank))
    shape = g.integer(1, 2), g.pick((1, 2, 3, 4, 6, 8, 16)), *sides
    return g.operand(dtype, shape, lambda a: a.ndim == rank + 2 and 0 < a.size < 3000, finite=finite)


def axes_form(g: Graph, op: str, x: str, axes: Sequence[int], since: int, exact: bool = False, **others: int) -> None:
    """Axes are an input from an opset on, an attribute before."""
    if g.opset >= since:
        g.node(op, [x, g.setting(axes)], exact=exact, **others)
    else:
        g.node(op, [x], axes=list(axes), exact=exact, **others)


def window(g: Graph, rank: int, transposed: bool = False) -> dict[str, object]:
    """Attributes that convolutions and pools have in common."""
    found: dict[str, object] = {}
    if g.chance(0.5):
        found["strides"] = [g.integer(1, 3) for _ in range(rank)]
    if g.chance(0.25):
        found["auto_pad"] = g.pick(("SAME_UPPER", "SAME_LOWER", "VALID"))
    elif g.chance(0.6):
        found["pads"] = [g.integer(0, 1) for _ in range(2 * rank)]
    if g.chance(0.25) and ("auto_pad" not in found or transposed):
        found["dilations"] = [g.integer(1, 2) for _ in range(rank)]
    return found


def conv(g: Graph) -> None:
    rank, dtype = g.pick((1, 2, 2, 2, 3)), g.pick(("float32",) * 8 + ("float64", "float16"))
    x = images(g, rank, dtype)
    channels = g.array(x).shape[1]
    groups = g.pick([d for d in (1, 1, 2, 3, channels) if channels % d == 0])
    out = groups * g.pick((1, 2, 3, 8))
    kernel = [g.integer(1, 3) for _ in range(rank)]
    w = g.weight(dtype, (out, channels // groups, *kernel))
    bias = [g.weight(dtype, (out,))] if g.chance(0.5) else []
    y = g.node("Conv", [x, w, *bias], group=groups, **window(g, rank))
    if g.chance(0.4):
        g.node(g.pick(("Relu", "Sigmoid", "Tanh", "LeakyRelu")), y)


def conv_transpose(g: Graph) -> None:
    rank, dtype = g.pick((1, 2, 2, 3)), g.pick(("float32",) * 5 + ("float16",))
    x = images(g, rank, dtype)
    channels = g.array(x).shape[1]
    groups = g.pick([d for d in (1, 1, 2, channels) if channels % d == 0])
    out = g.pick((1, 2, 3))
    w = g.weight(dtype, (channels, out, *(g.integer(1, 4) for _ in range(rank))))
    bias = [g.weight(dtype, (out * groups,))] if g.chance(0.5) else []
    attributes = window(g, rank, transposed=True)
    if "strides" in attributes and g.chance(0.4):
        attributes["output_padding"] = [g.integer(0, s - 1) for s in attributes["strides"]]  # type: ignore[attr-defined]
    g.node("ConvTranspose", [x, w, *bias], group=groups, **attributes)


def pool(g: Graph) -> None:
    rank, op = g.pick((1, 2, 2, 3)), g.pick(("MaxPool", "AveragePool", "LpPool"))
    attributes = window(g, rank)
    if op != "MaxPool" and g.opset < {"AveragePool": 19, "LpPool": 18}[op]:
        attributes.pop("dilations", None)
    if g.opset >= {"MaxPool": 10, "AveragePool": 10, "LpPool": 18}[op] and g.chance(0.4):
        attributes["ceil_mode"] = 1
    if op == "AveragePool":
        attributes["count_include_pad"] = g.integer(0, 1)
    if op == "MaxPool" and g.opset < 10:
        attributes.pop("dilations", None)
    dtype = g.pick(("float32",) * 5 + ("int8" if op == "MaxPool" and g.opset >= 12 else "float32",))
    x = images(g, rank, dtype, finite=op == "MaxPool")
    g.node(op, [x], kernel_shape=[g.integer(1, 3) for _ in range(rank)], **attributes)


def global_pool(g: Graph) -> None:
    op = g.pick(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"))
    g.node(op, [images(g, g.integer(1, 3), "float32", finite=op == "GlobalMaxPool")])


def gemm(g: Graph) -> None:
    dtype = g.pick(FLOATS)
    m, k, n = g.integer(1, 7), g.integer(1, 17), g.integer(1, 17)
    ta, tb = g.integer(0, 1), g.integer(0, 1)
    a = g.operand(dtype, (k, m) if ta else (m, k), lambda x: x.ndim == 2 and 0 < x.size < 2000)
    k, m = g.array(a).shape if ta else g.array(a).shape[::-1]
    bias = [g.weight(dtype, g.pick(((n,), (1, n), (m, 1), (m, n), (1,), ())))] if g.opset < 11 or g.chance(0.7) else []
    scales = {"alpha": g.pick((0.5, 1.0, -2.0)), "beta": g.pick((0.0, 1.0, 0.3))} if g.chance(0.5) else {}
    g.node("Gemm", [a, g.weight(dtype, (n, k) if tb else (k, n)), *bias], transA=ta, transB=tb, **scales)


def matmul(g: Graph) -> None:
    dtype = g.pick((*FLOATS, "float32", "int32"))
    a = whatever(g, (dtype,), least=1)
    shape = g.array(a).shape
    if not shape[-1]:
        raise Dropped  # a sum of nothing is what memory was
    k, n = shape[-1], g.integer(1, 17)
    front = shape[:-2] if g.chance(0.4) else g.pick(((), (), (2, 1), (1,)))
    g.node("MatMul", [a, g.weight(dtype, g.pick(((*front, k, n), (k,), (k, n))))])


def reduction(g: Graph) -> None:
    names = ("Max", "Min", "Mean", "Sum", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    op, x = "Reduce" + g.pick(names), whatever(g, (*FLOATS, "int32", "int64"))
    if not g.array(x).size:
        raise Dropped  # of which ONNX Runtime leaves axes that are not empty as they are
    rank = g.array(x).ndim
    count = min(rank, g.integer(1, 3))
    axes = [int(a) - (rank if g.opset >= 11 and g.chance(0.3) else 0) for a in g.random.permutation(rank)[:count]]
    exact = op in ("ReduceMax", "ReduceMin")
    if (exact or op == "ReduceLogSumExp") and np.isnan(g.array(x).astype(np.float64)).any():
        raise Dropped  # ONNX Runtime's extremes know NaN or not, by where it stands
    others = {"keepdims": g.integer(0, 1)}
    everything = not axes or g.chance(0.2)
    if op == "ReduceProd" and g.array(x).dtype.kind == "i":
        product = np.prod(g.array(x), None if everything else tuple(axes), np.float64)
        if np.abs(product).max(initial=0.0) >= 2.0**31:
            raise Dropped  # an overflow is one of floats in ONNX Runtime
    if everything:
        noop = g.opset >= (13 if op == "ReduceSum" else 18) and g.chance(0.5)
        g.node(op, [x], exact=exact, **others, **({"noop_with_empty_axes": 1} if noop else {}))
    else:
        axes_form(g, op, x, axes, 13 if op == "ReduceSum" else 18, exact, **others)


def arg_extreme(g: Graph) -> None:
    x = whatever(g, (*FLOATS, "int32"), least=1, exact=True)
    if not g.array(x).size:
        raise Dropped  # ONNX Runtime then does not drop the axis
    last = {"select_last_index": g.integer(0, 1)} if g.opset >= 12 else {}
    axis = g.axis(g.array(x).ndim)
    g.node(g.pick(("ArgMax", "ArgMin")), [x], exact=True, axis=axis, keepdims=g.integer(0, 1), **last)


def normalization(g: Graph) -> None:
    op = g.pick(("BatchNormalization", "InstanceNormalization", "LRN", "LpNormalization", "MeanVarianceNormalization",
                 "LayerNormalization", "LayerNormalization", "GroupNormalization"))  # fmt: skip
    dtype = g.pick(("float32",) * 6 + ("float16", "float64"))
    # ONNX Runtime adds and subtracts squares as the window of an LRN moves: NaN stays behind.
    x = images(g, g.integer(1, 2), dtype, finite=op == "LRN")
    shape = g.array(x).shape
    channels = shape[1]
    if op in ("BatchNormalization", "InstanceNormalization"):
        terms = [g.weight(dtype, (channels,)) for _ in range(4 if op[0] == "B" else 2)]
        if op[0] == "B":
            terms[3] = g.new(np.abs(g.draw(dtype, (channels,))) + np.dtype(dtype).type(0.1), True)
        g.node(op, [x, *terms], epsilon=g.pick((1e-5, 1e-3)))
    elif op == "LRN":
        g.node(op, [x], size=g.pick((1, 3, 5)), alpha=0.01, beta=0.6, bias=1.5)
    elif op == "LpNormalization":
        g.node(op, [x], axis=g.pick((-1, 1)), p=g.integer(1, 2))
    elif op == "MeanVarianceNormalization":
        axes = g.pick(([0, 2], [1], [0, 1, 2]))
        if dtype != "float32" and math.prod(shape[axis] for axis in axes) == 1:
            raise Dropped  # the root of a variance of zero, which rounding makes negative or not
        g.node(op, [x], axes=axes)
    elif op == "LayerNormalization":
        x = whatever(g, ("float16" if dtype == "float16" else "float32",), least=1)  # float64 is float32 in between
        dtype, axis = str(g.array(x).dtype), g.axis(g.array(x).ndim)
        terms = [g.weight(dtype, g.array(x).shape[axis:]) for _ in range(g.integer(1, 2))]
        # Of infinities ONNX Runtime's mean, which is asked for as another output, is NaN or infinite.
        outputs = g.pick((1, 1, 1, 3)) if np.isfinite(g.array(x)).all() else 1
        g.node(op, [x, *terms], axis=axis, outputs=outputs)
    else:
        groups = g.pick([d for d in (1, 2, 3, channels) if channels % d == 0])
        size = channels if g.opset >= 21 else groups
        g.node(op, [x, g.weight(dtype, (size,)), g.weight(dtype, (size,))], num_groups=groups)


def softmax(g: Graph) -> None:
    x = whatever(g, least=1)
    if str(g.array(x).dtype) == "float64" and not np.isfinite(g.array(x)).all():
        raise Dropped  # of which ONNX Runtime makes numbers
    where = {"axis": g.axis(g.array(x).ndim)} if g.chance(0.7) else {}
    op = g.pick(("Softmax", "Softmax", "LogSoftmax", "Hardmax"))
    if op == "Hardmax" and not g.visible()[x].exact:
        op = "Softmax"
    if op == "Hardmax" and np.isnan(g.array(x).astype(np.float64)).any():
        raise Dropped  # ONNX Runtime's largest element depends on where in a vector a NaN stands
    g.node(op, [x], **where)


ACTIVATIONS = {
    "Relu": {}, "Sigmoid": {}, "Tanh": {}, "Softplus": {}, "Softsign": {}, "Selu": {}, "Erf": {}, "Mish": {},
    "LeakyRelu": {"alpha": 0.2}, "Elu": {"alpha": 0.7}, "HardSigmoid": {"alpha": 0.3, "beta": 0.4}, "HardSwish": {},
    "Celu": {"alpha": 1.3}, "ThresholdedRelu": {"alpha": 0.5}, "Shrink": {"lambd": 0.4, "bias": 0.1},
    "Gelu": {"approximate": "tanh"}, "Swish": {"alpha": 0.8},
}  # fmt: skip


def activation(g: Graph) -> None:
    op = g.pick(list(ACTIVATIONS))
    x = whatever(g, FLOATS if op != "Shrink" else ("float32",))  # of float64 ONNX Runtime makes a float32 in between
    attributes = {} if g.chance(0.3) and op not in ("ThresholdedRelu", "Shrink") else ACTIVATIONS[op]
    y = g.node(op, [x], exact=op == "Relu", **attributes)
    if op == "Sigmoid" and g.chance(0.5):
        g.node("Mul", [x, *y])


def clip(g: Graph) -> None:
    x = whatever(g, FLOATS if g.opset < 12 else (*FLOATS, "int32", "int8"))
    dtype = str(g.array(x).dtype)
    if g.opset < 11:
        g.node("Clip", [x], exact=True, **g.pick(({"min": -1.0}, {"max": 0.5}, {"min": 0.0, "max": 6.0})))
    else:
        ends = [g.setting(-1, dtype), g.setting(1, dtype)]
        g.node("Clip", [x, *g.pick((ends, ["", ends[1]], ends[:1]))], exact=True)


def unary(g: Graph) -> None:
    exact = g.pick(("Neg", "Abs", "Floor", "Ceil", "Sign", "Round", "IsNaN", "IsInf", "Not", "Identity"))
    rounded = g.pick(("Exp", "Log", "Sqrt", "Reciprocal", "Sin", "Cos", "Atan", "Sinh", "Cosh", "Asinh", "Tan"))
    op = g.pick((exact, rounded))
    dtypes = ("bool",) if op == "Not" else ANY if op == "Identity" else FLOATS + ("int32",) * (op in ("Neg", "Abs"))
    steps = op in ("Floor", "Ceil", "Sign", "Round", "IsNaN", "IsInf")
    g.node(op, [whatever(g, dtypes, exact=steps)], exact=op == exact)


def pair(g: Graph, dtypes: Sequence[str], exact: bool = False) -> tuple[str, str]:
    """Two values that broadcast to each other."""
    a = whatever(g, dtypes, exact=exact)
    array = g.array(a)
    shape = [1 if g.chance(0.25) else extent for extent in array.shape][
        g.integer(0, array.ndim) if g.chance(0.3) else 0 :
    ]
    found = a, g.operand(str(array.dtype), shape, exact=exact)
    return found if g.chance(0.5) else found[::-1]


def binary(g: Graph) -> None:
    op = g.pick(("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu", "Sum", "Mean", "And", "Or", "Xor", "Mod"))
    exact = op in ("Max", "Min", "And", "Or", "Xor")
    if op in ("And", "Or", "Xor"):
        g.node(op, pair(g, ("bool",)), exact=True)
    elif op == "Mod" or (op == "Div" and g.chance(0.3)):
        dtype = g.pick(("int32", "int64", "int8") if op == "Mod" else ("int32", "int64"))
        a, divisors = whatever(g, (dtype,)), np.array([1, 2, 3, -2, 5], dtype)
        shape = g.array(a).shape[-1:]
        by = g.new(g.random.choice(divisors, shape))
        g.node(op, [a, by], exact=True, **({"fmod": 1} if op == "Mod" and g.chance(0.3) else {}))
    elif op == "Pow":
        a = whatever(g)
        g.node(op, [a, g.setting(g.pick((2, 3, 0.5, -1, 0)), str(g.array(a).dtype))])
    elif op == "PRelu":
        a = whatever(g, least=1)
        g.node(op, [a, g.weight(str(g.array(a).dtype), g.array(a).shape[-1:])])
    elif op in ("Max", "Min", "Sum", "Mean"):
        a, b = pair(g, FLOATS)
        g.node(op, g.pick(([a, b], [a], [a, b, a])), exact=exact)
    else:
        g.node(op, pair(g, (*FLOATS, "int32", "int64")), exact=False)


def choice(g: Graph) -> None:
    compare = g.pick(("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"))
    truth = g.node(compare, pair(g, ("float32", "float32", "int32", "int64"), exact=True), exact=True)[0]
    if g.chance(0.7):
        dtype = g.pick(ANY)
        sides = [g.operand(dtype, g.array(truth).shape), g.operand(dtype, g.pick(((), g.array(truth).shape)))]
        g.node("Where", [truth, *(sides if g.chance(0.5) else sides[::-1])], exact=True)


def cast(g: Graph) -> None:
    x, to = whatever(g, ANY), g.pick((*FLOATS, "int32", "int64", "bool", "int8", "uint8"))
    known = g.visible()[x]
    if known.array.dtype.kind == "f" and np.dtype(to).kind != "f":
        limit = np.iinfo(to).max if np.dtype(to).kind in "iu" else np.inf
        low = 0 if np.dtype(to).kind == "u" else -limit
        numbers = known.array.astype(np.float64)
        if not known.exact or not bool(((numbers > low) & (numbers < limit)).all()):
            raise Dropped
    wide = np.dtype(to).itemsize >= known.array.dtype.itemsize or np.dtype(to).kind != "f"
    g.node("Cast", [x], exact=wide, to=proto(to))


def resize(g: Graph) -> None:
    x = images(g, g.pick((1, 2, 2)), g.pick(("float32",) * 5 + ("uint8",)), finite=True)
    shape = g.array(x).shape
    scales = [1.0, 1.0, *(g.pick((0.5, 2.0, 1.0, 1.7, 0.6, 3.0)) for _ in shape[2:])]
    mode = g.pick(("nearest", "linear", "cubic") if len(shape) == 4 and g.opset >= 11 else ("nearest", "linear"))
    if g.opset < 9:
        g.node("Upsample", [x], mode=mode, scales=[max(1.0, s) for s in scales])
    elif g.opset < 11:
        g.node(*(("Upsample",) if g.opset == 9 else ("Resize",)), [x, g.setting(np.maximum(scales, 1.0), "float32")],
               mode=mode)  # fmt: skip
    else:
        places = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "tf_half_pixel_for_nn")
        attributes = {"mode": mode, "coordinate_transformation_mode": g.pick(places[: 5 if g.opset < 13 else 4])}
        if mode == "nearest":
            attributes["nearest_mode"] = g.pick(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))
        roi = "" if g.opset >= 13 else g.setting([], "float32")
        if g.chance(0.5):
            g.node("Resize", [x, roi, g.setting(scales, "float32")], **attributes)
        else:
            sizes = [*shape[:2], *(max(1, int(s * e)) for s, e in zip(scales[2:], shape[2:], strict=True))]
            g.node(
                "Resize", [x, roi, "" if g.opset >= 13 else g.setting([], "float32"), g.setting(sizes)], **attributes
            )


def recurrent(g: Graph) -> None:
    op, direction = g.pick(("LSTM", "GRU", "RNN")), g.pick(("forward", "reverse", "bidirectional"))
    gates, ways, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 1 + (direction == "bidirectional"), g.integer(1, 6)
    sizes = (g.integer(1, 5), g.integer(1, 3), g.integer(1, 6))
    x = g.operand("float32", sizes, lambda a: a.ndim == 3 and 0 < a.size < 300, finite=True)  # gates clip NaN
    steps, batch, width = g.array(x).shape
    w, r = (g.weight("float32", (ways, gates * hidden, size)) for size in (width, hidden))
    bias = g.weight("float32", (ways, 2 * gates * hidden)) if g.chance(0.6) else ""
    lengths = g.new(g.random.integers(0, steps + 1, batch).astype(np.int32)) if g.chance(0.4) else ""
    start = [g.operand("float32", (ways, batch, hidden), finite=True) if g.chance(0.5) else ""]
    if op == "LSTM" and start[0] and g.chance(0.5):
        start.append(g.operand("float32", (ways, batch, hidden), finite=True))
    attributes: dict[str, object] = {"hidden_size": hidden, "direction": direction}
    if op == "GRU":
        attributes["linear_before_reset"] = g.integer(0, 1)
    if g.chance(0.15):
        attributes["clip"] = 0.7
    g.node(op, [x, w, r, bias, lengths, *start], outputs=g.integer(1, 3 if op == "LSTM" else 2), **attributes)


def attention(g: Graph) -> None:
    """softmax(q k^T * scale + mask) v as exporters write it."""
    shape = g.integer(1, 2), g.integer(1, 3), g.integer(1, 7), g.pick((2, 4, 8))
    q, v = (g.operand("float32", shape) for _ in range(2))
    k = g.node("Transpose", [g.operand("float32", shape)], exact=True, perm=[0, 1, 3, 2])[0]
    scores = g.node("MatMul", [q, k])[0]
    op, factor = ("Mul", shape[3] ** -0.5) if g.chance(0.5) else ("Div", shape[3] ** 0.5)
    scores = g.node(op, [scores, g.setting(factor, "float32")])[0]
    if g.chance(0.5):
        mask = np.where(g.random.random((shape[0], 1, 1, shape[2])) < 0.7, 0.0, -1e4).astype(np.float32)
        scores = g.node("Add", [scores, g.new(mask)])[0]
    g.node("MatMul", [g.node("Softmax", [scores], axis=3)[0], v])


SPATIAL: tuple[Family, ...] = (conv, conv, conv, conv_transpose, pool, pool, global_pool, resize)
LINEAR: tuple[Family, ...] = (gemm, matmul, matmul, attention, recurrent)
ROWS: tuple[Family, ...] = (reduction, reduction, arg_extreme, normalization, normalization, softmax)
ELEMENTS: tuple[Family, ...] = (activation, activation, clip, unary, binary, binary, choice, cast)
