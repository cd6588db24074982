"""The CPU target: what it supports, what it tells, and which instructions its code holds."""

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphopt.errors import GraphoptError
from graphopt.ops.conv import pack_conv_weight
from graphopt.runtime.devices import library
from graphopt.targets import TARGETS, load_target
from graphopt.targets.common import native
from graphopt.targets.cpu import build
from graphopt.targets.cpu.machine import LEVELS
from graphopt.targets.cpu.target import CpuTarget


def numbers(*shape: int) -> Any:
    return np.random.default_rng([4, *shape]).standard_normal(shape).astype(np.float32)


def node_of(text: str) -> tuple[ir.Node, dict[str, int]]:
    model = ir.from_onnx_text(f'<ir_version: 11, opset_import: ["": 21, "graphopt": 1, "other": 1]>\n{text}')
    ShapeInferencePass()(model)
    return model.graph.node(0), dict(model.opset_imports)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[2] x) => (float[2] y) { y = other.Thing(x) }", "operators of the domain other have no native form"),
        ("g (float[2] x) => (float[2] y) { y = graphopt.Thing(x) }", "graphopt.Thing has no kernel on this target"),
        ("g (float[2] x) => (int64[1, n] y) { y = NonZero(x) }", "at run time only|that is not known"),
        ("g (float[n] x) => (float[n] y) { y = Relu(x) }", "enters or leaves it is known at run time only"),
        ("g (string[2] x) => (string[2] y) { y = Identity(x) }", "kernels have no values of type STRING"),
        ("g (bool c) => (float[1] y) { y = If(c) <then_branch = t () => (float[1] a) "
         "{ a = Constant <value = float[1] {1.0}>() }, else_branch = e () => (float[1] b) "
         "{ b = Constant <value = float[1] {2.0}>() }> }", "If holds subgraphs"),
        ("g (float[1,1,4,4] x) => (float[1,1,2,2] y, int64[1,1,2,2] z) "
         "{ y, z = MaxPool<kernel_shape=[3,3]>(x) r = Relu(z) }", "second output of MaxPool|MaxPool"),
        ("g (float[2, 3] x, int64[2] s) => (float[3, 2] y) { y = Reshape(x, s) }", "Reshape|not known"),
    ],
)  # fmt: skip
def test_reasons(lab: Any, text: str, reason: str) -> None:
    node, opsets = node_of(text)
    found = lab.target.supports(node, opsets)
    assert found is not None
    assert re.search(reason, found), found
    assert not found.endswith(".")
    assert "\n" not in found


