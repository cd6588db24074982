"""Functions of the backward pass on fp16 and bf16, in single precision."""

from __future__ import annotations

from tvm import relax

from graphopt.targets.common.converters.base import HALF_DTYPES, Context, Converter, Inputs, Outputs, dtype_of
from graphopt.targets.common.converters.half_precision import rounded, widened


def in_single(inner: Converter) -> Converter:
    """The operator of `inner` with half-precision operands widened; each output gets the type that it is declared with.

    Unlike `half_precision.in_single` this serves outputs of several types: places of maxima, statistics in fp32.
    """

    def convert(c: Context, inputs: Inputs) -> Outputs:
        if not any(x is not None and dtype_of(x) in HALF_DTYPES for x in inputs):
            return NotImplemented
        result = inner(c, widened(c, inputs))
        if result is NotImplemented:
            return NotImplemented
        if not isinstance(result, list):
            return _declared(c, 0, result)
        return [None if each is None else _declared(c, number, each) for number, each in enumerate(result)]

    return convert


def _declared(c: Context, number: int, result: relax.Expr) -> relax.Expr:
    """Output `number` in the type of the node's output."""
    kind = c.node.outputs[number].dtype
    wanted = "" if kind is None else kind.name.lower()
    return rounded(c, result, wanted) if wanted in HALF_DTYPES else result
