"""Channels that go from random networks of convolutions: branches, additions, concatenations, splits, gates."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from graphopt.graph.edit import dims
from graphopt.passes.prune.granularity import Granularity
from graphopt.passes.prune.plan import Recipe
from graphopt.passes.prune.prune import prune
from graphopt.verify.oracle import Tolerance, run_onnxruntime
from tests.helpers.equal import require_equal


class Network:
    """Grows node by node; `alive` are feature maps [1, C, 6, 6] by name."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[np.float32]] = {}
        self.alive: dict[str, int] = {"x": 3}

    def weight(self, *shape: int, low: float = -1.0) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = self.random.uniform(low, 1.0, shape).astype(np.float32) / max(1, int(np.prod(shape[1:])))
        return name

    def node(self, op: str, inputs: list[str], outputs: int = 1, **attributes: object) -> list[str]:
        names = [f"t{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"n{len(self.nodes)}", **attributes))
        return names

    def pick(self) -> tuple[str, int]:
        name = str(self.random.choice(list(self.alive)))
        return name, self.alive[name]

    def conv(self, x: str, channels: int, outputs: int, group: int = 1) -> str:
        bias = [self.weight(outputs)] if self.random.random() < 0.5 else []
        w = self.weight(outputs, channels // group, 3, 3)
        return self.node("Conv", [x, w, *bias], pads=[1, 1, 1, 1], group=group)[0]

    def grow(self) -> None:
        x, channels = self.pick()
        match int(self.random.integers(10)):
            case 0 | 1 | 2:
                outputs = int(self.random.choice([4, 6, 8]))
                self.alive[self.conv(x, channels, outputs)] = outputs
            case 3:
                self.alive[self.conv(x, channels, channels, channels)] = channels
            case 4:
                scales = [self.weight(channels, low=0.5) for _ in range(4)]
                self.alive[self.node("BatchNormalization", [x, *scales])[0]] = channels
            case 5:
                op = str(self.random.choice(["Relu", "Sigmoid", "Neg", "Tanh"]))
                self.alive[self.node(op, [x])[0]] = channels
            case 6:
                others = [name for name, count in self.alive.items() if count == channels and name != x]
                if others:
                    op = str(self.random.choice(["Add", "Mul", "Max"]))
                    self.alive[self.node(op, [x, str(self.random.choice(others))])[0]] = channels
            case 7:
                y, more = self.pick()
                self.alive[self.node("Concat", [x, y], axis=1)[0]] = channels + more
            case 8:
                if channels % 2 == 0:
                    for part in self.node("Split", [x], 2, axis=1, num_outputs=2):
                        self.alive[part] = channels // 2
            case 9:
                mean = self.node("GlobalAveragePool", [x])[0]
                w = self.weight(channels, channels, 1, 1)
                gate = self.node("Sigmoid", [self.node("Conv", [mean, w])[0]])[0]
                self.alive[self.node("Mul", [x, gate])[0]] = channels

    def model(self) -> ir.Model:
        for _ in range(14):
            self.grow()
        x, channels = self.pick()
        flat = self.node("Flatten", [x])[0]
        y = self.node("Gemm", [flat, self.weight(channels * 36, 5)])[0]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6])],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 5])],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))


@pytest.mark.parametrize("granularity", ["filter", "channel"])
@pytest.mark.parametrize("first", range(0, 80, 20))
def test_smaller_networks_compute_what_those_with_zeros_do(granularity: str, first: int) -> None:
    removed = 0
    for seed in range(first, first + 20):
        recipe = Recipe(Granularity.parse(granularity), 0.4)
        smaller, zeros = Network(seed).model(), Network(seed).model()
        layers = prune(smaller, recipe, dims)
        same = prune(zeros, Recipe(recipe.granularity, 0.4, remove=False), dims)
        feeds = {"x": np.random.default_rng(seed).standard_normal((1, 3, 6, 6)).astype(np.float32)}
        tolerance = {"float32": Tolerance(1e-4, 1e-5)}
        require_equal(run_onnxruntime(zeros, feeds), run_onnxruntime(smaller, feeds), f"seed {seed}", tolerance)
        onnx.checker.check_model(ir.to_proto(smaller), full_check=True)
        assert [layer.reached for layer in layers] == pytest.approx([layer.reached for layer in same])
        removed += sum(layer.removed for layer in layers)
    assert removed > 30
