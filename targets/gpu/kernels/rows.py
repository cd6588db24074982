"""Softmax, layer normalization and their like: a block for each row, which stays in shared memory."""

from __future__ import annotations

from tvm import s_tir

from graphopt.program import ITEM_BYTES
from graphopt.targets.gpu.devices import Device
from graphopt.targets.gpu.kernels.generic import threads_for
from graphopt.targets.kernels.common import Block, blocks_of, dtype_of


def schedule(sch: s_tir.Schedule, anchor: Block, device: Device) -> None:
    """Every block inside the row loop of the last one; sums across the threads of the block.

    Raises:
        ValueError: the blocks are not all rows, or sums over rows.
    """
    rows, n = anchor.spatial[0], max(anchor.reduce)
    if any(block.spatial[:1] != (rows,) or len(block.spatial) + len(block.reduce) != 2 for block in blocks_of(sch)):
        raise ValueError("it is not made of rows")
    kept = sum(ITEM_BYTES[dtype_of(sch, block.rv)] * n for block in blocks_of(sch)[:-1] if not block.reduce)
    if kept > device.shared_per_block // 2:
        for block in blocks_of(sch)[:-1]:
            if not block.reduce:
                sch.compute_inline(block.rv)
    *before, last = blocks_of(sch)
    threads = threads_for(n, device)
    if last.reduce:
        raise ValueError("its result is a sum")
    row, column = sch.get_loops(last.rv)
    _, thread = sch.split(column, [None, threads])
    sch.bind(row, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    for block in reversed(before):
        sch.compute_at(block.rv, row, preserve_unit_loops=True)
        sch.set_scope(block.rv, 0, "shared")
        *_, inner = sch.get_loops(block.rv)
        _, own = sch.split(inner, [None, threads])
        sch.bind(own, "threadIdx.x")
