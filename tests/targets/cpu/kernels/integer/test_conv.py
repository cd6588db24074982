"""ConvInteger and QLinearConv: exact sums, whatever the types, zero points, padding and windows.

ONNX Runtime saturates sums of two products of uint8 and int8 on processors without VNNI, so weights in int8 are at most
64 where it is the reference; larger ones are compared with a convolution in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphopt.targets.cpu.kernels.integer import dots
from graphopt.targets.cpu.kernels.integer.window import Window, choose_tile
from graphopt.targets.cpu.machine import LEVELS, CpuMachine
from graphopt.verify.oracle import run_onnxruntime

few = settings(deadline=None, max_examples=10, derandomize=True)


def integers(dtype: str, *shape: int) -> Any:
    low, high = (0, 256) if dtype == "uint8" else (-64, 65)
    return np.random.default_rng([9, *shape]).integers(low, high, shape).astype(dtype)


def point(value: int, dtype: str = "uint8") -> Any:
    return np.array(value, dtype)


def qlinear(x: Any, w: Any) -> dict[str, Any]:
    """The constants of a QLinearConv, in the order of its inputs from the second on."""
    rng, filters = np.random.default_rng(3), w.shape[0]
    return {
        "xs": np.array(0.02, np.float32),
        "xz": point(7, x.dtype),
        "w": w,
        "ws": rng.random(filters).astype(np.float32) * 0.1,
        "wz": np.full(filters, 99 if w.dtype == "uint8" else 0, w.dtype),
        "ys": np.array(0.5, np.float32),
        "yz": point(5, x.dtype),
        "b": rng.integers(-3000, 3000, filters).astype(np.int32),
    }


WINDOWS = [
    ((1, 3, 9, 9), (8, 3, 3, 3), "pads=[1, 1, 1, 1]"),
    ((2, 3, 9, 8), (5, 3, 3, 2), "strides=[2, 1], pads=[0, 2, 1, 0]"),
    ((1, 4, 11, 12), (6, 4, 3, 3), "dilations=[2, 3]"),
    ((1, 6, 7, 7), (9, 2, 3, 3), "group=3, pads=[1, 1, 1, 1]"),
    ((2, 5, 7, 7), (10, 1, 3, 3), "group=5, pads=[1, 1, 1, 1]"),
    ((1, 5, 9, 10), (5, 1, 5, 6), "group=5, strides=[1, 2], dilations=[1, 2], pads=[2, 3, 2, 7]"),
    ((2, 4, 19), (7, 4, 5), "strides=[3], pads=[2, 1]"),
    ((1, 2, 5, 6, 7), (3, 2, 2, 3, 3), "strides=[1, 2, 1], pads=[0, 1, 1, 1, 0, 1]"),
    ((1, 3, 10, 11), (4, 3, 3, 4), 'auto_pad="SAME_LOWER", strides=[2, 3]'),
    ((2, 6, 6, 6), (20, 6, 1, 1), "group=1"),
    ((1, 6, 6, 5), (8, 3, 1, 1), "group=2, strides=[2, 3]"),
    ((1, 2, 4, 4), (3, 2, 1, 1), "pads=[1, 0, 2, 1]"),
    ((2, 8, 6, 6), (20, 8, 6, 6), "group=1"),
    ((1, 1, 1, 1), (1, 1, 1, 1), "group=1"),
    ((1, 1, 4), (6, 1, 3), "pads=[7, 9], dilations=[2], strides=[4]"),
]


@pytest.mark.parametrize(("x", "w", "attributes"), WINDOWS)
def test_conv_integer(lab: Any, x: Any, w: Any, attributes: str) -> None:
    image, weights = integers("uint8", *x), integers("uint8", *w)
    body = f"plain = ConvInteger<{attributes}>(x, w) centred = ConvInteger<{attributes}>(x, w, xz, wz)"
    feeds, constants = {"x": image, "xz": point(130)}, {"w": weights, "wz": point(77)}
    lowered = lab.check(lab.model(body, feeds, constants, ("plain", "centred")), feeds)
    kept = sum(array.nbytes for array in lowered.constants.values())
    assert kept <= 2.2 * weights.size + 400, "weights stay bytes, here for both nodes"


@pytest.mark.parametrize(("x", "w", "attributes"), WINDOWS)
@pytest.mark.parametrize("kinds", [("uint8", "int8"), ("int8", "int8")])
def test_qlinear_conv(lab: Any, x: Any, w: Any, attributes: str, kinds: tuple[str, str]) -> None:
    image, weights = integers(kinds[0], *x), integers(kinds[1], *w)
    body = f"y = QLinearConv<{attributes}>(x, xs, xz, w, ws, wz, ys, yz, b)"
    lab.same(body, {"x": image}, qlinear(image, weights))


@pytest.mark.parametrize("kinds", [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")])
@pytest.mark.parametrize("group", [1, 2, 8])
def test_every_level(every_lab: Any, kinds: tuple[str, str], group: int) -> None:
    """Rows of 40, 16 and 5 positions: whole tiles, one tile, and a cut one."""
    constants = qlinear(integers(kinds[0], 1), integers(kinds[1], 24, 8 // group, 3, 3))
    images = {f"x{columns}": integers(kinds[0], 1, 8, 4, columns) for columns in (40, 16, 5)}
    node = "y_{0} = QLinearConv<group={1}, pads=[1, 1, 1, 1]>({0}, xs, xz, w, ws, wz, ys, yz, b)"
    body = " ".join(node.format(name, group) for name in images)
    every_lab.check(every_lab.model(body, images, constants, [f"y_{name}" for name in images]), images)


@pytest.mark.parametrize("kinds", [("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8"), ("int8", "uint8")])
@pytest.mark.parametrize("group", [1, 4])
def test_extremes_do_not_saturate(every_lab: Any, kinds: tuple[str, str], group: int) -> None:
    """What ONNX Runtime refuses, or saturates, beside its float convolution; the weights of one group are constant."""
    limits = [np.iinfo(kind) for kind in kinds]
    rng = np.random.default_rng(0)
    x = rng.choice([limits[0].min, limits[0].max], (1, 4, 6, 7)).astype(kinds[0])
    w = rng.choice([limits[1].min, limits[1].max], (8, 4 // group, 3, 3)).astype(kinds[1])
    attributes = f"group={group}, pads=[1, 1, 1, 1]"
    for x_zero, w_zero in ((limits[0].max, limits[1].min), (limits[0].min, 0)):
        given = {"x": x, "w": w, "xz": point(x_zero, kinds[0]), "wz": point(w_zero, kinds[1])}
        types = ", ".join(f"{a.dtype}{list(a.shape) if a.shape else ''} {name}" for name, a in given.items())
        header = '<ir_version: 11, opset_import: ["": 21]>'
        floats = f"""{header} g (float[1,4,6,7] x, float[8,{4 // group},3,3] w) => (float[1,8,6,7] y) {{
            y = Conv<{attributes}>(x, w)
        }}"""
        wide = {"x": x.astype(np.float32) - x_zero, "w": w.astype(np.float32) - w_zero}
        expected = run_onnxruntime(ir.from_onnx_text(floats), wide)["y"]
        model = ir.from_onnx_text(
            f"{header} g ({types}) => (int32[1,8,6,7] y) {{ y = ConvInteger<{attributes}>(x, w, xz, wz) }}"
        )
        for value in [v for v in model.graph.inputs if group == 1 and v.name in ("w", "wz")]:
            value.const_value = ir.Tensor(given[str(value.name)], name=value.name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
        lowered = every_lab.lower(model)
        assert not lowered.notes
        np.testing.assert_array_equal(every_lab.execute(lowered, given)["y"], expected.astype(np.int32))


def test_an_epilogue_is_fused(every_lab: Any) -> None:
    body = "t = ConvInteger<pads=[2, 2]>(x, w, xz, wz) f = Cast<to=1>(t) s = Mul(f, scale) u = Add(s, bias) y = Relu(u)"
    constants = {"w": integers("uint8", 12, 6, 5), "wz": point(60), "bias": np.ones((1, 12, 1), np.float32)}
    feeds = {"x": integers("uint8", 1, 6, 30), "xz": point(3), "scale": np.array(0.01, np.float32)}
    assert len(every_lab.same(body, feeds, constants).calls) <= 2


@given(
    group=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 8)),
    plane=st.tuples(st.integers(1, 6), st.integers(1, 40)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 6)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    kinds=st.sampled_from([("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")]),
)
@few
def test_any_window(
    lab: Any, group: int, channels: Any, plane: Any, kernel: Any, strides: Any, pads: Any, dilations: Any, kinds: Any
) -> None:
    for i in range(2):
        assume(plane[i] + pads[i] + pads[i + 2] >= (kernel[i] - 1) * dilations[i] + 1)
    image = integers(kinds[0], 2, channels[0] * group, *plane)
    weights = integers(kinds[1], channels[1] * group, channels[0], *kernel)
    attributes = f"group={group}, strides={list(strides)}, pads={list(pads)}, dilations={list(dilations)}"
    lab.same(f"y = QLinearConv<{attributes}>(x, xs, xz, w, ws, wz, ys, yz, b)", {"x": image}, qlinear(image, weights))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("unit", [dots.WORDS, dots.BYTES])
@pytest.mark.parametrize(("channels", "filters", "out"), [(3, 64, 112), (1, 1, 56), (256, 256, 14), (512, 2048, 7)])
def test_tiles_fit_the_registers(level: str, unit: int, channels: int, filters: int, out: int) -> None:
    machine = CpuMachine(LEVELS[level], 2)
    shape = (1, 1, channels, filters, (out, out), (3, 3), (1, 1), (1, 1), (1, 1), (out, out), unit)
    window = choose_tile(Window(*shape), machine)
    vectors, rest = divmod(window.width, machine.lanes("int32"))
    assert rest == 0
    assert window.rows * vectors + vectors + 2 <= machine.level.registers


@pytest.mark.parametrize("kinds", [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")])
@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 20, 7, 7), (24, 20, 3, 3), "pads=[1, 1, 1, 1]"),
        ((1, 6, 5, 3), (10, 3, 2, 3), "group=2, pads=[0, 2, 1, 1], dilations=[2, 1]"),
        ((1, 3, 4, 5, 5), (8, 3, 2, 3, 2), "pads=[0, 1, 0, 1, 1, 1], strides=[2, 1, 1]"),
    ],
)
def test_joined_rows(every_lab: Any, x: Any, w: Any, attributes: str, kinds: tuple[str, str]) -> None:
    image, weights = integers(kinds[0], *x), integers(kinds[1], *w)
    body = f"y = QLinearConv<{attributes}>(x, xs, xz, w, ws, wz, ys, yz, b)"
    every_lab.same(body, {"x": image}, qlinear(image, weights))
    if kinds[0] == "uint8":
        every_lab.same(f"y = ConvInteger<{attributes}>(x, w)", {"x": image}, {"w": weights})


def test_rows_are_joined_where_lanes_would_be_empty() -> None:
    machine = CpuMachine(LEVELS["avx512vnni"], 2)

    def joined(out: int, stride: int = 1) -> bool:
        image = out * stride
        shape = (1, 1, 64, 64, (image, image), (3, 3), (stride, stride), (1, 1), (1, 1), (out, out), dots.BYTES)
        return choose_tile(Window(*shape), machine).joined

    assert [joined(out) for out in (5, 7, 14, 16, 56)] == [True, True, False, False, False]
    assert not joined(7, stride=2)
