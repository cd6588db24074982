"""More standard operators, ONNX node -> Relax, where TVM's own converters are missing, refuse, or are wrong.

What TVM does well is not here: a converter that returns NotImplemented hands the node on. The table is at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tvm import relax, te, tirx

from graphopt.targets import converters, converters_index, converters_quantized, converters_resize, converters_transpose
from graphopt.targets.converters import Context, Converter, dtype_of, shape_of
from graphopt.targets.converters_index import constant, known

ELEMENTWISE, REDUCTION = 0, 3
FLOATS = ("float16", "float32", "float64")
HALVES = ("float16", "bfloat16")


def nothing(c: Context, inputs: list[Any]) -> Any:
    """Any operator whose outputs have no elements."""
    results = []
    for value in c.node.outputs:
        if value.shape is None or value.dtype is None or 0 not in value.shape.numpy():
            return NotImplemented
        results.append(known(np.zeros(value.shape.numpy(), value.dtype.numpy())))
    return results


def shape(c: Context, inputs: list[Any]) -> Any:
    """Shape of a static tensor: a constant."""
    dims = shape_of(inputs[0])
    rank = len(dims)
    start = min(max(c.integer("start") + (rank if c.integer("start") < 0 else 0), 0), rank)
    end = c.integer("end", rank)
    end = min(max(end + (rank if end < 0 else 0), 0), rank)
    return known(np.array(dims[start:end], dtype=np.int64))


def size(c: Context, inputs: list[Any]) -> Any:
    """Size of a static tensor: a constant."""
    return known(np.array(math.prod(shape_of(inputs[0])), dtype=np.int64))


def eye_like(c: Context, inputs: list[Any]) -> Any:
    """EyeLike: a constant."""
    dtype = c.node.outputs[0].dtype
    if dtype is None:
        return NotImplemented
    rows, columns = shape_of(inputs[0])
    return known(np.eye(rows, columns, c.integer("k")).astype(dtype.numpy()))


def is_inf(c: Context, inputs: list[Any]) -> Any:
    """IsInf with its two flags."""
    (x,) = inputs
    dtype = dtype_of(x)
    if dtype not in FLOATS:
        return NotImplemented
    signs = [sign for sign, name in ((1, "detect_positive"), (-1, "detect_negative")) if c.integer(name, 1)]
    limits = [tirx.const(sign * math.inf, dtype) for sign in signs]

    def found(value: Any) -> Any:
        hits = [value == limit for limit in limits]
        return tirx.any(*hits) if hits else tirx.const(False, "bool")

    return _map(c, found, x)


def _map(c: Context, function: Callable[..., Any], *args: Any) -> Any:
    """An elementwise function of equally shaped tensors."""
    name = c.node.op_type.lower()
    return c.te(
        name,
        lambda *tensors: te.compute(
            tensors[0].shape, lambda *i: function(*(tensor(*i) for tensor in tensors)), name=name
        ),
        *args,
        pattern=ELEMENTWISE,
    )


def _hyperbolic(sign: int) -> Converter:
    """cosh (sign 1) and sinh (sign -1), for which LLVM has no instruction; sinh near 0 by its series."""

    def convert(c: Context, inputs: list[Any]) -> Any:
        dtype = dtype_of(inputs[0])
        if dtype not in FLOATS:
            return NotImplemented

        def value(x: Any) -> Any:
            half = tirx.const(0.5, dtype)
            whole = half * tirx.exp(x) + tirx.const(0.5 * sign, dtype) * tirx.exp(-x)
            if sign > 0:
                return whole
            square = x * x
            series = x * (
                tirx.const(1, dtype)
                + square * (tirx.const(1 / 6, dtype) + square * (tirx.const(1 / 120, dtype) + square / 5040))
            )
            return tirx.Select(tirx.abs(x) < half, series, whole)

        return _map(c, value, inputs[0])

    return convert


def mish(c: Context, inputs: list[Any]) -> Any:
    """x tanh(log(1 + e^x)) = x (w^2 + 2 w) / (w^2 + 2 w + 2) with w = e^x, which cancels nowhere."""
    dtype = dtype_of(inputs[0])
    if dtype not in ("float32", "float64"):
        return NotImplemented

    def value(x: Any) -> Any:
        w = tirx.exp(tirx.min(x, tirx.const(20, dtype)))
        top = w * (w + tirx.const(2, dtype))
        return tirx.Select(x > tirx.const(20, dtype), x, x * top / (top + tirx.const(2, dtype)))

    return _map(c, value, inputs[0])


def power(c: Context, inputs: list[Any]) -> Any:
    """Pow whose operands differ in type, or are integers."""
    x, y = inputs
    left, right = dtype_of(x), dtype_of(y)
    if left == right and left in FLOATS:
        return NotImplemented
    x, y = _broadcast(c, x, y)
    if left in FLOATS or right in FLOATS:
        wide = "float64" if "float64" in (left, right) or "int64" in (left, right) else "float32"
        return _map(c, lambda a, b: tirx.power(a.astype(wide), b.astype(wide)).astype(left), x, y)
    if left not in ("int32", "int64"):
        return NotImplemented

    def integer(base: Any, exponent: Any) -> Any:
        # Squaring by the six bits that can matter: beyond them every base but 0, 1, -1 has overflowed, and those three
        # depend on the parity only.
        exponent = tirx.Select(exponent > 63, 62 + exponent % 2, exponent)
        result: Any = tirx.const(1, left)
        square = base
        for bit in range(6):
            odd = tirx.bitwise_and(tirx.shift_right(exponent, tirx.const(bit, right)), tirx.const(1, right)) == 1
            result = tirx.Select(odd, result * square, result)
            square = square * square
        return result

    return _map(c, integer, x, y)


def _broadcast(c: Context, *args: Any) -> list[Any]:
    """The tensors at the shape of the node's output."""
    out = c.out_shape
    return [x if shape_of(x) == out else c.builder.emit(relax.op.broadcast_to(x, out)) for x in args]


