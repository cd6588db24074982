"""The algorithms for a ConvWeightGradient: on blocked tensors, or on planar ones as it stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.cost import roofline as costs
from graphopt.cost.model import CostModel
from graphopt.cost.roofline import ConvShape, Machine
from graphopt.cost.workload import AttributeValue, Operand, Workload
from graphopt.graph.edit import Editor, dims, ints
from graphopt.ops import DOMAIN, MINIMUM_OPSET
from graphopt.ops.layout import blocks
from graphopt.passes.conv.algorithms import BLOCKED_LAYOUT, PLANAR_LAYOUT, PLANES, Algorithm, Candidate
from graphopt.passes.layout.blockable import is_among, listed


@dataclass(frozen=True, slots=True)
class GradientNode:
    """A ConvWeightGradient with resolved attributes, and the shape of the convolution whose weights it is for."""

    node: ir.Node
    shape: ConvShape
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    dtype: str

    @property
    def depthwise(self) -> bool:
        """Whether each group has one channel."""
        return self.shape.group > 1 and self.shape.group == self.shape.c == self.shape.o

    def in_block(self, block: int) -> int:
        """Channels of a block of x; few channels stay planes."""
        return PLANES if self.shape.c < block and not self.depthwise else block

    def data(self, block: int) -> tuple[int, ...]:
        """The inputs whose layout is that of the algorithm; planes are read as they are."""
        return (0, 1) if self.in_block(block) == block else (1,)


def read_gradient(node: ir.Node, model: ir.Model, machine: Machine) -> GradientNode | str:
    """The gradient with resolved attributes, or the reason why it stays."""
    if not machine.packs:
        return "the target has no kernels for it on blocked tensors"
    if model.opset_imports.get("", 1) < MINIMUM_OPSET:
        return f"the model's opset is older than {MINIMUM_OPSET}"
    x, dy, kernel = dims(node.inputs[0]), dims(node.inputs[1]), ints(node, "kernel_shape", [])
    if x is None or dy is None:
        return "its shapes are not static"
    if len(x) != 4:
        return f"it is {len(x) - 2}-dimensional, not 2-dimensional"
    if 0 in (*x, *dy):
        return "it computes nothing"
    given = node.inputs[0]
    if given is None or given.dtype is None or not is_among(given, machine.floats):
        return f"its type is not {listed(machine.floats)}"
    dtype = str(given.dtype.numpy())
    group = node.attributes.get_int("group", 1) or 1
    (n, c, h, width), (_, o, oh, ow), (kh, kw) = x, dy, kernel
    shape = ConvShape(n, c, h, width, o, kh, kw, oh, ow, group, int(given.dtype.itemsize))
    strides, pads, dilations = (tuple(ints(node, name, [])) for name in ("strides", "pads", "dilations"))
    return GradientNode(node, shape, strides, pads, dilations, dtype)


def gradient_candidates(
    gradient: GradientNode, model: CostModel, block: int, allowed: Sequence[Algorithm]
) -> list[Candidate]:
    """The algorithm on blocked tensors or the reason against it, and the planar one."""
    s, machine = gradient.shape, model.machine
    algorithm = Algorithm.DEPTHWISE if gradient.depthwise else Algorithm.BLOCKED
    reason = "" if algorithm in allowed else "it is not among the allowed algorithms"
    filled = s.group == 1 or gradient.depthwise or not (s.c // s.group % block or s.o // s.group % block)
    if not filled:
        reason = f"the channels of a group are no multiple of {block}"
    in_block = gradient.in_block(block)
    kind = costs.depthwise(machine, s, block) if gradient.depthwise else costs.blocked(machine, s, block, in_block)
    blocked = blocked_workload(gradient, block)
    unpacking = 2 * math.prod(blocked.shape) * s.itemsize / machine.bandwidth
    forms = [
        (algorithm, BLOCKED_LAYOUT, kind, blocked, unpacking, reason),
        (Algorithm.PLANAR, PLANAR_LAYOUT, costs.planar(machine, s), planar_workload(gradient), 0.0, ""),
    ]
    if Algorithm.PLANAR not in allowed and not reason:
        forms[1] = (*forms[1][:5], "it is not among the allowed algorithms")
    return [
        Candidate(
            each,
            reads,
            PLANAR_LAYOUT,
            math.inf if why else model.estimated(workload, seconds),
            workload,
            0.0,
            after,
            why,
        )
        for each, reads, seconds, workload, after, why in forms
    ]


def _window(gradient: GradientNode) -> tuple[tuple[str, AttributeValue], ...]:
    kernel = gradient.shape.kh, gradient.shape.kw
    return (
        ("kernel_shape", kernel),
        ("strides", gradient.strides),
        ("pads", gradient.pads),
        ("dilations", gradient.dilations),
    )


def blocked_workload(gradient: GradientNode, block: int) -> Workload:
    """Workload of `Conv2dWeightGradientBlocked`, or of `DepthwiseWeightGradientBlocked`."""
    s, dtype, in_block = gradient.shape, gradient.dtype, gradient.in_block(block)
    x = Operand((s.n, blocks(s.c, in_block), s.h, s.w, in_block), dtype)
    dy = Operand((s.n, blocks(s.o, block), s.oh, s.ow, block), dtype)
    if gradient.depthwise:
        shape: tuple[int, ...] = (blocks(s.c, block), s.kh, s.kw, block)
        return Workload("DepthwiseWeightGradientBlocked", (x, dy), shape, _window(gradient))
    shape = (blocks(s.o, block), blocks(s.c // s.group, in_block), s.kh, s.kw, in_block, block)
    return Workload("Conv2dWeightGradientBlocked", (x, dy), shape, (*_window(gradient), ("group", s.group)))


def planar_workload(gradient: GradientNode) -> Workload:
    """Workload of `ConvWeightGradient`."""
    s, dtype = gradient.shape, gradient.dtype
    operands = Operand((s.n, s.c, s.h, s.w), dtype), Operand((s.n, s.o, s.oh, s.ow), dtype)
    shape = (s.o, s.c // s.group, s.kh, s.kw)
    return Workload("ConvWeightGradient", operands, shape, (*_window(gradient), ("group", s.group)))


def emit_gradient(editor: Editor, gradient: GradientNode, block: int) -> None:
    """ConvWeightGradient -> ToBlocked of both operands, the operator on blocked tensors, FromBlockedWeight."""
    node, s = gradient.node, gradient.shape
    workload = blocked_workload(gradient, block)
    y = node.outputs[0]

    def insert(
        kind: str, inputs: Sequence[ir.Value], given: dict[str, AttributeValue], shape: Sequence[int], output: str
    ) -> ir.Value:
        return editor.insert(
            node,
            kind,
            inputs,
            given,
            shape=shape,
            dtype=y.dtype,
            name=f"{node.name}.{kind}",
            output=output,
            origin=[node],
            domain=DOMAIN,
        )

    operands = []
    for value, operand in zip(node.inputs, workload.operands, strict=True):
        assert value is not None
        blocked = insert("ToBlocked", [value], {"block": operand.shape[4]}, operand.shape, f"{value.name}.blocked")
        operands.append(blocked)
    packed = insert(workload.op_type, operands, dict(workload.attributes), workload.shape, f"{y.name}.blocked")
    if gradient.depthwise:
        planar = insert("FromDepthwiseWeight", [packed], {"channels": s.o}, (s.o, 1, s.kh, s.kw), f"{y.name}.planar")
    else:
        shape = (s.o, s.c // s.group, s.kh, s.kw)
        planar = insert("FromBlockedWeight", [packed], {"shape": shape}, shape, f"{y.name}.planar")
    editor.swap(node, planar)
