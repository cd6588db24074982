"""Split transposed convolutions with strides into one of stride 1 for each phase of the output."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Editor, array_of, dims, ints, is_op
from graphopt.ops import DOMAIN, MINIMUM_OPSET
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal


@dataclass(frozen=True)
class SplitTransposed(Pass):
    """Compute each phase of a transposed convolution from the taps that reach it.

        y = ConvTranspose(x, w; strides s)  ->  p0 = ConvTranspose(x, w[:, :, 0::s]; strides 1) ...
                                                y = InterleavePhases(Concat(p0, p1, ...))

    A phase that no tap reaches is zero. Where kernel and stride are equal, all phases are one ConvTranspose of 1x1.
    Phases have no multiplications with the zeros between the inputs, and `select-conv` has every algorithm for them.
    A ConvTranspose that is not two-dimensional, of static shape and with pads in its kernel's reach stays.
    """

    name: ClassVar[str] = "split-transposed"

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph; refusals name transposed convolutions with strides that stay."""
        if model.opset_imports.get("", 1) < MINIMUM_OPSET:
            return PassResult(model, False)
        editor = Editor(model, self.name)
        refusals = []
        for node in tuple(model.graph):
            strided = is_op(node, "ConvTranspose") and any(stride != 1 for stride in ints(node, "strides", [1]))
            if strided and (reason := _split(editor, node)):
                refusals.append(Refusal(str(node.name), reason))
        return PassResult(model, editor.modified, tuple(refusals))


@dataclass(frozen=True, slots=True)
class Taps:
    """The taps `first`, `first + step`, ... of a kernel's axis that reach a phase, as a convolution of stride 1."""

    first: int
    step: int
    count: int
    dilation: int
    begin: int
    """Outputs of the full transposed convolution that are cut before the phase's first, and after its last."""
    end: int
    missing: int
    """Zeros after the outputs that the taps reach."""


def taps_of(phase: int, stride: int, kernel: int, dilation: int, pad: int, size: int, outputs: int) -> Taps | None:
    """The taps that reach outputs `phase`, `phase + stride`, ...: `outputs` of them from `size` inputs. None if none.

    Raises:
        ValueError: the phase begins before the first input's first tap.
    """
    numbers = [k for k in range(kernel) if (phase + pad - k * dilation) % stride == 0]
    if not numbers:
        return None
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    apart = step * dilation // stride if len(numbers) > 1 else 1
    begin = (phase + pad - numbers[0] * dilation) // stride
    if begin < 0:
        raise ValueError("its first outputs lie before the reach of a tap")
    reached = size + apart * (len(numbers) - 1) - begin
    if reached <= 0:
        return None
    here = min(reached, outputs)
    return Taps(numbers[0], step, len(numbers), apart, begin, reached - here, outputs - here)


