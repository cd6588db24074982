import onnx_ir as ir

from graphopt.pipeline.explain import Row, explain
from graphopt.pipeline.pass_base import Alternative, Choice, Refusal
from graphopt.pipeline.pipeline import PipelineResult, Step


def result() -> PipelineResult:
    model = ir.Model(ir.Graph([], [], nodes=[], name="g"), ir_version=11)
    choices = (
        Choice(
            "conv1",
            "winograd4",
            1e-4,
            (
                Alternative("blocked", 2e-4, "slower"),
                Alternative("im2col", 3e-4, "slower"),
                Alternative("depthwise", None, "not one channel per group"),
            ),
        ),
        Choice("conv2", "planar", 5e-6, ()),
    )
    steps = (
        Step(1, "fuse", "fuse{attention=false}", False, (Refusal("mul", "no"),), (), 0.25),
        Step(2, "select-conv", "select-conv", True, (), choices, 0.5),
    )
    return PipelineResult(model, steps)


def test_rows_hold_both_costs() -> None:
    assert explain(result()) == [
        Row("fuse", "mul", "left alone", None, "", None, "no"),
        Row(
            "select-conv",
            "conv1",
            "winograd4",
            1e-4,
            "blocked",
            2e-4,
            "slower",
            (("depthwise", "not one channel per group"),),
        ),
        Row("select-conv", "conv2", "planar", 5e-6, "", None, ""),
    ]
