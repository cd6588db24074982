"""Masks of one bit for each element, and the random masks of Dropout, with the same bits on every machine.

The hash is that of the function's body (`graphopt.ops.training.masks`) in unsigned integers of 64 bits, whose products
of two 32-bit numbers never overflow.
"""

from __future__ import annotations

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import const, dims

WIDE = "uint64"
FACTORS = 0x7FEB352D, 0x846CA68B
GOLDEN = 2654435769
LOW = 0xFFFFFFFF


def mixed(x: int) -> int:
    """The finalizer `lowbias32` of a number of 32 bits."""
    x ^= x >> 16
    x = x * FACTORS[0] & LOW
    x ^= x >> 15
    x = x * FACTORS[1] & LOW
    return x ^ x >> 16


def _mix(x: Expr) -> Expr:
    """The same of an expression."""

    def number(value: int) -> Expr:
        return tirx.const(value, WIDE)

    x = x ^ (x >> number(16))
    x = x * number(FACTORS[0]) & number(LOW)
    x = x ^ (x >> number(15))
    x = x * number(FACTORS[1]) & number(LOW)
    return x ^ (x >> number(16))


def keys(counter: te.Tensor, seed: int) -> te.Tensor:
    """The two keys [2] of a step: hashes of the seed and counter[1]."""
    start, low = tirx.const(mixed(seed & LOW), WIDE), tirx.const(LOW, WIDE)
    key = te.compute((1,), lambda i: _mix((counter[i].astype(WIDE) + start) & low), name="key")
    golden = tirx.const(GOLDEN, WIDE)
    second = te.compute((1,), lambda i: _mix((key[i] + golden) & low), name="second")
    return te.compute((2,), lambda k: tirx.Select(k == 0, key[0], second[0]), name="keys")


def dropout(key: te.Tensor, size: int, limit: int) -> te.Tensor:
    """mask[size]: whether the random number of an element is at least `limit`."""
    low = tirx.const(LOW, WIDE)

    def element(i: Expr) -> Expr:
        once = _mix((i.astype(WIDE) + key[0]) & low)
        return _mix(once ^ key[1]) >= tirx.const(limit, WIDE)

    return te.compute((size,), element, name="mask")


def positive(x: te.Tensor) -> te.Tensor:
    """Bit i of byte j is x[8 j + i] > 0, of x[n]."""
    (n,) = dims(x)
    zero = const(0, x.dtype)

    def element(j: Expr) -> Expr:
        byte: Expr = tirx.const(0, "int32")
        for i in range(8):
            at = j * 8 + i
            value = x[at] if n % 8 == 0 else tirx.if_then_else(at < n, x[at], zero)
            byte = byte | tirx.Select(value > zero, tirx.const(1 << i, "int32"), tirx.const(0, "int32"))
        return byte.astype("uint8")

    return te.compute((-(-n // 8),), element, name="bits")


def masked(dy: te.Tensor, bits: te.Tensor) -> te.Tensor:
    """dy[n] where its bit is set, else zero."""
    zero, one = const(0, dy.dtype), tirx.const(1, "int32")

    def element(i: Expr) -> Expr:
        shift = tirx.floormod(i, 8).astype("int32")
        bit = (bits[tirx.floordiv(i, 8)].astype("int32") >> shift) & one
        return tirx.Select(bit == one, dy[i], zero)

    return te.compute(dy.shape, element, name="masked")
