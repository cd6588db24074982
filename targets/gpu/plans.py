"""The plan of a function whose kernels a template has emitted, as an attribute of the function."""

from __future__ import annotations

import json
from dataclasses import asdict

from tvm import tirx

from graphopt.cost.workload import KernelPlan

_KEY = "graphopt.plan"


def attribute(plan: KernelPlan) -> dict[str, str]:
    """The attribute that marks a function with `plan`."""
    return {_KEY: json.dumps(asdict(plan))}


def of(function: tirx.PrimFunc) -> KernelPlan:
    """The plan that a function is marked with."""
    return KernelPlan(**json.loads(str(function.attrs[_KEY]))) if _KEY in function.attrs else KernelPlan("written")
