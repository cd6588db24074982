"""Products whose k is shared out: several blocks sum parts of it, and a second kernel adds them up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.gpu.kernels.gemm.product import Product
from graphopt.targets.gpu.kernels.guards import inside, when

Store = Callable[[Any, Any, Any, Any], tuple[Any, Any, list[Any]]]
"""(b, m, n, total) -> (buffer, value, indices), as `Product.store`."""

SPLITS = (1, 2, 4, 8, 16, 32)
"""Into how many parts k may be cut."""


def split(product: Product, parts: int, threads: int, emit: Callable[[Store], None]) -> None:
    """Write both kernels, or the one where there is one part.

    Args:
        threads: of a block of the second.
        write: writes the kernel that sums, and stores with what it is given; its batch index counts parts fastest.
    """
    if parts == 1:
        emit(product.store)
        return
    results = product.batch * product.m * product.n
    sums = T.alloc_buffer((parts, results), product.dtype, scope="global")

    def keep(b: Any, m: Any, n: Any, total: Any) -> tuple[Any, Any, list[Any]]:
        return sums, total, [b % parts, (b // parts * product.m + m) * product.n + n]

    emit(keep)
    _add_up(product, sums, parts, results, threads)


def _add_up(product: Product, sums: Any, parts: int, results: int, threads: int) -> None:
    with (
        T.launch_thread("blockIdx.x", math.ceil(results / threads)) as block,
        T.launch_thread("threadIdx.x", threads) as thread,
    ):
        at = block * threads + thread
        total = T.alloc_buffer((1,), product.dtype, scope="local")
        with when(inside((at, results, threads))):
            T.buffer_store(total, const(0, product.dtype), [0])
            with T.serial(0, parts) as part:
                T.buffer_store(total, total[0] + sums[part, at], [0])
            row = at // product.n
            T.buffer_store(*product.store(row // product.m, row % product.m, at % product.n, total[0]))
