"""before -> after per algorithm; the `rewrite` fixture checks validity, numbers and idempotence each time."""

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest

from graphopt.cost.model import CostModel
from graphopt.cost.roofline import Machine
from graphopt.cost.workload import PRECISION, Workload
from graphopt.passes import SelectConv
from graphopt.passes.conv.algorithms import Algorithm
from graphopt.pipeline.pass_base import ByteSize, Pass, PassResult

WEIGHTS = {"w": (24, 20, 3, 3), "b": (24,)}
CONV3X3 = """
g (float[1,20,9,9] x, float[24,20,3,3] w, float[24] b) => (float[1,24,9,9] y)
{ y = Conv<pads = [1, 1, 1, 1]>(x, w, b) }
"""


def only(*algorithms: Algorithm) -> SelectConv:
    return SelectConv(algorithms=algorithms)


GOLDEN = {
    Algorithm.BLOCKED: """
x.blocked[1,2,9,9,16] = ToBlocked(x) {block=16}
y.blocked[1,2,9,9,16] = Conv2dBlocked(x.blocked, const[2,2,3,3,16,16], const[2,16]) \
{dilations=[1, 1], group=1, pads=[1, 1, 1, 1], strides=[1, 1]}
y[1,24,9,9] = FromBlocked(y.blocked) {channels=24}""",
    Algorithm.WINOGRAD2: """
x.blocked[1,2,9,9,16] = ToBlocked(x) {block=16}
y.blocked[1,2,9,9,16] = Conv2dWinograd(x.blocked, const[16,2,2,16,16], const[2,16]) {m=2, pads=[1, 1, 1, 1]}
y[1,24,9,9] = FromBlocked(y.blocked) {channels=24}""",
    Algorithm.WINOGRAD4: """
x.blocked[1,2,9,9,16] = ToBlocked(x) {block=16}
y.blocked[1,2,9,9,16] = Conv2dWinograd(x.blocked, const[36,2,2,16,16], const[2,16]) {m=4, pads=[1, 1, 1, 1]}
y[1,24,9,9] = FromBlocked(y.blocked) {channels=24}""",
    Algorithm.IM2COL: """
y[1,24,9,9] = Conv2dIm2col(x, const[24,180], const[24]) \
{dilations=[1, 1], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]}""",
}


@pytest.mark.parametrize("algorithm", GOLDEN)
def test_golden(rewrite, algorithm: Algorithm) -> None:
    after, result = rewrite(only(algorithm), CONV3X3, WEIGHTS)
    assert after == GOLDEN[algorithm].strip()
    (choice,) = result.choices
    assert choice.algorithm == algorithm
    assert {other.algorithm for other in choice.alternatives} <= set(Algorithm) - {algorithm}
    assert {"planar", "fft", "winograd6"} <= {other.algorithm for other in choice.alternatives} | {algorithm}


def test_depthwise(rewrite) -> None:
    text = "g (float[1,40,9,9] x, float[40,1,5,5] w) => (float[1,40,5,5] y) { y = Conv<group = 40>(x, w) }"
    after, _ = rewrite(SelectConv(), text, {"w": (40, 1, 5, 5)})
    assert "DepthwiseConv2dBlocked(x.blocked, const[3,5,5,16], const[3,16])" in after


def test_large_kernels_by_transforms(rewrite) -> None:
    text = """g (float[1,32,14,14] x, float[32,16,5,5] w) => (float[1,32,14,14] y)
    { y = Conv<group = 2, pads = [2, 2, 2, 2]>(x, w) }"""
    after, _ = rewrite(only(Algorithm.FFT), text, {"w": (32, 16, 5, 5)})
    assert re.search(
        r"Conv2dFft\(x.blocked, const\[\d+,1,1,16,16\], const\[2,16\]\) \{group=2, kernel_shape=\[5, 5\]", after
    )


@pytest.mark.parametrize(("kernel", "axis"), [((1, 7), 3), ((7, 1), 2)])
def test_kernels_of_one_row_or_column(rewrite, kernel: tuple[int, int], axis: int) -> None:
    rows, columns = 14 - kernel[0], 14 - kernel[1]
    text = f"""g (float[1,120,13,13] x, float[120,120,{kernel[0]},{kernel[1]}] w) => (float[1,120,{rows},{columns}] y)
    {{ y = Conv(x, w) }}"""
    weights = {"w": (120, 120, *kernel)}
    after, result = rewrite(SelectConv(), text, weights)
    assert "= Conv2dWinogradAxis(x.blocked, const[10,8,8,16,16], const[8,16])" in after
    assert f"{{axis={axis}, m=4, pads=[0, 0, 0, 0]}}" in after
    assert result.choices[0].algorithm == "winograd4"
    assert reasons(result)["winograd2"] == "slower"
    assert reasons(result)["winograd6"] == "no points for tiles of 6 and a kernel of 7"
    assert reasons(result)["fft"] == "not a kernel of 5 or more with stride 1 and dilation 1"
    _, result = rewrite(SelectConv(max_error=2e-6), text, weights)
    assert result.choices[0].algorithm == "winograd2"
    assert "rounding error 3.2e-06 is above" in reasons(result)["winograd4"]


