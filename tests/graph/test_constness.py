"""What is constant, state, an input; and that nothing else decides it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.graph import constness

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model() -> ir.Model:
    return ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 20]>
        g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { z = Mul(x, w)  y = Add(z, w) }""")


def test_an_initializer_is_constant_until_it_is_state(model: ir.Model) -> None:
    w = model.graph.initializers["w"]
    assert constness.is_constant(w)
    np.testing.assert_array_equal(constness.constant_array(w), [1, 2])
    w.metadata_props[constness.STATE] = "parameter"
    assert constness.is_state(w)
    assert not constness.is_constant(w)
    assert constness.tensor_of(w) is None
    assert constness.numbers_of(w) is None
    assert constness.stored(w) is not None
    with pytest.raises(AssertionError, match="w is no constant"):
        constness.constant_array(w)


def test_an_input_with_a_default_value_is_constant(model: ir.Model) -> None:
    (x,) = model.graph.inputs
    assert constness.is_input(x)
    assert not constness.is_constant(x)
    w = model.graph.initializers["w"]
    model.graph.inputs.append(w)
    assert not constness.is_input(w)
    assert constness.is_constant(w)


def test_what_is_absent_or_computed_has_no_numbers(model: ir.Model) -> None:
    assert constness.numbers_of(None) is None
    assert not constness.is_constant(None)
    assert constness.numbers_of(model.graph.node(0).outputs[0]) is None


@pytest.mark.parametrize("folder", ["graphopt", "passes", "targets"])
def test_nothing_else_reads_the_tensor_of_a_value(folder: str) -> None:
    reads = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "constness.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if "const_value" in line and "const_value=" not in line and "const_value = " not in line
    ]
    assert reads == []
