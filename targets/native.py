"""Whether a node can become kernels, found by trying it alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from graphopt.targets import lowering, relax_import
from graphopt.targets.converters import Converter
from graphopt.targets.definitions import Definitions


def obstacle(
    node: ir.Node,
    opsets: Mapping[str, int],
    machine: Any,
    definitions: Definitions,
    own: Mapping[str, Converter] = MappingProxyType({}),
) -> str | None:
    """Why `node` cannot become kernels, in a sentence, found by importing it alone; None if it can."""
    try:
        imported = relax_import.import_nodes([node], *ends(node), opsets, machine, definitions, own)
        return lowering.obstacle(lowering.legalize(imported.module))
    except relax_import.NotSupported as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  TVM's converters raise anything at what they do not know
        return f"TVM cannot convert {node.op_type}: {first_line(error)}"


def ends(node: ir.Node) -> tuple[list[ir.Value], list[ir.Value]]:
    """The variable inputs of `node`, and its outputs that somebody reads."""
    inputs = list(dict.fromkeys(v for v in node.inputs if v is not None and v.const_value is None))
    return inputs, [v for v in node.outputs if v.uses() or v.is_graph_output()] or list(node.outputs[:1])


def first_line(error: Exception) -> str:
    """What TVM has to say, which is the last line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160].rstrip(".")