def test_kernels_along_one_axis_that_have_no_winograd(rewrite) -> None:
    text = "g (float[1,20,1,13] x, float[24,20,1,4] w) => (float[1,24,1,10] y) { y = Conv(x, w) }"
    _, result = rewrite(SelectConv(), text, {"w": (24, 20, 1, 4)})
    why = "not 3x3, or 3, 5 or 7 along one axis, with stride 1 and dilation 1"
    assert reasons(result)["winograd2"] == why
    text = "g (float[1,20,1,13] x, float[24,20,1,3] w) => (float[1,24,1,6] y) { y = Conv<strides = [1, 2]>(x, w) }"
    _, result = rewrite(SelectConv(), text, {"w": (24, 20, 1, 3)})
    assert reasons(result)["winograd2"] == why


def test_first_layer_reads_the_planes_as_they_lie(rewrite) -> None:
    text = "g (float[1,3,32,32] x, float[32,3,7,7] w) => (float[1,32,26,26] y) { y = Conv(x, w) }"
    after, _ = rewrite(only(Algorithm.BLOCKED), text, {"w": (32, 3, 7, 7)})
    assert "x.blocked[1,3,32,32,1] = ToBlocked(x) {block=1}" in after
    assert "const[2,3,7,7,1,16]" in after


def test_groups_that_fill_blocks(rewrite) -> None:
    text = "g (float[1,32,9,9] x, float[64,16,3,3] w) => (float[1,64,7,7] y) { y = Conv<group = 2>(x, w) }"
    after, _ = rewrite(SelectConv(), text, {"w": (64, 16, 3, 3)})
    assert "group=2" in after
    assert "Conv2dBlocked" in after


def reasons(result: object) -> dict[str, str]:
    (choice,) = result.choices  # type: ignore[attr-defined]
    return {other.algorithm: other.reason for other in choice.alternatives}


def test_groups_that_do_not_fill_blocks_stay(rewrite) -> None:
    text = "g (float[1,24,9,9] x, float[24,12,3,3] w) => (float[1,24,7,7] y) { y = Conv<group = 2>(x, w) }"
    after, result = rewrite(SelectConv(), text, {"w": (24, 12, 3, 3)})
    assert after == "y[1,24,7,7] = Conv(x, const[24,12,3,3]) {group=2}"
    assert not result.modified
    assert reasons(result)["blocked"] == "the channels of a group are no multiple of 16"


def test_workspace_and_error_limits(rewrite) -> None:
    _, result = rewrite(SelectConv(max_workspace=ByteSize(1024), max_error=2e-7), CONV3X3, WEIGHTS)
    found = reasons(result)
    assert re.fullmatch(r"its workspace of .* MiB is above 1KiB", found["winograd2"])
    assert found["winograd4"] == "its rounding error 6.5e-07 is above 2.0e-07"
    assert "workspace" in found["im2col"]


def test_both_costs_are_in_the_choice(rewrite) -> None:
    _, result = rewrite(SelectConv(), CONV3X3, WEIGHTS)
    (choice,) = result.choices
    possible = [other for other in choice.alternatives if other.seconds is not None]
    assert possible
    assert all(other.seconds > 0 for other in possible)
    assert choice.seconds > 0


