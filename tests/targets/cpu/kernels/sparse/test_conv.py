"""Convolutions with block-sparse weights against the body of the operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ops.sparse import pack_sparse_conv_weight
from graphopt.targets.cpu.kernels.sparse import conv
from graphopt.targets.cpu.machine import LEVELS, CpuMachine

few = settings(deadline=None, max_examples=20, derandomize=True)


def node(
    lanes: int,
    x: tuple[int, int, int, int],
    w: tuple[int, int, int],
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    density: float = 0.3,
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The call, its input and its constants: x [N, C, H, W] and w [O, kh, kw] in blocks of `lanes`."""
    generator = np.random.default_rng([*x, *w])
    n, c, height, width = x
    o, kh, kw = w
    groups = -(-o // lanes)
    kept = np.repeat(generator.random((groups, c, kh, kw)) < density, lanes, axis=0)[:o]
    weight = generator.standard_normal((o, c, kh, kw)).astype(np.float32) * kept
    blocks, rows, starts = pack_sparse_conv_weight(weight, lanes)
    constants = {
        "blocks": blocks,
        "rows": rows,
        "starts": starts,
        "bias": generator.standard_normal((groups, lanes)).astype(np.float32),
    }
    image = generator.standard_normal((n, -(-c // lanes), height, width, lanes)).astype(np.float32)
    attributes = {
        "outputs": [o],
        "kernel_shape": [kh, kw],
        "strides": list(strides),
        "pads": list(pads),
        "dilations": list(dilations),
    }
    spelled = ", ".join(f"{name} = {values}" for name, values in attributes.items())
    return f"graphopt.BlockSparseConv <{spelled}>(x, blocks, rows, starts, bias)", {"x": image}, constants


CASES = {
    "pointwise": {"x": (1, 32, 7, 7), "w": (48, 1, 1)},
    "pointwise, of many images": {"x": (3, 32, 5, 4), "w": (32, 1, 1)},
    "pointwise with stride 2": {"x": (1, 32, 9, 11), "w": (32, 1, 1), "strides": (2, 2)},
    "3x3": {"x": (2, 32, 14, 14), "w": (32, 3, 3), "pads": (1, 1, 1, 1)},
    "3x3 with stride 2": {"x": (1, 32, 13, 13), "w": (32, 3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    "3x3, dilated": {"x": (1, 16, 11, 11), "w": (16, 3, 3), "dilations": (2, 2)},
    "one position": {"x": (1, 32, 3, 3), "w": (32, 3, 3)},
    "odd kernel, uneven padding": {"x": (1, 16, 6, 35), "w": (16, 2, 5), "pads": (0, 2, 1, 1)},
    "channels that fill no block": {"x": (1, 21, 6, 6), "w": (35, 3, 3), "pads": (1, 1, 1, 1)},
}


@pytest.mark.parametrize("name", CASES)
def test_conv(lab: Any, name: str) -> None:
    call, feeds, constants = node(lab.target.cpu.lanes(), **CASES[name])
    lowered = lab.same(f"y = {call}", feeds, constants)
    assert len(lowered.calls) == 1 + any(CASES[name].get("pads", ()))


@pytest.mark.parametrize("name", ["pointwise", "3x3 with stride 2"])
@pytest.mark.parametrize("lanes", [0, 4])
def test_on_every_level(any_lab: Any, name: str, lanes: int) -> None:
    """Also with blocks of fewer channels than a vector has."""
    call, feeds, constants = node(lanes or any_lab.target.cpu.lanes(), **CASES[name])
    any_lab.same(f"y = {call}", feeds, constants)


@given(
    n=st.integers(1, 2),
    c=st.integers(1, 40),
    size=st.tuples(st.integers(3, 12), st.integers(3, 30)),
    o=st.integers(1, 40),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    pad=st.integers(0, 1),
)
@few
def test_any_shape(
    lab: Any, n: int, c: int, size: tuple[int, int], o: int, kernel: tuple[int, int], stride: int, pad: int
) -> None:
    call, feeds, constants = node(
        lab.target.cpu.lanes(), (n, c, *size), (o, *kernel), (stride, stride), (pad,) * 4, density=0.5
    )
    lab.same(f"y = {call}", feeds, constants)


def test_without_blocks_the_bias_is_left(lab: Any) -> None:
    call, feeds, constants = node(lab.target.cpu.lanes(), (2, 32, 5, 6), (40, 3, 3), density=0)
    lab.same(f"y = {call}", feeds, constants)


def test_an_epilogue_is_fused(any_lab: Any) -> None:
    """Positions that two tiles compute are stored once: the residual may lie where the result does."""
    lanes = any_lab.target.cpu.lanes()
    call, feeds, constants = node(lanes, (1, 32, 9, 9), (32, 3, 3), pads=(1, 1, 1, 1))
    feeds["residual"] = np.random.default_rng(0).standard_normal((1, 32 // lanes, 9, 9, lanes)).astype(np.float32)
    lowered = any_lab.same(f"t = {call} u = Add(t, residual) y = Relu(u)", feeds, constants)
    assert len(lowered.calls) == 2


def test_special_numbers(lab: Any) -> None:
    """NaN spreads as far as blocks reach, and no further."""
    lanes = lab.target.cpu.lanes()
    call, feeds, constants = node(lanes, (1, 32, 6, 6), (32, 1, 1), density=0.2)
    feeds["x"][0, 0, 0, 0, 0] = np.nan
    feeds["x"][0, 1, 5, 5, 3] = np.inf
    lowered = lab.lower(lab.model(f"y = {call}", feeds, constants))
    y = lab.execute(lowered, feeds)["y"]
    readers = constants["rows"][constants["starts"] == 0]
    unread = [group for group in range(32 // lanes) if group not in readers]
    assert np.isnan(y[0, readers, 0, 0]).all()
    assert np.isfinite(y[0, unread, 0, 0]).all()
    assert np.isfinite(y[0, :, 1:5]).all()


@given(
    out=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    flat=st.booleans(),
    level=st.sampled_from(sorted(LEVELS)),
)
@few
def test_tiles_fit_the_registers_and_the_map(out: tuple[int, int], flat: bool, level: str) -> None:
    machine = CpuMachine(LEVELS[level], 2)
    rows, columns = conv.tile_of(out, flat, machine)
    assert 1 <= rows * columns < machine.level.registers
    extents = (1, out[0] * out[1]) if flat else out
    assert rows <= extents[0]
    assert columns <= extents[1]
