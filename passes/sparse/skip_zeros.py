"""Mark matrix-vector products whose inputs come out of a ReLU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.cost.workload import SKIP_ZEROS
from graphopt.graph.edit import is_op, scalar_of
from graphopt.passes.sparse.linear import read_linear
from graphopt.pipeline.pass_base import Pass, PassResult, option

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")


@dataclass(frozen=True)
class SkipZeros(Pass):
    """Let products of one row look for inputs that are zero, and leave out the weights that those meet.

        y = MatMul(Relu(x), w)  ->  y = MatMul(Relu(x), w)   with metadata graphopt.skip-zeros

    Such a product takes as long as reading its weights does. How many inputs are zero is only known in a run, so the
    kernel decides there: it lists those that are not, and takes the dense loop where that are nearly all.
    """

    name: ClassVar[str] = "skip-zeros"

    min_weights: int = option(1 << 16, "products with fewer weights are too short for it")

    def call(self, model: ir.Model) -> PassResult:
        """Mark the main graph."""
        marked = []
        for node in model.graph:
            linear = read_linear(node, ("float32",))
            if linear is None or linear.rows != 1 or linear.weight.size < self.min_weights:
                continue
            if SKIP_ZEROS in node.metadata_props or not _is_rectified(linear.x) or not np.isfinite(linear.weight).all():
                continue
            node.metadata_props[SKIP_ZEROS] = "1"
            marked.append(f"{node.name} ({math.prod(linear.weight.shape)} weights)")
        notes = (f"weights of inputs that are zero in a run are not read: {', '.join(marked)}",) if marked else ()
        return PassResult(model, bool(marked), notes=notes)


def _is_rectified(value: ir.Value) -> bool:
    """Whether `value` is the result of a ReLU, or of a Clip from 0 on, seen through views."""
    producer = value.producer()
    while producer is not None and is_op(producer, *VIEWS):
        source = producer.inputs[0]
        producer = None if source is None else source.producer()
    if is_op(producer, "Clip"):
        return producer is not None and len(producer.inputs) > 1 and scalar_of(producer.inputs[1]) == 0.0
    return is_op(producer, "Relu", "ThresholdedRelu")
