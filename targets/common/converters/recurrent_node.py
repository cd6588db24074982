"""Attributes of LSTM, GRU and RNN nodes for every target: operands, activations, and what no kernel supports."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx
from tvm.ir import GenericConst

from graphopt.targets.common.converters.base import INJECTIVE, Context, Inputs, dtype_of
from graphopt.targets.common.converters.index import constant
from graphopt.targets.common.converters.refusals import NotSupported

DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
"""Activations f, g, h of a direction."""

X, W, R, B, LENGTHS, H, C, P = range(8)
"""Positions of the operands."""


def operands(inputs: Inputs) -> Inputs:
    """All eight operands, None for those that are left out."""
    return [*inputs, *[None] * (8 - len(inputs))]


def activations(c: Context, directions: int, known: Collection[str]) -> tuple[str, ...]:
    """The activations of all directions, one after the other, as `known` spells them.

    Raises:
        NotSupported: some are not known, or they are too few.
    """
    defaults = DEFAULTS[c.node.op_type]
    attribute = c.node.attributes.get("activations")
    if not isinstance(attribute, ir.Attr):
        return defaults * directions
    spelled = {name.lower(): name for name in known}
    names = tuple(spelled.get(name.lower(), "") for name in attribute.as_strings())
    if "" in names or len(names) != len(defaults) * directions:
        raise NotSupported(f"the kernels of {c.node.op_type} know the activations {', '.join(known)}")
    return names


def refuse(c: Context, hidden: int) -> None:
    """Raise NotSupported for attributes that no kernel computes."""
    cell = c.node.op_type
    if c.integer("input_forget"):
        raise NotSupported(f"the kernels of {cell} do not couple the input and the forget gate")
    if c.integer("hidden_size", hidden) != hidden:
        raise NotSupported(f"hidden_size of {cell} is not the width of its recurrent weights, which is {hidden}")


def lengths(c: Context, given: Inputs, steps: int) -> relax.Expr | None:
    """The lengths of the rows; None where all rows are known to have all steps."""
    if given[LENGTHS] is None:
        return None
    known = constant(c, LENGTHS)
    return given[LENGTHS] if known is None or bool((known != steps).any()) else None


def begun(c: Context, state: relax.Expr, lengths: relax.Expr | None, rows: int) -> relax.Expr:
    """The initial state, whose axis `rows` is the batch: 0 for a row without steps, whose last state it also is.

    ONNX leaves the last state of such a row open; ONNX Runtime gives zeros.
    """
    if lengths is None:
        return state
    zero = tirx.const(0, dtype_of(state))

    def compute(v: te.Tensor, n: te.Tensor) -> te.Tensor:
        return te.compute(v.shape, lambda *i: tirx.Select(n(i[rows]) > 0, v(*i), zero), name="begun")

    return c.te("begun", compute, state, lengths, pattern=INJECTIVE)


def reset_after(c: Context) -> bool:
    """Whether the node is a GRU that multiplies with its reset gate after the product."""
    return c.node.op_type == "GRU" and c.integer("linear_before_reset") != 0


def reverse(c: Context) -> bool:
    """Whether the one direction is backward."""
    return c.text("direction", "forward") == "reverse"


def zeros(shape: tuple[int, ...], dtype: str) -> GenericConst:
    """A constant of zeros."""
    return relax.const(np.zeros(shape, dtype), dtype)
