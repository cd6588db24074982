"""Step models with gradients written out, and their training in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from graphopt.graph.state import GRADIENT, LOSS, Role, exposed, mark, next_value, states

Arrays = dict[str, NDArray[Any]]


def with_gradients(model: ir.Model, parameters: Sequence[str]) -> ir.Model:
    """`model` with the initializers `parameters` marked; its output `w_gradient` becomes `w.gradient`."""
    outputs = {output.name: output for output in model.graph.outputs}
    for name in parameters:
        value = model.graph.initializers[name]
        mark(value, Role.PARAMETER)
        outputs[f"{name}_gradient"].name = value.metadata_props[GRADIENT] = f"{name}.gradient"
    model.graph.metadata_props[LOSS] = "loss"
    return model


def slopes(weights: Mapping[str, NDArray[Any]]) -> ir.Model:
    """The loss sum(w^2) / 2 + sum(w * slope) over all weights; the input `w_slope` is given in each step."""
    inputs, values, nodes = [], [], []
    outputs = [ir.Value(name="loss", shape=ir.Shape(()), type=ir.TensorType(ir.DataType.FLOAT))]
    zero = ir.Value(name="no_loss", const_value=ir.tensor(np.float32(0), name="no_loss"), shape=ir.Shape(()))
    zero.type = ir.TensorType(ir.DataType.FLOAT)
    nodes.append(ir.node("Identity", [zero], outputs=outputs[:1], name="loss"))
    for name, array in weights.items():
        tensor = ir.tensor(array, name=name)
        kind = ir.TensorType(tensor.dtype)
        weight = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=kind)
        slope = ir.Value(name=f"{name}_slope", shape=ir.Shape(array.shape), type=kind)
        gradient = ir.Value(name=f"{name}_gradient", shape=ir.Shape(array.shape), type=kind)
        nodes.append(ir.node("Add", [weight, slope], outputs=[gradient], name=f"{name}_add"))
        inputs.append(slope)
        values.append(weight)
        outputs.append(gradient)
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=[zero, *values], opset_imports={"": 20}, name="slopes")
    return with_gradients(ir.Model(graph, ir_version=10), list(weights))


class Trainer:
    """Runs a step model in ONNX Runtime, whose state it keeps."""

    def __init__(self, model: ir.Model) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3  # that initializers are inputs is meant
        self._session = onnxruntime.InferenceSession(
            ir.to_proto(exposed(model)).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.state: Arrays = {str(value.name): value.const_value.numpy() for value in states(model.graph)}
        self._next = {
            str(value.name): str(new.name)
            for value in states(model.graph)
            if (new := next_value(value, model.graph)) is not None
        }
        self._names = [output.name for output in model.graph.outputs]

    def step(self, **feeds: Any) -> Arrays:
        """One step; the outputs by name."""
        given = {name: np.asarray(value) for name, value in feeds.items()}
        if "lr" in given:
            given["lr"] = given["lr"].astype(np.float32)
        outputs = dict(zip(self._names, self._session.run(None, {**self.state, **given}), strict=True))
        self.state.update({name: outputs[new] for name, new in self._next.items()})
        return outputs


def random_arrays(shapes: Mapping[str, Sequence[int]], seed: int, dtype: Any = np.float64) -> Arrays:
    """Normal numbers."""
    generator = np.random.default_rng(seed)
    return {name: np.asarray(generator.standard_normal(tuple(shape)), dtype) for name, shape in shapes.items()}


def feeds_of(shapes: Mapping[str, Sequence[int]], steps: int, dtype: Any = np.float64) -> Iterator[Arrays]:
    """The slopes of each step."""
    for number in range(steps):
        yield {f"{name}_slope": array for name, array in random_arrays(shapes, 100 + number, dtype).items()}
