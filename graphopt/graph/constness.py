"""Values are constants, state that training changes, or inputs of a run.

The numbers of a constant are known at compile time and never change. Those of a state value (a weight, a momentum, a
running mean) are known too, but a run changes them, so nothing may be computed from it ahead of time. An input has no
numbers before a run.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import onnx_ir as ir
from numpy.typing import NDArray

STATE = "graphopt.state"
"""Metadata key of an initializer that runs change: its `Role` (`graphopt.graph.state`)."""


def is_constant(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether the numbers of `value` are known at compile time and never change; False for an absent value."""
    return value is not None and stored(value) is not None and not is_state(value)


def is_state(value: ir.Value) -> bool:
    """Whether runs change the numbers of `value`."""
    return STATE in value.metadata_props


def is_input(value: ir.Value) -> bool:
    """Whether a run is given `value`; inputs with a default value are constants."""
    return value.is_graph_input() and not value.is_initializer()


def stored(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor that a model holds for `value`: of a constant, or of a state value before the first run."""
    return value.const_value


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant; None for every other value."""
    return stored(value) if is_constant(value) else None


def constant_tensor(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of a constant, which `value` must be."""
    tensor = tensor_of(value)
    assert tensor is not None, f"{value.name} is no constant"
    return tensor


def numbers_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The numbers of a constant; None for every other value."""
    tensor = tensor_of(value)
    return None if tensor is None else tensor.numpy()


def constant_array(value: ir.Value) -> NDArray[Any]:
    """The numbers of a constant, which `value` must be."""
    return constant_tensor(value).numpy()