def test_a_reason_is_asked_for_once_per_kind_of_node(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target = CpuTarget()
    asked: list[str] = []
    real = native.obstacle
    monkeypatch.setattr(native, "obstacle", lambda node, *rest: asked.append(node.op_type) or real(node, *rest))
    model = lab.model(
        "a = Relu(x) b = Relu(a) c = Exp(b) y = Exp(c) z = Relu(w)",
        {"x": numbers(3), "w": numbers(4)}, outputs=("y", "z"),
    )  # fmt: skip
    for node in model.graph:
        assert target.supports(node, model.opset_imports) is None
    assert asked == ["Relu", "Exp", "Relu"]


def test_small_constants_are_part_of_the_question() -> None:
    """Two nodes that differ in a constant's value only may get different answers."""
    target = CpuTarget()
    text = "g (float[4, 4] x) => (float[4, 4] y) <int64[2] s = {AXES}> { y = Reshape(x, s) }"
    node, opsets = node_of(text.replace("AXES", "4, 4"))
    assert target.supports(node, opsets) is None
    node, opsets = node_of(text.replace("AXES", "5, 5"))
    assert target.supports(node, opsets) is not None


def test_nothing_is_written_to_the_terminal(lab: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for text in ("g (float[2, 3] x, int64[2] s) => (float[3, 2] y) { y = Reshape(x, s) }",
                 "g (float[2] x) => (float[2] y) { y = graphopt.Thing(x) }"):  # fmt: skip
        node, opsets = node_of(text)
        CpuTarget().supports(node, opsets)
    assert capfd.readouterr() == ("", "")


def test_unknown_targets_and_levels() -> None:
    with pytest.raises(GraphoptError, match="--target tpu is unknown; choose one of llvm"):
        load_target("tpu")
    with pytest.raises(GraphoptError, match="CPU level 'mmx' is unknown"):
        load_target("llvm", "mmx")
    assert list(TARGETS) == ["llvm", "cuda", "opencl"]


@pytest.mark.parametrize("level", LEVELS)
def test_describe(level: str) -> None:
    described = CpuTarget(level).describe()
    assert described["level"] == level
    assert described["features"] == list(LEVELS[level].features)
    assert CpuTarget(level).machine.vector_lanes == LEVELS[level].vector_bytes // 4


# ---------------------------------------------------------------- instructions

_WIDE = r"%zmm|%k[1-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b"
FORBIDDEN = {
    "avx512vnni": r"%tmm",
    "avx512": r"%tmm|vpdp",
    "avx2vnni": _WIDE,
    "avx2": rf"{_WIDE}|vpdp",
    "x86-64": r"%[yz]mm|%k[1-7]\b|\bv[a-z]+ps\b|\bv[a-z]+ss\b|\b(pshufb|roundps|roundss|blendvps|pmulld|pminsd)\b",
}
WANTED = {
    "avx512vnni": r"vfmadd\w+\s.*%zmm",
    "avx512": r"vfmadd\w+\s.*%zmm",
    "avx2vnni": r"vfmadd\w+\s.*%ymm",
    "avx2": r"vfmadd\w+\s.*%ymm",
    "x86-64": r"mulps\s.*%xmm",
}


def every_kind_of_kernel(lab_of_level: Any, b: int) -> Any:
    body = """
        blocked = graphopt.ToBlocked<block=BLOCK>(x)
        c = graphopt.Conv2dBlocked<strides=[1,1],pads=[1,1,1,1],dilations=[1,1],group=1>(blocked, w, bias)
        p = graphopt.MaxPoolBlocked<kernel_shape=[2,2],strides=[2,2],pads=[0,0,0,0],dilations=[1,1],ceil_mode=0>(c)
        g = graphopt.GlobalAveragePoolBlocked(p)
        f = graphopt.FromBlocked<channels=32>(g)
        r = Reshape(f, shape)
        m = MatMul(r, v)
        t = Tanh(m)
        s = Softmax(t)
        e = Exp(s)
        n = LayerNormalization(e, norm)
        i = Floor(n)
        j = Cast<to=7>(i)
        q = ReduceMax<keepdims=0>(j, axes)
        y = Sqrt(n)
    """.replace("BLOCK", str(b))
    constants = {
        "w": pack_conv_weight(numbers(32, 32, 3, 3), 1, b, b), "bias": numbers(32 // b, b), "shape": np.array([2, 32]),
        "v": numbers(32, 50), "norm": numbers(50), "axes": np.array([1]),
    }  # fmt: skip
    return lab_of_level.model(body, {"x": numbers(2, 32, 10, 9)}, constants, outputs=("y", "q"))


@pytest.mark.parametrize("level", LEVELS)
def test_code_holds_no_instruction_above_its_level(lab: Any, level: str) -> None:
    """Also for levels that this host cannot run: code is only generated."""
    target = CpuTarget(level)
    model = every_kind_of_kernel(lab, target.cpu.lanes())
    graph = model.graph
    lowered = target.lower(list(graph), list(graph.inputs), list(graph.outputs), model.opset_imports, "s_")
    module = build.compile_functions(lowered.functions, target.cpu)
    code = module.mod.inspect_source("asm")
    lines = [line for line in code.splitlines() if not line.lstrip().startswith((".", "#"))]
    assert len(lines) > 1000
    assert [line.strip() for line in lines if re.search(FORBIDDEN[level], line)] == []
    assert any(re.search(WANTED[level], line) for line in lines), "the vectors of the level are not used"


def test_every_kind_of_kernel_runs(every_lab: Any) -> None:
    model = every_kind_of_kernel(every_lab, every_lab.target.cpu.lanes())
    outputs = model.graph.outputs
    while len(outputs) > 1:  # Floor jumps where rounding differs: compare the smooth output only
        outputs.pop()
    for node in reversed(list(model.graph)):
        if node.outputs[0].name in ("q", "j", "i"):
            model.graph.remove(node, safe=True)
    every_lab.check(model, {"x": numbers(2, 32, 10, 9)}, rtol=1e-4)


# ---------------------------------------------------------------- library


def test_library_has_one_entry_per_symbol(lab: Any, tmp_path: Path) -> None:
    lowered = lab.lower(lab.model("a = Relu(x) y = Softmax(a)", {"x": numbers(3, 40)}))
    file = tmp_path / "kernels.so"
    file.write_bytes(lab.target.library(lowered.functions))
    load = library.load(file)
    for symbol in lowered.functions:
        load(symbol)
    with pytest.raises(GraphoptError, match="has no function 's_other'"):
        load("s_other")


def test_the_same_functions_give_the_same_library(lab: Any) -> None:
    lowered = lab.lower(lab.model("a = MatMul(x, w) y = Softmax(a)", {"x": numbers(3, 40)}, {"w": numbers(40, 8)}))
    again = CpuTarget(lab.target.cpu.level.name)
    assert lab.target.library(lowered.functions) == again.library(lowered.functions)


def test_a_failing_linker_is_one_sentence(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess([], 1, "", "first\nld.lld: error: no space left\n")

    lowered = lab.lower(lab.model("y = Relu(x)", {"x": numbers(3)}))
    monkeypatch.setattr(build.subprocess, "run", failed)
    with pytest.raises(GraphoptError, match=r"^linking kernels\.so failed: ld\.lld: error: no space left$"):
        lab.target.library(lowered.functions)
