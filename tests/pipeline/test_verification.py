"""A compilation that went wrong says where: in a pass, a kernel, a node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.compiler import compile_model
from graphopt.errors import GraphoptError, VerificationError
from graphopt.pipeline.blame import wrong_kernel
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.verification import given_shapes
from tests.helpers.wrong import Positive, model

WRONG = Pipeline((Positive(),))


@pytest.mark.parametrize(
    ("verify", "where"),
    [
        ("ends", "in the compiled program"),
        ("each", "after pass positive"),
        ("passes", "after pass positive"),
    ],
)
def test_the_pass_and_the_node_are_named(verify: str, where: str) -> None:
    with pytest.raises(VerificationError) as error:
        compile_model(model(), passes=WRONG, verify=verify)
    sentence = str(error.value)
    assert sentence.startswith(f"{where}: output y at")
    assert "; pass positive changed the numbers, and node make_b (from make_b) is the first that" in sentence


@pytest.mark.parametrize("verify", ["ends", "each", "passes"])
def test_keeping(verify: str) -> None:
    compilation = compile_model(model(), passes=WRONG, verify=verify, keep=True)
    assert "node make_b" in compilation.failure
    assert set(compilation.artifact.session().run({"x": np.ones((1, 8), np.float32)})) == {"y"}
    assert compile_model(model(), verify=verify, keep=True).failure == ""


def test_a_wrong_kernel_is_named() -> None:
    other = model()
    for node in other.graph:
        node.op_type = {"Exp": "Sin"}.get(node.op_type, node.op_type)
    for value in (*other.graph.inputs, *other.graph.outputs):
        value.shape = ir.Shape([1, 8])
    artifact = compile_model(model()).artifact
    feeds = {"x": np.ones((1, 8), np.float32)}
    assert "make_c" in wrong_kernel(artifact, other, feeds)
    assert wrong_kernel(artifact, model(), feeds) == ""


def test_inputs_settle_open_dimensions() -> None:
    x = np.ones((5, 8), np.float32)
    compilation = compile_model(model(), verify="ends", inputs={"x": x})
    assert compilation.artifact.program.inputs[0].shape == (5, 8)
    assert given_shapes(model(), {"x": x, "other": x}) == {"x": (5, 8)}
    assert given_shapes(ir.to_proto(model()), {"x": x}) == {"x": (5, 8)}
    assert given_shapes(Path("none.onnx"), {"x": x}) == {}
    with pytest.raises(GraphoptError, match="inputs are for verification"):
        compile_model(model(), inputs={"x": x})


def test_every_micro_batch_is_judged() -> None:
    with pytest.raises(VerificationError, match="in the compiled program: output y at"):
        compile_model(model(), passes=WRONG, verify="ends", micro_batches=3)
    assert compile_model(model(), verify="ends", micro_batches=3).failure == ""
