from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import PipelineError, VerificationError
from graphopt.pipeline.observe import PASS_KEY, Check, Dump, Verify
from graphopt.pipeline.pass_base import Pass, PassResult
from graphopt.pipeline.pipeline import Event, Pipeline
from graphopt.verify import oracle

TEXT = """
<ir_version: 11, opset_import: ["": 20]>
g (float[2,3] x) => (float[2,3] y) <float[3] w = {1, 2, 3}> { a = Mul(x, w)  y = Relu(a) }
"""


@dataclass(frozen=True)
class Apply(Pass):
    """Runs a function on the model: stands for any pass."""

    name: ClassVar[str] = "apply"
    function: Callable[[ir.Model], bool] = lambda model: False

    def call(self, model: ir.Model) -> PassResult:
        return PassResult(model, self.function(model))


def model() -> ir.Model:
    loaded = ir.from_onnx_text(TEXT)
    for number, node in enumerate(loaded.graph):
        node.name = f"node{number}"
    return loaded


def negate(model: ir.Model) -> bool:
    model.graph[1].op_type = "Neg"
    return True


def rename(model: ir.Model) -> bool:
    model.graph[0].name = "renamed"
    return True


def use_later(model: ir.Model) -> bool:
    model.graph[0].replace_input_with(0, model.graph[1].outputs[0])
    return True


def call_unknown(model: ir.Model) -> bool:
    model.graph[1].domain, model.graph[1].op_type = "graphopt", "ToBlocked"
    model.opset_imports["graphopt"] = 1
    return True


def call_without_attribute(model: ir.Model) -> bool:
    from graphopt import ops

    ops.ensure(model, "ToBlocked")
    return call_unknown(model)


def same_names(model: ir.Model) -> bool:
    model.graph[0].name = model.graph[1].name
    return True


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (use_later, "after pass apply the model is not valid ONNX"),
        (call_unknown, "node node1 calls ToBlocked, whose function is not in the model"),
        (call_without_attribute, "node node1 lacks the attribute block of ToBlocked"),
        (same_names, "two nodes are called 'node1'"),
    ],
)
def test_check(damage: Callable[[ir.Model], bool], message: str) -> None:
    Pipeline((Apply(rename),)).run(model(), [Check()])
    with pytest.raises(PipelineError) as error:
        Pipeline((Apply(damage),)).run(model(), [Check()])
    assert message in str(error.value)


def test_verify() -> None:
    observer = Verify()
    Pipeline((Apply(rename),)).run(model(), [observer])
    assert observer.judge is not None
    assert set(observer.judge.feeds) == {"x"}
    assert set(observer.judge.expected) == {"y"}
    with pytest.raises(VerificationError, match=r"after pass apply: output y at \[\d, \d\] is "):
        Pipeline((Apply(negate),)).run(model(), [Verify()])
    Pipeline((Apply(negate),)).run(model(), [Verify(each=False)])
    keeping = Verify(keep=True)
    Pipeline((Apply(negate),)).run(model(), [keeping])
    assert keeping.failure.startswith("after pass apply: output y")


def test_dump_replaces_earlier_dumps_only(tmp_path: Path) -> None:
    for stale in ("000_input.onnx", "009_old.onnx", "009_old.data"):
        (tmp_path / stale).write_text("stale")
    (tmp_path / "notes.txt").write_text("mine")
    loaded = model()
    Pipeline((Apply(rename), Apply(negate))).run(loaded, [Dump(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000_input.onnx",
        "001_apply.onnx",
        "002_apply.onnx",
        "notes.txt",
    ]
    assert ir.load(tmp_path / "001_apply.onnx").metadata_props[PASS_KEY] == "apply"
    assert PASS_KEY not in loaded.metadata_props


def test_dump_with_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "IN_MEMORY_BYTES", 1024)
    loaded = model()
    weights = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    big = ir.Value(name="big", shape=ir.Shape((1000, 3)), const_value=ir.Tensor(weights, name="big"))
    big.dtype = ir.DataType.FLOAT
    loaded.graph.register_initializer(big)
    Pipeline(()).run(loaded, [Dump(tmp_path / "new")])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["000_input.data", "000_input.onnx"]
    read = ir.load(tmp_path / "new" / "000_input.onnx")
    np.testing.assert_array_equal(read.graph.initializers["big"].const_value.numpy(), weights)
    Check()(Event(0, "input", read, None))
    expected = oracle.run_onnxruntime(tmp_path / "new" / "000_input.onnx", oracle.random_inputs(read, 0))
    actual = oracle.run_onnxruntime(read, oracle.random_inputs(read, 0))
    assert oracle.compare(expected, actual) == []