REFUSED = {
    "it is 1-dimensional": (
        "g (float[1,4,9] x, float[8,4,3] w) => (float[1,8,7] y) { y = Conv(x, w) }",
        {"w": (8, 4, 3)},
        20,
    ),
    "not float32 or float64": (
        "g (float16[1,4,9,9] x, float16[8,4,3,3] w) => (float16[1,8,7,7] y) { y = Conv(x, w) }",
        {"w": (8, 4, 3, 3)},
        22,
    ),
    "it computes nothing": (
        "g (float[0,4,9,9] x, float[16,4,3,3] w) => (float[0,16,7,7] y) { y = Conv(x, w) }",
        {"w": (16, 4, 3, 3)},
        20,
    ),
    "auto_pad is set": (
        'g (float[1,4,9,9] x, float[8,4,3,3] w) => (float[1,8,9,9] y) { y = Conv<auto_pad = "SAME_UPPER">(x, w) }',
        {"w": (8, 4, 3, 3)},
        20,
    ),
    "opset is older": (
        "g (float[1,4,9,9] x, float[8,4,3,3] w) => (float[1,8,7,7] y) { y = Conv(x, w) }",
        {"w": (8, 4, 3, 3)},
        17,
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusal(rewrite, reason: str) -> None:
    text, weights, opset = REFUSED[reason]
    _, result = rewrite(SelectConv(), text, weights, opset)
    assert [reason in refusal.reason for refusal in result.refusals] == [True]
    assert not result.modified


def test_a_target_that_cannot_pack_leaves_weights_of_a_run(rewrite) -> None:
    _, result = rewrite(SelectConv(costs=CostModel(Machine(packs=False))), CONV3X3)
    assert [refusal.reason for refusal in result.refusals] == ["weights or bias are not constant"]


def test_provenance(rewrite) -> None:
    _, result = rewrite(only(Algorithm.BLOCKED), CONV3X3, WEIGHTS)
    assert {node.metadata_props["graphopt.origin"] for node in result.model.graph} == {"conv0"}
    assert {node.metadata_props["graphopt.rule"] for node in result.model.graph} == {"select-conv"}


def test_block_is_the_vector_width_of_the_machine(rewrite) -> None:
    after, _ = rewrite(
        SelectConv(algorithms=(Algorithm.BLOCKED,), costs=CostModel(Machine(vector_lanes=8))), CONV3X3, WEIGHTS
    )
    assert "const[3,3,3,3,8,8]" in after


HALVES = Machine(floats=("float32", "float16"))


def test_halves_where_the_machine_has_them(rewrite) -> None:
    text = """g (float16[1,20,9,9] x, float16[24,20,3,3] w) => (float16[1,24,9,9] y)
    { y = Conv<pads = [1, 1, 1, 1]>(x, w) }"""
    allowed = tuple(each for each in Algorithm if each is not Algorithm.IM2COL)
    after, result = rewrite(SelectConv(algorithms=allowed, costs=CostModel(HALVES)), text, {"w": (24, 20, 3, 3)}, 22)
    assert "Conv2dBlocked" in after
    assert reasons(result)["winograd4"] == "its transforms would round to half precision"


def test_the_estimates_of_a_target(rewrite) -> None:
    asked = []

    def estimate(workload: Workload, units: str) -> float | None:
        asked.append((workload.op_type, units))
        return {"Conv2dWinograd": 1e-6, "ToBlocked": 1e-9, "FromBlocked": 1e-9, "Conv2dBlocked": math.inf}.get(
            workload.op_type, 1.0
        )

    after, result = rewrite(SelectConv(costs=CostModel(Machine(), estimate)), CONV3X3, WEIGHTS)
    assert "Conv2dWinograd" in after
    assert ("Conv2dIm2col", "") in asked
    assert reasons(result)["blocked"] == "the target has no kernel for it"
    (choice,) = result.choices
    assert choice.seconds == 1e-6


@dataclass(frozen=True)
class Permitted(Pass):
    """select-conv on a model whose convolutions may round to TF32."""

    name: ClassVar[str] = "permitted"
    inner: SelectConv = SelectConv()

    def call(self, model: ir.Model) -> PassResult:
        for node in model.graph:
            if node.op_type == "Conv":
                node.metadata_props[PRECISION] = "tf32"
        found = self.inner(model)
        assert isinstance(found, PassResult)
        return found


@pytest.mark.parametrize(("algorithm", "mark"), [(Algorithm.BLOCKED, "tf32"), (Algorithm.WINOGRAD4, None)])
def test_permission_to_round_goes_with_the_product(rewrite, algorithm: Algorithm, mark: str | None) -> None:
    asked = set()

    def estimate(workload: Workload, units: str) -> float | None:
        asked.add(units)
        return None

    pass_ = Permitted(SelectConv(algorithms=(algorithm,), costs=CostModel(Machine(), estimate)))
    _, result = rewrite(pass_, CONV3X3, WEIGHTS)
    marks = [node.metadata_props.get(PRECISION) for node in result.model.graph]
    assert marks == [None, mark, None]  # transforms multiply rounding errors
    assert "tf32" in asked
