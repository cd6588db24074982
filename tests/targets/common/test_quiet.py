"""What TVM's logger writes as warnings is dropped, and nothing else."""

from __future__ import annotations

import os
import warnings

import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt.targets import load_target
from graphopt.targets.common.native import readable
from graphopt.targets.common.quiet import quiet

WARNING = b"[18:34:34] /project/src/tirx/op/op.cc:275: Warning: Detected pow(x, y) where y >= 3\n"


def test_only_warnings_of_tvm_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        os.write(2, WARNING)
        os.write(2, b"progress\r50 %\n")
        warnings.warn("of a library", UserWarning, stacklevel=1)
        with quiet():
            os.write(2, WARNING + b"no end")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "progress\r50 %\nno endafter\n"


def test_an_error_passes_and_the_stream_is_back(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), quiet():
        {}[os.write(2, b"before\n")]
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "before\nafter\n"


def test_powers_do_not_warn(capfd: pytest.CaptureFixture[str]) -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 20]>
        g (float[2, 3] x) => (float[2, 3] y) <float e = {3}> { y = Pow(x, e) }""")
    node = model.graph.node(0)
    node.inputs[1].shape = ir.Shape([])
    assert load_target("llvm", None, 1, False).supports(node, {"": 20}) is None
    assert capfd.readouterr().err == ""


WARNED = (
    *("ScatterND(x, i, u)", "ScatterElements(x, j, u)", "LRN<size = 3, beta = 3.5>(p)", "LRN<size = 3, beta = 3.5>(c)"),
    *("LpPool<kernel_shape = [2], p = 3>(q)", "Pow(x, e)"),
)


@pytest.mark.parametrize("node", WARNED)
def test_code_generation_does_not_warn(node: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 18]>
        g (float[4, 2] x, int64[3, 1] i, int64[3, 2] j, float[3, 2] u, float[1, 8, 4, 4] p, float[1, 3, 4, 4] c,
           float[1, 3, 9] q) => (float[a] y) <float e = {{3.5}}> {{ y = {node} }}""")
    assert graphopt.compile(model, cache=False).program.stages
    assert capfd.readouterr().err == ""


NO_KERNEL = "these types, shapes or attributes have no kernel"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Traceback\n  File x\nValueError: TopK k must be a constant", NO_KERNEL),
        ("Blocked quantization is not supported yet.", "blocked quantization is not supported yet"),
        ("OneHot wants a depth", "OneHot wants a depth"),
        ("However, R.subtract(R.const(1.0)) uses datatype T.float32", NO_KERNEL),
        ("Cannot convert the shape [None,None] to a tuple", NO_KERNEL),
        ("Dynamic size of type <class 'tvm.ir.expr.Var'> is", NO_KERNEL),
        ("AssertionError", NO_KERNEL),
        ("", NO_KERNEL),
    ],
)  # fmt: skip
def test_a_reason_is_a_sentence(message: str, expected: str) -> None:
    assert readable(RuntimeError(message)) == expected


def test_reasons_name_the_values_of_their_own_node() -> None:
    """Nodes that are alike are tried once."""
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 20]>
        g (float[4294967296] x, float[4294967296] z, float[4] u, int64[1] s) => (float[a] y, float[a] w, float[b] r)
        { y = Relu(x)  w = Relu(z)  r = Reshape(u, s) }""")
    for value in model.graph.outputs:
        value.shape = ir.Shape(["a"])
    target = load_target("llvm", None, 1, False)
    reasons = [target.supports(node, {"": 20}) for node in model.graph]
    assert reasons == [
        "value x has more than 2^31 - 1 elements",
        "value z has more than 2^31 - 1 elements",
        "operand 1 of Reshape is known at run time only",
    ]
