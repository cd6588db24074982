from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common
import pytest

from graphopt.cost.work import TILE
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pass_base import Pass, PassResult
from graphopt.pipeline.pipeline import Event
from graphopt.verify.oracle import random_inputs, require_equal, run_onnxruntime


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
    ir.passes.common.ShapeInferencePass()(model)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    return model


def listing(model: ir.Model) -> str:
    """One line per node: outputs with extents, operator, inputs (constants with extents), attributes by name, tile."""

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
        lines.append(f"{outputs} = {node.op_type}({inputs})" + (f" {{{given}}}" if given else "") + tile)
    return "\n".join(lines)


Rewrite = Callable[..., tuple[str, PassResult]]


@pytest.fixture
def rewrite() -> Rewrite:
    """Runs a pass on text and returns (listing after, result), having checked the contract of every pass:

    the model stays valid, ONNX Runtime agrees on random inputs, and a second run modifies nothing.
    """

    def run(
        each: Pass, text: str, weights: Mapping[str, Sequence[int]] | None = None, opset: int = 20
    ) -> tuple[str, PassResult]:
        model = parse(text, weights, opset)
        before = listing(model), list(model.graph.initializers)
        feeds = random_inputs(model, 0)
        expected = run_onnxruntime(model, feeds)
        result = each(model)
        after = listing(model)
        assert result.modified == ((after, list(model.graph.initializers)) != before), (
            "the result lies about what was modified"
        )
        Check()(Event(1, each.name, model, None))
        require_equal(expected, run_onnxruntime(model, feeds), "after the pass")
        assert all(value.uses() or value.is_graph_output() for value in model.graph.initializers.values())
        second = each(model)
        assert not second.modified, listing(model)
        assert listing(model) == after
        assert isinstance(result, PassResult)
        return after, result

    return run
