"""The node that a workload describes, lowered alone for timing, and the summary of its measured times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.cost.workload import PRECISION, TILE, Timing, Workload
from graphopt.graph.constness import is_constant
from graphopt.graph.opsets import BFLOAT16_OPSET, OPSET
from graphopt.lowering.target import Lowered, Target
from graphopt.ops import DOMAIN, VERSION

Progress = Callable[[str], None]


def node_of(workload: Workload, tile: str = "", seed: int = 0) -> ir.Node:
    """The ONNX node that a workload describes; its constants hold random numbers, but for indices."""
    generator = np.random.default_rng(seed)
    inputs = []
    for index, operand in enumerate(workload.operands):
        dtype = ir.DataType.from_numpy(np.dtype(operand.dtype))
        value = ir.Value(name=f"x{index}", shape=ir.Shape(operand.shape), type=ir.TensorType(dtype))
        if operand.constant:
            array = operand.indices
            if array is None:
                array = (generator.standard_normal(operand.shape, dtype=np.float32) * 0.1).astype(operand.dtype)
            value.const_value = ir.tensor(array, name=value.name)
        inputs.append(value)
    attributes = {name: list(v) if isinstance(v, tuple) else v for name, v in workload.attributes}
    node = ir.node(workload.op_type, inputs, attributes, domain=workload.domain, name="work")
    node.outputs[0].name = "y"
    node.outputs[0].shape = ir.Shape(workload.shape)
    node.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(np.dtype(workload.operands[0].dtype)))
    for key, mark in ((TILE, tile), (PRECISION, workload.units)):
        if mark:
            node.metadata_props[key] = mark
    return node


def opsets_of(workload: Workload) -> dict[str, int]:
    """The opset imports of a model that holds the node of `workload`."""
    narrow = any(operand.dtype == "bfloat16" for operand in workload.operands)
    return {"": BFLOAT16_OPSET if narrow else OPSET, DOMAIN: VERSION}


def lowered_alone(target: Target, workload: Workload, tile: str, prefix: str) -> Lowered | None:
    """The kernels of a workload with a tile; None where the node cannot be lowered with it."""
    node = node_of(workload, tile)
    inputs = [value for value in node.inputs if value is not None and not is_constant(value)]
    try:
        return target.lower([node], inputs, list(node.outputs), opsets_of(workload), prefix)
    except Exception:  # noqa: BLE001  TVM raises anything; a candidate that cannot be lowered is no candidate
        return None


def timing(seconds: Sequence[float], tile: str) -> Timing:
    """The median and the quartiles of the rounds: other programs on the machine disturb some of them."""
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    return Timing(float(middle), float(low), float(high), tile)
