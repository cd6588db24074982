"""A written kernel's plan goes with its function."""

from __future__ import annotations

from typing import Any

from tvm import te

from graphopt.cost.workload import KernelPlan
from graphopt.targets.gpu import plans


def function() -> Any:
    a = te.placeholder((4,), name="a")
    return te.create_prim_func([a, te.compute((4,), lambda i: a[i] + 1, name="y")])


def test_what_is_marked_is_found_again() -> None:
    plan = KernelPlan("rows", "8x32x4", 1.5e-6, "plain", "fp16 mma")
    ((key, value),) = plans.attribute(plan).items()
    assert plans.of(function().with_attr(key, value)) == plan


def test_a_function_without_one_was_written() -> None:
    assert plans.of(function()) == KernelPlan("written")
