"""Choose an algorithm for every convolution, by cost, and pack its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import costs
from graphopt.costs import ConvShape, Machine
from graphopt.ops import MINIMUM_OPSET
from graphopt.passes._blockable import FLOATS, layout_problem
from graphopt.passes._conv_forms import ConvNode, emit_blocked, emit_depthwise, emit_im2col, emit_winograd
from graphopt.passes._edit import Editor, array_of, dims, ints, is_op
from graphopt.pipeline import Alternative, ByteSize, Choice, Pass, PassResult, Refusal, option
from graphopt.solve.layout import solve


class Algorithm(StrEnum):
    """What a convolution can become. `planar` leaves the standard Conv."""

    BLOCKED = "blocked"
    DEPTHWISE = "depthwise"
    WINOGRAD2 = "winograd2"
    WINOGRAD4 = "winograd4"
    IM2COL = "im2col"
    PLANAR = "planar"


PLANES = 1
"""Input block of a convolution over few channels: blocks of one channel are the planes as they lie."""

ON_BLOCKED = (Algorithm.BLOCKED, Algorithm.DEPTHWISE, Algorithm.WINOGRAD2, Algorithm.WINOGRAD4)
TILE = {Algorithm.WINOGRAD2: 2, Algorithm.WINOGRAD4: 4}
RELATIVE_ERROR = {Algorithm.WINOGRAD2: 7.7e-8, Algorithm.WINOGRAD4: 3.3e-7}
"""Of one 3x3 convolution in float32, mean |error| / mean |value|; asserted by tests/ops/test_winograd.py."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One algorithm for one node: estimated seconds, or why it is impossible."""

    algorithm: Algorithm
    seconds: float
    reason: str = ""

    @property
    def possible(self) -> bool:
        """Whether the node may use it."""
        return not self.reason


