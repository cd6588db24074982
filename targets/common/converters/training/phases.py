"""InterleavePhases and InterleavePhasesBlocked: each element is read from its phase, or zero."""

from __future__ import annotations

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import INJECTIVE, Context, Inputs, Outputs, shape_of
from graphopt.targets.common.kernels.blocks import const


def interleave_phases(c: Context, inputs: Inputs) -> Outputs:
    """InterleavePhases of planar or blocked tensors."""
    strides, phases = c.integers("strides"), c.integers("phases")
    each = shape_of(inputs[0])[1] // (max(phases) + 1)

    def compute(x: te.Tensor) -> te.Tensor:
        def element(n: Expr, channel: Expr, y: Expr, z: Expr, *lane: Expr) -> Expr | te.TensorSlice:
            row, column = tirx.floormod(y, strides[0]), tirx.floormod(z, strides[1])
            phase = row * strides[1] + column
            slot = phase
            if phases != tuple(range(len(phases))):
                kind = phase.ty.dtype
                slot = tirx.IntImm(kind, 0)
                for number, place in enumerate(phases):
                    if place > 0:
                        slot = tirx.Select(phase == number, tirx.IntImm(kind, place), slot)
            at = (n, slot * each + channel, tirx.floordiv(y, strides[0]), tirx.floordiv(z, strides[1]), *lane)
            if min(phases) >= 0:
                return x[at]
            present = [phase == number for number, place in enumerate(phases) if place >= 0]
            return tirx.if_then_else(tirx.any(*present), x[at], const(0, x.dtype))

        return te.compute(c.out_shape, element, name="interleave")

    return c.te("interleave_phases", compute, inputs[0], pattern=INJECTIVE)
