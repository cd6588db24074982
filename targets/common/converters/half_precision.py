"""Half-precision sums and exponentials in single precision, rounded once at the end, as other runtimes do."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.targets.common.converters.base import HALF_DTYPES, Context, Converter, Inputs, Outputs, dtype_of

SINGLE = (
    *("AveragePool", "CumSum", "GlobalAveragePool", "GlobalLpPool", "GroupNormalization", "InstanceNormalization"),
    *("LRN", "LpPool", "Mean", "MeanVarianceNormalization", "RMSNormalization"),
)
"""Operators of TVM's importer that sum elements."""


def in_single(inner: Converter) -> Converter:
    """The operator of `inner` for half-precision operands."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        dtype = dtype_of(inputs[0])
        if dtype not in HALF_DTYPES:
            return NotImplemented
        wide = widened(c, inputs)
        result = inner(c, wide)
        if result is NotImplemented and c.node.op_type == "MatMul":
            result = relax.op.matmul(*wide)
        if result is NotImplemented:
            return NotImplemented
        if isinstance(result, list):
            return [None if each is None else rounded(c, each, dtype) for each in result]
        return rounded(c, result, dtype)

    return convert


def widened(c: Context, inputs: Inputs) -> Inputs:
    """The operands, with fp16 and bf16 cast to single precision."""
    return [_single(c, x) if x is not None and dtype_of(x) in HALF_DTYPES else x for x in inputs]


def rounded(c: Context, result: relax.Expr, dtype: str) -> relax.Expr:
    """A result rounded to half precision."""
    return relax.op.astype(result if isinstance(result, relax.Var) else c.builder.emit(result), dtype)


_CARRIED = (
    *("relax.add", "relax.subtract", "relax.multiply", "relax.divide", "relax.where"),
    *("relax.permute_dims", "relax.reshape", "relax.expand_dims", "relax.broadcast_to", "relax.concat"),
)
"""Operators that are cheap to recompute in single precision."""


def _single(c: Context, x: relax.Expr, depth: int = 6) -> relax.Expr:
    """`x` in single precision: the value that it was rounded from, traced through `_CARRIED`, where there is one."""
    binding: Any = c.builder.lookup_binding(x) if isinstance(x, relax.Var) else None
    name = str(getattr(binding.op, "name", "")) if isinstance(binding, relax.Call) else ""
    if name == "relax.astype" and dtype_of(binding.args[0]) == "float32":
        return binding.args[0]
    if name in _CARRIED and depth and all(isinstance(a.ty, relax.TensorType | relax.ShapeType) for a in binding.args):
        dtype = dtype_of(x)
        tensors = [isinstance(a.ty, relax.TensorType) and dtype_of(a) == dtype for a in binding.args]
        wide = [_single(c, a, depth - 1) if half else a for a, half in zip(binding.args, tensors, strict=True)]
        return c.builder.emit(relax.Call(binding.op, wide, binding.attrs))
    return c.builder.emit(relax.op.astype(x, "float32"))
