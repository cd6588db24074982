"""Resize against ONNX Runtime: which pixel is nearest is decided by rounding, so the sweep is dense."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from graphopt.targets.common.converters import resize

COORDINATES = (
    "half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners", "tf_half_pixel_for_nn", "half_pixel_symmetric",
    "tf_crop_and_resize",
)  # fmt: skip
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
MODES = (
    *(f'mode = "nearest", nearest_mode = "{mode}"' for mode in NEAREST),
    'mode = "linear"',
    'mode = "cubic"',
    'mode = "cubic", exclude_outside = 1, cubic_coeff_a = -0.5',
    'mode = "linear", antialias = 1',
    'mode = "cubic", antialias = 1, exclude_outside = 1',
)
SCALES = ((0.5, 0.5), (0.6, 0.75), (1.1, 1.5), (2, 2.6), (1, 2.3), (1.05, 0.9))


def pixels(*shape: int, dtype: str = "float32") -> Any:
    return (np.random.default_rng([5, *shape]).standard_normal(shape) * 9).astype(dtype)


def check(lab: Any, nodes: list[str], feeds: dict[str, Any], constants: dict[str, Any], opset: int = 18) -> None:
    """One program with an output for each node, given as its attributes and operands."""
    names = [f"y{number}" for number in range(len(nodes))]
    body = "\n".join(f"{name} = Resize <{node}" for name, node in zip(names, nodes, strict=True))
    lab.check(lab.model(body, feeds, constants, names, opset=opset), feeds)


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_modes_and_scales(lab: Any, coordinates: str) -> None:
    constants = {f"s{i}": np.array([1, 1, *pair], np.float32) for i, pair in enumerate(SCALES)}
    constants["roi"] = np.array([0, 0, 0.1, 0.2, 1, 1, 0.8, 1.3], np.float32)
    nodes = [
        f'{mode}, extrapolation_value = 7.5, coordinate_transformation_mode = "{coordinates}"> (x, roi, s{scale})'
        for mode, scale in product(MODES, range(len(SCALES)))
    ]
    check(lab, nodes, {"x": pixels(1, 2, 7, 10)}, constants)


def test_sizes_axes_and_aspect_ratios(lab: Any) -> None:
    constants = {"large": np.array([5, 13]), "same": np.array([7, 5]), "one": np.array([1, 1])}
    nodes = [
        f'mode = "{mode}", axes = [2, 3], keep_aspect_ratio_policy = "{policy}", '
        f'coordinate_transformation_mode = "{coordinates}"> (x, "", "", {sizes})'
        for mode in ("nearest", "linear", "cubic")
        for policy in ("stretch", "not_larger", "not_smaller")
        for coordinates in ("half_pixel", "align_corners", "half_pixel_symmetric")
        for sizes in constants
    ]
    check(lab, nodes, {"x": pixels(1, 2, 7, 10)}, constants)


@pytest.mark.parametrize("shape", [(9,), (9, 6), (9, 6, 5), (1, 2, 4, 5, 6)], ids=len)
def test_ranks_and_types(lab: Any, shape: tuple[int, ...]) -> None:
    rank = len(shape)
    scales = {"s": np.array([1, 1, 1.3, 0.6, 2][:rank] if rank == 5 else [1.3, 0.6, 2][:rank], np.float32)}
    feeds = {"x": pixels(*shape), "i": pixels(*shape, dtype="int8"), "u": np.abs(pixels(*shape)).astype(np.uint8)}
    nodes = [f'mode = "nearest", nearest_mode = "{mode}"> ({x}, "", s)' for x in feeds for mode in ("floor", "ceil")]
    if rank > 1:
        nodes.append('mode = "linear"> (x, "", s)')
    check(lab, nodes, feeds, scales)


def test_an_old_opset(lab: Any) -> None:
    constants = {"s": np.array([1, 1, 1.3, 0.4], np.float32), "roi": np.zeros(0, np.float32)}
    nodes = [f'mode = "{mode}"> (x, roi, s)' for mode in ("nearest", "linear", "cubic")]
    check(lab, nodes, {"x": pixels(1, 2, 7, 10)}, constants, opset=11)


def test_what_lies_outside_is_not_read(lab: Any) -> None:
    """NaN beside the region does not reach the extrapolated pixels, and infinities stay where they are."""
    x = pixels(1, 1, 4, 5)
    x[0, 0, 0, 0], x[0, 0, 3, 4] = np.nan, np.inf
    constants = {"roi": np.array([-1, -1, 2, 2], np.float32), "z": np.array([5, 6])}
    nodes = [f'mode = "{mode}", axes = [2, 3], coordinate_transformation_mode = "tf_crop_and_resize"> (x, roi, "", z)'
             for mode in ("nearest", "linear")]  # fmt: skip
    check(lab, nodes, {"x": x}, constants)


def test_interpolated_integers_are_refused(lab: Any) -> None:
    feeds, scales = {"x": pixels(1, 1, 4, 5, dtype="int8")}, {"s": np.array([1, 1, 2, 2], np.float32)}
    model = lab.model('y = Resize <mode = "linear"> (x, "", s)', feeds, scales)
    reason = lab.target.supports(next(iter(model.graph)), model.opset_imports)
    assert reason == "Resize of int8 in mode linear rounds as ONNX Runtime's integer arithmetic does"


def test_close_to_halfway_is_halfway() -> None:
    axis = resize._Axis(9, 4, np.float32(1), np.float32(0), np.float32(1))
    places = np.array([2.5 - 9e-7, 2.5 + 9e-7, 2.49999, 2.50001], np.float32)
    assert resize._nearest("round_prefer_floor", places, axis).ravel().tolist() == [2, 2, 2, 3]
    assert resize._nearest("round_prefer_ceil", places, axis).ravel().tolist() == [3, 3, 2, 3]
