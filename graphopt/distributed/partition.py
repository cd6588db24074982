"""Partition of a model's nodes into contiguous pieces, one for each pipeline stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import onnx_ir as ir

from graphopt.cost.model import CostModel
from graphopt.cost.node_workload import workload_of
from graphopt.errors import GraphoptError
from graphopt.graph import analysis
from graphopt.graph.constness import is_constant
from graphopt.graph.guards import in_order
from graphopt.graph.segments import Guard, read_by
from graphopt.program import schedule
from graphopt.solve.stages import Crossing, StageProblem, solve

_UNMOVABLE = 1 << 50
"""Bytes charged for a cut through a value that cannot be sent: such cuts are a last resort."""


@dataclass(frozen=True, slots=True)
class Part:
    """The nodes of one stage, and the values that cross its boundaries or are inputs and outputs of the program.

    `guarded` are the conditions under which nodes run (`graphopt.graph.guards`); the stage computes or receives them.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    guarded: Mapping[ir.Node, Guard] = field(default_factory=dict)


def partition(
    model: ir.Model, ranks: int, costs: CostModel, guarded: Mapping[ir.Node, Guard] = MappingProxyType({})
) -> list[Part]:
    """Cut the main graph into `ranks` parts of equal estimated time that exchange few bytes.

    Nodes with conditions in `guarded` come after the nodes that compute the conditions.

    Raises:
        GraphoptError: fewer nodes than ranks, or every cut would go through a value of unknown size.
    """
    graph = model.graph
    nodes = in_order(list(graph), guarded)
    if ranks == 1:
        return [Part(tuple(nodes), tuple(graph.inputs), tuple(graph.outputs), guarded)]
    reads = [_read(node, guarded.get(node, ())) for node in nodes]
    problem = _problem(nodes, reads, ranks, costs)
    if len(nodes) < ranks:
        raise GraphoptError(f"--ranks {ranks} asks for more stages than the model's {len(nodes)} nodes; ask for fewer.")
    pieces = solve(problem).ranges(len(nodes))
    by_name = {str(v.name): v for node in nodes for v in node.outputs} | {str(v.name): v for v in graph.inputs}
    makes, needs = [], []
    for piece in pieces:
        computed = dict.fromkeys(str(value.name) for i in piece for value in nodes[i].outputs)
        needed = dict.fromkeys(str(value.name) for i in piece for value in reads[i])
        makes.append(tuple(computed))
        needs.append(tuple(name for name in needed if name not in computed))
    fed = [str(value.name) for value in graph.inputs]
    wanted = [str(value.name) for value in graph.outputs if not is_constant(value)]
    boundaries = schedule.boundaries(makes, needs, fed, wanted)
    parts = []
    for index, (piece, boundary) in enumerate(zip(pieces, boundaries, strict=True)):
        inputs = tuple(by_name[name] for name in boundary.inputs)
        for value in inputs:
            if str(value.name) not in fed and analysis.static_type(value) is None:
                raise GraphoptError(
                    f"--ranks {ranks} would send {value.name}, whose size only the run tells; ask for fewer ranks."
                )
        constants = [v for v in graph.outputs if is_constant(v) and index == ranks - 1]
        outputs = (*(by_name[name] for name in boundary.outputs), *constants)
        parts.append(Part(tuple(nodes[i] for i in piece), inputs, outputs, guarded))
    return parts


def _read(node: ir.Node, guard: Guard) -> tuple[ir.Value, ...]:
    """The values that `node` reads, those of its guard included, without constants."""
    needed = (*read_by(node), *(condition for condition, _ in guard))
    return tuple(dict.fromkeys(value for value in needed if not is_constant(value)))


def _problem(
    nodes: Sequence[ir.Node], reads: Sequence[Sequence[ir.Value]], ranks: int, costs: CostModel
) -> StageProblem:
    producers = {value: index for index, node in enumerate(nodes) for value in node.outputs}
    last: dict[ir.Value, int] = {}
    for index, values in enumerate(reads):
        for value in values:
            if value in producers:
                last[value] = index
    tensors = []
    for value, used in last.items():
        size = analysis.nbytes(value) if analysis.static_type(value) is not None else _UNMOVABLE
        tensors.append(Crossing(size, producers[value], used))
    return StageProblem(tuple(_seconds(node, costs) for node in nodes), tuple(tensors), ranks)


def _seconds(node: ir.Node, costs: CostModel) -> float:
    """Seconds of `node` by the cost model, else by a roofline of arithmetic at the peak and operand bytes."""
    workload = workload_of(node)
    if workload is not None and (timing := costs.known(workload)) is not None:
        return timing.seconds
    machine = costs.machine
    moved = sum(analysis.nbytes(value) for value in (*node.inputs, *node.outputs) if value is not None)
    return max(analysis.node_flops(node) / machine.peak_flops, moved / machine.bandwidth)
