"""Split-K: several blocks share the k of a GEMM, and a second kernel adds up their sums."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.common.kernels.guards import inside, when
from graphopt.targets.gpu.kernels.gemm.product import Gemm

Store = Callable[[Expr, Expr, Expr, Expr], tuple[tirx.Buffer, Expr, list[Expr]]]
"""(b, m, n, total) -> (buffer, value, indices), as `Gemm.store`."""

SPLITS = (1, 2, 4, 8, 16, 32)
"""Into how many parts k may be cut."""


def split(gemm: Gemm, parts: int, threads: int, emit: Callable[[Store], None]) -> None:
    """Emit both kernels, or the one where there is one part.

    Args:
        threads: threads per block of the second.
        emit: emits the kernel that sums, and stores with what it is given; its batch index counts parts fastest.
    """
    if parts == 1:
        emit(gemm.store)
        return
    results = gemm.batch * gemm.m * gemm.n
    sums = T.alloc_buffer((parts, results), gemm.dtype, scope="global")

    def keep(b: Expr, m: Expr, n: Expr, total: Expr) -> tuple[tirx.Buffer, Expr, list[Expr]]:
        return sums, total, [b % parts, (b // parts * gemm.m + m) * gemm.n + n]

    emit(keep)
    _add_up(gemm, sums, parts, results, threads)


def _add_up(gemm: Gemm, sums: tirx.Buffer, parts: int, results: int, threads: int) -> None:
    with (
        T.launch_thread("blockIdx.x", math.ceil(results / threads)) as block,
        T.launch_thread("threadIdx.x", threads) as thread,
    ):
        at = block * threads + thread
        total = T.alloc_buffer((1,), gemm.dtype, scope="local")
        with when(inside((at, results, threads))):
            T.buffer_store(total, const(0, gemm.dtype), [0])
            with T.serial(0, parts) as part:
                T.buffer_store(total, total[0] + sums[part, at], [0])
            row = at // gemm.n
            T.buffer_store(*gemm.store(row // gemm.m, row % gemm.m, at % gemm.n, total[0]))
