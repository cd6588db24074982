"""Rules of normalize for sums, products, BatchNormalization and Gemm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Editor, Rule, array_of, dims, ints, scalar_of
from graphopt.passes.normalize.shapes import drop


def _replace(editor: Editor, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None]) -> None:
    y = node.outputs[0]
    new = editor.insert(
        node,
        op_type,
        inputs,
        shape=y.shape,
        dtype=y.dtype,
        name=f"{node.name}.{op_type.lower()}",
        output=f"{y.name}.{op_type.lower()}",
        origin=[node],
    )
    editor.swap(node, new)


def _sum(editor: Editor, node: ir.Node) -> str | None:
    """Sum of n inputs -> n - 1 Adds, from the left as ONNX Runtime adds."""
    if len(node.inputs) == 1:
        drop(editor, node)
        return None
    shapes = [dims(value) for value in node.inputs]
    if any(shape is None for shape in shapes):
        return "an input of Sum has no static shape"
    total = node.inputs[0]
    shape = shapes[0] or ()
    for value, other in zip(node.inputs[1:], shapes[1:], strict=True):
        shape = np.broadcast_shapes(shape, other or ())
        total = editor.insert(
            node,
            "Add",
            [total, value],
            shape=shape,
            dtype=node.outputs[0].dtype,
            name=f"{node.name}.add",
            output=f"{node.outputs[0].name}.add",
            origin=[node],
        )
    assert total is not None
    editor.swap(node, total)
    return None


def _constant_second(editor: Editor, node: ir.Node) -> None:
    """Add(const, x) -> Add(x, const), and Mul alike."""
    a, b = node.inputs
    if a is None or b is None or not a.is_initializer() or b.is_initializer():
        return
    node.replace_input_with(0, b)
    node.replace_input_with(1, a)
    editor.modified = True


def _neutral(editor: Editor, node: ir.Node) -> None:
    """Add(x, 0) and Mul(x, 1) -> x, when the constant does not broadcast x to a larger shape.

    A float zero must be -0.0, because -0.0 + 0.0 is 0.0.
    """
    array = array_of(node.inputs[1])
    if array is None or not array.size or dims(node.outputs[0]) is None:
        return
    if dims(node.outputs[0]) != dims(node.inputs[0]) or not (array == (1 if node.op_type == "Mul" else 0)).all():
        return
    if node.op_type == "Mul" or array.dtype.kind in "iu" or np.signbit(array.astype(np.float64)).all():
        drop(editor, node)


def _inverse(editor: Editor, node: ir.Node) -> None:
    """Sub(x, const) -> Add(x, -const); Div(x, const) -> Mul(x, 1/const) for powers of two, whose inverse is exact."""
    array = array_of(node.inputs[1])
    if array is None or array.dtype not in (np.float32, np.float64) or not np.isfinite(array).all():
        return
    if node.op_type == "Sub":
        other = -array
    else:
        mantissas, _ = np.frexp(array)
        if not (np.abs(mantissas) == 0.5).all():
            return
        with np.errstate(over="ignore"):
            other = 1 / array
        magnitude = np.abs(other)
        if not np.isfinite(other).all() or (magnitude < np.finfo(array.dtype).tiny).any():
            return
    constant = editor.constant(other, f"{node.name}.constant")
    _replace(editor, node, "Add" if node.op_type == "Sub" else "Mul", [node.inputs[0], constant])


def _batch_normalization(editor: Editor, node: ir.Node) -> str | None:
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias -> Add(Mul(x, factor), shift), computed in float64."""
    if node.attributes.get_int("training_mode", 0) or len([v for v in node.outputs if v.name]) > 1:
        return "BatchNormalization is in training mode"
    x = node.inputs[0]
    arrays = [array_of(value) for value in node.inputs[1:5]]
    if x is None or x.shape is None or any(array is None for array in arrays):
        return "the parameters of BatchNormalization are not constant"
    scale, bias, mean, variance = (array.astype(np.float64) for array in arrays if array is not None)
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        shift = bias - mean * factor
    if not (np.isfinite(factor).all() and np.isfinite(shift).all()):
        return "its parameters give infinity or NaN"
    rank = len(x.shape)
    extents = (1, -1) + (1,) * (rank - 2) if rank > 1 else (-1,)
    dtype = x.dtype.numpy() if x.dtype is not None else np.dtype(np.float32)
    product = editor.insert(
        node,
        "Mul",
        [x, editor.constant(factor.astype(dtype).reshape(extents), f"{node.name}.factor")],
        shape=node.outputs[0].shape,
        dtype=x.dtype,
        name=f"{node.name}.mul",
        output=f"{node.outputs[0].name}.mul",
        origin=[node],
    )
    _replace(
        editor, node, "Add", [product, editor.constant(shift.astype(dtype).reshape(extents), f"{node.name}.shift")]
    )
    return None


