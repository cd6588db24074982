"""before -> after; the `rewrite` fixture checks validity, numbers and idempotence each time."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest

from graphopt.cost.model import CostModel
from graphopt.cost.roofline import Machine
from graphopt.passes import Layout, SelectConv
from graphopt.pipeline.pass_base import Pass, PassResult


@dataclass(frozen=True)
class Blocked(Pass):
    """select-conv with the blocked kernel only, then layout: what layout sees and does."""

    name: ClassVar[str] = "blocked-layout"
    block: int = 16
    costs: CostModel = CostModel()

    def call(self, model: ir.Model) -> PassResult:
        from graphopt.passes.conv.select_conv import Algorithm

        first = SelectConv(algorithms=(Algorithm.BLOCKED, Algorithm.DEPTHWISE), block=self.block, costs=self.costs)(
            model
        )
        second = Layout(costs=self.costs)(model)
        assert isinstance(second, PassResult)
        return PassResult(model, first.modified or second.modified, second.refusals)


def operators(listing: str) -> list[str]:
    return [line.split(" = ")[1].split("(")[0] for line in listing.splitlines()]


W = "float[32,32,1,1] w, float[32,32,1,1] w2"
WEIGHTS = {"w": (32, 32, 1, 1), "w2": (32, 32, 1, 1)}
SANDWICH = f"g (float[1,32,8,8] x, float[1,32,8,8] r, {W}, float[32,1,1] k) => (float[1,32,?,?] y) "
SANDWICH = SANDWICH.replace("?,?", "{h},{h}")


def sandwich(middle: str, h: int = 8) -> str:
    return (
        SANDWICH.format(h=h)
        + "<float low = {0}, int64[8] around = {0, 0, 1, 0, 0, 0, 0, 1}> { a = Conv(x, w) "
        + middle
        + " y = Conv(m, w2) }"
    )


BETWEEN = {
    "relu": ("m = Relu(a)", 8, ["Relu"]),
    "clip": ("m = Clip(a, low)", 8, ["Clip"]),
    "hard swish": ("m = HardSwish(a)", 8, ["HardSwish"]),
    "sine": ("m = Sin(a)", 8, ["Sin"]),
    "scale per channel": ("m = Mul(a, k)", 8, ["Mul"]),
    "division per channel": ("m = Div(a, k)", 8, ["Div"]),
    "slope per channel": ("m = PRelu(a, k)", 8, ["PRelu"]),
    "residual": ("b = Conv(a, w2)  m = Add(a, b)", 8, ["Conv2dBlocked", "Add"]),
    "max pool": ("m = MaxPool<kernel_shape = [3, 3], strides = [2, 2]>(a)", 3, ["MaxPoolBlocked"]),
    "average pool": (
        "m = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(a)",
        4,
        ["AveragePoolBlocked"],
    ),
    "squeeze and excite": (
        "p = GlobalAveragePool(a)  c = Conv(p, w2)  s = Sigmoid(c)  m = Mul(a, s)",
        8,
        ["GlobalAveragePoolBlocked", "Conv2dBlocked", "Sigmoid", "Mul"],
    ),
    "lrn": ("m = LRN<size = 5, alpha = 0.1>(a)", 8, ["LRNBlocked"]),
    "pad": ("m = Pad(a, around)", 9, ["Pad"]),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_between_two_convolutions(rewrite, name: str) -> None:
    middle, h, expected = BETWEEN[name]
    after, _ = rewrite(Blocked(), sandwich(middle, h), WEIGHTS | {"k": (32, 1, 1)})
    assert operators(after) == ["ToBlocked", "Conv2dBlocked", *expected, "Conv2dBlocked", "FromBlocked"]


def test_golden(rewrite) -> None:
    after, _ = rewrite(Blocked(), sandwich("m = Mul(a, k)"), WEIGHTS | {"k": (32, 1, 1)})
    window = "{dilations=[1, 1], group=1, pads=[0, 0, 0, 0], strides=[1, 1]}"
    assert after.splitlines() == [
        "x.blocked[1,2,8,8,16] = ToBlocked(x) {block=16}",
        f"a.blocked[1,2,8,8,16] = Conv2dBlocked(x.blocked, const[2,2,1,1,16,16], const[2,16]) {window}",
        "m.blocked.1[1,2,8,8,16] = Mul(a.blocked, const[1,2,1,1,16])",
        f"y.blocked[1,2,8,8,16] = Conv2dBlocked(m.blocked.1, const[2,2,1,1,16,16], const[2,16]) {window}",
        "y[1,32,8,8] = FromBlocked(y.blocked) {channels=32}",
    ]


@pytest.mark.parametrize("axis", [1, -3])
def test_concat_of_branches_that_share_one_conversion(rewrite, axis: int) -> None:
    text = (
        f"g (float[1,32,8,8] x, {W}, float[16,64,1,1] v) => (float[1,16,8,8] y)"
        f"{{ a = Conv(x, w)  b = Conv(x, w2)  c = Concat<axis = {axis}>(a, b)  y = Conv(c, v) }}"
    )
    after, _ = rewrite(Blocked(), text, WEIGHTS | {"v": (16, 64, 1, 1)})
    assert operators(after) == ["ToBlocked", "Conv2dBlocked", "Conv2dBlocked", "Concat", "Conv2dBlocked", "FromBlocked"]


def test_concat_of_broken_blocks_stays_planar_with_a_reason(rewrite) -> None:
    text = (
        "g (float[1,32,8,8] x, float[20,32,1,1] w, float[20,32,1,1] w2, float[16,40,1,1] v) => (float[1,16,8,8] y)"
        "{ a = Conv(x, w)  b = Conv(x, w2)  c = Concat<axis = 1>(a, b)  y = Conv(c, v) }"
    )
    after, result = rewrite(Blocked(), text, {"w": (20, 32, 1, 1), "w2": (20, 32, 1, 1), "v": (16, 40, 1, 1)})
    assert "c[1,40,8,8] = Concat(a, b)" in after
    assert [r.reason for r in result.refusals] == ["an input before the last has channels that are no multiple of 16"]


def test_operator_between_planar_neighbours_stays_planar(rewrite) -> None:
    text = (
        f"g (float[1,32,8,8] x, {W}) => (float[1,32,8,8] y)"
        "{ a = Conv(x, w)  b = Transpose<perm = [0, 1, 3, 2]>(a)  c = Relu(b)  y = Transpose<perm = [0, 1, 3, 2]>(c) }"
    )
    after, result = rewrite(Blocked(), text, WEIGHTS)
    assert "c[1,32,8,8] = Relu(b)" in after
    assert [r.reason for r in result.refusals] == ["Transpose has no blocked form"]


@pytest.mark.parametrize("unsafe", ["m = Div(k4, a)", "m = Log(a)", "m = Sqrt(a)"])
def test_operators_that_poison_padded_lanes_stay_planar(rewrite, unsafe: str) -> None:
    text = (
        "g (float[1,20,8,8] x, float[20,20,1,1] w, float[20,20,1,1] w2, float[1,20,8,8] k4) => (float[1,20,8,8] y)"
        "{ a0 = Conv(x, w)  a1 = Abs(a0)  one = Constant<value_float = 1.0>()  a = Add(a1, one) "
        + unsafe
        + " y = Conv(m, w2) }"
    )
    after, _ = rewrite(Blocked(), text, {"w": (20, 20, 1, 1), "w2": (20, 20, 1, 1)})
    assert f"m[1,20,8,8] = {unsafe[4:7]}" in after


def test_padded_lanes_may_hold_garbage(rewrite) -> None:
    text = (
        "g (float[1,20,8,8] x, float[20,20,1,1] w, float[24,20,3,3] w2, float[20,1,1] k) => (float[1,24,6,6] y)"
        "{ a = Conv(x, w)  s = Sigmoid(a)  d = Div(s, k)  p = MaxPool<kernel_shape = [1, 1]>(d)"
        " n = LRN<size = 3>(p)  e = Elu(n)  y = Conv(e, w2) }"
    )
    after, _ = rewrite(Blocked(), text, {"w": (20, 20, 1, 1), "w2": (24, 20, 3, 3), "k": (20, 1, 1)})
    assert after.count("FromBlocked") == 1


def test_graph_outputs_of_the_middle(rewrite) -> None:
    text = (
        f"g (float[1,32,8,8] x, {W}) => (float[1,32,8,8] y, float[1,32,8,8] m)"
        "{ a = Conv(x, w)  m = Relu(a)  y = Conv(m, w2) }"
    )
    after, _ = rewrite(Blocked(), text, WEIGHTS)
    assert "m[1,32,8,8] = FromBlocked(m.blocked.1) {channels=32}" in after
    assert after.count("ToBlocked(") == 1


@pytest.mark.parametrize("block", [4, 8])
def test_other_block_sizes_are_taken_from_the_model(rewrite, block: int) -> None:
    after, _ = rewrite(Blocked(block), sandwich("m = Relu(a)"), WEIGHTS)
    assert operators(after) == ["ToBlocked", "Conv2dBlocked", "Relu", "Conv2dBlocked", "FromBlocked"]
    assert f"[1,{32 // block},8,8,{block}]" in after


def test_first_layers_share_one_conversion(rewrite) -> None:
    text = (
        "g (float[1,3,9,9] x, float[16,3,3,3] w, float[16,3,3,3] w2) => (float[1,16,7,7] y)"
        "{ a = Conv(x, w)  b = Conv(x, w2)  y = Add(a, b) }"
    )
    after, _ = rewrite(Blocked(), text, {"w": (16, 3, 3, 3), "w2": (16, 3, 3, 3)})
    assert operators(after) == ["ToBlocked", "Conv2dBlocked", "Conv2dBlocked", "Add", "FromBlocked"]
    assert "{block=1}" in after


def test_elementwise_work_joins_the_kernel_before_it(rewrite) -> None:
    """Behind a Conv whose groups fill no blocks it stays planar, behind a blocked one it is blocked."""
    text = (
        "g (float[1,40,8,8] x, float[40,20,1,1] w, float[32,40,1,1] w2, float[40,32,1,1] w3) => (float[1,40,8,8] y) "
        "{ a = Conv<group = 2>(x, w)  b = Relu(a)  m = Conv(b, w2)  n = Tanh(m)  u = Conv(n, w3) "
        "  c = Conv<group = 2>(u, w)  y = Add(c, x) }"
    )
    weights = {"w": (40, 20, 1, 1), "w2": (32, 40, 1, 1), "w3": (40, 32, 1, 1)}
    after, _ = rewrite(Blocked(), text, weights)
    blocked = ["ToBlocked", "Conv2dBlocked", "Tanh", "Conv2dBlocked", "FromBlocked"]
    assert operators(after) == ["Conv", "Relu", *blocked, "Conv", "Add"]


def test_casts_between_blocked_types(rewrite) -> None:
    """A sum in float32 between convolutions in halves, where the machine blocks both."""
    text = """g (float16[1,32,8,8] x, float16[32,32,1,1] w, float16[32,32,1,1] w2) => (float16[1,32,8,8] y)
    { a = Conv(x, w) b = Cast<to = 1>(a) c = Mul(b, b) d = Cast<to = 10>(c) y = Conv(d, w2) }"""
    both = CostModel(Machine(floats=("float32", "float16")))
    after, _ = rewrite(Blocked(costs=both), text, WEIGHTS, 22)
    assert operators(after) == ["ToBlocked", "Conv2dBlocked", "Cast", "Mul", "Cast", "Conv2dBlocked", "FromBlocked"]
    halves = CostModel(Machine(floats=("float16",)))
    after, _ = rewrite(Blocked(costs=halves), text, WEIGHTS, 22)
    assert operators(after).count("FromBlocked") == 2
