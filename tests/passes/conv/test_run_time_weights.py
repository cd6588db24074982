"""Convolutions whose weights a run brings along, and those of ConvTranspose: the nodes that pack them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from graphopt.passes import SelectConv
from graphopt.passes.conv.algorithms import Algorithm

CONV = """
g (float[1,20,9,9] x, float[24,20,3,3] w, float[24] b) => (float[1,24,9,9] y)
{ y = Conv<pads = [1, 1, 1, 1]>(x, w, b) }
"""


def only(*algorithms: Algorithm) -> SelectConv:
    return SelectConv(algorithms=algorithms)


def test_direct(rewrite) -> None:
    after, _ = rewrite(only(Algorithm.BLOCKED), CONV)
    assert (
        after
        == """
w.blocked[2,2,3,3,16,16] = ToBlockedWeight(w) {block=16, in_block=16}
x.blocked[1,2,9,9,16] = ToBlocked(x) {block=16}
b.filled[32] = Pad(b, const[2])
b.blocked[2,16] = Reshape(b.filled, const[2])
y.blocked[1,2,9,9,16] = Conv2dBlocked(x.blocked, w.blocked, b.blocked) \
{dilations=[1, 1], group=1, pads=[1, 1, 1, 1], strides=[1, 1]}
y[1,24,9,9] = FromBlocked(y.blocked) {channels=24}""".strip()
    )


@pytest.mark.parametrize("m", [2, 4, 6])
def test_winograd(rewrite, m: int) -> None:
    after, _ = rewrite(only(Algorithm(f"winograd{m}")), CONV)
    taps = (m + 2) ** 2
    assert f"w.blocked.winograd[{taps},2,2,16,16] = WinogradWeight(w.blocked) {{m={m}}}" in after
    assert "Conv2dWinograd(x.blocked, w.blocked.winograd, b.blocked)" in after


def test_the_other_algorithms(rewrite) -> None:
    after, _ = rewrite(only(Algorithm.IM2COL), CONV)
    assert "Conv2dIm2col(x, w.matrix, b)" in after
    text = "g (float[1,40,9,9] x, float[40,1,5,5] w) => (float[1,40,5,5] y) { y = Conv<group = 40>(x, w) }"
    after, _ = rewrite(SelectConv(), text)
    assert "w.depthwise[3,5,5,16] = ToDepthwiseWeight(w) {block=16}" in after
    text = "g (float[1,3,19,19] x, float[40,3,5,5] w) => (float[1,40,15,15] y) { y = Conv(x, w) }"
    after, _ = rewrite(only(Algorithm.BLOCKED), text)
    assert "ToBlockedWeight(w) {block=16, in_block=1}" in after


def test_reasons_against_algorithms_for_weights_of_a_run(rewrite) -> None:
    text = "g (float[1,32,14,14] x, float[32,32,7,7] w) => (float[1,32,8,8] y) { y = Conv(x, w) }"
    _, result = rewrite(SelectConv(), text)
    reasons = {other.algorithm: other.reason for other in result.choices[0].alternatives}
    assert reasons["fft"] == reasons["sparse"] == "its weights are known at run time only"


def test_forward_and_backward_share_one_packing(rewrite) -> None:
    text = """
    g (float[1,16,9,9] x, float[32,16,3,3] w) => (float[1,32,9,9] y, float[1,16,9,9] dx)
    { y = Conv<pads = [1, 1, 1, 1]>(x, w) dx = ConvTranspose<pads = [1, 1, 1, 1]>(y, w) }
    """
    after, _ = rewrite(only(Algorithm.BLOCKED), text)
    assert after.count("ToBlockedWeight") == 1
    assert "w.blocked.flipped[1,2,3,3,16,16] = FlipBlockedWeight(w.blocked) {group=1}" in after
    after, _ = rewrite(only(Algorithm.WINOGRAD2), text)
    assert after.count("ToBlockedWeight") == 1
    assert after.count("= WinogradWeight") == 2


@pytest.mark.parametrize("known", [False, True], ids=["run time", "constant"])
@pytest.mark.parametrize(
    ("x", "w", "y", "attributes"),
    [
        ((1, 32, 7, 9), (32, 16, 3, 3), (16, 7, 9), "pads = [1, 1, 1, 1]"),
        ((2, 20, 7, 9), (20, 24, 2, 3), (24, 8, 11), ""),
        ((1, 32, 7, 9), (32, 16, 3, 3), (32, 7, 9), "pads = [1, 1, 1, 1], group = 2"),
        ((1, 16, 7, 9), (16, 16, 3, 3), (16, 9, 11), "pads = [1, 1, 1, 1], dilations = [2, 2]"),
        ((1, 24, 7, 9), (24, 1, 3, 3), (24, 7, 9), "pads = [1, 1, 1, 1], group = 24"),
        ((1, 24, 7, 9), (24, 8, 1, 1), (8, 7, 9), ""),
    ],
)  # fmt: skip
def test_transposed_convolutions_of_stride_1(rewrite, known: bool, x, w, y, attributes: str) -> None:
    """Each is a convolution with the flipped weights: constants flipped by the compiler, others by nodes."""
    shapes = ["float[" + ",".join(map(str, shape)) + "]" for shape in (x, w, (x[0], *y))]
    spelled = f"<{attributes}>" if attributes else ""
    text = f"g ({shapes[0]} x, {shapes[1]} w) => ({shapes[2]} y) {{ y = ConvTranspose{spelled}(x, w) }}"
    after, _ = rewrite(only(Algorithm.BLOCKED, Algorithm.DEPTHWISE), text, {"w": w} if known else None)
    assert "Conv2dBlocked(" in after
    assert "ConvTranspose" not in after
    assert ("Slice" in after or "FlipBlockedWeight" in after) != known


def test_transposed_convolutions_that_stay(rewrite) -> None:
    text = "g (float[1,16,7,7] x, float[16,16,3,3] w) => (float[1,16,{n},{n}] y) {{ y = ConvTranspose<{a}>(x, w) }}"
    _, result = rewrite(SelectConv(), text.format(n=3, a="pads = [3, 3, 3, 3]"))
    assert "cuts more of the output" in result.refusals[0].reason
    _, result = rewrite(SelectConv(), text.format(n=15, a="strides = [2, 2]"))
    assert "run split-transposed first" in result.refusals[0].reason


@given(
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    plane=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    transposed=st.booleans(),
)
@settings(deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(rewrite, channels, plane, kernel, pads, transposed: bool) -> None:
    sign = -1 if transposed else 1
    out = [plane[i] + sign * (pads[i] + pads[i + 2] - kernel[i] + 1) for i in range(2)]
    assume(min(out) > 0)
    c, o = channels
    w = (c, o) if transposed else (o, c)
    kind = "ConvTranspose" if transposed else "Conv"
    text = f"""g (float[1,{c},{plane[0]},{plane[1]}] x, float[{w[0]},{w[1]},{kernel[0]},{kernel[1]}] w)
    => (float[1,{o},{out[0]},{out[1]}] y) {{ y = {kind}<pads = {list(pads)}>(x, w) }}"""
    rewrite(only(Algorithm.BLOCKED), text)