def _gemm(editor: Editor, node: ir.Node) -> str | None:
    """Gemm{alpha, beta}(a, b, c) -> Gemm(a, alpha b, beta c) for constant b and c; beta 0 drops c."""
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    c = node.inputs[2] if len(node.inputs) > 2 else None
    if c is None:
        beta = 1.0
    if alpha == 1.0 and beta == 1.0:
        return None
    inputs = [node.inputs[0], _scaled(editor, node, node.inputs[1], alpha)]
    if c is not None and beta != 0.0:
        inputs.append(_scaled(editor, node, c, beta))
    if any(value is None for value in inputs):
        return "alpha or beta of Gemm scale a matrix that is not constant"
    attributes = {name: node.attributes.get_int(name, 0) for name in ("transA", "transB")}
    y = node.outputs[0]
    new = editor.insert(
        node,
        "Gemm",
        inputs,
        attributes,
        shape=y.shape,
        dtype=y.dtype,
        name=f"{node.name}.gemm",
        output=f"{y.name}.gemm",
        origin=[node],
    )
    editor.swap(node, new)
    return None


def _scaled(editor: Editor, node: ir.Node, value: ir.Value | None, factor: float) -> ir.Value | None:
    """The constant times `factor`; None when it is not constant and the factor is not 1."""
    if factor == 1.0 or value is None:
        return value
    array = array_of(value)
    return None if array is None else editor.constant((array * factor).astype(array.dtype), f"{node.name}.scaled")


def _mean_variance(editor: Editor, node: ir.Node) -> str | None:
    """y = c / sqrt(mean(c c)) with c = x - mean(x), as ONNX Runtime computes floats.

    The function that ONNX defines subtracts squares of nearly equal means instead.
    """
    x, axes = node.inputs[0], ints(node, "axes", [0, 2, 3])
    shape = dims(x)
    if x is None or x.dtype != ir.DataType.FLOAT:
        return None
    if shape is None:
        return "its shape is not static"
    kept = [1 if axis in {reduced % len(shape) for reduced in axes} else extent for axis, extent in enumerate(shape)]
    where = editor.constant(np.array(axes, np.int64), f"{node.name}.axes")

    def emit(op_type: str, inputs: list[ir.Value], extents: Sequence[int], name: str) -> ir.Value:
        name = f"{node.name}.{name}"
        return editor.insert(node, op_type, inputs, shape=extents, dtype=x.dtype, name=name, output=name, origin=[node])

    centred = emit("Sub", [x, emit("ReduceMean", [x, where], kept, "mean")], shape, "centred")
    squares = emit("Mul", [centred, centred], shape, "squares")
    variance = emit("ReduceMean", [squares, where], kept, "variance")
    _replace(editor, node, "Div", [centred, emit("Sqrt", [variance], kept, "deviation")])
    return None


def _clip(editor: Editor, node: ir.Node) -> None:
    """Clip(x, 0, infinity) -> Relu(x), Clip(x) -> Clip(x, -L, L): L is the largest number, which infinities become."""
    dtype = node.outputs[0].dtype
    if dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16):
        return
    largest = np.finfo(dtype.numpy()).max
    given = [*node.inputs[1:3], None, None][:2]
    if None in given:
        for index, (bound, name, number) in enumerate(zip(given, ("min", "max"), (-largest, largest), strict=True)):
            if bound is None:
                given[index] = editor.constant(np.array(number), f"{node.name}.{name}")
        node.resize_inputs(3)
        for index, bound in enumerate(given, start=1):
            node.replace_input_with(index, bound)
        editor.modified = True
    low, high = (scalar_of(bound) for bound in given)
    if low == 0 and high == math.inf and dtype != ir.DataType.FLOAT16:
        _replace(editor, node, "Relu", [node.inputs[0]])


ARITHMETIC: dict[str, tuple[Rule, ...]] = {
    "Sum": (_sum,),
    "Add": (_constant_second, _neutral),
    "Mul": (_constant_second, _neutral),
    "Sub": (_inverse,),
    "Div": (_inverse,),
    "BatchNormalization": (_batch_normalization,),
    "Gemm": (_gemm,),
    "Clip": (_clip,),
    "MeanVarianceNormalization": (_mean_variance,),
}
