"""How sparse the weights of every layer are, and what clustering its outputs makes of that: facts for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.edit import array_of
from graphopt.passes.sparse.linear import by_output
from graphopt.solve import clustering

PICTURE = 64, 96
"""Most outputs and inputs in a picture of a layer: more would only show their mean."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerSparsity:
    """The weights of a product or convolution: `outputs` x `inputs`, of which `density` are not zero.

    `given` and `clustered` are the shares of vectors of `width` outputs that hold a weight, `random` that of a random
    mask of this density, `bound` the least that any order of the outputs leaves. `before` and `after` say where a part
    of the matrix is not zero, its outputs in the order given, and clustered.
    """

    node: str
    operator: str
    outputs: int
    inputs: int
    width: int
    density: float
    given: float
    clustered: float
    random: float
    bound: float
    before: NDArray[np.bool_]
    after: NDArray[np.bool_]


def survey(model: ir.Model, width: int) -> Iterator[LayerSparsity]:
    """The layers of the main graph with constant weights, of which some are zero.

    Args:
        width: outputs of a vector.
    """
    for node in model.graph:
        stored = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
        weight = None if stored is None else by_output(node, stored)
        if weight is None:
            continue
        support = np.asarray(weight != 0)
        if support.all():
            continue
        outputs, inputs = support.shape
        problem = clustering.Problem(support, width)
        given, best = clustering.as_given(problem), clustering.cluster(problem)
        vectors = -(-outputs // width) * inputs
        density = float(support.mean())
        yield LayerSparsity(
            str(node.name),
            node.op_type,
            outputs,
            inputs,
            width,
            density,
            given.columns / vectors,
            best.columns / vectors,
            clustering.expected_of_random(density, width),
            best.bound / vectors,
            support[: PICTURE[0], : PICTURE[1]],
            support[np.array(best.order)[: PICTURE[0]], : PICTURE[1]],
        )
