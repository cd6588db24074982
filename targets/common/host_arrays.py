"""Arrays on the host as kernels take them: aligned, and as TVM's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from graphopt.program.program import ALIGNMENT


def empty(shape: Sequence[int], dtype: str) -> NDArray[Any]:
    """An uninitialised array that starts at a multiple of ALIGNMENT, as kernels expect."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(kind).reshape(tuple(shape))


def tensor(array: NDArray[Any]) -> tvm.runtime.Tensor:
    """A TVM view of `array`; a copy only where it is not aligned, or empty, which numpy places anywhere."""
    if not array.size:
        return tvm.runtime.empty(array.shape, "bfloat16" if array.dtype.kind == "V" else str(array.dtype))
    if array.ctypes.data % ALIGNMENT:
        aligned = empty(array.shape, str(array.dtype))
        aligned[...] = array
        array = aligned
    if array.dtype.kind == "V":  # bfloat16, which numpy does not pass on: its bits
        return tensor(array.view(f"u{array.dtype.itemsize}"))._create_view(array.shape, str(array.dtype))
    return tvm.runtime.from_dlpack(array) if array.flags.writeable else tvm.runtime.tensor(array)
