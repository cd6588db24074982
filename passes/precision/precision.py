"""Compute products in half precision (or TF32), and the operators that need it in float32."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.cost.workload import PRECISION
from graphopt.graph.constness import constant_tensor, is_constant
from graphopt.graph.edit import Editor, is_op
from graphopt.graph.opsets import BFLOAT16_OPSET
from graphopt.modes import Precision as Numbers
from graphopt.passes.precision.cut import choose
from graphopt.passes.precision.nodes import Rules, concerned, is_product
from graphopt.passes.precision.rewrite import Rewrite
from graphopt.passes.precision.view import CAST_BYTES, View, elements, tensors_of
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal, option

HALF_DTYPES = {Numbers.FP16: ir.DataType.FLOAT16, Numbers.BF16: ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Precision(Pass):
    """Products and what lies between them compute on half tensors; sums, exponentials and the rest on float32.

        y = Softmax(MatMul(x, w))  ->  a = Cast{FLOAT16}(x)   p = MatMul(a, w')   b = Cast{FLOAT}(p)   y = Softmax(b)

    Conv, ConvTranspose, MatMul, Gemm and Attention always compute in half precision, unless a constant does not fit.
    Elementwise operators, poolings, normalizations and operators that only move numbers do so where the casts then move
    the fewest bytes, by a minimum cut (`cut.py`). Graph inputs and outputs keep their types. A tensor is cast once for
    all its consumers; constants are converted at compile time. For bfloat16 a model with convolutions is raised to
    opset 22, the first whose convolutions take it. A Cast back to the original type of a tensor is dropped.

    Only stored tensors are in half precision: targets accumulate products in float32. Numbers that leave the range of
    float16 (65504) at run time become infinite, which a comparison with float32 shows and this pass cannot. Attention
    masks are the exception: finite ones beyond the range are raised to half of the lowest number, whose exponential is
    0 too. `tf32` changes no type; it marks the products (`PRECISION`).
    """

    name: ClassVar[str] = "precision"

    to: Numbers = option(Numbers.FP32, "what products compute on; fp32 leaves the model as it is")

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph; every node that keeps float32 and could have left it gets a Refusal."""
        if self.to == Numbers.FP32:
            return PassResult(model, False)
        if self.to == Numbers.TF32:
            return _mark_products(model)
        half = HALF_DTYPES[self.to]
        raised = half == ir.DataType.BFLOAT16 and _raise_opset(model)
        view = View(model.graph, half)
        rules = Rules(half, model.opset_imports.get("", 1), _captured(model))
        reasons: dict[ir.Node, str] = {}
        products: set[ir.Node] = set()
        open_: list[ir.Node] = []
        for node in model.graph:
            if not concerned(node) or is_op(node, "Cast"):
                continue
            if reason := rules.refusal(node):
                reasons[node] = reason
            elif is_product(node):
                products.add(node)
            else:
                open_.append(node)
        extra: dict[Hashable, int] = {node: 2 * sum(map(elements, (*node.inputs, *node.outputs))) for node in open_}
        chosen = choose(extra, tensors_of(view, products, set(open_)))
        for node in open_:
            if node not in chosen:
                reasons[node] = "its neighbours compute in float32, so casts would move more than half saves"
        editor = Editor(model, self.name)
        Rewrite(editor, view, {*products, *(node for node in open_ if node in chosen)}).run()
        refusals = tuple(Refusal(str(node.name), reasons[node]) for node in model.graph if node in reasons)
        notes = (f"opset {BFLOAT16_OPSET} is the first whose convolutions take bfloat16",) if raised else ()
        return PassResult(model, editor.modified or raised, refusals, (), (summary(model.graph, half), *notes))


def _raise_opset(model: ir.Model) -> bool:
    """Raise the opset so that convolutions take bfloat16; whether that was needed and possible.

    From opset 18 up to that one operators only gain types, except GroupNormalization, whose meaning changes.
    """
    version = model.opset_imports.get("", 1)
    nodes = list(model.graph.all_nodes())
    if not 18 <= version < BFLOAT16_OPSET or not any(is_op(node, "Conv", "ConvTranspose") for node in nodes):
        return False
    if version < 21 and any(is_op(node, "GroupNormalization") for node in nodes):
        return False
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        imports[""] = BFLOAT16_OPSET
    return True


def _mark_products(model: ir.Model) -> PassResult:
    products = [node for node in model.graph if is_product(node) and concerned(node)]
    fresh = [node for node in products if node.metadata_props.get(PRECISION) != Numbers.TF32]
    for node in fresh:
        node.metadata_props[PRECISION] = str(Numbers.TF32)
    note = f"products that may round their factors to TF32: {len(products)}; sums and all tensors stay float32"
    return PassResult(model, bool(fresh), notes=(note,))


def _captured(model: ir.Model) -> set[ir.Value]:
    """Values that the bodies of branches and loops read; their types stay."""
    bodies = [graph for graph in model.graphs() if graph is not model.graph]
    read = (value for graph in bodies for node in graph for value in node.inputs)
    return {value for value in (*read, *(v for graph in bodies for v in graph.outputs)) if value is not None}


def summary(graph: ir.Graph, half: ir.DataType) -> str:
    """Summary: nodes per precision, bytes that the casts move, bytes of the weights."""
    kinds = {ir.DataType.FLOAT, half}
    nodes = [node for node in graph if not is_op(node, "Cast")]
    in_half = sum(any(value.dtype == half for value in node.outputs) for node in nodes)
    in_float = sum(any(value.dtype == ir.DataType.FLOAT for value in node.outputs) for node in nodes)
    casts = [
        node.outputs[0]
        for node in graph
        if is_op(node, "Cast") and node.inputs[0] is not None and {node.inputs[0].dtype, node.outputs[0].dtype} == kinds
    ]
    moved = CAST_BYTES * sum(map(elements, casts)) / 1e6
    weights = [constant_tensor(v) for v in graph.initializers.values() if is_constant(v) and v.dtype in kinds]
    return (
        f"{in_half} nodes compute in {half.name.lower()}, {in_float} in float32; {len(casts)} casts move "
        f"{moved:.3g} MB, placed by a minimum cut; {sum(w.nbytes for w in weights) / 1e6:.4g} MB of weights"
    )
