"""Concat without a copy: the producers write their results straight into their slices of the concatenated tensor.

Where the parts are contiguous in the result, as on axis 1 of one image, Concat needs no kernel: memory planning makes
each part a view of the result. Relax carries such a Concat through fusion as an opaque call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx

from graphopt.program.program import ALIGNMENT, ITEM_BYTES, Place, Value

NAME = "graphopt.join"

LEAST_BYTES = 1 << 14
"""Results below this are copied: the copy costs about as much as the call, and may be fused with its consumers."""


def possible(shapes: Sequence[tuple[int, ...]], dtype: str, axis: int) -> bool:
    """Whether parts of these shapes are contiguous in the result, each aligned, and large enough to be views."""
    sizes = [math.prod(shape) * ITEM_BYTES.get(dtype, 0) for shape in shapes]
    aligned = all(size % ALIGNMENT == 0 for size in sizes[:-1])
    return math.prod(shapes[0][:axis]) == 1 and aligned and sum(sizes) >= LEAST_BYTES


def emit(builder: relax.BlockBuilder, parts: Sequence[relax.Expr], shape: tuple[int, ...], dtype: str) -> relax.Var:
    """Emit the concatenated tensor as an opaque call."""
    result = relax.TensorType(shape, dtype)
    return builder.emit(relax.op.call_dps_packed(NAME, relax.Tuple(list(parts)), [result]))


def parts_of(value: relax.Expr) -> list[relax.Expr] | None:
    """The parts of an emitted concatenation view; None if `value` is something else."""
    if not isinstance(value, relax.Call) or str(getattr(value.op, "name", "")) != "relax.call_dps_packed":
        return None
    return list(value.args[1].fields) if str(value.args[0].global_symbol) == NAME else None


def offsets(parts: Sequence[Value]) -> Iterator[tuple[Value, int]]:
    """Each part with its byte offset in the result."""
    start = 0
    for part in parts:
        yield part, start
        start += part.nbytes


def root(name: str, values: dict[str, Value]) -> tuple[str, int]:
    """The value that holds the bytes of `name` and is no view itself, and the byte offset of `name` in it."""
    start = 0
    while values[name].place is Place.VIEW:
        start += values[name].offset
        name = values[name].of
    return name, start


def flatten(values: dict[str, Value]) -> None:
    """Make every view refer to a value that is no view itself."""
    for name, value in list(values.items()):
        if value.place is Place.VIEW:
            of, offset = root(name, values)
            values[name] = replace(value, of=of, offset=offset)


def shown(array: NDArray[Any], value: Value) -> NDArray[Any]:
    """The view `value` of `array`, which holds the value that `value` is a view of."""
    data = array.reshape(-1).view(np.uint8)[value.offset : value.offset + value.nbytes]
    return data.view(array.dtype).reshape(value.shape or ())


def copy_kernel(shape: tuple[int, ...], dtype: str) -> tirx.PrimFunc:
    """A PrimFunc that copies a tensor, for a part that its producer could not write in place."""
    source = te.placeholder(shape, dtype, name="x")
    return te.create_prim_func([source, te.compute(shape, lambda *i: source(*i), name="copy")])
