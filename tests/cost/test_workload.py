"""Workloads are the keys of costs."""

from __future__ import annotations

import numpy as np

from graphopt.cost.node_workload import workload_of
from graphopt.cost.workload import Operand
from graphopt.targets.common.measured_node import node_of
from tests.helpers.block_sparse import BlockSparse, block_sparse
from tests.helpers.lab import make_model


def _node(weights: BlockSparse) -> object:
    model = make_model(f"y = {weights.call}", {"x": np.ones((4, 40), np.float32)}, weights.constants, ["y"], 21)
    return model.graph.node(0)


def test_the_pattern_is_part_of_the_key() -> None:
    """Two matrices with as many blocks at other places cost differently; other numbers in the same blocks do not."""
    weights = block_sparse(40, 48, (1, 16), 0.3)
    workload = workload_of(_node(weights))
    other = BlockSparse({**weights.constants, "starts": 39 - weights.constants["starts"]}, weights.dense)
    scaled = BlockSparse({**weights.constants, "blocks": weights.constants["blocks"] * 2}, weights.dense)
    assert workload is not None
    assert workload_of(_node(other)) != workload
    assert workload_of(_node(other)).key != workload.key
    assert workload_of(_node(scaled)) == workload
    assert workload_of(_node(scaled)).key == workload.key


def test_a_workload_is_measured_with_its_pattern() -> None:
    weights = block_sparse(40, 48, (1, 16), 0.3)
    node = node_of(workload_of(_node(weights)))
    for value, name in zip(node.inputs[2:], ("rows", "starts"), strict=True):
        np.testing.assert_array_equal(value.const_value.numpy(), weights.constants[name])


def test_other_operands_have_no_pattern() -> None:
    assert Operand((3, 4)).pattern == ""
    assert Operand((3, 4)) == Operand((3, 4), "float32", False)
    assert Operand.of_indices(np.arange(3)) != Operand.of_indices(np.arange(3)[::-1])
    assert Operand.of_indices(np.arange(3)) == Operand.of_indices(np.arange(3))
