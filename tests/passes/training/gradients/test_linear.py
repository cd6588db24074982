"""Gradients of matrix products, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import DifferentiationError
from tests.helpers.draws import normal
from tests.helpers.gradients import build, gradients_of, require_torch

MATMULS = [
    ((3,), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((5, 2, 3), (3,)),
    ((5, 2, 3), (3, 4)),
    ((3,), (5, 3, 4)),
    ((2, 3), (5, 3, 4)),
    ((6, 5, 2, 3), (6, 5, 3, 4)),
    ((6, 1, 2, 3), (5, 3, 4)),
    ((1, 2, 3), (6, 5, 3, 4)),
]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("left", "right"), MATMULS)
def test_matmul(left: tuple[int, ...], right: tuple[int, ...], dtype: type) -> None:
    arrays = {"a": normal(0, *left, dtype=dtype), "b": normal(1, *right, dtype=dtype)}
    require_torch("g (T[1] a, T[1] b) => (T y) { y = MatMul(a, b) }", arrays, torch.matmul)


@given(
    turned=st.tuples(st.booleans(), st.booleans()),
    bias=st.sampled_from([None, (), (4,), (2, 1), (1, 4), (2, 4)]),
    factors=st.sampled_from([(1.0, 1.0), (0.5, 2.0), (0.0, 1.0)]),
)
@settings(max_examples=20, deadline=None)
def test_gemm(turned: tuple[bool, bool], bias: tuple[int, ...] | None, factors: tuple[float, float]) -> None:
    arrays = {"a": normal(0, *((3, 2) if turned[0] else (2, 3))), "b": normal(1, *((4, 3) if turned[1] else (3, 4)))}
    if bias is not None:
        arrays["c"] = normal(2, *bias)
    attributes = f"alpha = {factors[0]}, beta = {factors[1]}, transA = {int(turned[0])}, transB = {int(turned[1])}"
    operands = ", ".join(arrays)
    inputs = ", ".join(f"T[1] {name}" for name in arrays)

    def twin(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        y = factors[0] * ((a.T if turned[0] else a) @ (b.T if turned[1] else b))
        return y if c is None else y + factors[1] * c

    require_torch(f"g ({inputs}) => (T y) {{ y = Gemm <{attributes}>({operands}) }}", arrays, twin)


@pytest.mark.parametrize(
    "equation", ["ij,jk->ik", "bhid,bhjd->bhij", "ij,ik", "bij,kj->bk", "ij->j", "ij->ji", "i,j->ij", "ij,jk,kl->il"]
)
def test_einsum(equation: str) -> None:
    sizes = dict(zip("bhijkld", (2, 3, 4, 5, 6, 2, 3), strict=True))
    terms = equation.split("->")[0].split(",")
    arrays = {f"a{place}": normal(place, *(sizes[each] for each in term)) for place, term in enumerate(terms)}
    inputs, operands = ", ".join(f"T[1] {name}" for name in arrays), ", ".join(arrays)
    text = f'g ({inputs}) => (T y) {{ y = Einsum <equation = "{equation}">({operands}) }}'
    require_torch(text, arrays, lambda *tensors: torch.einsum(equation, *tensors))


def test_einsum_of_a_diagonal_is_refused() -> None:
    model = build('g (T[3,3] a) => (T y) { y = Einsum <equation = "ii->i">(a) }', {"a": normal(0, 3, 3)})
    with pytest.raises(DifferentiationError, match=r"einsum0 \(Einsum: .* takes a diagonal"):
        gradients_of(model, {})
