"""Runs one node of the domain graphopt, all its results, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import ops
from graphopt.verify.oracle import run_onnxruntime

Array = NDArray[Any]


def run_function(
    op_type: str, inputs: Sequence[Array], attributes: Mapping[str, Any] | None = None, dtypes: Sequence[Any] = ()
) -> list[Array]:
    """The results of the function `op_type`; those that `dtypes` does not reach have the dtype of the first input."""
    function = ops.function(op_type, 20)
    values = [ir.val(f"i{n}", ir.DataType.from_numpy(array.dtype), array.shape) for n, array in enumerate(inputs)]
    count = len(function.outputs)
    node = ir.node(op_type, values, dict(attributes or {}), domain=ops.DOMAIN, num_outputs=count)
    for number, output in enumerate(node.outputs):
        dtype = dtypes[number] if number < len(dtypes) else inputs[0].dtype
        output.name, output.type = f"o{number}", ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    graph = ir.Graph(values, list(node.outputs), nodes=[node], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=11)
    ops.ensure(model, op_type)
    results = run_onnxruntime(model, {f"i{n}": array for n, array in enumerate(inputs)})
    return [results[f"o{number}"] for number in range(count)]
