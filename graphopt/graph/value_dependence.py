"""Whether the shapes of a node's outputs follow from the shapes of its operands alone, or also from their values.

NonZero(x)                     values
Reshape(x, s)                  values, unless s is a constant
Loop(3, "", x) { ... }         shapes, if nothing in the body sizes a tensor by a value that was computed from data
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from graphopt.graph.constness import is_constant

DATA_DEPENDENT = frozenset({
    "Compress", "ImageDecoder", "NonMaxSuppression", "NonZero", "Optional", "OptionalGetElement", "SequenceAt",
    "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence", "StringSplit", "Unique",
    # of com.microsoft
    "BeamSearch", "BifurcationDetector", "DecoderMaskedSelfAttention", "DynamicTimeWarping", "EPContext",
    "GreedySearch", "RemovePadding", "Sampling", "Tokenizer", "WhisperBeamSearch",
})  # fmt: skip
"""Operators whose numbers of result elements depend on the values of their operands."""

SIZES: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2), "ConstantOfShape": (0,),
    "CropAndResize": (3,), "DFT": (1, 2), "Expand": (1,), "GroupQueryAttention": (6,),
    "HammingWindow": (0,), "HannWindow": (0,), "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1), "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2),
    "ReduceL1": (1,), "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,), "ReduceMax": (1,),
    "ReduceMean": (1,), "ReduceMin": (1,), "ReduceProd": (1,), "ReduceSum": (1,), "ReduceSumSquare": (1,),
    "Reshape": (1,), "Resize": (1, 2, 3), "STFT": (1, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,),
    "Tile": (1,), "TopK": (1,), "Unsqueeze": (1,), "Upsample": (1,),
}  # fmt: skip
"""Positions of the operands whose values are sizes, axes or counts."""

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators with random results."""


def depends_on_values(node: ir.Node) -> bool:
    """Whether a result's shape may differ between two feeds of the same shapes; True in doubt.

    Initializers and Constant nodes are known; everything else that enters the node is data.
    """
    return _depends(node, set())


def computes_by_values(graph: ir.Graph) -> bool:
    """Whether a node of `graph`, a branch or the like, gives a result whose shape may differ between two feeds."""
    return _body_depends(graph, set())


def _depends(node: ir.Node, known: set[ir.Value]) -> bool:
    """Whether a result's shape may differ between two feeds in which the values `known` are the same."""
    if node.op_type in DATA_DEPENDENT:
        return True
    if node.op_type == "If":
        if not _is_known(node.inputs[0], known):
            return True
        return any(_body_depends(graph, set(known)) for graph in _graphs(node))
    if node.op_type == "Loop":
        return _loop_depends(node, known)
    if node.op_type == "Scan":
        return any(_body_depends(graph, set(known)) for graph in _graphs(node))
    operands = (node.inputs[index] for index in SIZES.get(node.op_type, ()) if index < len(node.inputs))
    return bool(_graphs(node)) or any(not _is_known(value, known) for value in operands)


def _loop_depends(node: ir.Node, known: set[ir.Value]) -> bool:
    """A loop repeats a known number of times if its count and its condition are known, whatever the data.

    A value that is carried around is known if it starts so and stays so.
    """
    count, condition = (*node.inputs, None, None)[:2]
    body = node.attributes["body"].as_graph()
    if count is None and condition is None:
        return True  # it never ends
    if not _is_known(count, known) or not _is_known(condition, known) or len(body.inputs) < 2:
        return True
    carried = list(zip(body.inputs[2:], node.inputs[2:], body.outputs[1:], strict=False))
    steady = {inner for inner, start, _ in carried if _is_known(start, known)}
    while True:
        inside = known | steady | set(body.inputs[:2])
        if _body_depends(body, inside) or not body.outputs or not _is_known(body.outputs[0], inside):
            return True
        kept = {inner for inner, _, end in carried if inner in steady and _is_known(end, inside)}
        if kept == steady:
            return False
        steady = kept


def _body_depends(graph: ir.Graph, known: set[ir.Value]) -> bool:
    """Whether a node of `graph` sizes a result by data; adds to `known` what its nodes compute from known values."""
    for node in graph:
        if _depends(node, known):
            return True
        computed = node.op_type not in RANDOM and not _graphs(node) and _all_known(node.inputs, known)
        if computed or node.op_type in ("Shape", "Size"):
            known.update(node.outputs)
    return False


def _all_known(values: Iterable[ir.Value | None], known: set[ir.Value]) -> bool:
    return all(_is_known(value, known) for value in values)


def _is_known(value: ir.Value | None, known: set[ir.Value]) -> bool:
    """Absent operands and constants are known."""
    if value is None or value in known or is_constant(value):
        return True
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant"


def _graphs(node: ir.Node) -> list[ir.Graph]:
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs.extend(attribute.as_graphs())
    return graphs
