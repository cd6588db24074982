"""The plan of a function whose kernels are written already, as an attribute that goes with it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from graphopt.cost.workload import Plan

_KEY = "graphopt.plan"


def attribute(plan: Plan) -> dict[str, str]:
    """What the function is marked with."""
    return {_KEY: json.dumps(asdict(plan))}


def of(function: Any) -> Plan:
    """The plan that a function is marked with."""
    return Plan(**json.loads(str(function.attrs[_KEY]))) if _KEY in function.attrs else Plan("written")
