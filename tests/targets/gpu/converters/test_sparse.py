"""Block-sparse products and convolutions on a GPU against their functions' bodies in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from graphopt.compiler import compile_model
from graphopt.errors import UnsupportedError
from graphopt.ops.sparse import pack_sparse_conv_weight
from graphopt.runtime.devices.opencl import OpenClDevice
from graphopt.verify.oracle import Tolerance, run_onnxruntime
from tests.helpers.block_sparse import block_sparse
from tests.helpers.equal import require_equal
from tests.helpers.lab import make_model

Array = NDArray[Any]


def check(body: str, feeds: Mapping[str, Array], constants: Mapping[str, Array]) -> list[str]:
    """Run on poisoned memory, compare with the body; the algorithms of the kernels."""
    model = make_model(body, feeds, constants, ["y"], 20)
    compiled = compile_model(model, target="opencl", passes="normalize", fallback=False)
    expected = run_onnxruntime(model, feeds)
    session = compiled.artifact.session()
    session.measure_arena(feeds)
    scale = max(1.0, float(np.abs(expected["y"]).max()))
    require_equal(expected, session.run(feeds), "on PoCL", {"float32": Tolerance(0.0, 1e-5 * scale)})
    return list(compiled.notes)


@pytest.mark.parametrize("shape", [(40, 128), (1, 128), (2, 3, 128)])
@pytest.mark.parametrize(("n", "side"), [(96, 32), (100, 32), (150, 64)])
def test_products(opencl: OpenClDevice, shape: tuple[int, ...], n: int, side: int) -> None:
    weights = block_sparse(128, n, (side, side), 0.4)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    bias = np.random.default_rng(2).standard_normal(n).astype(np.float32)
    notes = check(f"s = {weights.call} t = Add(s, bias) y = Relu(t)", {"x": x}, {**weights.constants, "bias": bias})
    assert not [note for note in notes if note.startswith("kernel")]


@pytest.mark.parametrize("block", [(1, 16), (4, 32), (8, 16)])
def test_blocks_that_no_tile_fits(opencl: OpenClDevice, block: tuple[int, int]) -> None:
    weights = block_sparse(64, 48, block, 0.4)
    with pytest.raises(UnsupportedError, match="BlockSparseMatMul has no native form"):
        check(f"y = {weights.call}", {"x": np.ones((3, 64), np.float32)}, weights.constants)


def test_without_blocks_all_is_zero(opencl: OpenClDevice) -> None:
    weights = block_sparse(64, 48, (32, 32), 0)
    check(f"y = {weights.call}", {"x": np.ones((3, 64), np.float32)}, weights.constants)


def convolution(
    channels: int,
    outputs: int,
    window: tuple[int, int],
    lanes: int = 16,
    side: int = 32,
    density: float = 0.4,
    **more: Any,
) -> list[str]:
    """A convolution of a 7 x 9 image whose weights have blocks of `side` channels x `side` outputs at some taps."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((outputs, channels, *window)).astype(np.float32)
    kept = rng.random((-(-outputs // side), channels // side, *window)) < density
    kept[0] = False
    weight *= np.repeat(np.repeat(kept, side, axis=0)[:outputs], side, axis=1)
    blocks, rows, starts = pack_sparse_conv_weight(weight, side, side)
    assert len(blocks) == kept.sum()
    out_blocks = -(-outputs // lanes)
    constants = {"blocks": blocks, "rows": rows, "starts": starts}
    constants["bias"] = rng.standard_normal((out_blocks, lanes)).astype(np.float32)
    image = rng.standard_normal((2, -(-channels // lanes), 7, 9, lanes)).astype(np.float32)
    attributes = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], **more}
    attributes |= {"outputs": [outputs], "kernel_shape": list(window)}
    spelled = ", ".join(f"{name} = {value}" for name, value in attributes.items())
    body = f"s = graphopt.BlockSparseConv <{spelled}>(x, blocks, rows, starts, bias) y = Relu(s)"
    return check(body, {"x": image}, constants)


def test_pointwise(opencl: OpenClDevice) -> None:
    notes = convolution(64, 80, (1, 1))
    assert not [note for note in notes if note.startswith("kernel")]


@pytest.mark.parametrize(
    "more",
    [
        {"pads": [1, 1, 1, 1]},
        {"pads": [2, 0, 1, 3], "strides": [2, 1]},
        {"dilations": [2, 3], "pads": [2, 3, 2, 3]},
        {"strides": [2, 2]},
    ],
    ids=str,
)
@pytest.mark.parametrize("window", [(3, 3), (2, 3)])
def test_windows(opencl: OpenClDevice, window: tuple[int, int], more: dict[str, list[int]]) -> None:
    convolution(64, 96, window, **more)


@pytest.mark.parametrize(("side", "lanes"), [(32, 32), (64, 16), (32, 8)])
def test_blocks_wider_than_the_layout(opencl: OpenClDevice, side: int, lanes: int) -> None:
    """Channels lie in blocks of their own, which a block of weights holds several of."""
    convolution(128, 104, (3, 3), lanes, side, pads=[1, 1, 1, 1])


def test_a_convolution_without_blocks(opencl: OpenClDevice) -> None:
    convolution(32, 32, (3, 3), density=0)
