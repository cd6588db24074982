"""Which channels of a graph may change places, and which constants would have to follow.

    y = Add(MatMul(x, w), b)   z = MatMul(Relu(y), v)

The columns of w, b, the last axis of y and the rows of v carry one class of channels: permuting all of them alike
changes nothing that anybody sees. Concatenations and splits cut classes; heads of attention are a class each, with q
and k in one order. Channels keep their places where a node depends on their order, and where a user sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from graphopt import ops
from graphopt.passes.sparse import channel_moves as moves
from graphopt.passes.sparse import channel_rules as rules
from graphopt.passes.sparse.carriers import Channels, Finder

Rule = Callable[[Finder, ir.Node], bool]
"""Says what the results of a node carry; False where it does not know, and then its operands keep their order."""


def classes(graph: ir.Graph) -> list[Channels]:
    """The classes of channels of `graph` that nothing fixes and that some product or convolution produces."""
    finder = Finder()
    for node in graph:
        known = _RULES.get((node.domain, node.op_type))
        if known is None or not known(finder, node):
            finder.refuse(*node.inputs)
        finder.refuse(*_captured(node))
    finder.refuse(*graph.outputs)
    return list(finder.classes())


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """The values of the outer graph that subgraphs of `node` read."""
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type is ir.AttributeType.GRAPH:
            graph = attribute.as_graph()
            yield from graph.outputs
            for inner in graph.all_nodes():
                yield from (value for value in inner.inputs if value is not None)


_STANDARD: dict[str, Rule] = {
    **dict.fromkeys(rules.ELEMENTWISE, rules.elementwise),
    **dict.fromkeys(("MatMul", "Gemm"), rules.linear),
    **dict.fromkeys(("Conv", "ConvTranspose"), rules.conv),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), rules.pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), rules.pool),
    **dict.fromkeys(
        ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"), rules.normalization
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LpNormalization"), rules.softmax),
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
         "ReduceProd", "ReduceSum", "ReduceSumSquare"), rules.reduce
    ),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), moves.reshape),
    **dict.fromkeys(("Resize", "Pad", "Expand"), moves.stretch),
    **dict.fromkeys(("Shape", "Size"), rules.extents),
    "Transpose": moves.transpose,
    "Concat": moves.concat,
    "Split": moves.split,
    "Slice": moves.slices,
    "Gather": moves.gather,
}  # fmt: skip

_RULES: dict[tuple[str, str], Rule] = {
    **{("", name): rule for name, rule in _STANDARD.items()},
    **dict.fromkeys(((ops.DOMAIN, "Attention"), (ops.DOMAIN, "AttentionMasked")), rules.attention),
}
