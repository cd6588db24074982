"""Dot products of two or four integers by x86 instructions that are faster than multiply-adds of floats.

    c[lane] += sum over i < unit of a[i] * b[lane, i]                   summed in int32

Words: two of int16 times two of 8 or 16 bits (vpmaddwd). A byte less its zero point has 9 bits, a product of two 17:
neither a product nor the sum of two overflows.

Bytes: four of uint8 times four of int8, less their zero points afterwards. With VNNI one instruction does it
(vpdpbusd). Without, two do (vpmaddubsw, vpmaddwd), of which the first saturates sums of two products to int16: they are
exact where no factor in int8 is above 64, as weights are that were quantized for such processors ("reduced range").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray
from tvm import s_tir, te, tirx
from tvm.ir import Expr
from tvm.s_tir.schedule import LoopRV
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.cpu.machine import CpuMachine

WORDS, BYTES = 2, 4
"""The units of the two instructions."""

NAMES = {WORDS: "words", BYTES: "bytes"}

LARGEST_BYTE = 64
"""255 * 64 * 2 fits into int16."""

_MULTIPLY_WORDS = {16: "llvm.x86.sse2.pmadd.wd", 32: "llvm.x86.avx2.pmadd.wd", 64: "llvm.x86.avx512.pmaddw.d.512"}
_MULTIPLY_BYTES = {32: "llvm.x86.avx2.pmadd.ub.sw", 64: "llvm.x86.avx512.pmaddubs.w.512"}
_SUM_BYTES = {32: "llvm.x86.avx512.vpdpbusd.256", 64: "llvm.x86.avx512.vpdpbusd.512"}
"""Intrinsics by the bytes of a vector."""


def unit(machine: CpuMachine, weights: NDArray[Any] | None, dtype: str) -> int:
    """WORDS, or BYTES where they are exact for weights of `dtype` with zero point 0; None where they are unknown."""
    if dtype != "int8" or machine.level.vector_bytes not in _MULTIPLY_BYTES:
        return WORDS
    if machine.level.vnni:
        return BYTES
    small = weights is not None and weights.size and weights.min() >= -LARGEST_BYTE and weights.max() <= LARGEST_BYTE
    return BYTES if small else WORDS


def product(a: Expr | te.TensorSlice, b: Expr | te.TensorSlice, z: Expr | te.TensorSlice | None = None) -> Expr:
    """The product of one pair of factors as `tensorize` matches it; z, if any, is subtracted from b in int16."""
    if z is not None:
        b = b.astype("int16") - z
    return a.astype("int32") * b.astype("int32")


def tensorize(
    sch: s_tir.Schedule, lane: LoopRV, machine: CpuMachine, dtypes: Sequence[str], zero: bool = False
) -> None:
    """Replace the loop `lane` over a vector of sums, which holds the loop over the unit, by those instructions.

    The block computes c[lane] + `product`(a[i], b[lane, i]), of these `dtypes`; `zero` says if there is a z.
    """
    a, b = dtypes
    name = f"graphopt.dots.{machine.level.name}.{a}.{b}{'.centred' if zero else ''}"
    described, vector = (_function(machine, a, b, zero, body) for body in (_loops, _vector))
    s_tir.TensorIntrin.register(name, described, vector, override=True)
    sch.tensorize(lane, name)


def _function(machine: CpuMachine, a: str, b: str, zero: bool, body: Callable[..., None]) -> tirx.PrimFunc:
    lanes, size = machine.lanes("int32"), WORDS if a == "int16" else BYTES
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        left = T.arg("a", T.buffer((size,), a, offset_factor=1))
        right = T.arg("b", T.buffer((lanes, size), b, offset_factor=1))
        z = T.arg("z", T.buffer((lanes, size), "int16", offset_factor=1)) if zero else None
        c = T.arg("c", T.buffer((lanes,), "int32", offset_factor=1, scope="local"))
        with T.sblock("root"):
            T.reads(c[0:lanes], left[0:size], right[0:lanes, 0:size], *([] if z is None else [z[0:lanes, 0:size]]))
            T.writes(c[0:lanes])
            body(machine, left, right, z, c)
    return builder.get()


def _loops(machine: CpuMachine, a: tirx.Buffer, b: tirx.Buffer, z: tirx.Buffer | None, c: tirx.Buffer) -> None:
    """The loops that the intrinsic matches in a schedule."""
    lanes, size = (int(extent) for extent in b.shape)
    with T.grid(lanes, size) as (i, k), T.sblock("update"):
        lane, at = T.axis.spatial(lanes, i), T.axis.reduce(size, k)
        T.buffer_store(c, c[lane] + product(a[at], b[lane, at], None if z is None else z[lane, at]), [lane])


def _vector(machine: CpuMachine, a: tirx.Buffer, b: tirx.Buffer, z: tirx.Buffer | None, c: tirx.Buffer) -> None:
    """The vector code that replaces them."""
    lanes, size = (int(extent) for extent in b.shape)
    one = tirx.reinterpret("int32", a.vload([0], f"{a.dtype}x{size}"))
    left, right = tirx.Broadcast(one, lanes), b.vload([0, 0], f"{b.dtype}x{lanes * size}")
    sums = c.vload([0], f"int32x{lanes}")
    total = _bytes(machine, sums, left, right, str(a.dtype)) if size == BYTES else _words(machine, sums, left, right, z)
    T.buffer_store(c, total, [tirx.Ramp(0, 1, lanes)])


def _words(machine: CpuMachine, sums: Expr, left: Expr, right: Expr, z: tirx.Buffer | None) -> Expr:
    lanes = machine.lanes("int32")
    kind = f"int16x{lanes * WORDS}"
    if str(right.ty.dtype) != kind:
        right = right.astype(kind)
    if z is not None:
        right = right - z.vload([0, 0], kind)
    return sums + _multiplied(machine, tirx.reinterpret(kind, left), right)


def _multiplied(machine: CpuMachine, left: Expr, right: Expr) -> Expr:
    instruction = _MULTIPLY_WORDS[machine.level.vector_bytes]
    return tirx.call_llvm_pure_intrin(f"int32x{machine.lanes('int32')}", instruction, left, right)


def _bytes(machine: CpuMachine, sums: Expr, left: Expr, right: Expr, a: str) -> Expr:
    lanes = machine.lanes("int32")
    left = tirx.reinterpret(f"{a}x{lanes * BYTES}", left)
    unsigned, signed = (left, right) if a == "uint8" else (right, left)
    if machine.level.vnni:
        return tirx.call_llvm_pure_intrin(
            f"int32x{lanes}", _SUM_BYTES[machine.level.vector_bytes], sums, unsigned, signed
        )
    instruction = _MULTIPLY_BYTES[machine.level.vector_bytes]
    pairs = tirx.call_llvm_pure_intrin(f"int16x{lanes * WORDS}", instruction, unsigned, signed)
    return sums + _multiplied(machine, pairs, tirx.Broadcast(const(1, "int16"), lanes * WORDS))
