"""MatMulInteger and QLinearMatMul: exact sums, whatever the types, zero points and shapes.

ONNX Runtime saturates sums of two products of uint8 and int8 on processors without VNNI, so factors in int8 are at most
64 where it is the reference; larger ones are compared with numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.cpu.kernels.integer import gemm
from graphopt.targets.cpu.machine import LEVELS, CpuMachine

few = settings(deadline=None, max_examples=8, derandomize=True)


def integers(dtype: str, *shape: int) -> Any:
    low, high = (0, 256) if dtype == "uint8" else (-64, 65)
    return np.random.default_rng([7, *shape]).integers(low, high, shape).astype(dtype)


def point(value: int, dtype: str = "uint8") -> Any:
    return np.array(value, dtype)


def exact(lab: Any, a: Any, b: Any, a_zero: Any = None, b_zero: Any = None, constant: bool = True) -> Any:
    """MatMulInteger agrees with numpy; for what ONNX Runtime refuses or saturates."""
    given = {"a": a, "b": b, "a_zero": a_zero, "b_zero": b_zero}
    given = {name: array for name, array in given.items() if array is not None}
    wide = {name: array.astype(np.int64) for name, array in given.items()}
    left = wide["a"] - (wide["a_zero"].reshape(-1, 1) if np.size(a_zero) > 1 else wide.get("a_zero", 0))
    expected = (left @ (wide["b"] - wide.get("b_zero", 0))).astype(np.int32)
    types = ", ".join(
        f"{array.dtype}{list(array.shape) if array.shape else ''} {name}" for name, array in given.items()
    )
    names = ", ".join(name if name in given else "" for name in ("a", "b", "a_zero", "b_zero")).rstrip(", ")
    body = f"y = MatMulInteger({names})"
    model = ir.from_onnx_text(
        f'<ir_version: 11, opset_import: ["": 21]> g ({types}) => (int32{list(expected.shape)} y) {{ {body} }}'
    )
    if constant:
        value = next(v for v in model.graph.inputs if v.name == "b")
        value.const_value = ir.Tensor(b, name="b")
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    lowered = lab.lower(model)
    assert not lowered.notes
    np.testing.assert_array_equal(lab.execute(lowered, given)["y"], expected)
    return lowered


# ---------------------------------------------------------------- MatMulInteger


@pytest.mark.parametrize("kinds", [("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8"), ("int8", "uint8")])
@pytest.mark.parametrize("constant", [False, True])
def test_types_and_zero_points_on_every_level(every_lab: Any, kinds: tuple[str, str], constant: bool) -> None:
    a, b = integers(kinds[0], 3, 7, 33), integers(kinds[1], 33, 50)
    zeros = {"p": point(5, kinds[0]), "q": point(3, kinds[1]), "r": integers(kinds[1], 50)}
    body = """
        none = MatMulInteger(a, b)
        left = MatMulInteger(a, b, p)
        one = MatMulInteger(a, b, p, q)
        columns = MatMulInteger(a, b, , r)
    """
    feeds = {"a": a} if constant else {"a": a, "b": b}
    names = ("none", "left", "one", "columns")
    every_lab.check(every_lab.model(body, feeds, ({"b": b} if constant else {}) | zeros, outputs=names), feeds)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((8, 32), (32, 64)),
        ((1, 33), (33, 65)),
        ((7, 1), (1, 19)),
        ((1, 1), (1, 1)),
        ((29, 40), (40, 7)),
        ((130, 17), (17, 100)),
        ((2, 3, 5, 16), (16, 24)),
        ((2, 3, 5, 16), (2, 3, 16, 9)),
        ((1, 5, 7), (4, 7, 3)),
        ((4, 5, 7), (1, 7, 3)),
        ((2, 1, 5, 7), (3, 7, 6)),
        ((5, 2048), (2048, 20)),
    ],
)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_shapes(lab: Any, left: Any, right: Any, dtype: str) -> None:
    a, b = integers("uint8", *left), integers(dtype, *right)
    zeros = {"p": point(130), "q": point(0 if dtype == "int8" else 7, dtype)}
    body = "y = MatMulInteger(a, b, p, q)"
    lowered = lab.same(body, {"a": a}, {"b": b} | zeros)
    assert all(array.dtype.itemsize == 1 for array in lowered.constants.values() if array.size >= max(b.size, 99))
    lab.same(body, {"a": a, "b": b}, zeros)


@pytest.mark.parametrize(("left", "right"), [((7,), (7, 5)), ((5, 7), (7,)), ((3, 2, 7), (7,)), ((7,), (2, 7, 5))])
def test_vectors(lab: Any, left: Any, right: Any) -> None:
    lab.same(
        "y = MatMulInteger(a, b, p)", {"a": integers("uint8", *left)}, {"b": integers("int8", *right), "p": point(9)}
    )


@pytest.mark.parametrize("kinds", [("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8"), ("int8", "uint8")])
@pytest.mark.parametrize("constant", [False, True])
def test_extremes_do_not_saturate(every_lab: Any, kinds: tuple[str, str], constant: bool) -> None:
    """Products of nothing but the largest and the smallest numbers, with zero points at the other end."""
    (low, high), (least, most) = ((np.iinfo(kind).min, np.iinfo(kind).max) for kind in kinds)
    a = np.stack([np.full(70, low), np.full(70, high), np.tile([low, high], 35)]).astype(kinds[0])
    b = np.stack([np.full(70, least), np.full(70, most), np.tile([least, most], 35)], 1).astype(kinds[1])
    for zeros in ((None, None), (high, least), (low, most)):
        exact(
            every_lab,
            a,
            b,
            *(None if z is None else point(z, kind) for z, kind in zip(zeros, kinds, strict=True)),
            constant,
        )


@pytest.mark.parametrize("kinds", [("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8")])
def test_a_zero_point_for_each_row(lab: Any, kinds: tuple[str, str]) -> None:
    a, b = integers(kinds[0], 9, 21), integers(kinds[1], 21, 18)
    exact(lab, a, b, integers(kinds[0], 9), None)
    exact(lab, a, b, integers(kinds[0], 9), integers(kinds[1], 18), constant=False)


@given(
    m=st.integers(1, 40), n=st.integers(1, 70), k=st.integers(1, 40), unsigned=st.booleans(), zero=st.integers(0, 255)
)
@few
def test_any_shape(lab: Any, m: int, n: int, k: int, unsigned: bool, zero: int) -> None:
    b = integers("uint8" if unsigned else "int8", k, n)
    lab.same("y = MatMulInteger(a, b, p)", {"a": integers("uint8", m, k), "p": point(zero)}, {"b": b})


def test_an_epilogue_is_fused(every_lab: Any) -> None:
    body = "t = MatMulInteger(a, b, p) f = Cast<to=1>(t) s = Mul(f, scale) u = Add(s, bias) y = Relu(u)"
    constants = {"b": integers("int8", 20, 50), "scale": np.full(50, 0.01, np.float32), "bias": np.ones(50, np.float32)}
    lowered = every_lab.same(body, {"a": integers("uint8", 9, 20), "p": point(3)}, constants)
    assert len(lowered.calls) <= 2


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(1, 768, 768), (96, 3072, 768), (7, 5, 3), (256, 64, 2048)])
def test_tiles_fit_the_registers(level: str, shape: tuple[int, int, int]) -> None:
    machine = CpuMachine(LEVELS[level], 2)
    tile = gemm.choose_tile(*shape, machine)
    vectors, rest = divmod(tile.width, machine.lanes("int32"))
    assert rest == 0
    assert tile.rows * vectors + vectors + 2 <= machine.level.registers


# ---------------------------------------------------------------- QLinearMatMul


@pytest.mark.parametrize("kinds", [("uint8", "uint8", "uint8"), ("uint8", "int8", "uint8"), ("int8", "int8", "int8")])
@pytest.mark.parametrize("columns", [False, True])
def test_qlinear_matmul(every_lab: Any, kinds: tuple[str, str, str], columns: bool) -> None:
    a, b = integers(kinds[0], 3, 9, 33), integers(kinds[1], 33, 50)
    rng = np.random.default_rng(1)
    constants = {
        "b": b,
        "as": np.array(0.02, np.float32),
        "az": point(7, kinds[0]),
        "bs": rng.random(50).astype(np.float32) * 0.1 if columns else np.array(0.05, np.float32),
        "bz": integers(kinds[1], 50) if columns else point(0, kinds[1]),
        "ys": np.array(0.3, np.float32),
        "yz": point(11, kinds[2]),
    }
    every_lab.same("y = QLinearMatMul(a, as, az, b, bs, bz, ys, yz)", {"a": a}, constants)


def test_ties_go_to_the_even_integer_and_the_rest_saturates(lab: Any) -> None:
    a, b = np.arange(256, dtype=np.uint8).reshape(256, 1), np.array([[1, 2, 3, 255]], np.uint8)
    constants = {
        "b": b,
        "one": np.array(1, np.float32),
        "zero": point(0),
        "two": np.array(2, np.float32),
        "yz": point(1),
    }
    lab.same("y = QLinearMatMul(a, one, zero, b, one, zero, two, yz)", {"a": a}, constants)


@pytest.mark.parametrize("scale", [0.0, np.inf, np.nan, 1e-42])
def test_scales_that_are_no_ordinary_numbers(lab: Any, scale: float) -> None:
    constants = {
        "b": integers("uint8", 8, 16),
        "bs": np.array(scale, np.float32),
        "one": np.array(1, np.float32),
        "z": point(3),
    }
    lab.same("y = QLinearMatMul(a, one, z, b, bs, z, one, z)", {"a": integers("uint8", 4, 8)}, constants)


def test_scales_that_are_inputs(lab: Any) -> None:
    one = np.array(0.1, np.float32)
    feeds = {"a": integers("uint8", 5, 8), "s": one, "z": point(3), "b": integers("uint8", 8, 12)}
    lab.same("y = QLinearMatMul(a, s, z, b, s, z, s, z)", feeds)


def test_nodes_that_differ_in_the_size_of_their_weights_have_kernels_of_their_own(lab: Any) -> None:
    """Definitions are shared by nodes that look alike; only weights up to 64 are multiplied as bytes."""
    small = integers("int8", 70, 64)
    large = (small.astype(np.int16) * 3 // 2).clip(-96, 96).astype(np.int8)
    body = "s = MatMulInteger(a, small, p) l = MatMulInteger(a, large, p) y = Sub(s, l)"
    a = (integers("uint8", 9, 70) // 2).astype(np.uint8)  # no pair of products saturates in ONNX Runtime
    lowered = lab.same(body, {"a": a, "p": point(3)}, {"small": small, "large": large})
    units = {v.shape[-1] for v in lowered.values.values() if v.dtype == "int8" and v.shape and len(v.shape) == 5}
    assert units == ({2} if lab.target.cpu.level.name == "x86-64" else {4} if lab.target.cpu.level.vnni else {2, 4})
