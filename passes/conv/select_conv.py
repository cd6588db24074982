"""Choose an algorithm, a layout and a tile for every convolution, by cost, and pack its weights."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar

import onnx_ir as ir

from graphopt.cost.model import CostModel
from graphopt.cost.workload import TILE as TILE_KEY
from graphopt.graph.edit import Editor, is_custom, is_op
from graphopt.passes.conv.algorithms import PLANAR_LAYOUT, PLANES, TILE, Algorithm, Candidate, Limits, candidates
from graphopt.passes.conv.conv_node import ConvNode, read_conv
from graphopt.passes.conv.forms import (
    emit_blocked,
    emit_depthwise,
    emit_fft,
    emit_im2col,
    emit_sparse,
    emit_winograd,
)
from graphopt.passes.conv.weight_gradients import GradientNode, emit_gradient, gradient_candidates, read_gradient
from graphopt.passes.layout.selection import Labelled, selection_problem
from graphopt.pipeline.pass_base import Alternative, ByteSize, Choice, Pass, PassResult, Refusal, option
from graphopt.solve import selection


class Strategy(StrEnum):
    """How algorithms and layouts are chosen; all but `exact` are baselines to compare with."""

    EXACT = "exact"
    GREEDY = "greedy"
    SINGLE_LAYOUT = "single-layout"


@dataclass(frozen=True)
class SelectConv(Pass):
    """Replace each Conv by the algorithm that serves the whole graph best, weights packed as the algorithm reads them.

        y = Conv(x, w, bias)  ->  y = FromBlocked(Conv2dBlocked(ToBlocked(x), packed w, packed bias))
                                  y = FromBlocked(Conv2dWinograd(ToBlocked(x), u, packed bias))   3x3, stride 1
                                  y = FromBlocked(Conv2dWinogradAxis(...))           3, 5, 7 along one axis
                                  y = FromBlocked(DepthwiseConv2dBlocked(...))                    one channel per group
                                  y = FromBlocked(Conv2dFft(ToBlocked(x), u, packed bias))        5x5 and larger
                                  y = FromBlocked(BlockSparseConv(ToBlocked(x), blocks, ...))     sparse weights
                                  y = Conv2dIm2col(x, w as a matrix, bias)
                                  y = Conv(x, w, bias)                                            as it was
        y = ConvTranspose(x, w)   ->  the same with flipped weights, for stride 1
        dw = ConvWeightGradient(x, dy)  ->  dw = FromBlockedWeight(Conv2dWeightGradientBlocked(ToBlocked(x), ...))

    Algorithms and layouts of all nodes are one optimization problem (`graphopt.solve.selection`): the costs of the
    nodes plus those of layout conversions, each shared by all consumers of a tensor, within a budget for the sum of
    rounding errors. Costs are measured where the cost model measures, except for candidates whose estimate (the
    target's, or the roofline of `cost.roofline`) is more than `prune` times the best one's. `layout` removes needless
    conversions. Weights that are known at run time only (inputs, or what training changes) are packed by nodes of the
    graph, whose seconds are part of the choice. A Conv that is not two-dimensional, of static shape and in a type that
    the target blocks (float32 or float64, on GPUs also half precision) stays, with the reason.
    """

    name: ClassVar[str] = "select-conv"

    algorithms: tuple[Algorithm, ...] = option(
        tuple(Algorithm), "algorithms that may be chosen; planar is used where none of them is possible"
    )
    max_workspace: ByteSize = option(ByteSize(256 << 20), "largest scratch memory of one convolution")
    max_error: float = option(1e-5, "largest relative rounding error of one convolution, as expected of its channels")
    error_budget: float = option(5e-4, "largest sum of the relative rounding errors of all convolutions")
    prune: float = option(4.0, "candidates estimated to be so many times slower than the best are not measured")
    strategy: Strategy = option(Strategy.EXACT, "exact, or one of the simpler choices that it is compared with")
    block: int = option(0, "channels per block; 0 for the vector width of the machine, in floats")
    costs: CostModel = field(default_factory=CostModel, compare=False, repr=False)

    def on(self, costs: CostModel) -> SelectConv:
        """The same pass with the cost model `costs`."""
        return replace(self, costs=costs)

    @property
    def lanes(self) -> int:
        """Channels per block."""
        return self.block or self.costs.machine.vector_lanes

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph; every Conv gets a Choice or a Refusal."""
        refusals: list[Refusal] = []
        convolutions: dict[ir.Node, ConvNode | GradientNode] = {}
        for node in model.graph:
            if is_op(node, "Conv", "ConvTranspose"):
                conv: ConvNode | GradientNode | str = read_conv(node, model, self.costs.machine)
            elif is_custom(node, "ConvWeightGradient"):
                conv = read_gradient(node, model, self.costs.machine)
            else:
                continue
            if isinstance(conv, str):
                refusals.append(Refusal(str(node.name), conv))
            else:
                convolutions[node] = conv
        if not convolutions:
            return PassResult(model, False, tuple(refusals))
        start = time.perf_counter()
        offered = self._timed(convolutions)
        possible = {node: [c for c in options if c.possible] for node, options in offered.items()}
        labelled = selection_problem(
            model.graph,
            self.lanes,
            self.costs,
            {
                node: [selection.Alternative(c.reads, c.writes, c.total, c.error) for c in options]
                for node, options in possible.items()
            },
            [
                node
                for node, options in possible.items()
                if any(c.writes == PLANAR_LAYOUT and c.measured for c in options)
            ],
            self.error_budget,
            {node: conv.data(self.lanes) for node, conv in convolutions.items() if isinstance(conv, GradientNode)},
        )
        gathered = time.perf_counter()
        solution, note = self._solve(labelled, list(convolutions))
        note += f"; costs gathered in {gathered - start:.2f} s, solved in {time.perf_counter() - gathered:.2f} s"
        chosen = dict(zip(labelled.nodes, solution.chosen, strict=False))
        editor = Editor(model, self.name)
        choices = []
        for node, conv in convolutions.items():
            candidate = possible[node][chosen[node]]
            choices.append(_choice(node, candidate, offered[node]))
            if isinstance(conv, ConvNode):
                _emit(editor, conv, candidate, self.lanes)
            elif candidate.algorithm is not Algorithm.PLANAR:
                emit_gradient(editor, conv, self.lanes)
        return PassResult(model, editor.modified, tuple(refusals), tuple(choices), (note,))

    def _timed(self, convolutions: dict[ir.Node, ConvNode | GradientNode]) -> dict[ir.Node, list[Candidate]]:
        """The candidates of every convolution: measured seconds, or estimates scaled to compare with them."""
        limits = Limits(self.lanes, self.max_workspace, self.max_error)
        offered = {
            node: candidates(conv, self.costs, limits, self.algorithms)
            if isinstance(conv, ConvNode)
            else gradient_candidates(conv, self.costs, self.lanes, self.algorithms)
            for node, conv in convolutions.items()
        }
        groups = {node: _worth_measuring(options, self.prune) for node, options in offered.items()}
        timings = self.costs.timings([[c.workload for c in group] for group in groups.values()])
        for (node, group), timed in zip(groups.items(), timings, strict=True):
            measured = {c: t for c, t in zip(group, timed, strict=True) if t is not None}
            if not measured:
                continue
            scale = min(t.seconds for t in measured.values()) / min(c.seconds for c in measured)
            offered[node] = [
                replace(c, seconds=measured[c].seconds, tile=measured[c].tile, measured=True)
                if c in measured
                else replace(c, seconds=c.seconds * scale)
                for c in offered[node]
            ]
        return offered

    def _solve(self, labelled: Labelled, deciding: Sequence[ir.Node]) -> tuple[selection.Solution, str]:
        """The solution of the chosen strategy, and a sentence that compares exact, greedy and single-layout."""
        numbers = {node: number for number, node in enumerate(labelled.nodes)}
        nodes = [numbers[node] for node in deciding]
        exact = selection.solve(labelled.problem)
        greedy = selection.greedy(labelled.problem, nodes)
        single = selection.single_layout(labelled.problem, nodes)
        note = (
            f"{exact.seconds * 1e3:.3f} ms, gap {exact.gap:.2%}, {exact.core} of {len(labelled.nodes)} nodes left to "
            f"the integer program; greedy {_beside(greedy, exact)}, best single layout {_beside(single, exact)}"
        )
        return {Strategy.EXACT: exact, Strategy.GREEDY: greedy, Strategy.SINGLE_LAYOUT: single}[self.strategy], note


def _beside(other: selection.Solution, exact: selection.Solution) -> str:
    if math.isinf(other.seconds):
        return "impossible"
    return f"{other.seconds * 1e3:.3f} ms ({other.seconds / exact.seconds:.2f}x)" if exact.seconds else "the same"


def _worth_measuring(options: list[Candidate], prune: float) -> list[Candidate]:
    """The possible candidates whose estimate is at most `prune` times the best one's."""
    best = min((c.seconds for c in options if c.possible), default=math.inf)
    return [c for c in options if c.possible and c.seconds <= prune * best]


def _emit(editor: Editor, conv: ConvNode, chosen: Candidate, lanes: int) -> None:
    if chosen.algorithm is Algorithm.BLOCKED:
        emit_blocked(editor, conv, lanes if chosen.reads else PLANES, lanes, chosen.tile)
    elif chosen.algorithm is Algorithm.DEPTHWISE:
        emit_depthwise(editor, conv, lanes, chosen.tile)
    elif chosen.algorithm in TILE:
        emit_winograd(editor, conv, TILE[chosen.algorithm], lanes, chosen.tile)
    elif chosen.algorithm is Algorithm.FFT:
        size = dict(chosen.workload.attributes)["tile"]
        assert isinstance(size, int)
        emit_fft(editor, conv, size, lanes, chosen.tile)
    elif chosen.algorithm is Algorithm.SPARSE:
        _, depth, width = chosen.workload.operands[1].shape
        emit_sparse(editor, conv, depth, width, lanes, chosen.tile)
    elif chosen.algorithm is Algorithm.IM2COL:
        emit_im2col(editor, conv, chosen.tile)
    elif chosen.tile:
        conv.node.metadata_props[TILE_KEY] = chosen.tile


def _choice(node: ir.Node, chosen: Candidate, offered: list[Candidate]) -> Choice:
    def why_not(other: Candidate) -> str:
        if other.reason:
            return other.reason
        return "slower" if other.seconds >= chosen.seconds else "changing the layout around it costs more than it gains"

    others: dict[Algorithm, Candidate] = {}
    for other in sorted(offered, key=lambda c: c.seconds):
        if other.algorithm is not chosen.algorithm:
            others.setdefault(other.algorithm, other)
    alternatives = tuple(
        Alternative(str(other.algorithm), other.seconds if other.possible else None, why_not(other))
        for other in others.values()
    )
    return Choice(str(node.name), str(chosen.algorithm), chosen.seconds, alternatives, chosen.tile, chosen.measured)
