"""What the numbers of a value are: fixed while compiling, changed by training, or given to a run.

A constant is a value whose numbers are known now and stay. A parameter has numbers now too, but training changes them,
so that nothing may be computed of it ahead of time. An input has none before a run.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import onnx_ir as ir
from numpy.typing import NDArray

PARAMETER = "graphopt.parameter"
"""Metadata of a value: it is a weight that training changes."""


def is_constant(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether the numbers of `value` are known while compiling, and stay; an absent value has none."""
    return value is not None and stored(value) is not None and not is_parameter(value)


def is_parameter(value: ir.Value) -> bool:
    """Whether training changes the numbers of `value`."""
    return PARAMETER in value.metadata_props


def is_input(value: ir.Value) -> bool:
    """Whether a run is given `value`; inputs with a default value are constants."""
    return value.is_graph_input() and not value.is_initializer()


def stored(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor that a model holds for `value`: of a constant, or what a parameter is before training."""
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
