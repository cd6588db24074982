"""Convolutions on the blocked layout, against the bodies of their functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphopt.cost.workload import TILE
from graphopt.ops.conv import pack_bias, pack_conv_weight, pack_depthwise_weight
from graphopt.ops.im2col import pack_im2col_weight
from graphopt.ops.winograd import winograd_weight
from graphopt.targets.cpu.kernels.conv import direct as conv_direct

few = settings(deadline=None, max_examples=30, derandomize=True)


def numbers(*shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng([7, *shape]).standard_normal(shape).astype(dtype)


def blocked(x: Any, b: int) -> Any:
    """[N, C, H, W] -> [N, CB, H, W, b]; padded lanes are zero."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, -c % b), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, b, h, w).transpose(0, 1, 3, 4, 2))


def direct(
    lab: Any,
    channels: tuple[int, int],
    plane: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    dilations: tuple[int, int] = (1, 1),
    group: int = 1,
    bi: int = 0,
    batch: int = 1,
) -> Any:
    """Check one Conv2dBlocked with weights that are constants."""
    b = lab.target.cpu.lanes()
    c, o = channels
    bi = bi or b
    x = blocked(numbers(batch, c, *plane), bi)
    w = pack_conv_weight(numbers(o, c // group, *kernel), group, bi, b)
    bias = pack_bias(numbers(o), b)
    body = (
        f"y = graphopt.Conv2dBlocked<strides={list(strides)}, pads={list(pads)}, dilations={list(dilations)}, "
        f"group={group}>(x, w, bias)"
    )
    return lab.same(body, {"x": x}, {"w": w, "bias": bias})


@pytest.mark.parametrize(
    "case",
    [
        pytest.param({"channels": (16, 16), "plane": (8, 8)}, id="plain"),
        pytest.param({"channels": (40, 72), "plane": (9, 13)}, id="ragged channels and width"),
        pytest.param({"channels": (3, 32), "plane": (23, 23), "kernel": (7, 7), "strides": (2, 2),
                      "pads": (3, 3, 3, 3), "bi": 3}, id="first layer"),
        pytest.param({"channels": (1, 8), "plane": (9, 7), "bi": 1}, id="one input channel"),
        pytest.param({"channels": (16, 16), "plane": (11, 10), "pads": (0, 2, 1, 3), "kernel": (2, 5)},
                     id="asymmetric pads"),
        pytest.param({"channels": (16, 32), "plane": (12, 15), "dilations": (2, 3), "pads": (2, 3, 2, 3)},
                     id="dilation"),
        pytest.param({"channels": (16, 32), "plane": (12, 15), "strides": (3, 2)}, id="stride"),
        pytest.param({"channels": (64, 64), "plane": (7, 7), "group": 2}, id="group"),
        pytest.param({"channels": (64, 128), "plane": (5, 6), "group": 4, "strides": (2, 2)}, id="group and stride"),
        pytest.param({"channels": (32, 48), "plane": (7, 7), "kernel": (1, 1), "pads": (0, 0, 0, 0)}, id="1x1"),
        pytest.param({"channels": (32, 64), "plane": (13, 11), "kernel": (1, 1), "pads": (0, 0, 0, 0)},
                     id="1x1 whose rows are no multiple of the tile"),
        pytest.param({"channels": (32, 64), "plane": (9, 9), "kernel": (1, 1), "pads": (0, 0, 0, 0),
                      "strides": (2, 2)}, id="1x1 with stride"),
        pytest.param({"channels": (32, 64), "plane": (5, 5), "kernel": (1, 1), "pads": (1, 0, 2, 1)},
                     id="1x1 with pads"),
        pytest.param({"channels": (64, 64), "plane": (6, 6), "kernel": (1, 1), "pads": (0, 0, 0, 0), "group": 2},
                     id="1x1 with groups"),
        pytest.param({"channels": (16, 16), "plane": (1, 1), "kernel": (1, 1), "pads": (0, 0, 0, 0)}, id="one pixel"),
        pytest.param({"channels": (16, 16), "plane": (6, 6), "batch": 3}, id="batch"),
        pytest.param({"channels": (24, 24), "plane": (5, 57), "kernel": (1, 7), "pads": (0, 3, 0, 3)}, id="row kernel"),
    ],
)  # fmt: skip
def test_direct_convolution(any_lab: Any, case: dict[str, Any]) -> None:
    lowered = direct(any_lab, **case)
    assert len(lowered.calls) == 1 + any(case.get("pads", (1, 1, 1, 1)))


@given(
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    plane=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    batch=st.integers(1, 2),
)
@few
def test_direct_convolution_of_any_shape(lab: Any, **case: Any) -> None:
    for axis in range(2):
        reach = (case["kernel"][axis] - 1) * case["dilations"][axis] + 1
        assume(case["plane"][axis] + case["pads"][axis] + case["pads"][axis + 2] >= reach)
    direct(lab, **case)


def depthwise(
    lab: Any,
    channels: int,
    plane: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    dilations: tuple[int, int] = (1, 1),
    batch: int = 1,
) -> Any:
    b = lab.target.cpu.lanes()
    x = blocked(numbers(batch, channels, *plane), b)
    constants = {
        "w": pack_depthwise_weight(numbers(channels, 1, *kernel), b),
        "bias": pack_bias(numbers(channels), b),
    }
    body = (
        f"y = graphopt.DepthwiseConv2dBlocked<strides={list(strides)}, pads={list(pads)}, "
        f"dilations={list(dilations)}>(x, w, bias)"
    )
    return lab.same(body, {"x": x}, constants)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param({"channels": 32, "plane": (14, 14)}, id="plain"),
        pytest.param({"channels": 20, "plane": (13, 9), "strides": (2, 2)}, id="ragged and stride"),
        pytest.param({"channels": 16, "plane": (17, 11), "kernel": (9, 9), "pads": (4, 4, 4, 4)}, id="wide window"),
        pytest.param({"channels": 16, "plane": (11, 12), "dilations": (2, 3), "pads": (0, 3, 2, 1)}, id="dilation"),
        pytest.param({"channels": 16, "plane": (3, 3), "pads": (0, 0, 0, 0)}, id="one output"),
        pytest.param({"channels": 3, "plane": (6, 19), "batch": 2, "kernel": (2, 1)}, id="batch"),
    ],
)
def test_depthwise_convolution(any_lab: Any, case: dict[str, Any]) -> None:
    depthwise(any_lab, **case)


