"""Random numbers from a hash of seed, counter and element, bit by bit those of `graphopt/ops/training/random.py`."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import INJECTIVE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.kernels.blocks import const

WORD = "uint64"
"""32-bit numbers are kept in 64 bits: TVM tells LLVM that unsigned arithmetic does not overflow, and a product of two
32-bit numbers does not then."""
_LOW = 0xFFFFFFFF
_GOLDEN = 2654435769
_FACTORS = (0x7FEB352D, 0x846CA68B)


def _bound(value: Expr, use: Callable[[Expr], Expr]) -> Expr:
    """`use` of `value`, which is computed once."""
    name = tirx.Var("word", WORD)
    return tirx.Let(name, value, use(name))


def _word(number: int) -> Expr:
    return tirx.const(number, WORD)


def _low(x: Expr) -> Expr:
    return x & _word(_LOW)


def _mix(x: Expr) -> Expr:
    """The hash `lowbias32` of a 32-bit number."""
    for shift, factor in zip((16, 15), _FACTORS, strict=True):
        x = _low(_bound(x, lambda v, shift=shift: v ^ (v >> _word(shift))) * _word(factor))  # type: ignore[misc]
    return _bound(x, lambda v: v ^ (v >> _word(16)))


def _mixed(number: int) -> int:
    """`_mix` of a number that is known."""
    for shift, factor in zip((16, 15), _FACTORS, strict=True):
        number = ((number ^ (number >> shift)) * factor) & _LOW
    return number ^ (number >> 16)


def random_bits(seed: int, counter: Expr, element: Expr) -> Expr:
    """32 random bits of an element; `counter` is an int64 scalar."""
    key = _mix(_low(_low(counter.astype(WORD)) + _word(_mixed(seed & _LOW))))
    return _bound(
        key, lambda key: _mix(_mix(_low(_low(element.astype(WORD)) + key)) ^ _mix(_low(key + _word(_GOLDEN))))
    )


def stochastic_cast(c: Context, inputs: Inputs) -> Outputs:
    """float32 -> float16 or bfloat16, rounded up or down at random."""
    x, counter = inputs
    half = ir.DataType(c.integer("to"))
    if dtype_of(x) != "float32" or half not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return NotImplemented
    shape, seed = shape_of(x), c.integer("seed")
    fp16 = half == ir.DataType.FLOAT16
    lost, spacing, least = (13, 2.0**-10, 2.0**-14) if fp16 else (16, 2.0**-7, 2.0**-100)

    def rounded(number: Expr, random: Expr) -> Expr:
        uniform = (random >> _word(32 - lost)).astype("float32") * const(2.0**-lost, "float32")
        bits = tirx.reinterpret("uint32", number)
        power = tirx.reinterpret("float32", bits & tirx.const(0x7F800000, "uint32"))
        unit = tirx.Select(power > const(least, "float32"), power, const(least, "float32")) * const(spacing, "float32")
        whole = tirx.floor(number / unit + uniform) * unit
        finite = (bits & tirx.const(0x7F800000, "uint32")) != tirx.const(0x7F800000, "uint32")
        if fp16:
            return tirx.Select(finite, whole, number).astype("float16")
        # The low half is zero but for NaN. A cast would be written out with its operand repeated, names included.
        quiet = tirx.Select(bits << tirx.const(1, "uint32") > tirx.const(0xFF000000, "uint32"), 1 << 22, 0)
        exact = tirx.Select(finite, tirx.reinterpret("uint32", whole), bits | quiet.astype("uint32"))
        return tirx.reinterpret("bfloat16", (exact >> tirx.const(16, "uint32")).astype("uint16"))

    def compute(data: te.Tensor, count: te.Tensor) -> te.Tensor:
        def element(*place: Expr) -> Expr:
            flat: Expr = tirx.const(0, "int64")
            for index, extent in zip(place, shape, strict=True):
                flat = flat * extent + index.astype("int64")
            return rounded(data(*place), random_bits(seed, count(), flat))

        return te.compute(shape, element, name="stochastic_cast")

    return c.te("stochastic_cast", compute, x, c.reshape(counter, ()), pattern=INJECTIVE)


RANDOM = {"graphopt.StochasticCast": stochastic_cast}
