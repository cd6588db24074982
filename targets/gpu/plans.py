"""The plan of a function whose kernels a template has emitted, as an attribute of the function."""

from __future__ import annotations

import json
from dataclasses import asdict

from tvm import tirx

from graphopt.cost.workload import Plan

_KEY = "graphopt.plan"


def attribute(plan: Plan) -> dict[str, str]:
    """The attribute that marks a function with `plan`."""
    return {_KEY: json.dumps(asdict(plan))}


def of(function: tirx.PrimFunc) -> Plan:
    """The plan that a function is marked with."""
    return Plan(**json.loads(str(function.attrs[_KEY]))) if _KEY in function.attrs else Plan("written")