@given(
    channels=st.integers(1, 40),
    plane=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
@few
def test_depthwise_convolution_of_any_shape(lab: Any, **case: Any) -> None:
    for axis in range(2):
        reach = (case["kernel"][axis] - 1) * case["dilations"][axis] + 1
        assume(case["plane"][axis] + case["pads"][axis] + case["pads"][axis + 2] >= reach)
    depthwise(lab, **case)


def winograd(
    lab: Any, m: int, channels: tuple[int, int], plane: tuple[int, int], pads: tuple[int, ...], batch: int = 1
) -> Any:
    b = lab.target.cpu.lanes()
    c, o = channels
    x = blocked(numbers(batch, c, *plane), b)
    constants = {"u": winograd_weight(numbers(o, c, 3, 3), m, b), "bias": pack_bias(numbers(o), b)}
    body = f"y = graphopt.Conv2dWinograd<m={m}, pads={list(pads)}>(x, u, bias)"
    return lab.same(body, {"x": x}, constants, rtol=1e-4 if m == 4 else 2e-5)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize(
    ("channels", "plane", "pads"),
    [
        ((16, 16), (8, 8), (1, 1, 1, 1)),
        ((32, 48), (7, 7), (1, 1, 1, 1)),
        ((20, 36), (13, 9), (1, 1, 1, 1)),
        ((16, 16), (9, 10), (0, 0, 0, 0)),
        ((16, 32), (6, 11), (0, 2, 1, 0)),
        ((16, 16), (1, 1), (1, 1, 1, 1)),
        ((16, 16), (3, 3), (0, 0, 0, 0)),
    ],
)
def test_winograd(any_lab: Any, m: int, channels: tuple[int, int], plane: tuple[int, int], pads: Any) -> None:
    assert len(winograd(any_lab, m, channels, plane, pads).calls) == 3


@pytest.mark.parametrize("m", [2, 4])
@given(
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    plane=st.tuples(st.integers(1, 18), st.integers(1, 18)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    batch=st.integers(1, 2),
)
@settings(few, max_examples=15)
def test_winograd_of_any_shape(lab: Any, m: int, **case: Any) -> None:
    assume(all(case["plane"][i] + case["pads"][i] + case["pads"][i + 2] >= 3 for i in range(2)))
    winograd(lab, m, **case)


@pytest.mark.parametrize(
    ("channels", "plane", "kernel", "strides", "pads", "dilations"),
    [
        ((3, 8), (9, 9), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        ((5, 7), (11, 6), (2, 5), (2, 1), (0, 3, 1, 2), (1, 1)),
        ((4, 33), (12, 12), (3, 3), (1, 2), (2, 2, 2, 2), (2, 3)),
        ((6, 1), (5, 5), (5, 5), (1, 1), (0, 0, 0, 0), (1, 1)),
        ((1, 1), (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_im2col(
    any_lab: Any, channels: Any, plane: Any, kernel: Any, strides: Any, pads: Any, dilations: Any, batch: int
) -> None:
    c, o = channels
    constants = {"w": pack_im2col_weight(numbers(o, c, *kernel)), "bias": numbers(o)}
    body = (
        f"y = graphopt.Conv2dIm2col<kernel_shape={list(kernel)}, strides={list(strides)}, pads={list(pads)}, "
        f"dilations={list(dilations)}>(x, w, bias)"
    )
    any_lab.same(body, {"x": numbers(batch, c, *plane)}, constants)


@pytest.mark.parametrize("kind", ["direct", "1x1", "depthwise", "winograd"])
def test_an_epilogue_is_part_of_the_last_kernel(any_lab: Any, kind: str) -> None:
    """Convolution, residual, per-channel factor and activation: as many calls as the convolution alone has."""
    b = any_lab.target.cpu.lanes()
    x, residual = blocked(numbers(1, 32, 9, 11), b), blocked(numbers(1, 32, 9, 11) + 1, b)
    kernel = (1, 1) if kind == "1x1" else (3, 3)
    attributes = f"strides=[1, 1], pads={[0] * 4 if kind == '1x1' else [1] * 4}, dilations=[1, 1]"
    head, w, calls = {
        "direct": (
            f"Conv2dBlocked<{attributes}, group=1>", pack_conv_weight(numbers(32, 32, *kernel), 1, b, b), 2
        ),
        "1x1": (f"Conv2dBlocked<{attributes}, group=1>", pack_conv_weight(numbers(32, 32, *kernel), 1, b, b), 1),
        "depthwise": (f"DepthwiseConv2dBlocked<{attributes}>", pack_depthwise_weight(numbers(32, 1, 3, 3), b), 1),
        "winograd": ("Conv2dWinograd<m=2, pads=[1, 1, 1, 1]>", winograd_weight(numbers(32, 32, 3, 3), 2, b), 3),
    }[kind]  # fmt: skip
    body = f"""
        a = graphopt.{head}(x, w, bias)
        s = Mul(a, scale)
        t = Add(s, residual)
        y = Relu(t)
    """
    feeds = {"x": x, "residual": residual}
    constants = {"w": w, "bias": pack_bias(numbers(32), b), "scale": numbers(1, 32 // b, 1, 1, b)}
    lowered = any_lab.same(body, feeds, constants)
    assert len(lowered.calls) == calls
    assert lowered.calls[-1].outputs == ("y",)
    assert {"residual", "scale"} <= set(lowered.calls[-1].inputs)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1)])
def test_every_tile_computes_the_same(lab: Any, kernel: int, stride: int) -> None:
    """Ragged rows, several vectors, tasks over rows or over channels."""
    b = lab.target.cpu.lanes()
    x, w = blocked(numbers(2, 20, 7, 13), b), pack_conv_weight(numbers(6 * b, 20, kernel, kernel), 1, b, b)
    body = f"y = graphopt.Conv2dBlocked<strides=[{stride}, {stride}], pads=[0, 0, 0, 0], dilations=[1, 1], group=1>"
    model = lab.model(f"{body}(x, w, bias)", {"x": x}, {"w": w, "bias": pack_bias(numbers(6 * b), b)})
    space = conv_direct.tiles(13, 6, lab.target.cpu, w.nbytes, kernel == stride == 1, 2)
    assert 4 <= len(space) <= 8
    assert len(set(space)) == len(space)
    for tile in (*space, conv_direct.Tile(5, 3), conv_direct.Tile(1, 1, True)):
        assert conv_direct.Tile.parse(str(tile)) == tile
        model.graph[0].metadata_props[TILE] = str(tile)
        lab.check(model, {"x": x})


@pytest.mark.parametrize("text", ["", "14", "14x", "x2", "0x2", "14x2o", "14x2i "])
def test_a_tile_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no tile of a convolution"):
        conv_direct.Tile.parse(text)
