"""ONNX's node suite on OpenCL: the first cases of every operator, natively where the CPU is native, on poisoned memory.

The operands that decide a shape are compiled in, as in the suite for CPUs (tests/test_onnx_backend.py).
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx.backend.test.case.test_case import TestCase as NodeCase

from graphopt import backend
from graphopt.errors import UnsupportedError
from graphopt.runtime.devices.opencl import OpenClDevice

CASES = 2
"""Of each operator, besides those that fail on CPUs."""

NOT_YET = ("OpenCL devices need not know", "If holds subgraphs")
"""The reasons that hold for GPUs alone."""

FAILURES = Path(__file__).parents[2] / "onnx_node_expected_failures.txt"


@functools.cache
def cases() -> dict[str, NodeCase]:
    failing = {line.partition(" ")[0] for line in FAILURES.read_text().splitlines()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, about the overflows that the cases are about
        from onnx.backend.test.loader import load_model_tests

        loaded = load_model_tests(kind="node")
    found: dict[str, list[NodeCase]] = {}
    for case in loaded:
        assert case.model is not None
        operators = sorted({node.op_type for node in case.model.graph.node})
        if case.name not in failing and len(operators) == 1:
            found.setdefault(operators[0], []).append(case)
    return {case.name: case for group in found.values() for case in group[:CASES]}


def arrays(items: Any) -> list[Any]:
    return [onnx.numpy_helper.to_array(item) if isinstance(item, onnx.TensorProto) else item for item in items]


@pytest.mark.parametrize("name", cases())
def test_node(opencl: OpenClDevice, name: str) -> None:
    case = cases()[name]
    assert case.model is not None
    assert case.data_sets is not None
    inputs, expected = (arrays(items) for items in case.data_sets[0])
    names = [value.name for value in case.model.graph.input]
    constants = {
        name: value for name, value in zip(names, inputs, strict=False) if name in backend.shape_inputs(case.model)
    }
    try:
        prepared = backend.prepare(case.model, "OPENCL", fallback=False, constants=constants)
        outputs = prepared.run(inputs)
    except UnsupportedError as error:
        if any(reason in str(error) for reason in NOT_YET):
            return
        raise
    compiled, session = list(prepared._programs.values())[-1]
    given = {port.name: dict(zip(names, inputs, strict=False))[port.name] for port in session.inputs}
    for touched, stage in zip(session.measure_arena(given), compiled.artifact.program.stages, strict=True):
        assert touched <= stage.arena_bytes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.runner import Runner

        Runner.assert_similar_outputs(expected, list(outputs), case.rtol, case.atol)
        Runner.assert_similar_outputs(expected, list(prepared.run(inputs)), case.rtol, case.atol)


def test_most_operators_are_here() -> None:
    operators = {node.op_type for case in cases().values() for node in case.model.graph.node}  # type: ignore[union-attr]
    assert len(operators) > 130
    assert {
        "Conv",
        "ConvTranspose",
        "MatMul",
        "Softmax",
        "LayerNormalization",
        "MaxPool",
        "Resize",
        "TopK",
    } <= operators
