"""Concat without a copy: the kernels before it write their results straight into the places in the joined tensor.

Where the parts lie one behind the other in memory, as on axis 1 of one image, joining is planning alone: each
part becomes a view of the result. Relax carries such a Concat through fusion as a call that nothing looks into.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te

from graphopt.program.program import ALIGNMENT, ITEM_BYTES, Place, Value

NAME = "graphopt.join"

LEAST_BYTES = 1 << 14
"""Results below this are copied: that costs about as much as the call, and may be fused with what follows."""


def possible(shapes: Sequence[tuple[int, ...]], dtype: str, axis: int) -> bool:
    """Whether parts of these shapes lie one behind the other, each aligned, and are worth it."""
    sizes = [math.prod(shape) * ITEM_BYTES.get(dtype, 0) for shape in shapes]
    aligned = all(size % ALIGNMENT == 0 for size in sizes[:-1])
    return math.prod(shapes[0][:axis]) == 1 and aligned and sum(sizes) >= LEAST_BYTES


def emit(builder: Any, parts: Sequence[Any], shape: tuple[int, ...], dtype: str) -> Any:
    """The joined tensor."""
    result = relax.TensorType(shape, dtype)
    return builder.emit(relax.op.call_dps_packed(NAME, relax.Tuple(list(parts)), [result]))


def parts_of(value: Any) -> list[Any] | None:
    """The parts of an emitted join; None if `value` is something else."""
    if not isinstance(value, relax.Call) or str(getattr(value.op, "name", "")) != "relax.call_dps_packed":
        return None
    return list(value.args[1].fields) if str(value.args[0].global_symbol) == NAME else None


def offsets(parts: Sequence[Value]) -> Iterator[tuple[Value, int]]:
    """Each part with its first byte in the result."""
    start = 0
    for part in parts:
        yield part, start
        start += part.nbytes


def root(name: str, values: dict[str, Value]) -> tuple[str, int]:
    """The value that is no view and holds the bytes of `name`, and the first of those bytes."""
    start = 0
    while values[name].place is Place.VIEW:
        start += values[name].offset
        name = values[name].of
    return name, start


def flatten(values: dict[str, Value]) -> None:
    """Let every view show bytes of a value that is no view."""
    for name, value in list(values.items()):
        if value.place is Place.VIEW:
            of, offset = root(name, values)
            values[name] = replace(value, of=of, offset=offset)


def shown(array: NDArray[Any], value: Value) -> NDArray[Any]:
    """The part of `array`, which holds what `value` is a view of, that `value` shows."""
    data = array.reshape(-1).view(np.uint8)[value.offset : value.offset + value.nbytes]
    return data.view(array.dtype).reshape(value.shape or ())


def copy_kernel(shape: tuple[int, ...], dtype: str) -> Any:
    """A function that copies a tensor, for a part that was not written in its place."""
    source = te.placeholder(shape, dtype, name="x")
    return te.create_prim_func([source, te.compute(shape, lambda *i: source(*i), name="copy")])
