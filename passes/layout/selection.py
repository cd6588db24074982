"""The selection problem of a graph: the layouts that each node can work on, and the costs of converting tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.cost import roofline as costs
from graphopt.cost.model import CostModel
from graphopt.cost.workload import Operand, Workload
from graphopt.graph.edit import dims
from graphopt.ops.layout import blocks
from graphopt.passes.layout import training
from graphopt.passes.layout.blockable import ELEMENTWISE, POOLS, border, form_of, has_layout, padded_bytes
from graphopt.passes.layout.form import Form
from graphopt.solve.selection import Alternative, Problem, Tensor

PLANAR, BLOCKED = 0, 1


@dataclass(frozen=True, slots=True)
class Labelled:
    """The problem of a graph: its node i is `nodes[i]`; its last node is the outside of the graph, which is planar."""

    problem: Problem
    nodes: tuple[ir.Node, ...]
    forms: dict[ir.Node, Form]
    refusals: dict[ir.Node, str]


def selection_problem(
    graph: ir.Graph,
    block: int,
    model: CostModel,
    convolutions: Mapping[ir.Node, Sequence[Alternative]],
    contested: Collection[ir.Node] = (),
    error_budget: float = math.inf,
    data: Mapping[ir.Node, tuple[int, ...]] | None = None,
) -> Labelled:
    """The problem of `graphopt.solve.selection` for the main graph.

    `convolutions` gives the alternatives of nodes that may become graphopt operators, `contested` those of them whose
    layout is open, `data` the inputs of those that have a layout where that is not the first alone. `FromBlocked` and
    `ToBlocked` of this block size count as blocked nodes.
    """
    nodes = tuple(graph)
    numbers = {node: number for number, node in enumerate(nodes)}
    outside = len(nodes)
    forms: dict[ir.Node, Form] = {}
    refusals: dict[ir.Node, str] = {}
    alternatives: list[tuple[Alternative, ...]] = []
    for node in nodes:
        if node in convolutions:
            alternatives.append(tuple(convolutions[node]))
        elif border(node, block):
            alternatives.append((Alternative(BLOCKED, BLOCKED, 0.0),))
        elif isinstance(form := form_of(node, block, model.machine.floats), Form):
            forms[node] = form
            roots = [_root(node.inputs[index], forms) for index in form.data]
            planar_only = [
                root is not None
                and root not in forms
                and not border(root, block)
                and all(choice.writes == PLANAR for choice in convolutions.get(root, ()))
                for root in roots
            ]
            alternatives.append(_on_either(node, form, block, model.machine, planar_only))
        else:
            refusals[node] = form
            alternatives.append((Alternative(PLANAR, PLANAR, 0.0),))
    alternatives.append((Alternative(PLANAR, PLANAR, 0.0),))
    values = [
        value
        for value in (*graph.inputs, *graph.initializers.values(), *(v for node in nodes for v in node.outputs))
        if has_layout(value, model.machine.floats)
    ]
    read = {node: form.data for node, form in forms.items()} | dict.fromkeys(convolutions, (0,)) | dict(data or {})
    ends = [
        (
            outside if (producer := value.producer()) is None else numbers[producer],
            _consumers(value, numbers, read, outside),
        )
        for value in values
    ]
    open_ = {outside} | {numbers[node] for node in (*refusals, *contested)}
    decisive = [bool(open_.intersection((producer, *consumers))) for producer, consumers in ends]
    tensors = [
        Tensor(producer, consumers, ((0.0, to_blocked), (to_planar, 0.0)))
        for (producer, consumers), (to_blocked, to_planar) in zip(
            ends, _conversions(values, decisive, block, model), strict=True
        )
    ]
    return Labelled(Problem(tuple(alternatives), tuple(tensors), 2, error_budget), nodes, forms, refusals)


def _consumers(
    value: ir.Value, numbers: Mapping[ir.Node, int], read: Mapping[ir.Node, tuple[int, ...]], outside: int
) -> tuple[int, ...]:
    """The nodes that read `value` in a layout; `read` are the inputs of nodes that pack others, or none."""
    consumers: dict[int, None] = {}
    for node, index in value.uses():
        if node in read and index not in read[node]:
            continue  # weights and constants are packed, not converted
        consumers[numbers.get(node, outside)] = None
    if value.is_graph_output():
        consumers[outside] = None
    return tuple(consumers)


def _conversions(
    values: Sequence[ir.Value], decisive: Sequence[bool], block: int, model: CostModel
) -> list[tuple[float, float]]:
    """Seconds of ToBlocked and of FromBlocked per tensor: measured where `decisive`, else bytes over bandwidth."""
    groups = [
        _conversion_workloads(value, block) if asked else () for value, asked in zip(values, decisive, strict=True)
    ]
    seconds = []
    for value, timings in zip(values, model.timings(groups), strict=True):
        roofline = costs.transform(model.machine, padded_bytes(value, block))
        to_blocked, to_planar = (
            model.estimated(workload, roofline) if t is None else t.seconds
            for workload, t in zip(_conversion_workloads(value, block), timings or (None, None), strict=True)
        )
        seconds.append((to_blocked, to_planar))
    return seconds


def _conversion_workloads(value: ir.Value, block: int) -> tuple[Workload, Workload]:
    shape = dims(value)
    assert shape is not None
    assert value.dtype is not None
    n, c, h, w = shape
    dtype = str(value.dtype.numpy())
    blocked = (n, blocks(c, block), h, w, block)
    return (
        Workload("ToBlocked", (Operand(shape, dtype),), blocked, (("block", block),)),
        Workload("FromBlocked", (Operand(blocked, dtype),), shape, (("channels", c),)),
    )


def _root(value: ir.Value | None, forms: Mapping[ir.Node, Form]) -> ir.Node | None:
    """The node whose kernel an elementwise consumer of `value` is fused into: its nearest non-elementwise producer."""
    producer = None if value is None else value.producer()
    while producer is not None and producer in forms and producer.op_type in ELEMENTWISE:
        source = producer.inputs[forms[producer].data[0]]
        producer = None if source is None else source.producer()
    return producer


def _on_either(
    node: ir.Node, form: Form, block: int, machine: costs.Machine, planar_only: Sequence[bool]
) -> tuple[Alternative, Alternative]:
    """Elementwise nodes are fused into the kernel of their producer at no cost; pools and LRN are slower when planar.

    `planar_only` says of each input whether the node that computes it has no blocked form.
    """
    tensors = [value for index in form.data if (value := node.inputs[index]) is not None] + [node.outputs[0]]
    blocked = sum(padded_bytes(value, block) for value in tensors) / machine.bandwidth
    planar = sum(padded_bytes(value, 1) for value in tensors) / machine.bandwidth
    if node.op_type in ELEMENTWISE:
        planar = 0.0 if any(planar_only) else planar / 4
        blocked = blocked / 4 if all(planar_only) else 0.0
    elif node.op_type in POOLS or node.op_type in training.POOLS | {"LRN"}:
        planar *= 2
    return Alternative(PLANAR, PLANAR, planar), Alternative(BLOCKED, BLOCKED, blocked)
