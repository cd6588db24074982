"""Transposed convolutions with strides: before -> after; the `rewrite` fixture holds ONNX Runtime against both."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from graphopt.passes import SelectConv, SplitTransposed
from graphopt.passes.conv.algorithms import Algorithm
from graphopt.passes.conv.split_transposed import Taps, taps_of

GRADIENT = """
g (float[1,32,4,4] dy, float[32,16,3,3] w) => (float[1,16,8,8] dx)
{ dx = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]>(dy, w) }
"""


def test_the_gradient_of_a_strided_convolution(rewrite) -> None:
    """Nine taps are split among four phases of 1, 2, 2 and 4."""
    after, _ = rewrite(SplitTransposed(), GRADIENT)
    assert after.count("= ConvTranspose(dy, ") == 4
    assert "dx.taps.3[32,16,2,2]" in after or "dx.taps[32,16,1,1]" in after
    assert after.endswith("= InterleavePhases(dx.phases) {phases=[0, 1, 2, 3], shape=[8, 8], strides=[2, 2]}")


def test_taps_are_taken_from_the_packed_weights(rewrite) -> None:
    """So that all phases, and the forward convolution, share one packing."""
    text = GRADIENT.replace("float[1,32,4,4] dy", "float[1,16,8,8] x").replace(
        "{ dx", "{ dy = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w) dx"
    )
    _, result = rewrite(SplitTransposed(), text)
    SelectConv(algorithms=(Algorithm.BLOCKED,))(result.model)
    names = [node.op_type for node in result.model.graph]
    assert names.count("ToBlockedWeight") == 1
    assert names.count("FlipBlockedWeight") == 4
    assert "ConvTranspose" not in names


def test_phases_without_taps_are_zero(rewrite) -> None:
    """The gradient of a 1x1 convolution with strides: three of four outputs."""
    text = """g (float[1,32,4,4] dy, float[32,16,1,1] w) => (float[1,16,8,8] dx)
    { dx = ConvTranspose<strides = [2, 2], output_padding = [1, 1]>(dy, w) }"""
    after, _ = rewrite(SplitTransposed(), text)
    assert after.count("ConvTranspose") == 1
    assert "{phases=[0, -1, -1, -1], shape=[8, 8], strides=[2, 2]}" in after


@pytest.mark.parametrize("known", [False, True])
def test_disjoint_taps_are_one_convolution(rewrite, known: bool) -> None:
    """As in the decoder of a U-Net."""
    text = """g (float[1,8,5,6] x, float[8,4,2,3] w, float[4] b) => (float[1,4,10,18] y)
    { y = ConvTranspose<strides = [2, 3]>(x, w, b) }"""
    after, _ = rewrite(SplitTransposed(), text, {"w": (8, 4, 2, 3), "b": (4,)} if known else None)
    assert after.count("ConvTranspose") == 1
    assert "[1,24,5,6] = ConvTranspose(x, " in after
    assert ("Transpose(w)" in after) != known


def test_taps() -> None:
    assert taps_of(0, 2, 3, 1, 1, 4, 4) == Taps(1, 1, 1, 1, 0, 0, 0)
    assert taps_of(1, 2, 3, 1, 1, 4, 4) == Taps(0, 2, 2, 1, 1, 0, 0)
    assert taps_of(1, 2, 1, 1, 0, 4, 4) is None
    assert taps_of(1, 2, 3, 1, 0, 4, 5) == Taps(1, 1, 1, 1, 0, 0, 1)
    with pytest.raises(ValueError, match="first outputs"):
        taps_of(1, 2, 2, 3, 0, 4, 4)


def test_refusals(rewrite) -> None:
    text = "g (float[1,4,5] x, float[4,4,3] w) => (float[1,4,11] y) { y = ConvTranspose<strides = [2]>(x, w) }"
    _, result = rewrite(SplitTransposed(), text)
    assert result.refusals[0].reason == "it is 1-dimensional, not 2-dimensional"


@given(
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    plane=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 3), st.integers(2, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    dilations=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    more=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    group=st.sampled_from([1, 2]),
    known=st.booleans(),
)
@settings(deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(rewrite, channels, plane, kernel, strides, pads, dilations, more, group, known: bool) -> None:
    assume(all(extra < stride for extra, stride in zip(more, strides, strict=True)))
    out = [
        (plane[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 + more[i] - pads[i] - pads[i + 2]
        for i in range(2)
    ]
    assume(min(out) > 0)
    c, o = channels[0] * group, channels[1]
    text = f"""g (float[2,{c},{plane[0]},{plane[1]}] x, float[{c},{o},{kernel[0]},{kernel[1]}] w, float[{o * group}] b)
    => (float[2,{o * group},{out[0]},{out[1]}] y)
    {{ y = ConvTranspose<strides = {list(strides)}, pads = {list(pads)}, dilations = {list(dilations)},
    output_padding = {list(more)}, group = {group}>(x, w, b) }}"""
    rewrite(SplitTransposed(), text, {"w": (c, o, *kernel), "b": (o * group,)} if known else None)
