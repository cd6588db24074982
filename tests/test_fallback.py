"""What is not native runs in ONNX Runtime inside the program: segments, control flow, odd graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.compiler import compile_model
from graphopt.errors import CodegenError, UnsupportedError
from graphopt.program.program import FallbackSegment, NativeSegment, Place
from graphopt.targets.cpu.target import CpuTarget
from tests.helpers.compiled import parse, run, segments


def test_a_fallback_between_two_native_segments() -> None:
    model = parse(
        """g (float[4, 8] x) => (float[4, 8] y) {
            a = Exp(x)
            b = Unique<sorted=1>(a)
            s = Shape(b)
            t = ReduceProd<keepdims=0>(s)
            f = Cast<to=1>(t)
            c = Sub(a, f)
            y = Tanh(c)
        }"""
    )
    compilation = run(model)
    found = segments(compilation)
    assert [type(segment) for segment in found] == [NativeSegment, FallbackSegment, NativeSegment]
    assert found[1].model == "fallback/stage_0_1.onnx"
    assert found[1].model in compilation.artifact.files
    assert [name for name, _ in found[1].reasons] == [name.split()[0] for name, _ in compilation.fallbacks]
    assert all(reason and not reason.endswith(".") for _, reason in compilation.fallbacks)
    onnx.checker.check_model(onnx.load_from_string(bytes(compilation.artifact.files[found[1].model])))


def test_no_fallback_lists_every_node_at_once() -> None:
    model = parse(
        """g (float[4] x) => (int64[1, n] y, int64[1, m] z, float[4] w) { y = NonZero(x) w = Relu(x) z = NonZero(w) }"""
    )
    with pytest.raises(UnsupportedError) as caught:
        compile_model(model, fallback=False)
    message = str(caught.value)
    assert message.startswith("2 of 3 nodes have no native form, and --no-fallback forbids ONNX Runtime: ")
    assert message.count("(NonZero): ") == 2
    assert "\n" not in message


def test_no_fallback_where_none_is_needed() -> None:
    assert not run(parse("g (float[4] x) => (float[4] y) { y = Relu(x) }"), fallback=False).fallbacks


def test_a_node_whose_code_cannot_be_generated_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    real = CpuTarget.lower

    def broken(self: CpuTarget, nodes: Sequence[ir.Node], *rest: Any) -> Any:
        if any(node.op_type == "Exp" for node in nodes):
            raise CodegenError("LLVM is out of registers")
        return real(self, nodes, *rest)

    monkeypatch.setattr(CpuTarget, "lower", broken)
    compilation = run(parse("g (float[4] x) => (float[4] y) { a = Relu(x) b = Exp(a) y = Neg(b) }"))
    ((name, reason),) = compilation.fallbacks
    assert "(Exp)" in name
    assert "LLVM is out of registers" in reason


CONTROL = {
    "if": """g (float[3] x, bool c) => (float[3] y) {
        a = Relu(x)
        b = If (c) <
            then_branch = t () => (float[3] p) { p = Exp(a) },
            else_branch = e () => (float[3] q) { q = Neg(x) }
        >
        y = Tanh(b)
    }""",
    "loop": """g (float[3] x, int64 n, bool c) => (float[3] y) {
        a = Relu(x)
        b = Loop (n, c, a) <
            body = l (int64 i, bool before, float[3] s) => (bool after, float[3] u) {
                after = Identity(before)
                u = Add(s, x)
            }
        >
        y = Tanh(b)
    }""",
    "sequence": """g (float[4, 3] x) => (float[4, 3] y) {
        a = Relu(x)
        s = SplitToSequence<axis=0>(a)
        t = SequenceInsert(s, x)
        b = ConcatFromSequence<axis=0>(s)
        n = SequenceLength(t)
        f = Cast<to=1>(n)
        c = Reshape(b, shape)
        y = Add(c, f)
    }""",
}  # fmt: skip


@pytest.mark.parametrize("name", ["if", "loop"])
@pytest.mark.parametrize("condition", [True, False])
def test_control_flow(name: str, condition: bool) -> None:
    feeds = {"x": np.array([1, -2, 3], np.float32), "c": np.array(condition), "n": np.array(3)}
    model = parse(CONTROL[name])
    compilation = run(model, {value.name: feeds[value.name] for value in model.graph.input})
    assert (FallbackSegment in map(type, segments(compilation))) == (name == "loop")


def test_sequences_and_strings_stay_on_the_host() -> None:
    text = CONTROL["sequence"].replace("=> (float[4, 3] y) {", "=> (float[4, 3] y) <int64[2] shape = {4, 3}> {")
    run(parse(text))
    strings = parse("g (string[2] x, float[3] z) => (string[2] y, float[3] w) { y = StringConcat(x, x) w = Relu(z) }")
    feeds = {"x": np.array(["a", "bc"], dtype=object), "z": np.array([1, -1, 2], np.float32)}
    compilation = compile_model(strings)
    outputs = compilation.artifact.session(threads=1).run(feeds)
    assert outputs["y"].tolist() == ["aa", "bcbc"]
    np.testing.assert_array_equal(outputs["w"], np.array([1, 0, 2], np.float32))
    places = {v.name: v.place for stage in compilation.artifact.program.stages for v in stage.values}
    assert places["x"] is Place.HOST
    assert places["z"] is Place.ARENA


def test_a_dynamic_value_between_two_fallbacks_and_as_an_output() -> None:
    model = parse(
        """g (float[6] x) => (int64[1, n] where, float[6] y, int64[1] count) {
            where = NonZero(x)
            y = Exp(x)
            s = Shape(where)
            count = Slice(s, one, two)
        }""".replace("count) {", "count) <int64[1] one = {1}, int64[1] two = {2}> {")
    )
    feeds = {"x": np.array([0, 1, 0, 2, 3, 0], np.float32)}
    compilation = run(model, feeds)
    session = compilation.artifact.session(threads=1)
    assert session.run(feeds)["count"].tolist() == [3]
    assert session.run({"x": np.zeros(6, np.float32)})["where"].shape == (1, 0)


ODD = {
    "output is the input": "g (float[3] x) => (float[3] x) {}",
    "identity": "g (float[3] x) => (float[3] y) { y = Identity(x) }",
    "one result twice": "g (float[3] x) => (float[3] y, float[3] z) { y = Relu(x) z = Relu(x) }",
    "renamed": "g (float[3] x) => (float[3] y, float[3] z) { y = Relu(x) z = Identity(y) }",
    "constant only": "g (float[3] x) => (float[2] y) <float[2] y = {1, 2}> {}",
    "no input": "g () => (float[2] y) <float[2] w = {1, 2}> { y = Neg(w) }",
    "constant beside a result": "g (float[3] x) => (float[2] c, float[3] y) <float[2] w = {1, 2}> "
    "{ c = Neg(w) y = Neg(x) }",
    "unused input": "g (float[3] x, float[2] unused) => (float[3] y) { y = Neg(x) }",
    "scalar": "g (float x) => (float y) { a = Exp(x) y = Add(a, x) }",
    "no elements": "g (float[0, 3] x) => (float[0, 3] y) { a = Exp(x) y = Add(a, x) }",
    "empty product": "g (float[0, 3] x, float[3, 4] w) => (float[0, 4] y) { y = MatMul(x, w) }",
    "sum of nothing": "g (float[2, 0] x, float[0, 4] w) => (float[2, 4] y) { y = MatMul(x, w) }",
    "empty operand": "g (float[3] x, float[0] e) => (float[3] y) { y = Concat<axis=0>(x, e) }",
    "float64": "g (double[3, 4] x) => (double[3] y) <int64[1] k = {1}> { a = Sin(x) y = ReduceSum<keepdims=0>(a, k) }",
    "int64": "g (int64[3, 4] x) => (int64[3, 4] y) { a = Mul(x, x) y = Sub(a, x) }",
    "bool": "g (bool[3, 4] x, bool[4] z) => (bool[3, 4] y) { a = And(x, z) b = Not(a) y = Xor(b, x) }",
    "float16": "g (float16[3, 4] x) => (float16[3, 4] y) { a = Mul(x, x) y = Relu(a) }",
    "uint8": "g (uint8[3, 4] x) => (float[3, 4] y) { a = Cast<to=1>(x) y = Sqrt(a) }",
    "view of an output": "g (float[3, 4] x) => (float[12] y, float[3, 4] z) <int64[1] s = {-1}> "
    "{ z = Exp(x) y = Reshape(z, s) }",
    "view of an input": "g (float[3, 4] x) => (float[12] y) <int64[1] s = {-1}> { y = Reshape(x, s) }",
}


@pytest.mark.parametrize("name", ODD)
def test_odd_graphs(name: str) -> None:
    assert not run(parse(ODD[name])).fallbacks


@pytest.mark.parametrize("name", ["scalar", "no elements", "float64", "int64", "bool", "float16", "view of an output"])
def test_odd_graphs_on_two_ranks(name: str) -> None:
    compilation = run(parse(ODD[name]), ranks=2)
    assert not compilation.fallbacks
    assert len(compilation.artifact.program.stages) == 2