@dataclass(frozen=True)
class SelectConv(Pass):
    """Replace each Conv by the cheapest algorithm for its shape, weights packed as the algorithm reads them.

        y = Conv(x, w, bias)  ->  y = FromBlocked(Conv2dBlocked(ToBlocked(x), packed w, packed bias))
                                  y = FromBlocked(Conv2dWinograd(ToBlocked(x), u, packed bias))   3x3, stride 1
                                  y = FromBlocked(DepthwiseConv2dBlocked(...))                    one channel per group
                                  y = Conv2dIm2col(x, w as a matrix, bias)
                                  y = Conv(x, w, bias)                                            as it was

    The cost of an algorithm is a roofline (`graphopt.costs`); the cost of changing layouts is weighed over the whole
    graph as in `layout`, which removes the conversions that turn out needless. A Conv whose weights are not constant,
    that is not two-dimensional, of static shape and in float32 or float64 is left alone, with the reason.
    """

    name: ClassVar[str] = "select-conv"

    algorithms: tuple[Algorithm, ...] = option(
        tuple(Algorithm), "algorithms that may be chosen; planar is used where none of them is possible"
    )
    max_workspace: ByteSize = option(ByteSize(256 << 20), "largest scratch memory of one convolution")
    max_error: float = option(1e-6, "largest relative rounding error of one convolution")
    block: int = option(0, "channels per block; 0 for the vector width of the machine, in floats")
    machine: Machine = field(default_factory=Machine)

    def on(self, machine: Machine) -> SelectConv:
        """The same choices for another machine."""
        return replace(self, machine=machine)

    @property
    def lanes(self) -> int:
        """Channels per block."""
        return self.block or self.machine.vector_lanes

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph; every Conv gets a Choice or a Refusal."""
        refusals: list[Refusal] = []
        convolutions: dict[ir.Node, tuple[ConvNode, list[Candidate]]] = {}
        for node in model.graph:
            if not is_op(node, "Conv"):
                continue
            conv = read_conv(node, model)
            if isinstance(conv, str):
                refusals.append(Refusal(str(node.name), conv))
            else:
                convolutions[node] = conv, list(self._candidates(conv))
        if not convolutions:
            return PassResult(model, False, tuple(refusals))

        problem = layout_problem(
            model.graph,
            self.lanes,
            self.machine,
            {
                node: (_best(found, True).seconds, _best(found, False).seconds)
                for node, (_, found) in convolutions.items()
            },
        )
        blocked: dict[ir.Node | None, bool] = dict(zip(problem.nodes, solve(problem.problem).blocked, strict=False))
        after_blocked = {node: blocked.get(conv.x.producer(), False) for node, (conv, _) in convolutions.items()}
        editor = Editor(model, self.name)
        choices = []
        for node, (conv, candidates) in convolutions.items():
            chosen = _best(candidates, blocked[node])
            choices.append(_choice(node, chosen, candidates))
            self._emit(editor, conv, chosen.algorithm, after_blocked[node])
        return PassResult(model, editor.modified, tuple(refusals), tuple(choices))

    def _candidates(self, conv: ConvNode) -> Iterator[Candidate]:
        """Every algorithm with its cost or the reason against it."""
        s, machine, block = conv.shape, self.machine, self.lanes
        in_block = block if s.c >= block else PLANES
        possible = False
        for algorithm in Algorithm:
            reason = self._against(algorithm, conv)
            if algorithm == Algorithm.PLANAR and not possible:
                reason = ""  # something must be
            possible = possible or not reason
            if algorithm == Algorithm.BLOCKED:
                seconds = costs.blocked(machine, s, block, in_block)
            elif algorithm == Algorithm.DEPTHWISE:
                seconds = costs.depthwise(machine, s, block)
            elif algorithm in TILE:
                seconds = costs.winograd(machine, s, TILE[algorithm], block)
            elif algorithm == Algorithm.IM2COL:
                seconds = costs.im2col(machine, s)
            else:
                seconds = costs.planar(machine, s)
            yield Candidate(algorithm, math.inf if reason else seconds, reason)

    def _against(self, algorithm: Algorithm, conv: ConvNode) -> str:
        """Why `conv` cannot use `algorithm`; empty when it can."""
        s = conv.shape
        if algorithm not in self.algorithms:
            return "not among the allowed algorithms"
        if algorithm == Algorithm.PLANAR:
            return ""
        if algorithm == Algorithm.DEPTHWISE:
            return "" if s.group == s.c == s.o and s.group > 1 else "not one channel per group"
        if algorithm == Algorithm.BLOCKED:
            filled = s.group == 1 or not (s.c // s.group % self.lanes or s.o // s.group % self.lanes)
            return "" if filled else f"the channels of a group are no multiple of {self.lanes}"
        if s.group > 1:
            return "the convolution has groups"
        if algorithm == Algorithm.IM2COL:
            return self._against_workspace(costs.im2col_workspace(s))
        if (s.kh, s.kw) != (3, 3) or conv.strides != (1, 1) or conv.dilations != (1, 1):
            return "not 3x3 with stride 1 and dilation 1"
        if s.c < self.lanes:
            return f"fewer than {self.lanes} input channels"
        if RELATIVE_ERROR[algorithm] > self.max_error:
            return f"its rounding error {RELATIVE_ERROR[algorithm]:.1e} is above {self.max_error:.1e}"
        return self._against_workspace(costs.winograd_workspace(s, TILE[algorithm], self.lanes))

    def _against_workspace(self, nbytes: int) -> str:
        if nbytes <= self.max_workspace:
            return ""
        return f"its workspace of {nbytes / 2**20:.1f} MiB is above {self.max_workspace}"

    def _emit(self, editor: Editor, conv: ConvNode, algorithm: Algorithm, after_blocked: bool) -> None:
        if algorithm == Algorithm.BLOCKED:
            in_block = self.lanes if after_blocked or conv.shape.c >= self.lanes else PLANES
            emit_blocked(editor, conv, in_block, self.lanes)
        elif algorithm == Algorithm.DEPTHWISE:
            emit_depthwise(editor, conv, self.lanes)
        elif algorithm in TILE:
            emit_winograd(editor, conv, TILE[algorithm], self.lanes)
        elif algorithm == Algorithm.IM2COL:
            emit_im2col(editor, conv)


def _best(candidates: list[Candidate], on_blocked: bool) -> Candidate:
    """The cheapest on that layout; an impossible one when there is none."""
    return min((c for c in candidates if (c.algorithm in ON_BLOCKED) == on_blocked), key=lambda c: c.seconds)


def _choice(node: ir.Node, chosen: Candidate, candidates: list[Candidate]) -> Choice:
    def why_not(other: Candidate) -> str:
        if other.reason:
            return other.reason
        return "slower" if other.seconds >= chosen.seconds else "changing the layout around it costs more than it gains"

    alternatives = tuple(
        Alternative(str(other.algorithm), other.seconds if other.possible else None, why_not(other))
        for other in sorted(candidates, key=lambda c: c.seconds)
        if other is not chosen
    )
    return Choice(str(node.name), str(chosen.algorithm), chosen.seconds, alternatives)


def read_conv(node: ir.Node, model: ir.Model) -> ConvNode | str:
    """The Conv with everything resolved, or why it is left alone."""
    if model.opset_imports.get("", 1) < MINIMUM_OPSET:
        return f"the model's opset is older than {MINIMUM_OPSET}"
    x, w = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    x_shape, y_shape, weight, bias_array = dims(x), dims(node.outputs[0]), array_of(w), array_of(bias)
    if weight is None or (bias is not None and bias_array is None):
        return "weights or bias are not constant"
    if weight.ndim != 4:
        return f"it is {weight.ndim - 2}-dimensional, not 2-dimensional"
    if x is None or x_shape is None or y_shape is None:
        return "its shapes are not static"
    if x.dtype not in FLOATS:
        return f"its type is {x.dtype.name if x.dtype else 'unknown'}, not float32 or float64"
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return "auto_pad is set; run normalize first"
    if not np.isfinite(weight).all():
        return "its weights are not finite, which zero padding and transforms would spread"
    n, c, h, width = x_shape
    o, _, kh, kw = weight.shape
    group = node.attributes.get_int("group", 1) or 1
    shape = ConvShape(n, c, h, width, o, kh, kw, y_shape[2], y_shape[3], group, weight.dtype.itemsize)
    strides, dilations = ints(node, "strides", [1, 1]), ints(node, "dilations", [1, 1])
    pads = ints(node, "pads", [0, 0, 0, 0])
    if bias_array is None:
        bias_array = np.zeros(o, weight.dtype)
    return ConvNode(
        node, weight, bias_array, shape, (strides[0], strides[1]), tuple(pads), (dilations[0], dilations[1])
    )
