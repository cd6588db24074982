"""Train in 16 bits: what is stored and multiplied, not what adds up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.errors import GraphoptError, ModelError
from graphopt.graph.constness import stored
from graphopt.graph.edit import is_op
from graphopt.graph.state import GRADIENT, NEXT, Role, role, states
from graphopt.modes import Precision as Numbers
from graphopt.passes.precision.nodes import rounded, unfit
from graphopt.passes.precision.precision import HALF_DTYPES, Precision, summary
from graphopt.passes.training.loss_scale import UNSCALED, loss_of, scale_loss
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal, option

DYNAMIC, OFF = "dynamic", "off"


@dataclass(frozen=True)
class MixedPrecision(Pass):
    """Products and what lies between them compute on 16-bit tensors, forward and so backward too.

        loss = f(MatMul(x, w))   ->   h = Cast{FLOAT16}(w)   loss = f(Cast{FLOAT}(MatMul(Cast{FLOAT16}(x), h)))
                                      loss.scaled = Mul(loss, graphopt.loss_scale)

    It runs between `loss` and `differentiate`: gradients of a Cast are casts, so gradients of 16-bit tensors have 16
    bits. What is cast is what the pass `precision` casts: losses, statistics, softmax and sums stay float32.

    With `master` parameters stay float32, each with a 16-bit copy in a step. Without, the parameters that are only read
    in 16 bits have 16 bits themselves, and `optimizer` rounds what it computes in float32. The scale of the loss keeps
    gradients from vanishing in fp16, whose smallest number is 6e-8; bf16 needs none.
    """

    name: ClassVar[str] = "mixed-precision"

    to: Numbers = option(Numbers.FP32, "fp16 or bf16; fp32 leaves the model as it is")
    master: bool = option(True, "parameters stay float32 beside their 16-bit copies")
    loss_scale: str | None = option(None, "dynamic, off or a number; fp16: dynamic, bf16: off")

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            GraphoptError: tf32, or a loss scale that is none.
        """
        if self.to is Numbers.TF32:
            raise GraphoptError(
                "mixed-precision trains in fp16 or bf16; tf32 needs no casts, and is the pass precision"
            )
        self._fixed()

    def _fixed(self) -> float | None:
        """A loss scale that stays; None for a dynamic one, and for none."""
        if self.loss_scale in (None, DYNAMIC, OFF):
            return None
        try:
            scale = float(self.loss_scale or "")
        except ValueError:
            scale = math.nan
        if not 0 < scale < 2.0**64:
            raise GraphoptError(f"the loss scale must be dynamic, off or a number above 0, not {self.loss_scale}")
        return scale

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph.

        Raises:
            ModelError: the model has no loss to scale, or has gradients already.
        """
        if self.to is Numbers.FP32:
            return PassResult(model, False)
        parameters = [value for value in states(model.graph) if role(value) is Role.PARAMETER]
        if any(key in value.metadata_props for value in parameters for key in (GRADIENT, NEXT)):
            raise ModelError("the model has gradients already; run mixed-precision before differentiate")
        scaled = UNSCALED in model.graph.metadata_props
        scales = not scaled and self.loss_scale != OFF and (self.loss_scale or self.to is Numbers.FP16)
        if scales:
            loss_of(model.graph)
        result = Precision(to=self.to).call(model)
        if scales:
            scale_loss(model, self.name, self._fixed())
        narrowed, kept = (0, ()) if self.master else _narrow(model, HALF_DTYPES[self.to])
        notes = (summary(model.graph, HALF_DTYPES[self.to]), *result.notes[1:])
        notes += (f"{narrowed} parameters have 16 bits",) if narrowed else ()
        modified = bool(result.modified or scales or narrowed)
        return PassResult(model, modified, (*result.refusals, *kept), notes=notes)


def _narrow(model: ir.Model, half: ir.DataType) -> tuple[int, tuple[Refusal, ...]]:
    """Give parameters that are only cast to `half` that type, in place; how many, and why not the others."""
    narrowed, refusals = 0, []
    for value in list(states(model.graph)):
        tensor = stored(value)
        if role(value) is not Role.PARAMETER or value.dtype != ir.DataType.FLOAT or tensor is None:
            continue
        casts = [node for node, _ in value.uses()]
        other = next((node for node in casts if not _narrows(node, model.graph, half)), None)
        array = tensor.numpy()
        if (
            reason := f"{other.op_type} {other.name} reads it in float32"
            if other
            else unfit(array, half, str(value.name))
        ):
            refusals.append(Refusal(str(value.name), reason))
            continue
        value.const_value = ir.Tensor(rounded(array, half), name=value.name)
        value.dtype = half
        for node in casts:
            node.outputs[0].replace_all_uses_with(value)
            model.graph.remove(node, safe=True)
        narrowed += 1
    return narrowed, tuple(refusals)


def _narrows(node: ir.Node, graph: ir.Graph, half: ir.DataType) -> bool:
    """Whether a node of the main graph is a Cast to `half` that is no output of the model."""
    result = node.outputs[0]
    return is_op(node, "Cast") and node.graph is graph and result.dtype == half and not result.is_graph_output()