def modulo(c: Context, inputs: list[Any]) -> Any:
    """Mod of floats: the sign of the dividend with fmod=1, else of the divisor."""
    dtype = dtype_of(inputs[0])
    if dtype not in FLOATS:
        return NotImplemented
    x, y = _broadcast(c, *inputs)
    truncated = bool(c.integer("fmod"))
    zero = tirx.const(0, dtype)

    def value(a: Any, b: Any) -> Any:
        wide, name = ("float64", "fmod") if dtype == "float64" else ("float32", "fmodf")  # of the C library
        rest = tirx.call_pure_extern(wide, name, a.astype(wide), b.astype(wide)).astype(dtype)
        if truncated:
            return rest
        unlike = tirx.any(tirx.all(rest < zero, b > zero), tirx.all(rest > zero, b < zero))
        return tirx.Select(unlike, rest + b, rest)

    return _map(c, value, x, y)


def bit_cast(c: Context, inputs: list[Any]) -> Any:
    """BitCast between types of one size."""
    dtype = c.node.outputs[0].dtype
    if dtype is None or "bool" in (target := str(dtype.numpy()), dtype_of(inputs[0])):
        return NotImplemented
    if dtype.itemsize != np.dtype(dtype_of(inputs[0])).itemsize or "bfloat16" in (target, dtype_of(inputs[0])):
        return NotImplemented
    return _map(c, lambda x: tirx.reinterpret(target, x), inputs[0])


