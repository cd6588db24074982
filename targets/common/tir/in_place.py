"""Which output of a kernel may be written over which of its inputs.

A kernel whose blocks are all elementwise computes element i of its results from element i of its operands, however it
is scheduled: an operand of the same type and shape is read for the last time when the result at its place is written.
"""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.ir import Range


def in_place(function: tirx.PrimFunc) -> tuple[tuple[int, int], ...]:
    """Pairs (position among the inputs, position among the outputs) of a function that is not scheduled yet.

    An operand that is read at other places than those written, or in a reduction, is in no pair, nor is one that a
    computed tensor passes on to such a place.
    """
    nests = _elementwise(function)
    if nests is None:
        return ()
    buffers = list(function.params)
    written = {block.writes[0].source for block in nests}
    outputs = [buffer for buffer in buffers if buffer in written]
    inputs = [buffer for buffer in buffers if buffer not in written]
    kept = [place for place, operand in enumerate(inputs) if _kept_in_place(operand, nests)]
    return tuple((i, o) for o, result in enumerate(outputs) for i in kept if _alike(inputs[i], result))


def _elementwise(function: tirx.PrimFunc) -> list[s_tir.SBlock] | None:
    """The blocks of a function in order, if each writes one element for each of its iterations and reduces nothing."""
    try:
        schedule = s_tir.Schedule(function)
        blocks = [schedule.get(rv) for rv in schedule.get_child_blocks(schedule.get_sblock("root"))]
    except s_tir.ScheduleError:
        return None
    for block in blocks:
        spatial = all(iterator.iter_type == tirx.IterVar.DataPar for iterator in block.iter_vars)
        if not spatial or block.init is not None or len(block.writes) != 1:
            return None
        if not _own(list(block.writes[0].region), block):
            return None
    return blocks


def _kept_in_place(operand: tirx.Buffer, blocks: list[s_tir.SBlock]) -> bool:
    """Whether the operand, and whatever is computed from it, is only read at the place that is written."""
    derived = {operand}
    for block in blocks:
        for read in block.reads:
            if read.source in derived:
                if not _own(list(read.region), block) or not _alike_shape(read.source, block.writes[0].source):
                    return False
                derived.add(block.writes[0].source)
    return True


def _own(region: list[Range], block: s_tir.SBlock) -> bool:
    """Whether a region is the one element that the block's iterators name, in order."""
    if not region:  # a scalar
        return all(int(iterator.dom.extent) == 1 for iterator in block.iter_vars)
    return len(region) == len(block.iter_vars) and all(
        _number(part.extent) == 1
        and (part.min.same_as(iterator.var) or (int(iterator.dom.extent) == 1 and _number(part.min) == 0))
        for part, iterator in zip(region, block.iter_vars, strict=True)
    )


def _number(expression: object) -> object:
    """The value of a constant; None for any other expression."""
    return getattr(expression, "value", None)


def _alike_shape(one: tirx.Buffer, other: tirx.Buffer) -> bool:
    return [int(d) for d in one.shape] == [int(d) for d in other.shape]


def _alike(one: tirx.Buffer, other: tirx.Buffer) -> bool:
    return str(one.dtype) == str(other.dtype) and _alike_shape(one, other)
