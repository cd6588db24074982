"""Whether a node can become kernels, decided by importing it alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from graphopt.graph.constness import is_constant
from graphopt.graph.value_dependence import SIZES
from graphopt.targets.common import lowering, relax_import
from graphopt.targets.common.converters.table import Table
from graphopt.targets.common.definitions import Definitions
from graphopt.targets.common.quiet import quiet

_CODE = re.compile(r"[<>{}\[\]|=]|\b(R|T|I|relax|tirx|tir|ir)\.|\w\(|Check failed|Error\b|None\b|Relax|TE\b")
"""Matches text of TVM's internal dumps, which no user can read."""


def obstacle(
    node: ir.Node,
    opsets: Mapping[str, int],
    machine: Any,
    table: Table,
    definitions: Definitions,
) -> str | None:
    """Import `node` alone; return why it cannot become kernels, in a sentence, or None if it can."""
    try:
        with quiet():
            imported = relax_import.import_nodes([node], *ends(node), opsets, machine, table, definitions)
            return lowering.obstacle(lowering.legalize(imported.module))
    except relax_import.NotSupported as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  TVM's converters raise anything for unsupported nodes
        return _why(node, error)


def _why(node: ir.Node, error: Exception) -> str:
    """Why there are no kernels: an operand that must be constant, else TVM's message if a user can read it."""
    for position in SIZES.get(node.op_type, ()):
        operand = node.inputs[position] if position < len(node.inputs) else None
        if operand is not None and not is_constant(operand):
            return f"operand {position} of {node.op_type} is known at run time only"
    return f"TVM cannot convert {node.op_type}: {readable(error)}"


def readable(error: Exception) -> str:
    """The last line of TVM's message if it is a sentence, not a check, type or expression; else a general reason."""
    line = first_line(error)
    if _CODE.search(line) or len(line.split()) < 2:
        return "these types, shapes or attributes have no kernel"
    return line[0].lower() + line[1:] if line.split()[0][1:].islower() else line


def template(reason: str | None, node: ir.Node) -> str | None:
    """`reason` with placeholders for the names of values, since equal nodes share it."""
    for place, value in _values(node):
        if reason is not None and value.name:
            reason = reason.replace(f"value {value.name} ", f"value {place} ")
    return reason


def spelled(reason: str | None, node: ir.Node) -> str | None:
    """Fill the names of the values of `node` into a template."""
    for place, value in _values(node):
        if reason is not None:
            reason = reason.replace(f"value {place} ", f"value {value.name} ")
    return reason


def _values(node: ir.Node) -> list[tuple[str, ir.Value]]:
    inputs = [(f"\0in{index}", value) for index, value in enumerate(node.inputs) if value is not None]
    return inputs + [(f"\0out{index}", value) for index, value in enumerate(node.outputs)]


def ends(node: ir.Node) -> tuple[list[ir.Value], list[ir.Value]]:
    """The variable inputs of `node`, and its outputs that have consumers."""
    inputs = list(dict.fromkeys(v for v in node.inputs if v is not None and not is_constant(v)))
    return inputs, [v for v in node.outputs if v.uses() or v.is_graph_output()] or list(node.outputs[:1])


def first_line(error: Exception) -> str:
    """The last line of TVM's message, which holds the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160].rstrip(".")
