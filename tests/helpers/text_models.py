"""Models written as ONNX text, and read back as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common

from graphopt import ops
from graphopt.cost.workload import SKIP_ZEROS, TILE


def parse(text: str, weights: Mapping[str, Sequence[int]] | None = None, opset: int = 20) -> ir.Model:
    """A model from ONNX text; the inputs named in `weights` become constants in [0.5, 1.5) times random signs."""
    model = ir.from_onnx_text(f'<ir_version: 11, opset_import: ["": {opset}, "graphopt": 1]>\n{text}')
    generator = np.random.default_rng(0)
    for value in list(model.graph.inputs):
        if value.name in (weights or {}):
            shape = tuple(weights[value.name])
            numbers = generator.uniform(0.5, 1.5, shape) * generator.choice([-1, 1], shape)
            value.const_value = ir.Tensor(numbers.astype(value.dtype.numpy()), name=value.name)
            value.shape = ir.Shape(shape)
            model.graph.inputs.remove(value)
            if value.uses():
                model.graph.register_initializer(value)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type.lower()}{number}"
        if node.domain == ops.DOMAIN:
            ops.ensure(model, node.op_type)
    ir.passes.common.ShapeInferencePass()(model)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    return model


def listing(model: ir.Model) -> str:
    """One line per node: outputs with extents, operator, inputs (constants with extents), attributes by name, marks."""

    def extents(value: ir.Value) -> str:
        return f"[{','.join(map(str, value.shape or ()))}]"

    def argument(value: ir.Value | None) -> str:
        if value is None:
            return "-"
        return f"const{extents(value)}" if value.is_initializer() else str(value.name)

    def attribute(given: ir.Attr) -> str:
        value = list(given.value) if isinstance(given.value, tuple | list) else given.value
        return f"{given.name}={value:.6g}" if isinstance(value, float) else f"{given.name}={value}"

    lines = []
    for node in model.graph:
        outputs = ", ".join(f"{value.name}{extents(value)}" for value in node.outputs)
        inputs = ", ".join(map(argument, node.inputs))
        given = ", ".join(attribute(node.attributes[name]) for name in sorted(node.attributes))
        tile = f" @{node.metadata_props[TILE]}" if TILE in node.metadata_props else ""
        skips = " skipping zeros" if SKIP_ZEROS in node.metadata_props else ""
        lines.append(f"{outputs} = {node.op_type}({inputs})" + (f" {{{given}}}" if given else "") + tile + skips)
    return "\n".join(lines)