def _split(editor: Editor, node: ir.Node) -> str | None:
    """Rewrite one node, or say why it stays."""
    x, w = node.inputs[:2]
    shapes = dims(x), dims(w), dims(node.outputs[0])
    if x is None or w is None or any(shape is None for shape in shapes):
        return "its shapes are not static"
    x_shape, w_shape, y_shape = (shape for shape in shapes if shape is not None)
    if len(w_shape) != 4:
        return f"it is {len(w_shape) - 2}-dimensional, not 2-dimensional"
    if 0 in (*x_shape, *w_shape, *y_shape):
        return "it computes nothing"
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attributes:
        return "auto_pad or output_shape is set; run normalize first"
    strides, dilations = ints(node, "strides", [1, 1]), ints(node, "dilations", [1, 1])
    pads, group = ints(node, "pads", [0, 0, 0, 0]), node.attributes.get_int("group", 1) or 1
    outputs = [-(-y_shape[2 + axis] // strides[axis]) for axis in range(2)]
    try:
        axes = [
            [
                taps_of(r, strides[i], w_shape[2 + i], dilations[i], pads[i], x_shape[2 + i], outputs[i])
                for r in range(strides[i])
            ]
            for i in range(2)
        ]
    except ValueError as error:
        return str(error)
    split = _Split(editor, node, x, w, group, (x_shape[0], y_shape[1]), outputs)
    slots = [-1] * (strides[0] * strides[1])
    phases: list[ir.Value] = []
    present = [(rows, columns) for rows, columns in itertools.product(*axes)]
    if (
        group == 1
        and w_shape[2:] == tuple(strides)
        and all(taps == Taps(r, 1, 1, 1, 0, 0, 0) for side in axes for r, taps in enumerate(side))
    ):
        phases, slots = [split.joined()], list(range(len(slots)))
    else:
        for number, (rows, columns) in enumerate(present):
            if rows is not None and columns is not None:
                slots[number] = len(phases)
                phases.append(split.phase(rows, columns))
    if not phases:
        return "no tap reaches its output"
    merged = phases[0]
    if len(phases) > 1:
        shape = (x_shape[0], len(phases) * y_shape[1], *outputs)
        merged = split.insert("Concat", phases, {"axis": 1}, shape, "phases")
    attributes = {"strides": strides, "phases": slots, "shape": y_shape[2:]}
    y = split.insert("InterleavePhases", [merged], attributes, y_shape, "interleaved", DOMAIN)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        y = split.insert("Add", [y, split.reshaped(bias, (1, y_shape[1], 1, 1))], {}, y_shape, "biased")
    editor.swap(node, y)
    return None


@dataclass(frozen=True, slots=True)
class _Split:
    """Inserts the phases of `node`. `batch` are images and output channels, `outputs` the plane of a phase."""

    editor: Editor
    node: ir.Node
    x: ir.Value
    w: ir.Value
    group: int
    batch: tuple[int, int]
    outputs: Sequence[int]

    def phase(self, rows: Taps, columns: Taps) -> ir.Value:
        """The outputs that these taps reach, and zeros after them."""
        weight = self._taken(rows, columns)
        attributes = {
            "strides": [1, 1],
            "dilations": [rows.dilation, columns.dilation],
            "pads": [rows.begin, columns.begin, rows.end, columns.end],
            "group": self.group,
        }
        shape = (*self.batch, self.outputs[0] - rows.missing, self.outputs[1] - columns.missing)
        y = self.insert("ConvTranspose", [self.x, weight], attributes, shape, "phase")
        if rows.missing or columns.missing:
            pads = np.array([0] * 6 + [rows.missing, columns.missing], np.int64)
            y = self.insert("Pad", [y, self._constant(pads, "pads")], {}, (*self.batch, *self.outputs), "filled")
        return y

    def joined(self) -> ir.Value:
        """All phases side by side, where each has one tap: w[C, O, s, s'] as [C, s s' O, 1, 1]."""
        channels, outputs, *kernel = dims(self.w) or ()
        count = kernel[0] * kernel[1] * outputs
        array, shape = array_of(self.w), (channels, count, 1, 1)
        if array is not None:
            weight = self._constant(array.transpose(0, 2, 3, 1).reshape(shape), "taps")
        else:
            moved = (channels, *kernel, outputs)
            taps = self.insert("Transpose", [self.w], {"perm": [0, 2, 3, 1]}, moved, "turned")
            weight = self.reshaped(taps, shape)
        result = (self.batch[0], count, *self.outputs)
        return self.insert("ConvTranspose", [self.x, weight], {"strides": [1, 1]}, result, "phases")

    def _taken(self, rows: Taps, columns: Taps) -> ir.Value:
        """The weights of these taps."""
        shape = dims(self.w) or ()
        if (rows.count, columns.count) == shape[2:]:
            return self.w
        array = array_of(self.w)
        if array is not None:
            part = array[:, :, rows.first :: rows.step, columns.first :: columns.step]
            return self._constant(part[:, :, : rows.count, : columns.count], "taps")
        limits = [
            [rows.first, columns.first],
            [side.first + side.step * (side.count - 1) + 1 for side in (rows, columns)],
            [2, 3],
            [rows.step, columns.step],
        ]
        inputs = [self._constant(np.array(limit, np.int64), "taps") for limit in limits]
        return self.insert("Slice", [self.w, *inputs], {}, (*shape[:2], rows.count, columns.count), "taps")

    def reshaped(self, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """A view of `value`; a constant stays one."""
        array = array_of(value)
        if array is not None:
            return self._constant(array.reshape(shape), "view")
        return self.insert("Reshape", [value, self._constant(np.array(shape, np.int64), "shape")], {}, shape, "view")

    def _constant(self, array: Any, hint: str) -> ir.Value:
        return self.editor.constant(array, f"{self.node.name}.{hint}")

    def insert(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: dict[str, Any],
        shape: Sequence[int],
        hint: str,
        domain: str = "",
    ) -> ir.Value:
        """Insert a node before the one that is split."""
        return self.editor.insert(
            self.node, op_type, inputs, attributes, shape=shape, dtype=self.x.dtype,
            name=f"{self.node.name}.{hint}", output=f"{self.node.outputs[0].name}.{hint}", origin=[self.node],
            domain=domain,
        )  # fmt: skip