def space(to_depth: bool) -> Converter:
    """SpaceToDepth, and DepthToSpace in both modes: a reshape, a transposition, a reshape."""

    def convert(c: Context, inputs: list[Any]) -> Any:
        (x,) = inputs
        block = c.integer("blocksize")
        n, channels, h, w = shape_of(x)
        if to_depth:
            split: tuple[int, ...] = (n, channels, h // block, block, w // block, block)
            column_row = c.text("mode", "DCR") == "CRD"
            order = [0, 1, 3, 5, 2, 4] if column_row else [0, 3, 5, 1, 2, 4]
        elif c.text("mode", "DCR") == "CRD":
            split, order = (n, channels // block**2, block, block, h, w), [0, 1, 4, 2, 5, 3]
        else:
            split, order = (n, block, block, channels // block**2, h, w), [0, 3, 4, 1, 5, 2]
        moved = c.builder.emit(relax.op.permute_dims(c.reshape(x, split), order))
        return c.reshape(moved, c.out_shape)

    return convert


def concat(c: Context, inputs: list[Any]) -> Any:
    """Concat without its empty operands."""
    filled = [x for x in inputs if 0 not in shape_of(x)]
    if len(filled) == len(inputs):
        return NotImplemented
    return filled[0] if len(filled) == 1 else relax.op.concat(filled, c.integer("axis"))


def split(c: Context, inputs: list[Any]) -> Any:
    """Split, of which a part may be empty."""
    x = inputs[0]
    axis = c.integer("axis") % len(shape_of(x))
    begin = 0
    parts = []
    for value in c.node.outputs:
        if value.shape is None:
            return NotImplemented
        length = tuple(value.shape.numpy())[axis]
        if math.prod(value.shape.numpy()):
            part = relax.op.strided_slice(x, [axis], [begin], [begin + length])
        else:
            part = known(np.zeros(value.shape.numpy(), np.dtype(dtype_of(x))))
        parts.append(part)
        begin += length
    return parts


def reduction(of_nothing: float) -> Converter:
    """A reduction over no elements is a constant. All others are TVM's."""

    def convert(c: Context, inputs: list[Any]) -> Any:
        x = inputs[0]
        dtype = dtype_of(x)
        if 0 in shape_of(x):
            value = False if dtype == "bool" and of_nothing < 0 else of_nothing
            if np.dtype(dtype).kind in "iu" and math.isinf(value):
                limits = np.iinfo(dtype)
                value = limits.max if value > 0 else limits.min
            return known(np.full(c.out_shape, value, np.dtype(dtype)))
        return NotImplemented

    return convert


def extreme(largest: bool) -> Converter:
    """ReduceMax and ReduceMin: TVM's maximum starts at the lowest finite number, and has no booleans."""
    of_nothing = reduction(-math.inf if largest else math.inf)

    def convert(c: Context, inputs: list[Any]) -> Any:
        x = inputs[0]
        shape, dtype = shape_of(x), dtype_of(x)
        axes = _axes(c)
        if 0 in shape:
            return of_nothing(c, inputs)
        if dtype not in (*FLOATS, "bool") or axes is None or (not len(axes) and c.integer("noop_with_empty_axes")):
            return NotImplemented
        places = sorted(int(axis) % len(shape) for axis in axes) if len(axes) else list(range(len(shape)))
        if not places:
            return NotImplemented
        keep = bool(c.integer("keepdims", 1))
        working = "int8" if dtype == "bool" else dtype
        low = 0 if working == "int8" else -math.inf
        high = 1 if working == "int8" else math.inf

        def compute(v: Any) -> Any:
            reducer = te.comm_reducer(
                lambda a, b: tirx.max(a, b) if largest else tirx.min(a, b),
                lambda t: tirx.const(low if largest else high, t),
                name="extreme",
            )
            inner = [te.reduce_axis((0, shape[axis]), name=f"r{axis}") for axis in places]

            def element(*i: Any) -> Any:
                outer, chosen = iter(i), iter(inner)
                index = []
                for axis in range(len(shape)):
                    if axis in places:
                        index.append(next(chosen))
                        if keep:
                            next(outer)
                    else:
                        index.append(next(outer))
                return reducer(v(*index).astype(working), axis=inner)

            return te.compute(c.out_shape, element, name="extreme")

        y = c.te("extreme", compute, x, pattern=REDUCTION)
        return y if dtype == working else relax.op.astype(y, dtype)

    return convert


def _axes(c: Context) -> NDArray[Any] | tuple[int, ...] | None:
    if len(c.node.inputs) < 2 or c.node.inputs[1] is None:
        return c.integers("axes")
    return constant(c, 1)


def dropout(c: Context, inputs: list[Any]) -> Any:
    """Dropout in inference: the input, and a mask of ones."""
    training = constant(c, 2) if len(inputs) > 2 and inputs[2] is not None else np.array(False)
    if training is None or training.any():
        return NotImplemented
    results = [inputs[0]]
    if len(c.node.outputs) > 1:
        results.append(known(np.ones(shape_of(inputs[0]), np.bool_)))
    return results


def in_single(c: Context, inputs: list[Any]) -> Any:
    """Half-precision sums and exponentials in single precision, rounded once at the end, as other runtimes do."""
    dtype = dtype_of(inputs[0])
    inner = converters.STANDARD.get(c.node.op_type)
    if dtype not in HALVES or inner is None:
        return NotImplemented
    wide = [None if x is None else _single(c, x) for x in inputs]
    if c.node.op_type == "MatMul":
        result = inner(c, wide)
        result = relax.op.matmul(*wide) if result is NotImplemented else result
    else:
        result = inner(c, wide)
    if result is NotImplemented or isinstance(result, list):
        return NotImplemented
    return relax.op.astype(c.builder.emit(result) if not isinstance(result, relax.Var) else result, dtype)


_CARRIED = (
    *("relax.add", "relax.subtract", "relax.multiply", "relax.divide", "relax.where"),
    *("relax.permute_dims", "relax.reshape", "relax.expand_dims", "relax.broadcast_to", "relax.concat"),
)
"""Operators that are cheaply done again in single precision."""


def _single(c: Context, x: Any, depth: int = 6) -> Any:
    """`x` in single precision: what it was rounded from, through elementwise operators, where that is at hand."""
    made: Any = c.builder.lookup_binding(x) if isinstance(x, relax.Var) else None
    name = str(getattr(made.op, "name", "")) if isinstance(made, relax.Call) else ""
    if name == "relax.astype" and dtype_of(made.args[0]) == "float32":
        return made.args[0]
    if name in _CARRIED and depth and all(isinstance(a.ty, relax.TensorType | relax.ShapeType) for a in made.args):
        dtype = dtype_of(x)
        tensors = [isinstance(a.ty, relax.TensorType) and dtype_of(a) == dtype for a in made.args]
        wide = [_single(c, a, depth - 1) if half else a for a, half in zip(made.args, tensors, strict=True)]
        return c.builder.emit(relax.Call(made.op, wide, made.attrs))
    return c.builder.emit(relax.op.astype(x, "float32"))


def lp_normalization(c: Context, inputs: list[Any]) -> Any:
    """x / |x|_p along an axis, and 0 where the norm is 0."""
    (x,) = inputs
    dtype = dtype_of(x)
    if dtype not in ("float32", "float64"):
        return NotImplemented
    axis = c.integer("axis", -1)
    emit = c.builder.emit
    if c.integer("p", 2) == 1:
        norm = emit(relax.op.sum(emit(relax.op.abs(x)), axis, keepdims=True))
    else:
        norm = emit(relax.op.sqrt(emit(relax.op.sum(emit(relax.op.multiply(x, x)), axis, keepdims=True))))
    whole = emit(relax.op.broadcast_to(norm, shape_of(x)))
    zero = tirx.const(0, dtype)
    return _map(c, lambda a, b: tirx.if_then_else(b == zero, zero, a / b), x, whole)


STANDARD: dict[str, Converter] = {
    **converters_index.STANDARD,
    **converters_quantized.STANDARD,
    **converters_resize.STANDARD,
    "BitCast": bit_cast,
    "Concat": concat,
    "ConvTranspose": converters_transpose.conv_transpose,
    "Cosh": _hyperbolic(1),
    "DepthToSpace": space(to_depth=False),
    "Dropout": dropout,
    "EyeLike": eye_like,
    "Gemm": in_single,
    "IsInf": is_inf,
    "LogSoftmax": in_single,
    "LpNormalization": lp_normalization,
    "MatMul": in_single,
    "Mish": mish,
    "Mod": modulo,
    "Pow": power,
    "ReduceL1": reduction(0),
    "ReduceL2": reduction(0),
    "ReduceLogSum": reduction(-math.inf),
    "ReduceLogSumExp": reduction(-math.inf),
    "ReduceMax": extreme(largest=True),
    "ReduceMin": extreme(largest=False),
    "ReduceProd": reduction(1),
    "ReduceSum": reduction(0),
    "ReduceSumSquare": reduction(0),
    "Shape": shape,
    "Sinh": _hyperbolic(-1),
    "Size": size,
    "Softmax": in_single,
    "SpaceToDepth": space(to_depth=True),
    "Split": split,
}


def lookup(node: ir.Node) -> Converter | None:
    """The converter of `node` in this file or one it collects, if there is one."""
    return STANDARD.get(node.op_type) if node.domain in ("", "ai.onnx") else None
