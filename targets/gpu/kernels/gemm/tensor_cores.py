"""The instructions of GEMMs on tensor cores, as PTX gives them.

A warp's `multiply` is D[16, 8] += A[16, depth] B[depth, 8], where depth is two chunks of 16 bytes: 16 elements of fp16
or bf16, or 8 words rounded to TF32. Lane l holds, with g = l / 4 and t = l % 4,

    A   4 registers: (row g, chunk 0), (row g + 8, chunk 0), (row g, chunk 1), (row g + 8, chunk 1)
    B   2 registers: (column g, chunk 0), (column g, chunk 1)
    D   4 floats:    (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)

and of a chunk the t-th word: elements 2t and 2t + 1 of fp16 or bf16, element t of words. `load` is ldmatrix, which
fetches four pieces of 8 rows, a chunk each, in that form. Source: PTX ISA, "Matrix fragments for mma.m16n8k16",
"mma.m16n8k8".
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.gpu.kernels.gemm.access import Chunk

CHUNK_BYTES = 16


class Units(Protocol):
    """What a kernel template needs of tensor cores; the tests emulate them with ordinary instructions."""

    kind: str
    """Kind of the factors, a key of `KINDS`."""
    dtype: str
    """Dtype of elements in memory."""
    chunk: int
    """Elements per 16 bytes."""
    transposes: bool
    """Whether `load` can transpose pieces."""
    scope: str
    """TVM's scope of shared memory."""

    def begin(self, thread: Expr, threads: int) -> None:
        """Begin a kernel."""

    def unrolled(self, extent: int) -> T.frame.ForFrame:
        """A loop whose indices of registers are known when it is compiled."""

    def registers(self, count: int) -> tirx.Buffer:
        """A buffer of 32-bit registers for operands."""

    def copy(self, shared: tirx.Buffer, at: Expr, chunk: Chunk, condition: Expr | None) -> None:
        """Begin to copy 16 bytes, zeros where `condition` (if there is one) does not hold."""

    def commit(self) -> None:
        """Close a group of copies."""

    def wait(self, pending: int) -> None:
        """Wait until all but the last `pending` groups of this thread have arrived."""

    def load(self, registers: tirx.Buffer, first: Expr, shared: tirx.Buffer, at: Expr, transposed: bool) -> None:
        """Load four registers: lane l gives the index `at` of row l % 8 of piece l / 8."""

    def pick(self, registers: tirx.Buffer, at: Expr, shared: tirx.Buffer, place: Expr) -> None:
        """Load one register of one word."""

    def multiply(self, sums: tirx.Buffer, at: Expr, a: tirx.Buffer, a_at: Expr, b: tirx.Buffer, b_at: Expr) -> None:
        """sums[at:at + 4] += A B with registers a[a_at:a_at + 4] and b[b_at:b_at + 2]."""

    def pack(self, registers: tirx.Buffer, at: Expr, first: Expr, second: Expr) -> None:
        """Round two floats into one register of two neighbours in half precision."""

    def exchange(self, target: tirx.Buffer, at: int, value: Expr, across: int) -> None:
        """target[at] = `value` of the lane whose number differs in the bits `across`."""

    def warp_barrier(self) -> None:
        """`__syncwarp()`."""


