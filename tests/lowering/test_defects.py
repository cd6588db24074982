"""Failures of the code generator: what they are about is found out, and the model compiles without it."""

from typing import Any

import numpy as np
import onnx.parser
import pytest
from tvm.error import InternalError

from graphopt.compiler import compile_model
from graphopt.errors import GraphoptError
from graphopt.targets.cpu import build

MODEL = """
    <ir_version: 10, opset_import: ["": 20]>
    g (float[3,5] x) => (float[3,5] y) { a = Add(x, x) b = Tanh(a) y = Mul(b, x) }
"""
X = np.linspace(-2, 2, 15, dtype=np.float32).reshape(3, 5)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes code generation fail on kernels whose symbols hold a text."""
    generate = build.generate

    def fail(text: str) -> None:
        def replacement(symbol: str, function: Any, machine: Any) -> bytes:
            if text in symbol:
                raise InternalError(f"first line\nTVM cannot do {text}")
            return generate(symbol, function, machine)

        monkeypatch.setattr(build, "generate", replacement)

    return fail


def run(compiled: Any) -> Any:
    return compiled.artifact.session().run({"x": X})["y"]


def test_nothing_is_fused_where_no_node_fails_alone(failing: Any) -> None:
    failing("add_tanh")
    compiled = compile_model(onnx.parser.parse_model(MODEL), cache=False)
    assert compiled.fallbacks == ()
    assert [note for note in compiled.notes if "TVM cannot do add_tanh" in note and "nothing is fused" in note]
    np.testing.assert_allclose(run(compiled), np.tanh(2 * X) * X, rtol=1e-6)


def test_a_node_that_fails_alone_falls_back(failing: Any) -> None:
    failing("tanh")
    compiled = compile_model(onnx.parser.parse_model(MODEL), cache=False)
    assert [reason for _, reason in compiled.fallbacks] == ["TVM cannot generate code for Tanh: TVM cannot do tanh"]
    np.testing.assert_allclose(run(compiled), np.tanh(2 * X) * X, rtol=1e-6)


def test_where_nothing_helps_the_error_asks_for_a_report(failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing("")
    monkeypatch.setattr("graphopt.targets.cpu.target.CpuTarget.defect", lambda *_: None)
    with pytest.raises(GraphoptError, match=r"code generation failed \(TVM cannot do\); report this model"):
        compile_model(onnx.parser.parse_model(MODEL), cache=False)
