"""Channels of graphs of random moves: what may change places changes nothing, and what nobody mixes may."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.graph.edit import Editor
from graphopt.passes.sparse.channels import classes
from graphopt.passes.sparse.permute import permute
from graphopt.verify.oracle import Tolerance, random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal
from tests.helpers.text_models import parse

TOKENS, CHANNELS = 3, 24
MOVES = ("relu", "scale", "add", "concat", "split", "reverse", "every other", "heads", "scale heads", "shuffle",
         "softmax", "product", "transpose", "sum", "gather", "mix", "pick")  # fmt: skip


class _Builder:
    """Text of a graph of values [TOKENS, n], of which the last ones are multiplied and added up at the end."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.weights: dict[str, tuple[int, ...]] = {}
        self.numbers: list[str] = []
        self.values: list[tuple[str, int]] = []

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = shape
        return name

    def ints(self, *numbers: int) -> str:
        name = f"i{len(self.numbers)}"
        self.numbers.append(f"int64[{len(numbers)}] {name} = {{{', '.join(map(str, numbers))}}}")
        return name

    def node(self, text: str, results: int = 1) -> str:
        names = [f"v{len(self.nodes)}_{number}" for number in range(results)]
        self.nodes.append(f"{', '.join(names)} = {text}")
        return names[0]

    def product(self, x: str, inputs: int, outputs: int) -> None:
        self.values.append((self.node(f"MatMul({x}, {self.weight(inputs, outputs)})"), outputs))

    def move(self, kind: str, first: int, second: int) -> None:
        x, n = self.values[first % len(self.values)]
        same = [value for value, extent in self.values if extent == n]
        other, m = self.values[second % len(self.values)]
        new, extent = x, n
        if kind == "relu":
            new = self.node(f"Relu({x})")
        elif kind == "scale":
            new = self.node(f"Mul({x}, {self.weight(n)})")
        elif kind == "add":
            new = self.node(f"Add({x}, {same[second % len(same)]})")
        elif kind == "concat" and n + m <= 4 * CHANNELS:
            new, extent = self.node(f"Concat <axis = 1>({x}, {other})"), n + m
        elif kind == "split" and n >= 4:
            part = self.node(f"Split <axis = 1>({x}, {self.ints(n - n // 3, n // 3)})", 2)
            self.values.append((part.replace("_0", "_1"), n // 3))
            new, extent = part, n - n // 3
        elif kind in ("reverse", "every other"):
            step = -1 if kind == "reverse" else 2
            ends = self.ints(-1 if step < 0 else 0), self.ints(-(10**6) if step < 0 else n)
            new = self.node(f"Slice({x}, {', '.join(ends)}, {self.ints(1)}, {self.ints(step)})")
            extent = n if step < 0 else -(-n // 2)
        elif kind in ("heads", "scale heads", "shuffle") and n % 4 == 0:
            new = self.node(f"Reshape({x}, {self.ints(TOKENS, 4, n // 4)})")
            if kind == "heads":
                back = self.node(f"Transpose <perm = [1, 0, 2]>({self.node(f'Softmax({new})')})")
                new = self.node(f"Transpose <perm = [1, 0, 2]>({back})")
            elif kind == "scale heads":
                new = self.node(f"Mul({new}, {self.weight(4, 1)})")
            else:
                new = self.node(f"Transpose <perm = [0, 2, 1]>({new})")
            new = self.node(f"Reshape({new}, {self.ints(TOKENS, n)})")
        elif kind == "softmax":
            new = self.node(f"Softmax({x})")
        elif kind == "product":
            return self.product(x, n, CHANNELS)
        elif kind == "transpose":
            turned = self.node(f"Mul({self.node(f'Transpose({x})')}, {self.weight(n, 1)})")
            new = self.node(f"Transpose({turned})")
        elif kind == "sum":
            new = self.node(f"Sub({x}, {self.node(f'ReduceMean({x}, {self.ints(1)})')})")
        elif kind == "gather":
            new, extent = self.node(f"Gather <axis = 1>({x}, {self.ints(*range(n - 1, 0, -1))})"), n - 1
        elif kind == "mix":
            new = self.node(f"CumSum({x}, {self.ints(1)})")
        elif kind == "pick":
            scores = self.node(f"MatMul({x}, {self.node(f'Transpose({same[second % len(same)]})')})")
            new = self.node(f"MatMul({self.node(f'Softmax({scores})')}, {x})")
        self.values.append((new, extent))
        return None

    def model(self) -> ir.Model:
        sums = [self.node(f"MatMul({value}, {self.weight(extent, 8)})") for value, extent in self.values[-3:]]
        self.nodes.append(f"y = Sum({', '.join(sums)})")
        inputs = "".join(f", float[{','.join(map(str, shape))}] {name}" for name, shape in self.weights.items())
        constants = f"<{', '.join(self.numbers)}>" if self.numbers else ""
        text = f"g (float[{TOKENS},8] x{inputs}) => (float[{TOKENS},8] y) {constants} {{ {' '.join(self.nodes)} }}"
        return parse(text, self.weights)


@given(
    moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=9),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_any_permutation_of_any_graph_changes_nothing(moves: list[tuple[str, int, int]], seed: int) -> None:
    builder = _Builder()
    builder.product("x", 8, CHANNELS)
    builder.product("x", 8, CHANNELS)
    for kind, first, second in moves:
        builder.move(kind, first, second)
    model = builder.model()
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(0.3), name=value.name)
    feeds = random_inputs(model, seed)
    before = run_onnxruntime(model, feeds)
    generator = np.random.default_rng(seed)
    permute(Editor(model, "test"), [(each, generator.permutation(each.extent)) for each in classes(model.graph)])
    require_equal(before, run_onnxruntime(model, feeds), "permuted", {"float32": Tolerance(1e-3, 1e-3)})
