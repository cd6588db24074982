"""Dot products of pairs of integers, the one instruction of x86 that multiplies them twice as fast as floats.

    c[lane] += a[0] * b[lane, 0] + a[1] * b[lane, 1]          int16 times int16, summed in int32

A value of 8 bits less its zero point has 9, a product of two 17, so neither a product nor the sum of two overflows,
which they do in the instruction that takes bytes (vpmaddubsw). LLVM makes one instruction of the product and the sum
(vpdpwssd) where the processor has it.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.machine import CpuMachine

_INSTRUCTIONS = {16: "llvm.x86.sse2.pmadd.wd", 32: "llvm.x86.avx2.pmadd.wd", 64: "llvm.x86.avx512.pmaddw.d.512"}
"""By the bytes of a vector."""


def tensorize(sch: s_tir.Schedule, lane: Any, machine: CpuMachine, dtype: str, zero: bool = False) -> None:
    """Let the loop `lane` over a vector of sums, which holds the loop over the pair, be that instruction.

    The block computes c[lane] + cast(a[pair]) * cast(b[lane, pair]), where b of `dtype` (int8, uint8, int16) becomes
    int16 less z[lane, pair] if it has a `zero`.
    """
    name = f"graphopt.dots.{dtype}x{machine.lanes('int32')}{'.centred' if zero else ''}"
    described, vector = (_function(machine, dtype, zero, body) for body in (_loops, _vector))
    s_tir.TensorIntrin.register(name, described, vector, override=True)
    sch.tensorize(lane, name)


def _function(machine: CpuMachine, dtype: str, zero: bool, body: Any) -> Any:
    lanes = machine.lanes("int32")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        a = T.arg("a", T.buffer((2,), "int16", offset_factor=1))
        b = T.arg("b", T.buffer((lanes, 2), dtype, offset_factor=1))
        z = T.arg("z", T.buffer((lanes, 2), "int16", offset_factor=1)) if zero else None
        c = T.arg("c", T.buffer((lanes,), "int32", offset_factor=1, scope="local"))
        with T.sblock("root"):
            T.reads(c[0:lanes], a[0:2], b[0:lanes, 0:2], *([] if z is None else [z[0:lanes, 0:2]]))
            T.writes(c[0:lanes])
            body(machine, a, b, z, c)
    return builder.get()


def _loops(machine: CpuMachine, a: Any, b: Any, z: Any, c: Any) -> None:
    """What the schedule has."""
    lanes = machine.lanes("int32")
    with T.grid(lanes, 2) as (i, k), T.sblock("update"):
        lane, pair = T.axis.spatial(lanes, i), T.axis.reduce(2, k)
        T.buffer_store(c, c[lane] + product(a[pair], b[lane, pair], None if z is None else z[lane, pair]), [lane])


def _vector(machine: CpuMachine, a: Any, b: Any, z: Any, c: Any) -> None:
    """What takes its place."""
    lanes = machine.lanes("int32")
    kind = f"int16x{2 * lanes}"
    pair = tirx.reinterpret(kind, tirx.Broadcast(tirx.reinterpret("int32", a.vload([0], "int16x2")), lanes))
    wide = b.vload([0, 0], f"{b.dtype}x{2 * lanes}")
    if str(b.dtype) != "int16":
        wide = wide.astype(kind)
    if z is not None:
        wide = wide - z.vload([0, 0], kind)
    instruction = _INSTRUCTIONS[machine.level.vector_bytes]
    sums = tirx.call_llvm_pure_intrin(f"int32x{lanes}", instruction, pair, wide)
    T.buffer_store(c, c.vload([0], f"int32x{lanes}") + sums, [tirx.Ramp(0, 1, lanes)])


def product(a: Any, b: Any, z: Any = None) -> Any:
    """The product of one pair of factors as a definition must write it: a in int16, b in 8 or 16 bits, z in int16."""
    if z is not None:
        b = b.astype("int16") - z
    return a.astype("int32") * b.astype("int32")
