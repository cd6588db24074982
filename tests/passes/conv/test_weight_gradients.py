"""ConvWeightGradient on blocked tensors: before -> after."""

from __future__ import annotations

import pytest

from graphopt.cost.model import CostModel
from graphopt.cost.roofline import Machine
from graphopt.passes import Layout, SelectConv
from graphopt.passes.conv.algorithms import Algorithm

WINDOW = "kernel_shape = [3, 3], strides = [1, 1], dilations = [1, 1], pads = [1, 1, 1, 1]"
TEXT = """
g (float[2,{c},9,9] x, float[2,{o},9,9] dy) => (float[{o},{d},3,3] dw)
{{ dw = graphopt.ConvWeightGradient<{window}, group = {group}>(x, dy) }}
"""


def text(c: int, o: int, group: int = 1) -> str:
    return TEXT.format(c=c, o=o, d=c // group, group=group, window=WINDOW)


def test_blocked(rewrite) -> None:
    after, result = rewrite(SelectConv(), text(32, 40))
    assert (
        after
        == """
x.blocked[2,2,9,9,16] = ToBlocked(x) {block=16}
dy.blocked[2,3,9,9,16] = ToBlocked(dy) {block=16}
dw.blocked[3,2,3,3,16,16] = Conv2dWeightGradientBlocked(x.blocked, dy.blocked) \
{dilations=[1, 1], group=1, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]}
dw[40,32,3,3] = FromBlockedWeight(dw.blocked) {shape=[40, 32, 3, 3]}""".strip()
    )
    assert result.choices[0].algorithm == "blocked"


def test_few_channels_are_planes(rewrite) -> None:
    after, _ = rewrite(SelectConv(algorithms=(Algorithm.BLOCKED,)), text(3, 64))
    assert "x.blocked[2,3,9,9,1] = ToBlocked(x) {block=1}" in after
    assert "dw.blocked[4,3,3,3,1,16]" in after


def test_depthwise(rewrite) -> None:
    after, _ = rewrite(SelectConv(), text(24, 24, 24))
    assert "dw.blocked[2,3,3,16] = DepthwiseWeightGradientBlocked(x.blocked, dy.blocked)" in after
    assert "FromDepthwiseWeight(dw.blocked) {channels=24}" in after


def test_groups(rewrite) -> None:
    after, _ = rewrite(SelectConv(), text(32, 64, 2))
    assert "dw.blocked[4,1,3,3,16,16] = Conv2dWeightGradientBlocked" in after
    after, result = rewrite(SelectConv(), text(24, 24, 2))
    assert "= ConvWeightGradient(x, dy)" in after
    assert result.choices[0].alternatives[0].reason == "the channels of a group are no multiple of 16"


@pytest.mark.parametrize("algorithms", [(Algorithm.PLANAR,), (Algorithm.WINOGRAD2,)])
def test_planar_as_the_last_resort(rewrite, algorithms: tuple[Algorithm, ...]) -> None:
    after, _ = rewrite(SelectConv(algorithms=algorithms), text(32, 32))
    assert "= ConvWeightGradient(x, dy)" in after


def test_refusals(rewrite) -> None:
    one = """g (float[2,4,9] x, float[2,4,9] dy) => (float[4,4,3] dw)
    { dw = graphopt.ConvWeightGradient<kernel_shape = [3], strides = [1], dilations = [1], pads = [1, 1], group = 1>
    (x, dy) }"""
    _, result = rewrite(SelectConv(), one)
    assert result.refusals[0].reason == "it is 1-dimensional, not 2-dimensional"
    _, result = rewrite(SelectConv(costs=CostModel(Machine(packs=False))), text(32, 32))
    assert "no kernels for it" in result.refusals[0].reason


def test_no_conversions_between_forward_and_backward(rewrite) -> None:
    """A step of two convolutions and what is between them: only the ends are converted."""
    step = """
    g (float[2,16,8,8] x, float[32,16,3,3] v, float[32,32,3,3] w, float[2,32,8,8] target)
    => (float[32,16,3,3] dv, float[32,32,3,3] dw)
    {
        a = Conv<pads = [1, 1, 1, 1]>(x, v)
        b = Relu(a)
        c = Conv<pads = [1, 1, 1, 1]>(b, w)
        d = Sub(c, target)
        dw = graphopt.ConvWeightGradient<WINDOW, group = 1>(b, d)
        db = ConvTranspose<pads = [1, 1, 1, 1]>(d, w)
        sign = Sign(b)
        da = Mul(db, sign)
        dv = graphopt.ConvWeightGradient<WINDOW, group = 1>(x, da)
    }""".replace("WINDOW", WINDOW)
    _, result = rewrite(SelectConv(algorithms=(Algorithm.BLOCKED,)), step)
    Layout()(result.model)
    names = [node.op_type for node in result.model.graph]
    assert names.count("ToBlockedWeight") == 2
    assert names.count("FlipBlockedWeight") == 1
    assert names.count("FromBlockedWeight") == 2
    assert "FromBlocked" not in names
    assert names.count("ToBlocked") == 2  # x and the target
