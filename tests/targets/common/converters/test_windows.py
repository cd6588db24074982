"""Pools, paddings, regions and transposed convolutions against ONNX Runtime, in all the ways to say their extents."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest


def numbers(*shape: int) -> Any:
    return np.random.default_rng([8, *shape]).standard_normal(shape).astype(np.float32)


def check(lab: Any, nodes: list[str], feeds: dict[str, Any], constants: dict[str, Any], opset: int = 19) -> None:
    """One program with an output for each node."""
    names = [f"y{number}" for number in range(len(nodes))]
    body = "\n".join(f"{name} = {node}" for name, node in zip(names, nodes, strict=True))
    lab.check(lab.model(body, feeds, constants, names, opset=opset), feeds)


@pytest.mark.parametrize("image", [(13,), (10, 7), (5, 6, 7)], ids=len)
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool", "AveragePool<count_include_pad = 1,", "LpPool"])
def test_pools(lab: Any, operator: str, image: tuple[int, ...]) -> None:
    rank = len(image)
    head = operator if "<" in operator else f"{operator} <"
    nodes = []
    for kernel, stride, pad, ceil, dilation in product(
        (2, 3), (1, 2, 3), ("0", "1", "SAME_UPPER", "SAME_LOWER"), (0, 1), (1, 2)
    ):
        if (dilation == 2 and kernel == 2) or (pad.startswith("SAME") and kernel < stride):
            continue  # ONNX Runtime refuses a padding that would be negative
        pads = f"pads = {[int(pad)] * rank + [0] * rank}" if pad.isdigit() else f'auto_pad = "{pad}"'
        nodes.append(
            f"{head} kernel_shape = {[kernel] * rank}, strides = {[stride] * rank}, {pads}, ceil_mode = {ceil},"
            f" dilations = {[dilation] * rank}> (x)"
        )
    check(lab, nodes[:: rank if rank < 3 else 7], {"x": numbers(1, 2, *image)}, {})


def test_pools_of_integers_and_special_values(lab: Any) -> None:
    x = numbers(1, 2, 9)
    x[0, 0, :5], x[0, 1, 3] = -np.inf, np.inf
    feeds = {"x": x, "i": (numbers(1, 2, 9) * 40).astype(np.int8), "c": np.full((1, 2, 9), 0.7, np.float32)}
    nodes = [f"MaxPool <kernel_shape = [3], strides = [2], ceil_mode = 1> ({name})" for name in feeds]
    nodes += [f"{op} <kernel_shape = [3], strides = [2], ceil_mode = 1> (c)" for op in ("AveragePool", "LpPool")]
    check(lab, nodes, feeds, {})


@pytest.mark.parametrize(("dtype", "dilation"), [("float16", 1), ("float64", 1), ("float64", 2), ("float32", 2)])
def test_largest_of_minus_infinities(lab: Any, dtype: str, dilation: int) -> None:
    x = numbers(1, 2, 5, 7).astype(dtype)
    x[0, 0] = -np.inf
    node = f"MaxPool <kernel_shape = [2, 2], dilations = [{dilation}, {dilation}], pads = [1, 1, 1, 1]> (x)"
    check(lab, [node], {"x": x}, {})


@pytest.mark.parametrize("image", [(9,), (5, 6), (3, 4, 5)], ids=len)
def test_transposed_convolutions(lab: Any, image: tuple[int, ...]) -> None:
    rank = len(image)
    constants = {"w": numbers(4, 3, *(3, 2, 4)[:rank]), "g": numbers(4, 2, *(3,) * rank), "b": numbers(3)}
    nodes = []
    for mode, stride, extra, dilation in product(("SAME_UPPER", "SAME_LOWER"), (1, 2, 3), (0, 1, 2), (1, 2)):
        if extra and extra >= stride:
            continue
        common = f'auto_pad = "{mode}", strides = {[stride] * rank}, output_padding = {[extra] * rank}'
        nodes.append(f"ConvTranspose <{common}, dilations = {[dilation] * rank}> (x, w, b)")
        nodes.append(f"ConvTranspose <{common}, dilations = {[dilation] * rank}, group = 2> (x, g)")
        if not extra and dilation == 1 and stride < 3:  # what would need a negative padding is refused
            nodes.append(f"ConvTranspose <{common}, output_shape = {[n * stride for n in image]}> (x, w)")
    check(lab, nodes, {"x": numbers(1, 4, *image)}, constants, opset=11)


def test_negative_pads_cut_before_the_rest_is_repeated(lab: Any) -> None:
    pads = ((-1, 2, 1, -1), (0, -1, 0, 2), (2, -2, -1, 2), (-1, -1, -1, -1), (1, 0, -2, 2), (-2, 0, 1, 0))
    constants: dict[str, Any] = {f"p{i}": np.array(pad) for i, pad in enumerate(pads)}
    constants |= {"q": np.array([-1, 2]), "axis": np.array([-1]), "far": np.array([9, -2])}
    modes = ("constant", "reflect", "edge", "wrap")
    nodes = [f'Pad <mode = "{mode}"> (x, p{i})' for mode in modes for i in range(len(pads))]
    nodes += [f'Pad <mode = "{mode}"> (x, q, "", axis)' for mode in modes]
    nodes += [f'Pad <mode = "{mode}"> (v, far)' for mode in ("edge", "wrap")]
    check(lab, nodes, {"x": numbers(4, 5), "v": numbers(6)}, constants)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_regions(lab: Any, mode: str) -> None:
    """Inside the image, partly and wholly outside, empty, and turned over."""
    rois = [[1, 1, 9, 8], [1.5, 2, 9, 12], [3, 2, 14, 15], [-4, -5, 3, 3], [20, 20, 30, 30], [5, 5, 5, 5], [7, 6, 3, 2],
            [-1, -1, -0.5, -0.5], [0, 0, 18, 16]]  # fmt: skip
    feeds = {"x": numbers(2, 3, 8, 9), "r": np.array(rois, np.float32), "b": np.array([0, 1, 0, 1, 0, 0, 1, 1, 0])}
    nodes = [
        f'RoiAlign <mode = "{mode}", output_height = {h}, output_width = {w}, sampling_ratio = {samples},'
        f' spatial_scale = {scale}, coordinate_transformation_mode = "{coordinates}"> (x, r, b)'
        for h, w, samples, scale in ((3, 2, 2, 0.5), (1, 1, 3, 1.0), (2, 2, 1, 0.5))
        for coordinates in ("half_pixel", "output_half_pixel")
    ]
    check(lab, nodes, feeds, {}, opset=16)


def test_samples_that_depend_on_the_region_are_refused(lab: Any) -> None:
    feeds = {"x": numbers(1, 1, 4, 4), "r": np.array([[0, 0, 3, 3]], np.float32), "b": np.array([0])}
    model = lab.model("y = RoiAlign <output_height = 2, output_width = 2> (x, r, b)", feeds, {}, opset=16)
    reason = lab.target.supports(next(iter(model.graph)), model.opset_imports)
    assert str(reason).startswith("sampling_ratio 0 of RoiAlign takes as many samples as a region has pixels")
