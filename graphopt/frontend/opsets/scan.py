"""Scan 8 has a batch axis before all others."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.frontend.opsets.site import DONE, NoRule, Site


def batched(site: Site) -> None:
    """Scan 9 has no batch axis: one Scan over the batch runs another over the time axis of each element.

    Scan<body>("", states[B, ..], inputs[B, T, ..])  ->  Scan<{ Scan<body>(state[..], input[T, ..]) }>(states, inputs)
    """
    if site.input(0) is not None:
        raise NoRule("its batch has sequences of several lengths")
    node = site.node
    operands = [value for value in node.inputs[1:] if value is not None]
    attributes = {name: node.attributes.pop(name) for name in list(node.attributes)}
    directions = attributes.pop("directions", None)
    if directions is not None:
        attributes["scan_input_directions"] = ir.AttrInt64s("scan_input_directions", directions.as_ints())
    elements = [ir.Value(name=f"{value.name}_element", type=value.type, shape=_element(value)) for value in operands]
    inner = ir.Node(
        "",
        "Scan",
        elements,
        list(attributes.values()),
        num_outputs=len(node.outputs),
        version=9,
        name=f"{node.name}/Scan",
    )
    for old, new in zip(node.outputs, inner.outputs, strict=True):
        new.type, new.shape = old.type, _element(old)
    body = ir.Graph(elements, inner.outputs, nodes=[inner], name="element")
    outer = ir.Node(
        "", "Scan", operands,
        [ir.AttrGraph("body", body), ir.AttrInt64("num_scan_inputs", len(operands))],
        num_outputs=len(node.outputs), version=DONE, name=node.name,
    )  # fmt: skip
    assert node.graph is not None
    node.graph.insert_before(node, outer)
    site.replace(*outer.outputs)


def _element(value: ir.Value) -> ir.Shape | None:
    return None if value.shape is None or not len(value.shape) else ir.Shape(value.shape.dims[1:])
