"""Gradients of operators that move data, read or write by index, or resize: against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from graphopt.errors import DifferentiationError
from tests.helpers.draws import normal
from tests.helpers.gradients import build, gradients_of, require_differences, require_torch

Tensor = torch.Tensor
MOVES: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "Reshape": ("s = Constant <value_ints = [4, 0, -1]>() y = Reshape(x, s)", lambda x: x.reshape(4, 3, 2)),
    "Flatten": ("y = Flatten <axis = 2>(x)", lambda x: x.reshape(6, 4)),
    "Squeeze": ("a = Constant <value_ints = [0]>() u = Unsqueeze(x, a) y = Squeeze(u, a)", lambda x: x),
    "Unsqueeze": ("a = Constant <value_ints = [0, -1]>() y = Unsqueeze(x, a)", lambda x: x[None, ..., None]),
    "Transpose": ("y = Transpose <perm = [2, 0, 1]>(x)", lambda x: x.permute(2, 0, 1)),
    "Transpose reversed": ("y = Transpose(x)", lambda x: x.permute(2, 1, 0)),
    "Expand": ("s = Constant <value_ints = [5, 2, 3, 4]>() y = Expand(x, s)", lambda x: x.expand(5, 2, 3, 4)),
    "Tile": ("r = Constant <value_ints = [2, 1, 3]>() y = Tile(x, r)", lambda x: x.repeat(2, 1, 3)),
    "Concat": ("z = Neg(x) y = Concat <axis = -2>(x, z, x)", lambda x: torch.cat([x, -x, x], -2)),
    "Slice": (
        "b = Constant <value_ints = [1, -3]>() e = Constant <value_ints = [99, -1]>() "
        "a = Constant <value_ints = [1, 2]>() y = Slice(x, b, e, a)",
        lambda x: x[:, 1:, -3:-1],
    ),
    "Slice by steps": (
        "b = Constant <value_ints = [-1, 0]>() e = Constant <value_ints = [-99, 4]>() "
        "a = Constant <value_ints = [1, 2]>() t = Constant <value_ints = [-2, 3]>() y = Slice(x, b, e, a, t)",
        lambda x: x.flip(1)[:, ::2, ::3],
    ),
    "Slice of nothing": (
        "b = Constant <value_ints = [2]>() s = Slice(x, b, b) y = Concat <axis = 0>(x, s)",
        lambda x: x,
    ),
    "Pad": (
        "p = Constant <value_ints = [1, 0, 2, 0, 3, 0]>() y = Pad(x, p)",
        lambda x: F.pad(x, (2, 0, 0, 3, 1, 0)),
    ),
    "Pad along axes": (
        "p = Constant <value_ints = [1, 2]>() a = Constant <value_ints = [-1]>() y = Pad(x, p, , a)",
        lambda x: F.pad(x, (1, 2)),
    ),
    "Pad by negative counts": (
        "p = Constant <value_ints = [0, -1, 1, 0, 0, -2]>() y = Pad(x, p)",
        lambda x: F.pad(x, (1, -2, -1, 0)),
    ),
    "Pad reflect": (
        'p = Constant <value_ints = [0, 0, 2, 0, 0, 3]>() y = Pad <mode = "reflect">(x, p)',
        lambda x: F.pad(x, (2, 3), mode="reflect"),
    ),
    "Pad edge": (
        'p = Constant <value_ints = [0, 0, 2, 0, 0, 3]>() y = Pad <mode = "edge">(x, p)',
        lambda x: F.pad(x, (2, 3), mode="replicate"),
    ),
    "Trilu": ("k = Constant <value_int = 1>() y = Trilu <upper = 0>(x, k)", lambda x: x.tril(1)),
    "CumSum": ("a = Constant <value_int = 1>() y = CumSum(x, a)", lambda x: x.cumsum(1)),
    "CumSum exclusive": (
        "a = Constant <value_int = -1>() y = CumSum <exclusive = 1, reverse = 1>(x, a)",
        lambda x: x.flip(-1).cumsum(-1).flip(-1) - x,
    ),
    "TopK": (
        "k = Constant <value_ints = [2]>() y, i = TopK <axis = 1>(x, k)",
        lambda x: x.topk(2, 1).values,
    ),
    "Gather": ("i = Constant <value_ints = [2, -1, 0, 2]>() y = Gather <axis = 1>(x, i)", lambda x: x[:, [2, 2, 0, 2]]),
    "Gather one": ("i = Constant <value_int = -1>() y = Gather <axis = -1>(x, i)", lambda x: x[..., -1]),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_move(name: str) -> None:
    body, twin = MOVES[name]
    require_torch(f"g (T[1] x) => (T y) {{ {body} }}", {"x": normal(0, 2, 3, 4)}, twin)


def test_split_of_which_one_part_is_used() -> None:
    text = """g (T[1] x) => (T y) {
        s = Constant <value_ints = [1, 2, 3]>() a, b, c = Split <axis = 1>(x, s) y = Mul(b, b) }"""
    require_torch(text, {"x": normal(0, 2, 6)}, lambda x: x[:, 1:3] ** 2)
    text = "g (T[1] x) => (T y) { a, b = Split <axis = 1, num_outputs = 2>(x) y = Mul(a, b) }"
    require_torch(text, {"x": normal(0, 2, 6)}, lambda x: x[:, :3] * x[:, 3:])


@pytest.mark.parametrize("middle", [(2, 5), (3, 5), (2, 3)])
def test_slices_side_by_side_are_joined(middle: tuple[int, int]) -> None:
    """A gap becomes zeros; where all is taken nothing is padded and nothing is added."""
    begin, end = middle
    text = f"""g (T[1] x) => (T a, T b, T c) {{
        t = Constant <value_ints = [1]>() zero = Constant <value_ints = [0]>() two = Constant <value_ints = [2]>()
        begin = Constant <value_ints = [{begin}]>() end = Constant <value_ints = [{end}]>()
        five = Constant <value_ints = [5]>() six = Constant <value_ints = [6]>()
        a = Slice(x, zero, two, t) b = Slice(x, begin, end, t) c = Slice(x, five, six, t) }}"""
    model = require_torch(text, {"x": normal(0, 3, 6)}, lambda x: (x[:, :2], x[:, begin:end], x[:, 5:6]))
    backward = [node.op_type for node in model.graph if ".backward." in str(node.name)]
    assert backward.count("Concat") == 1
    assert "Pad" not in backward
    assert backward.count("Expand") == 3 + (middle != (2, 5))  # each part of the loss is a sum


def test_slices_that_overlap_add_up() -> None:
    text = """g (T[1] x) => (T a, T b) {
        zero = Constant <value_ints = [0, 0]>() one = Constant <value_ints = [1]>() two = Constant <value_ints = [2]>()
        three = Constant <value_ints = [3]>() four = Constant <value_ints = [4]>()
        a = Slice(x, one, three, one) b = Slice(x, two, four, one) }"""
    require_torch(text, {"x": normal(0, 3, 6)}, lambda x: (x[:, 1:3], x[:, 2:4]))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_and_back(mode: str) -> None:
    text = f'g (T[1] x) => (T y) {{ y = DepthToSpace <blocksize = 2, mode = "{mode}">(x) }}'
    require_differences(text, {"x": normal(0, 2, 8, 3, 2)})
    require_differences("g (T[1] x) => (T y) { y = SpaceToDepth <blocksize = 2>(x) }", {"x": normal(0, 2, 3, 4, 6)})


def test_embedding_whose_table_is_also_a_matrix() -> None:
    """Tied weights: the table is looked up, and it is the matrix of the last product."""
    arrays = {"ids": np.array([[1, 1, 4], [0, 4, 4]]), "table": normal(0, 5, 3)}
    text = """g (int64[2,3] ids, T[1] table) => (T y) {
        e = Gather(table, ids) t = Transpose <perm = [1, 0]>(table) y = MatMul(e, t) }"""
    model = require_torch(text, arrays, lambda ids, table: table[ids] @ table.T)
    backward = [node for node in model.graph if ".backward." in str(node.name)]
    assert "Transpose" not in [node.op_type for node in backward]  # the table itself is read, no copy is kept


def test_gather_elements_adds_equal_indices() -> None:
    arrays = {"i": np.array([[0, 2, 2], [1, -1, 0]]), "x": normal(0, 2, 3)}
    text = "g (int64[2,3] i, T[1] x) => (T y) { y = GatherElements <axis = 1>(x, i) }"
    require_torch(text, arrays, lambda i, x: x.gather(1, i % 3))


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("depth", [1, 2])
def test_gather_nd(batch: int, depth: int) -> None:
    indices = np.random.default_rng(0).integers(-3, 3, (2, 5, depth))
    arrays = {"i": indices, "x": normal(1, *((2, 3, 3, 4) if batch else (3, 3, 4)))}

    def twin(i: Tensor, x: Tensor) -> Tensor:
        parts = i.unbind(-1)
        return torch.stack([x[n][tuple(p[n] for p in parts)] for n in range(2)]) if batch else x[parts]

    text = f"g (int64[2,5,{depth}] i, T[1] x) => (T y) {{ y = GatherND <batch_dims = {batch}>(x, i) }}"
    require_torch(text, arrays, twin)


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter(reduction: str) -> None:
    arrays = {"i": np.array([[0, 2], [1, 0]]), "x": normal(0, 2, 3), "u": normal(1, 2, 2)}
    text = f"""g (int64[2,2] i, T[1] x, T[1] u) => (T y) {{
        y = ScatterElements <axis = 1, reduction = "{reduction}">(x, i, u) }}"""
    adds = reduction == "add"
    require_torch(text, arrays, lambda i, x, u: x.scatter_add(1, i, u) if adds else x.scatter(1, i, u))
    arrays = {"i": np.array([[1], [0]]), "x": normal(0, 4, 3), "u": normal(1, 2, 3)}
    text = f"""g (int64[2,1] i, T[1] x, T[1] u) => (T y) {{ y = ScatterND <reduction = "{reduction}">(x, i, u) }}"""
    require_torch(text, arrays, lambda i, x, u: x.index_put((i[:, 0],), u, accumulate=adds))


def test_scatter_of_a_maximum_is_refused() -> None:
    arrays = {"i": np.array([[0, 2]]), "x": normal(0, 1, 3), "u": normal(1, 1, 2)}
    text = 'g (int64[1,2] i, T[1] x, T[1] u) => (T y) { y = ScatterElements <axis = 1, reduction = "max">(x, i, u) }'
    with pytest.raises(DifferentiationError, match="reduction max has no gradient here"):
        gradients_of(build(text, arrays), {"i": arrays["i"]})


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: (x * x).sum(axes, keep).sqrt(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keep),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@given(axes=st.lists(st.integers(-3, 2), min_size=1, max_size=3, unique_by=lambda axis: axis % 3), keep=st.booleans())
@settings(max_examples=4, deadline=None)
def test_reduction(name: str, axes: list[int], keep: bool) -> None:
    text = f"""g (T[1] x) => (T y) {{
        a = Constant <value_ints = {axes}>() y = {name} <keepdims = {int(keep)}>(x, a) }}"""
    x = np.random.default_rng(0).uniform(0.5, 2, (2, 3, 4)).round(1)  # some are equal
    require_torch(text, {"x": x}, lambda x: REDUCTIONS[name](x, axes, keep))


def test_reduction_over_all_axes_and_over_none() -> None:
    require_torch("g (T[1] x) => (T y) { y = ReduceSum <keepdims = 0>(x) }", {"x": normal(0, 2, 3)}, torch.sum)
    text = "g (T[1] x) => (T y) { s = ReduceSum <noop_with_empty_axes = 1>(x) y = Mul(s, s) }"
    require_torch(text, {"x": normal(0, 2, 3)}, lambda x: x * x)


def test_product_with_zeros() -> None:
    x = np.array([[2.0, 0.0, 3.0], [0.0, 0.0, 5.0], [1.0, 2.0, 4.0]])
    text = "g (T[1] x) => (T y) { a = Constant <value_ints = [1]>() y = ReduceProd <keepdims = 0>(x, a) }"
    require_torch(text, {"x": x}, lambda x: x.prod(1))


def test_norm_of_zeros_has_no_gradient() -> None:
    text = "g (T[1] x) => (T y) { y = ReduceL2 <keepdims = 0>(x) }"
    require_torch(text, {"x": np.zeros(3)}, lambda x: torch.linalg.vector_norm(x))


RESIZES = [
    ("nearest", "half_pixel", [5, 7]),
    ("nearest", "half_pixel", [6, 8]),
    ("nearest", "asymmetric", [6, 8]),
    ("nearest", "align_corners", [2, 9]),
    ("nearest", "half_pixel", [2, 3]),
    ("linear", "half_pixel", [6, 8]),
    ("linear", "half_pixel", [2, 9]),
    ("linear", "align_corners", [5, 7]),
    ("linear", "asymmetric", [5, 7]),
    ("linear", "pytorch_half_pixel", [1, 7]),
]


@pytest.mark.parametrize(("mode", "places", "sizes"), RESIZES)
def test_resize(mode: str, places: str, sizes: list[int]) -> None:
    attributes = f'mode = "{mode}", coordinate_transformation_mode = "{places}"'
    text = f"""g (T[1] x) => (T y) {{
        s = Constant <value_ints = [2, 3, {sizes[0]}, {sizes[1]}]>() y = Resize <{attributes}>(x, , , s) }}"""
    require_differences(text, {"x": normal(0, 2, 3, 3, 4)})


def test_resize_by_scales() -> None:
    text = """g (T[1] x) => (T y) <float[2] scales = {2.0, 1.5}> {
        y = Resize <mode = "linear", axes = [2, 3]>(x, , scales) }"""
    require_torch(
        text,
        {"x": normal(0, 1, 2, 3, 4)},
        lambda x: F.interpolate(x, scale_factor=(2.0, 1.5), mode="bilinear", recompute_scale_factor=False),
    )


def test_cubic_resize_is_refused() -> None:
    text = (
        """g (T[1] x) => (T y) { s = Constant <value_ints = [1, 1, 6, 8]>() y = Resize <mode = "cubic">(x, , , s) }"""
    )
    with pytest.raises(DifferentiationError, match="Resize: mode cubic has no gradient here"):
        gradients_of(build(text, {"x": normal(0, 1, 1, 3, 4)}), {})


def test_views_of_the_gradient_are_emitted_once() -> None:
    """Both products of a layer read the same flattened gradient."""
    text = "g (T[1] x, T[1] w) => (T y) { y = MatMul(x, w) }"
    arrays: dict[str, Any] = {"x": normal(0, 2, 3, 4), "w": normal(1, 4, 5)}
    model = require_torch(text, arrays, torch.matmul)
    gradients = [node for node in model.graph if node.op_type == "Reshape" and ".backward." in str(node.name)]
    assert len({node.inputs[0] for node in gradients}) == len(gradients)
