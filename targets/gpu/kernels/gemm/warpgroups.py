"""The instructions that warpgroups (four warps) multiply with on Hopper (sm_90a), as PTX gives them.

`multiply_group` is D[64, n] += A[64, 16] B[16, n] on matrices in shared memory, which 64-bit descriptors name: the
address and the distance of eight rows, both in units of 16 bytes, and the kind of swizzle. Warp w has rows 16w to
16w + 15 of D, in the lanes of `tensor_cores`, four floats for every eight columns. It is asynchronous: sums belong to
the instruction from `open` until `settle`. Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
"""

from __future__ import annotations

from typing import Protocol

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.gpu.kernels.gemm import tensor_cores
from graphopt.targets.gpu.kernels.gemm.tensor_cores import TensorCores

GROUP_ROWS = 64
"""Rows of A and D of one instruction of four warps."""

DEPTH = 16
"""fp16 or bf16 elements along k of one instruction."""

CHUNK = 8
"""fp16 or bf16 elements per 16 bytes."""

_EIGHT_ROWS = 8 * 128
"""Bytes from eight rows to the next eight."""

_SWIZZLE_128 = 1
"""The descriptor's name of the 128-byte swizzle."""


class Units(tensor_cores.Units, Protocol):
    """What a kernel template needs of warpgroups, besides copies and loops."""

    def describe(self, shared: tirx.Buffer) -> None:
        """Prepare for operands in this buffer."""

    def publish(self) -> None:
        """Let the cores see what this thread has copied to shared memory."""

    def open(self) -> None:
        """Begin a group: the registers of the sums are ready for its first `multiply_group`."""

    def multiply_group(self, sums: tirx.Buffer, n: int, shared: tirx.Buffer, left: Expr, right: Expr) -> None:
        """Begin D += A B for the n columns of `sums`; A and B begin at elements `left` and `right` of shared memory."""

    def close(self) -> None:
        """Close a group, after its last `multiply_group`."""

    def settle(self, sums: tirx.Buffer, pending: int) -> None:
        """Wait until all but the last `pending` groups are done."""


class WarpGroups(TensorCores):
    """`Units` of sm_90a."""

    def describe(self, shared: tirx.Buffer) -> None:
        """Prepare what all descriptors share: where shared memory begins, in their units, stride and swizzle."""
        self._base = T.alloc_buffer((1,), "uint64", scope="local")
        start = T.cuda.cvta_generic_to_shared(tirx.address_of(shared[0]))
        constant = 1 << 16 | _EIGHT_ROWS // 16 << 32 | _SWIZZLE_128 << 62
        units = (start.astype("uint64") >> tirx.IntImm("uint64", 4)) & tirx.IntImm("uint64", 0x3FFF)
        T.buffer_store(self._base, units | tirx.IntImm("uint64", constant), [0])

    def publish(self) -> None:
        """Fence: copies are made by the generic proxy, and the cores read by the asynchronous one."""
        T.evaluate(T.ptx.fence.proxy.async_.shared__cta())

    def open(self) -> None:
        """Fence the registers before the first `multiply_group` of a group (wgmma.fence)."""
        T.evaluate(T.ptx.wgmma.fence.sync.aligned())

    def multiply_group(self, sums: tirx.Buffer, n: int, shared: tirx.Buffer, left: Expr, right: Expr) -> None:
        """Begin D += A B for the n columns of `sums` (wgmma.mma_async)."""
        kind = tensor_cores.PTX[self.kind]
        multiply = getattr(T.ptx.wgmma.mma_async.sync.aligned, f"m{GROUP_ROWS}n{n}k{DEPTH}").f32
        descriptors = [self._base[0] + ((at * 2) >> 4).astype("uint64") for at in (left, right)]
        totals = [sums[i] for i in range(n // 2)]
        T.evaluate(getattr(getattr(multiply, kind), kind)(*totals, *descriptors, tirx.IntImm("bool", 1), 1, 1, 0, 0))

    def close(self) -> None:
        """Close a group of multiplications (wgmma.commit_group)."""
        T.evaluate(T.ptx.wgmma.commit_group.sync.aligned())

    def settle(self, sums: tirx.Buffer, pending: int) -> None:
        """Wait until all but the last `pending` groups are done (wgmma.wait_group)."""
        T.evaluate(T.ptx.wgmma.wait_group.sync.aligned(pending))
