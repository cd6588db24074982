"""MatMul, Gemm, Conv and ConvTranspose on plain layouts: everything that is a product in the end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphopt.cost.workload import TILE, Operand, Workload
from graphopt.targets.cpu import tiles
from graphopt.targets.cpu.kernels import gemm
from graphopt.targets.cpu.machine import LEVELS, CpuMachine

few = settings(deadline=None, max_examples=25, derandomize=True)


def numbers(*shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng([5, *shape]).standard_normal(shape).astype(dtype)


# ---------------------------------------------------------------- MatMul


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((8, 32), (32, 64)),
        ((1, 33), (33, 65)),
        ((7, 1), (1, 19)),
        ((1, 1), (1, 1)),
        ((29, 40), (40, 7)),
        ((130, 17), (17, 100)),
        ((2, 5, 16), (16, 24)),
        ((2, 3, 5, 16), (2, 3, 16, 9)),
        ((3, 5, 7), (3, 7, 1)),
        ((1, 5, 7), (4, 7, 3)),
        ((4, 5, 7), (1, 7, 3)),
        ((2, 1, 5, 7), (3, 7, 6)),
        ((32, 40), (6, 40, 16)),
        ((4, 2, 5, 7), (2, 7, 9)),
        ((2, 1, 5, 7), (1, 3, 7, 9)),
        ((7,), (7, 5)),
        ((5, 7), (7,)),
        ((7,), (7,)),
        ((3, 2, 7), (7,)),
        ((4, 1024), (1024, 20)),
    ],
)
@pytest.mark.parametrize("constant", [False, True])
def test_matmul(lab: Any, left: Any, right: Any, constant: bool) -> None:
    a, b = numbers(*left), numbers(*right)
    feeds, constants = ({"a": a}, {"b": b}) if constant else ({"a": a, "b": b}, {})
    lowered = lab.same("y = MatMul(a, b)", feeds, constants)
    batches = left[:-2], right[:-2]
    spread = all(math.prod(each) > 1 for each in batches) and np.broadcast_shapes(*batches) != left[:-2]
    if constant and len(left) > 1 and b.size > 16:
        assert len(lowered.calls) == 1 + spread, "the constant is packed when the model is compiled"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shapes", [((29, 40), (40, 71)), ((2, 3, 5, 16), (2, 3, 16, 9)), ((1, 33), (33, 65))])
def test_matmul_on_every_level(any_lab: Any, shapes: Any, dtype: str) -> None:
    left, right = shapes
    any_lab.same("y = MatMul(a, b)", {"a": numbers(*left, dtype=dtype), "b": numbers(*right, dtype=dtype)})


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32"])
def test_matmul_of_integers(lab: Any, dtype: str) -> None:
    a, b = (np.random.default_rng(0).integers(0, 9, (5, 5)).astype(dtype) for _ in range(2))
    lab.same("y = MatMul(a, b)", {"a": a, "b": b})


@given(m=st.integers(1, 70), n=st.integers(1, 140), k=st.integers(1, 40), constant=st.booleans())
@few
def test_matmul_of_any_shape(lab: Any, m: int, n: int, k: int, constant: bool) -> None:
    a, b = numbers(m, k), numbers(k, n)
    lab.same("y = MatMul(a, b)", {"a": a} if constant else {"a": a, "b": b}, {"b": b} if constant else {})


def test_matmul_takes_an_epilogue(any_lab: Any) -> None:
    body = "t = MatMul(x, w) u = Add(t, bias) v = Relu(u) y = Add(v, residual)"
    feeds = {"x": numbers(9, 20), "residual": numbers(9, 50)}
    lowered = any_lab.same(body, feeds, {"w": numbers(20, 50), "bias": numbers(50)})
    assert len(lowered.calls) == 1


# ---------------------------------------------------------------- tiles


def with_tile(lab: Any, tile: str, body: str, feeds: Any, constants: Any) -> None:
    model = lab.model(body, feeds, constants)
    for node in model.graph:
        node.metadata_props[TILE] = tile
    lab.check(model, feeds)


def operands(*arrays: Any, constant: bool = True) -> tuple[Operand, ...]:
    return tuple(Operand(a.shape, str(a.dtype), constant and i > 0) for i, a in enumerate(arrays))


@pytest.mark.parametrize("shape", [(3, 40, 20), (37, 100, 24)])
def test_matmul_with_every_tile(any_lab: Any, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    a, b = numbers(m, k), numbers(k, n)
    workload = Workload("MatMul", operands(a, b), (m, n), domain="")
    space = tiles.wide(workload, any_lab.target.cpu)
    assert set(tiles.tiles(workload, any_lab.target.cpu)) <= set(space)
    assert len(space) > 5
    assert space[0] == ""
    for tile in space[:: max(1, len(space) // 12)]:
        with_tile(any_lab, tile, "y = MatMul(a, b)", {"a": a}, {"b": b})


@pytest.mark.parametrize("tile", ["9x32", "2x100", "nonsense", "999x16", "1x4096", "30x16", "7x8"])
def test_a_tile_that_does_not_fit_is_no_harm(any_lab: Any, tile: str) -> None:
    a, b = numbers(5, 8), numbers(8, 21)
    with_tile(any_lab, tile, "y = MatMul(a, b)", {"a": a}, {"b": b})


@pytest.mark.parametrize("shape", [(1, 1, 1), (128, 2048, 2048), (1, 1000, 512), (197, 64, 197), (4096, 7, 9)])
def test_tiles_start_with_the_default(shape: tuple[int, int, int]) -> None:
    machine = CpuMachine(LEVELS["avx512"], 2)
    space = gemm.tiles(*shape, machine, "float32")
    assert space[0] == gemm.choose_tile(*shape, machine, "float32")
    assert len(set(space)) == len(space) <= 8
    assert all(gemm.fits(tile, machine, "float32") and gemm.Tile.parse(str(tile)) == tile for tile in space)
    assert gemm.choose_tile(*shape, machine, "float32", str(space[-1])) == space[-1]


@pytest.mark.parametrize("text", ["", "12", "12x", "0x16", "3x0", "12x32i", "-1x16", "3X16"])
def test_no_tile(text: str) -> None:
    with pytest.raises(ValueError, match="is no tile of a matrix product"):
        gemm.Tile.parse(text)


def test_tiles_of_products_and_convolutions(lab: Any) -> None:
    machine = lab.target.cpu
    x, w, b = numbers(1, 6, 9, 9), numbers(8, 3, 3, 3), numbers(8)
    workloads = {
        "conv": Workload("Conv", operands(x, w, b), (1, 8, 7, 7), (("group", 2), ("kernel_shape", (3, 3))), ""),
        "whole": Workload("Conv", operands(numbers(2, 8, 6, 6), numbers(20, 8, 6, 6)), (2, 20, 1, 1), (), ""),
        "gemm": Workload(
            "Gemm", operands(numbers(6, 10), numbers(21, 6)), (10, 21), (("transA", 1), ("transB", 1)), ""
        ),
        "im2col": Workload("Conv2dIm2col", operands(x, numbers(8, 54), b), (1, 8, 7, 7), (("kernel_shape", (3, 3)),)),
    }
    for name, workload in workloads.items():
        assert tiles.tiles(workload, machine)[0] == "", name
        assert len(tiles.tiles(workload, machine)) > 1, name
        assert len(tiles.wide(workload, machine)) >= len(tiles.tiles(workload, machine)), name
    vector = Workload("MatMul", operands(numbers(7), numbers(7, 5)), (5,), (), "")
    whole_numbers = Workload("MatMul", operands(*[np.ones((5, 5), np.int32)] * 2), (5, 5), (), "")
    for workload in (vector, whole_numbers):
        assert tiles.tiles(workload, machine) == ("",)
        assert tiles.wide(workload, machine) == ()


@pytest.mark.parametrize("tile", ["1x16", "5x32", "9x48", "14x16"])
def test_convolution_and_gemm_with_a_tile(any_lab: Any, tile: str) -> None:
    constants = {"w": numbers(10, 2, 3, 3), "b": numbers(10)}
    with_tile(any_lab, tile, "y = Conv<group=2>(x, w, b)", {"x": numbers(1, 4, 9, 8)}, constants)
    constants = {"w": numbers(21, 10), "b": numbers(21)}
    with_tile(any_lab, tile, "y = Gemm<transB=1>(x, w, b)", {"x": numbers(6, 10)}, constants)


# ---------------------------------------------------------------- Gemm


@pytest.mark.parametrize(
    ("trans_a", "trans_b", "constant", "bias"),
    [
        (0, 0, True, None),
        (1, 0, True, ()),
        (0, 1, True, (1,)),
        (1, 1, True, (21,)),
        (0, 0, False, (6, 1)),
        (1, 0, False, (1, 21)),
        (0, 1, False, (6, 21)),
        (1, 1, False, (21,)),
        (0, 1, False, None),
    ],
)
def test_gemm(lab: Any, trans_a: int, trans_b: int, constant: bool, bias: tuple[int, ...] | None) -> None:
    feeds = {"a": numbers(10, 6) if trans_a else numbers(6, 10)}
    b = numbers(21, 10) if trans_b else numbers(10, 21)
    others = {"b": b} | ({} if bias is None else {"c": np.asarray(numbers(*bias))})
    names = ", ".join(["a", *others])
    body = f"y = Gemm<transA={trans_a}, transB={trans_b}, alpha=0.5, beta=-2.0>({names})"
    if constant:
        lab.same(body, feeds, others)
    else:
        lab.same(body, feeds | others)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.25, 1.0), (1.0, 0.0)])
def test_gemm_factors(any_lab: Any, alpha: float, beta: float) -> None:
    feeds = {"a": numbers(6, 10), "b": numbers(10, 7), "c": numbers(7)}
    any_lab.same(f"y = Gemm<alpha={alpha}, beta={beta}>(a, b, c)", feeds)


# ---------------------------------------------------------------- Conv


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((1, 3, 9, 9), (8, 3, 3, 3), "pads=[1, 1, 1, 1]"),
        ((2, 3, 9, 8), (5, 3, 3, 2), "strides=[2, 1], pads=[0, 2, 1, 0]"),
        ((1, 4, 11, 12), (6, 4, 3, 3), "dilations=[2, 3]"),
        ((1, 6, 7, 7), (9, 2, 3, 3), "group=3, pads=[1, 1, 1, 1]"),
        ((2, 5, 7, 7), (10, 1, 3, 3), "group=5"),
        ((2, 4, 19), (7, 4, 5), "strides=[3], pads=[2, 1]"),
        ((1, 2, 5, 6, 7), (3, 2, 2, 3, 3), "strides=[1, 2, 1], pads=[0, 1, 1, 1, 0, 1]"),
        ((2, 4, 4, 5, 4), (4, 2, 3, 3, 3), "group=2, pads=[1, 1, 1, 1, 1, 1]"),
        ((1, 3, 10, 11), (4, 3, 3, 4), 'auto_pad="SAME_UPPER", strides=[2, 3]'),
        ((1, 3, 10, 11), (4, 3, 3, 4), 'auto_pad="SAME_LOWER", strides=[2, 3]'),
        ((1, 3, 10, 11), (4, 3, 2, 2), 'auto_pad="SAME_LOWER"'),
        ((1, 3, 10, 11), (4, 3, 3, 4), 'auto_pad="VALID", strides=[2, 1]'),
        ((1, 2, 9), (4, 2, 4), 'auto_pad="SAME_UPPER"'),
        ((2, 8, 6, 6), (20, 8, 6, 6), "group=1"),
        ((1, 8, 4, 4), (20, 8, 4, 4), "pads=[1, 1, 1, 1]"),
        ((1, 1, 1, 1), (1, 1, 1, 1), "group=1"),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_conv(lab: Any, x: Any, w: Any, attributes: str, bias: bool) -> None:
    constants = {"w": numbers(*w)} | ({"b": numbers(w[0])} if bias else {})
    lab.same(f"y = Conv<{attributes}>({', '.join(['x', *constants])})", {"x": numbers(*x)}, constants)


@pytest.mark.parametrize("group", [1, 2])
def test_conv_on_every_level(any_lab: Any, group: int) -> None:
    constants = {"w": numbers(10, 4 // group, 3, 3), "b": numbers(10)}
    body = f"c = Conv<group={group}, pads=[1, 0, 2, 1]>(x, w, b) s = Add(c, r) y = Relu(s)"
    lowered = any_lab.same(body, {"x": numbers(1, 4, 9, 8), "r": numbers(1, 10, 10, 7)}, constants)
    assert len(lowered.calls) == 2


def test_conv_of_weights_that_are_inputs(any_lab: Any) -> None:
    any_lab.same("y = Conv(x, w, b)", {"x": numbers(2, 3, 8, 8), "w": numbers(7, 3, 3, 3), "b": numbers(7)})


@given(
    batch=st.integers(1, 2),
    group=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    plane=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
@few
def test_conv_of_any_shape(
    lab: Any, batch: int, group: int, channels: Any, plane: Any, kernel: Any, strides: Any, pads: Any, dilations: Any
) -> None:
    for i in range(2):
        assume(plane[i] + pads[i] + pads[i + 2] >= (kernel[i] - 1) * dilations[i] + 1)
    c, o = channels[0] * group, channels[1] * group
    attributes = f"group={group}, strides={list(strides)}, pads={list(pads)}, dilations={list(dilations)}"
    constants = {"w": numbers(o, channels[0], *kernel), "b": numbers(o)}
    lab.same(f"y = Conv<{attributes}>(x, w, b)", {"x": numbers(batch, c, *plane)}, constants)


# ---------------------------------------------------------------- ConvTranspose


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((1, 3, 4, 5), (3, 6, 3, 3), "group=1"),
        ((2, 4, 5, 5), (4, 3, 2, 2), "strides=[2, 2]"),
        ((1, 4, 5, 5), (4, 3, 2, 2), "strides=[2, 2], output_padding=[1, 0]"),
        ((1, 3, 6, 4), (3, 5, 3, 4), "strides=[2, 3], pads=[1, 2, 0, 1]"),
        ((1, 3, 5, 5), (3, 5, 3, 3), "dilations=[2, 3], strides=[2, 1], pads=[1, 1, 1, 1]"),
        ((1, 6, 4, 4), (6, 2, 3, 3), "group=3, strides=[2, 2]"),
        ((1, 4, 4, 4), (4, 3, 2, 2), "group=2, strides=[2, 2]"),
        ((1, 2, 7), (2, 3, 4), "strides=[3], pads=[1, 0]"),
        ((1, 2, 3, 4, 3), (2, 3, 2, 3, 2), "strides=[1, 2, 2]"),
        ((1, 2, 3, 4, 3), (2, 3, 2, 2, 2), "strides=[2, 2, 2]"),
        ((1, 2, 5, 4), (2, 3, 3, 3), "strides=[3, 2], output_shape=[10, 8]"),
        ((1, 2, 5, 4), (2, 3, 3, 3), "strides=[3, 2], output_shape=[16, 10]"),
        ((1, 2, 5, 4), (2, 3, 3, 3), 'strides=[2, 2], auto_pad="SAME_UPPER"'),
        ((1, 2, 5, 4), (2, 3, 4, 4), 'strides=[2, 3], auto_pad="SAME_LOWER"'),
        ((1, 2, 5, 4), (2, 3, 3, 3), 'strides=[2, 2], auto_pad="VALID"'),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_conv_transpose(lab: Any, x: Any, w: Any, attributes: str, bias: bool) -> None:
    group = int(attributes.split("group=")[1][0]) if "group=" in attributes else 1
    constants = {"w": numbers(*w)} | ({"b": numbers(w[1] * group)} if bias else {})
    body = f"y = ConvTranspose<{attributes}>({', '.join(['x', *constants])})"
    lab.same(body, {"x": numbers(*x)}, constants)


@given(
    group=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    plane=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    extra=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
@few
def test_conv_transpose_of_any_shape(
    lab: Any, group: int, channels: Any, plane: Any, kernel: Any, strides: Any, dilations: Any, pads: Any, extra: Any
) -> None:
    for i in range(2):
        assume(extra[i] < strides[i])
        size = strides[i] * (plane[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - pads[i] - pads[i + 2]
        assume(size > 0)
    attributes = (
        f"group={group}, strides={list(strides)}, dilations={list(dilations)}, pads={list(pads)}, "
        f"output_padding={list(extra)}"
    )
    constants = {"w": numbers(channels[0] * group, channels[1], *kernel), "b": numbers(channels[1] * group)}
    body = f"y = ConvTranspose<{attributes}>(x, w, b)"
    lab.same(body, {"x": numbers(1, channels[0] * group, *plane)}, constants)
