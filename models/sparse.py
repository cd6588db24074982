"""One layer with block-sparse weights each, as models, under names that say what they are.

sparse/768x3072-m128-b16x1-s90      MatMul of x [128, 768] and w [768, 3072]; blocks of 16 outputs x 1 input, 90 % zero
sparse/conv256x64-w56-b16x1-s90     1x1 convolution, 256 -> 64 channels, of 56 x 56 positions
sparse/...-shuffled                 the same with its outputs in random order

Those whose inputs are zero instead are in `sparse_inputs`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.models import sparse_inputs
from graphopt.models.sparse_inputs import ReluStack

if TYPE_CHECKING:
    import onnx_ir as ir

PREFIX = "sparse/"
_NAME = re.compile(
    r"(?P<conv>conv)?(?P<k>[1-9]\d{0,4})x(?P<n>[1-9]\d{0,4})-(?P<axis>[mw])(?P<size>[1-9]\d{0,3})"
    r"-b(?P<width>[1-9]\d{0,2})x(?P<depth>[1-9]\d{0,2})-s(?P<percent>\d{1,2})(?P<shuffled>-shuffled)?"
)
PRODUCTS = ((768, 768), (768, 3072), (3072, 768))
"""K x N of a transformer's projections and MLP."""
POINTWISE = ((256, 64, 56), (512, 128, 28), (1024, 256, 14), (2048, 512, 7))
"""Input channels, output channels and width of a residual network's 1x1 convolutions."""
COLUMNS = (1, 16, 128)
BLOCKS = ((16, 1), (4, 1), (16, 16), (32, 32))
"""Outputs x inputs."""
PERCENT = (50, 70, 80, 90, 95)
"""Blocks that are zero."""


@dataclass(frozen=True)
class SparseLayer:
    """A layer: MatMul of x [size, k] and w [k, n], or a 1x1 convolution of k -> n channels of size x size positions."""

    name: str
    conv: bool
    k: int
    n: int
    size: int
    width: int
    depth: int
    percent: int
    shuffled: bool = False

    @property
    def title(self) -> str:
        """A line about it."""
        what = "1x1 convolution" if self.conv else "Matrix product"
        return f"{what}, {self.percent} % of its blocks of {self.width} x {self.depth} zero"

    @property
    def spelled(self) -> str:
        """What is multiplied, without its blocks."""
        if self.conv:
            return f"1x1 {self.k}->{self.n}, {self.size}x{self.size}"
        rows = "1 row" if self.size == 1 else f"{self.size} rows"
        return f"{self.k}x{self.n}, {rows}{', shuffled' if self.shuffled else ''}"

    @property
    def block(self) -> str:
        """Outputs x inputs of a block."""
        return f"{self.width}x{self.depth}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of x."""
        return (1, self.k, self.size, self.size) if self.conv else (self.size, self.k)


def parse(name: str) -> SparseLayer | ReluStack | None:
    """The model of that name, without the prefix; None if it is no such name."""
    match = _NAME.fullmatch(name)
    if match is None or bool(match["conv"]) != (match["axis"] == "w"):
        return sparse_inputs.parse(name)
    k, n, size, width, depth, percent = (int(match[part]) for part in ("k", "n", "size", "width", "depth", "percent"))
    return SparseLayer(name, bool(match["conv"]), k, n, size, width, depth, percent, bool(match["shuffled"]))


def grid() -> list[str]:
    """The names of the benchmark: every block and sparsity with every product, number of rows, and convolution."""
    layers = [f"{k}x{n}-m{m}" for k, n in PRODUCTS for m in COLUMNS]
    layers += [f"conv{k}x{n}-w{width}" for k, n, width in POINTWISE]
    weights = [f"{layer}-b{w}x{d}-s{percent}" for layer in layers for w, d in BLOCKS for percent in PERCENT]
    return [*weights, *sparse_inputs.grid()]


def build(layer: SparseLayer | ReluStack, seed: int) -> ir.Model:
    """The model: input x, output y, weights drawn from `seed`; exactly so many of 100 blocks are zero."""
    import numpy as np
    import onnx_ir as ir

    if isinstance(layer, ReluStack):
        return sparse_inputs.build(layer, seed)

    generator = np.random.default_rng(seed)
    k, n = layer.k, layer.n
    rows, columns = math.ceil(k / layer.depth), math.ceil(n / layer.width)
    kept = np.ones(rows * columns, np.bool_)
    kept[generator.permutation(kept.size)[: kept.size * layer.percent // 100]] = False
    mask = np.kron(kept.reshape(rows, columns), np.ones((layer.depth, layer.width), np.bool_))[:k, :n]
    if layer.shuffled:
        mask = mask[:, generator.permutation(n)]
    bound = np.float32(math.sqrt(3.0 / k))
    drawn = (generator.random((k, n), dtype=np.float32) * 2 - 1) * bound * mask
    weight = np.ascontiguousarray(drawn.T).reshape(n, k, 1, 1) if layer.conv else drawn
    out = (1, n, layer.size, layer.size) if layer.conv else (layer.size, n)
    kind = ir.TensorType(ir.DataType.FLOAT)
    x, y = (ir.Value(name=name, shape=ir.Shape(shape), type=kind) for name, shape in (("x", layer.shape), ("y", out)))
    w = ir.Value(name="w", shape=ir.Shape(weight.shape), type=kind, const_value=ir.Tensor(weight, name="w"))
    node = ir.node("Conv" if layer.conv else "MatMul", [x, w], outputs=[y], name="layer")
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 20}, name="sparse")
    return ir.Model(graph, ir_version=11)
