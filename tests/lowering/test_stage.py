"""Stages out of nodes: files, constants, and places in the arena, with a target that computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from graphopt.distributed.partition import Part
from graphopt.lowering import stage as stage_build
from graphopt.lowering.stage import BuiltStage, build_stage
from graphopt.lowering.target import Lowered
from graphopt.program.program import FallbackSegment, KernelCall, NativeSegment, Place, Value


class PaperTarget:
    """One call for each node."""

    extension = "so"

    def lower(
        self,
        nodes: Sequence[ir.Node],
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        opsets: Any,
        prefix: str,
    ) -> Lowered:
        lowered = Lowered(inputs=tuple(str(v.name) for v in inputs), outputs=tuple(str(v.name) for v in outputs))
        for number, node in enumerate(nodes):
            for value in (*node.inputs, *node.outputs):
                place = Place.ARENA if value.const_value is None else Place.WEIGHT
                if place is Place.WEIGHT:
                    lowered.constants[value.name] = value.const_value.numpy()
                lowered.values[value.name] = Value(value.name, "float32", tuple(value.shape.numpy()), place)
            symbol = f"{prefix}{node.op_type.lower()}{number}"
            lowered.functions[symbol] = symbol
            names = tuple(str(v.name) for v in node.inputs), tuple(str(v.name) for v in node.outputs)
            lowered.calls.append(KernelCall(symbol, *names))
        lowered.notes.append(f"lowered {prefix}")
        return lowered

    def library(self, functions: Mapping[str, Any]) -> bytes:
        return " ".join(functions).encode()


def model_of(text: str) -> ir.Model:

    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]>\n{text}')
    ShapeInferencePass()(model)
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    return model


def build(model: ir.Model, refused: str = "", index: int = 0) -> BuiltStage:
    graph = model.graph
    refusals = {node: f"no {node.op_type}" for node in graph if node.outputs[0].name in refused.split()}
    part = Part(tuple(graph), tuple(graph.inputs), tuple(graph.outputs))
    return build_stage(index, model, part, refusals, PaperTarget())


CHAIN = "g (float[4, 4] x) => (float[4, 4] d) { a = Relu(x) b = Neg(a) c = Exp(b) d = Abs(c) }"


def test_a_native_stage(tmp_path: Path) -> None:
    built = build(model_of(CHAIN), index=3)
    stage = built.stage
    assert (stage.index, stage.inputs, stage.outputs) == (3, ("x",), ("d",))
    assert (stage.library, stage.weights) == ("stage_3.so", "")
    (segment,) = stage.segments
    assert isinstance(segment, NativeSegment)
    assert [call.symbol for call in segment.calls] == ["s3_0_relu0", "s3_0_neg1", "s3_0_exp2", "s3_0_abs3"]
    assert built.write(tmp_path, PaperTarget()) == {"stage_3.so": b"s3_0_relu0 s3_0_neg1 s3_0_exp2 s3_0_abs3"}
    assert built.notes == ["lowered s3_0_"]


def test_values_that_live_at_different_times_share_memory() -> None:
    stage = build(model_of(CHAIN)).stage
    offsets = {value.name: value.offset for value in stage.values}
    assert stage.arena_bytes == stage.arena_lower_bound == 128
    for before, after in zip("xabc", "abcd", strict=True):
        assert offsets[before] != offsets[after], "a kernel must not write over what it reads"


def test_inputs_and_outputs_that_nobody_touches_have_a_place() -> None:
    stage = build(model_of("g (float[4, 4] x, float[8] unused) => (float[4, 4] y) { y = Relu(x) }")).stage
    assert {value.name for value in stage.values} == {"x", "unused", "y"}
    offsets = {value.name: value.offset for value in stage.values}
    assert len({offsets["x"], offsets["unused"]}) == 2, "both are fed before the first kernel runs"
    assert offsets["y"] != offsets["x"]


def test_segments_alternate_and_files_are_numbered(tmp_path: Path) -> None:
    built = build(model_of(CHAIN), refused="b d")
    kinds = [type(segment).__name__ for segment in built.stage.segments]
    assert kinds == ["NativeSegment", "FallbackSegment", "NativeSegment", "FallbackSegment"]
    assert list(built.fallbacks) == ["fallback/stage_0_1.onnx", "fallback/stage_0_3.onnx"]
    segment = built.stage.segments[1]
    assert segment == FallbackSegment("fallback/stage_0_1.onnx", ("a",), ("b",), (("make_b", "no Neg"),))
    assert set(built.write(tmp_path, PaperTarget())) == {*built.fallbacks, "stage_0.so"}


def test_without_kernels_there_is_no_library() -> None:
    stage = build(model_of(CHAIN), refused="a b c d").stage
    assert stage.library == ""
    assert [type(segment) for segment in stage.segments] == [FallbackSegment]


def test_weights(tmp_path: Path) -> None:
    built = build(model_of("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }"))
    assert built.stage.weights == "weights_0.safetensors"
    assert {v.name: v.place for v in built.stage.values} == {"x": Place.ARENA, "w": Place.WEIGHT, "y": Place.ARENA}
    assert isinstance(built.write(tmp_path, PaperTarget())["weights_0.safetensors"], Path)


def test_a_constant_output_is_a_weight() -> None:
    built = build(model_of("g (float[2] x) => (float[2] w, float[2] y) <float[2] w = {1, 2}> { y = Neg(x) }"))
    assert built.stage.outputs == ("w", "y")
    np.testing.assert_array_equal(built.constants["w"], np.array([1, 2], np.float32))


def test_a_dynamic_value_is_on_the_host() -> None:
    built = build(
        model_of("g (float[4] x) => (int64[1, n] z, float[4] y) { z = NonZero(x) y = Neg(x) }"),
        refused="z",
    )
    places = {value.name: (value.place, value.shape) for value in built.stage.values}
    assert places["z"] == (Place.HOST, None)
    assert places["y"] == (Place.ARENA, (4,))


def test_types_of_no_elements_are_alike() -> None:
    kind = ("float32", (0, 2, 3))
    assert stage_build._both_empty(("float32", (0,)), kind)
    assert stage_build._both_empty(("float32", (4, 0)), kind)
    assert not stage_build._both_empty(("float16", (0, 2, 3)), kind)
    assert not stage_build._both_empty(("float32", (1, 2, 3)), kind)
