from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from graphopt import ops
from graphopt.verify.oracle import run_onnxruntime

RunNode = Callable[..., NDArray[np.float32]]


@pytest.fixture(scope="session")
def run_node() -> RunNode:
    """Runs one node, of the domain graphopt or standard, in ONNX Runtime."""

    def run(
        op_type: str,
        inputs: Sequence[NDArray[np.generic]],
        attributes: Mapping[str, int | float | Sequence[int]] | None = None,
        domain: str = ops.DOMAIN,
    ) -> NDArray[np.float32]:
        values = [ir.val(f"i{n}", ir.DataType.from_numpy(array.dtype), array.shape) for n, array in enumerate(inputs)]
        node = ir.node(op_type, values, dict(attributes or {}), domain=domain)
        y = node.outputs[0]
        y.name, y.type = "y", ir.TensorType(ir.DataType.from_numpy(inputs[0].dtype))
        graph = ir.Graph(values, [y], nodes=[node], opset_imports={"": 21}, name="g")
        model = ir.Model(graph, ir_version=11)
        if domain:
            ops.ensure(model, op_type)
        return run_onnxruntime(model, {f"i{n}": array for n, array in enumerate(inputs)})["y"]

    return run
