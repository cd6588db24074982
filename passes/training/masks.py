"""Keep masks of the backward pass in one bit for each element."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt import ops
from graphopt.graph import state
from graphopt.graph.analysis import elements
from graphopt.graph.constness import is_constant, is_input, is_state
from graphopt.graph.edit import Editor, array_of, dims, is_op, nbytes
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal

_CONDITIONS = ("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or")


@dataclass(frozen=True)
class Masks(Pass):
    """Where the backward pass reads an activation only to know where a gradient passes, keep that in bits.

        y = Relu(x)                       ->  y = Relu(x)   bits = PositiveBits(y)
        dx = Where(Greater(y, 0), dy, 0)  ->  dx = MaskByBits(dy, bits)

    The same for other comparisons with 0 in place of a gradient (Clip), and for the masks of Dropout. An activation
    that the backward pass reads elsewhere too, or that a run gives or returns, is there anyway.
    """

    name: ClassVar[str] = "masks"

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph."""
        editor = Editor(model, self.name)
        after = _successors(model.graph)
        bits: dict[ir.Value, ir.Value] = {}
        refusals: list[Refusal] = []
        saved = 0
        for node in list(model.graph):
            if not _zeroes(node):
                continue
            condition, dy = node.inputs[0], node.inputs[1]
            assert condition is not None
            assert dy is not None
            if dims(condition) != dims(node.outputs[0]) or dims(dy) != dims(condition):
                continue
            if condition not in bits:
                leaves = list(dict.fromkeys(_leaves(condition)))
                reason = next((reason for leaf in leaves if (reason := _kept(leaf, condition))), None)
                if reason is not None or not leaves:
                    refusals.append(Refusal(str(node.name), reason or "its mask is constant"))
                    continue
                last = max(leaves, key=lambda leaf: after[leaf.producer()][0])
                bits[condition] = _bits(editor, condition, after[last.producer()][1])
                saved += sum(map(nbytes, leaves)) - nbytes(bits[condition])
            masked = editor.insert(
                node,
                "MaskByBits",
                [dy, bits[condition]],
                shape=dims(node.outputs[0]),
                dtype=node.outputs[0].dtype,
                name=f"{node.name}.by-bits",
                output=f"{node.outputs[0].name}.by-bits",
                origin=[node],
                domain=ops.DOMAIN,
            )
            producer = masked.producer()
            assert producer is not None
            producer.metadata_props[state.PHASE] = node.metadata_props[state.PHASE]
            editor.swap(node, masked)
        notes = (f"{len(bits)} masks are kept in bits, which saves {saved} bytes of activations",) if bits else ()
        return PassResult(model, editor.modified, refusals=tuple(refusals), notes=notes)


def _zeroes(node: ir.Node) -> bool:
    """Whether `node` of the backward pass is Where(condition, dy, 0)."""
    if not is_op(node, "Where") or state.PHASE not in node.metadata_props:
        return False
    nothing = array_of(node.inputs[2])
    return nothing is not None and nothing.size == 1 and not nothing.any()


def _leaves(condition: ir.Value) -> Iterator[ir.Value]:
    """The values of the forward pass that a condition is computed from."""
    producer = condition.producer()
    if producer is not None and is_op(producer, *_CONDITIONS) and state.PHASE in producer.metadata_props:
        for value in producer.inputs:
            if value is not None:
                yield from _leaves(value)
    elif not is_constant(condition):
        yield condition


def _kept(leaf: ir.Value, condition: ir.Value) -> str | None:
    """Why `leaf` is there anyway when the backward pass comes to it."""
    if is_input(leaf) or is_state(leaf) or leaf.producer() is None:
        return f"{leaf.name} is given to each run"
    if leaf.is_graph_output():
        return f"{leaf.name} is an output"
    for use in leaf.uses():
        if state.PHASE in use.node.metadata_props and not _only_masks(use.node, leaf, condition):
            return f"{leaf.name} is kept for {use.node.name} too"
    return None


def _only_masks(reader: ir.Node, leaf: ir.Value, condition: ir.Value) -> bool:
    """Whether what `reader` makes of `leaf` is nothing but the condition of gradients that become zero elsewhere."""
    if leaf is condition:
        return _zeroes(reader) and reader.inputs[0] is leaf and leaf not in reader.inputs[1:]
    if not is_op(reader, *_CONDITIONS):
        return False
    result = reader.outputs[0]
    if result is condition:
        return all(_zeroes(use.node) and use.idx == 0 for use in result.uses())
    return all(_only_masks(use.node, result, condition) for use in result.uses())


def _bits(editor: Editor, condition: ir.Value, before: ir.Node | None) -> ir.Value:
    """The bits of `condition`, computed in the forward pass; of Greater(y, 0) they are those of y itself."""
    producer = condition.producer()
    zero = array_of(producer.inputs[1]) if producer is not None and is_op(producer, "Greater") else None
    source = None if producer is None or zero is None or zero.size != 1 or zero.any() else producer.inputs[0]
    if source is None:
        moved = _moved(editor, condition, before)
        source = _emit(editor, before, "Cast", [moved], dims(moved), ir.DataType.FLOAT, {"to": int(ir.DataType.FLOAT)})
    return _emit(editor, before, "PositiveBits", [source], (-(-elements(condition) // 8),), ir.DataType.UINT8)


def _moved(editor: Editor, condition: ir.Value, before: ir.Node | None) -> ir.Value:
    """`condition` computed in the forward pass."""
    producer = condition.producer()
    if producer is None or not is_op(producer, *_CONDITIONS) or state.PHASE not in producer.metadata_props:
        return condition
    inputs = [None if value is None else _moved(editor, value, before) for value in producer.inputs]
    return _emit(editor, before, producer.op_type, inputs, dims(condition), ir.DataType.BOOL)


def _emit(
    editor: Editor,
    before: ir.Node | None,
    op_type: str,
    inputs: list[ir.Value | None],
    shape: tuple[int, ...] | None,
    dtype: ir.DataType,
    attributes: dict[str, int] | None = None,
) -> ir.Value:
    source = inputs[0]
    assert source is not None
    producer = source.producer()
    (value,) = editor.emit(
        before,
        op_type,
        inputs,
        attributes,
        outputs=[(f"{source.name}.{op_type}", shape, dtype)],
        name=f"{source.name}.{op_type}",
        origin=[producer] if producer is not None else (),
        domain=ops.DOMAIN if op_type == "PositiveBits" else "",
    )
    return value


def _successors(graph: ir.Graph) -> dict[ir.Node | None, tuple[int, ir.Node | None]]:
    """Node -> its number, and the node after it."""
    nodes = list(graph)
    return {node: (place, nodes[place + 1] if place + 1 < len(nodes) else None) for place, node in enumerate(nodes)}