class TensorCores:
    """`Units` of NVIDIA GPUs, from sm_80 on."""

    scope = "shared.dyn"

    def __init__(self, kind: str) -> None:
        """Args: kind: a key of `KINDS`."""
        self.kind = kind
        self.dtype = KINDS[kind]
        self.chunk = 4 if kind == "tf32" else 8
        self.transposes = kind != "tf32"

    def begin(self, thread: Expr, threads: int) -> None:
        """Begin a kernel: nothing is needed."""

    def unrolled(self, extent: int) -> T.frame.ForFrame:
        """A loop whose indices of registers are known when it is compiled: an unrolled one."""
        return T.unroll(0, extent)

    def registers(self, count: int) -> tirx.Buffer:
        """A buffer of 32-bit registers for operands."""
        return T.alloc_buffer((count,), "uint32", scope="local")

    def copy(self, shared: tirx.Buffer, at: Expr, chunk: Chunk, condition: Expr | None) -> None:
        """Begin to copy 16 bytes (cp.async), zeros where `condition` (if there is one) does not hold."""
        full = tirx.IntImm("uint32", CHUNK_BYTES)
        copy = T.ptx.cp.async_.cg.shared.global_
        target = tirx.address_of(shared[at])
        if condition is None:
            T.evaluate(copy(target, chunk.address, CHUNK_BYTES))
        else:
            size = tirx.Select(condition, full, tirx.IntImm("uint32", 0))
            T.evaluate(copy(target, chunk.address, CHUNK_BYTES, size))

    def commit(self) -> None:
        """Close a group of copies (cp.async.commit_group)."""
        T.evaluate(T.ptx.cp.async_.commit_group())

    def wait(self, pending: int) -> None:
        """Wait until all but the last `pending` groups of this thread have arrived (cp.async.wait_group)."""
        T.evaluate(T.ptx.cp.async_.wait_group(pending))

    def load(self, registers: tirx.Buffer, first: Expr, shared: tirx.Buffer, at: Expr, transposed: bool) -> None:
        """Load four registers (ldmatrix); those of TF32 are rounded."""
        load = T.ptx.ldmatrix.sync.aligned.m8n8.x4
        load = load.trans if transposed else load
        if self.kind != "tf32":
            four = [registers[first + i] for i in range(4)]
            T.evaluate(load.shared.b16(*four, tirx.address_of(shared[at])))
            return
        words = T.alloc_buffer((4,), "uint32", scope="local")
        T.evaluate(load.shared.b16(*(words[i] for i in range(4)), tirx.address_of(shared[at])))
        for i in range(4):
            self._round(registers, first + i, tirx.reinterpret("float32", words[i]))

    def pick(self, registers: tirx.Buffer, at: Expr, shared: tirx.Buffer, place: Expr) -> None:
        """Load one register of one word, rounded to TF32."""
        self._round(registers, at, shared[place])

    def _round(self, registers: tirx.Buffer, at: Expr, value: Expr) -> None:
        """Round to TF32, which keeps 10 bits of the fraction: the cores would truncate."""
        T.evaluate(T.ptx.cvt.rna.tf32.f32(registers[at], value))

    def multiply(self, sums: tirx.Buffer, at: Expr, a: tirx.Buffer, a_at: Expr, b: tirx.Buffer, b_at: Expr) -> None:
        """sums[at:at + 4] += A B (mma.sync) with registers a[a_at:a_at + 4] and b[b_at:b_at + 2]."""
        total = [sums[at + i] for i in range(4)]
        multiply = getattr(T.ptx.mma.sync.aligned, "m16n8k8" if self.kind == "tf32" else "m16n8k16").row.col
        left, right = [a[a_at + i] for i in range(4)], [b[b_at + i] for i in range(2)]
        kind = PTX[self.kind]
        T.evaluate(getattr(getattr(multiply.f32, kind), kind).f32(*total, *left, *right, *total))

    def pack(self, registers: tirx.Buffer, at: Expr, first: Expr, second: Expr) -> None:
        """Round two floats into one register of two neighbours."""
        convert = getattr(T.ptx.cvt.rn, f"{PTX[self.kind]}x2").f32
        T.evaluate(convert(registers[at], second, first))  # the upper half comes first

    def exchange(self, target: tirx.Buffer, at: int, value: Expr, across: int) -> None:
        """target[at] = `value` of the lane whose number differs in the bits `across` (a warp shuffle)."""
        everyone = tirx.IntImm("uint32", 0xFFFFFFFF)
        T.buffer_store(target, T.tvm_warp_shuffle_xor(everyone, value, across, 32, 32), [at])

    def warp_barrier(self) -> None:
        """`__syncwarp()`."""
        T.evaluate(T.cuda.warp_sync())


PTX: Mapping[str, str] = MappingProxyType({"float16": "f16", "bfloat16": "bf16", "tf32": "tf32"})
"""What PTX calls the kinds."""

KINDS: Mapping[str, str] = MappingProxyType({"float16": "float16", "bfloat16": "bfloat16", "tf32": "float32"})
"""What the cores multiply, all summed in float32, and the type of its elements in memory."""

LABELS: Mapping[str, str] = MappingProxyType({"float16": "fp16", "bfloat16": "bf16", "tf32": "tf32"})
"""What reports call the kinds."""
