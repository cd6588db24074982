"""Which ONNX nodes a fused kernel computes, by value numbering: fusion regroups calls but computes the same values.

Every binding before fusion gets a number made of its function and its operands' numbers; the bodies of the fused
functions are read with their arguments' numbers, and whatever value appears there again is traced to its node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

Results = Sequence[tuple[str, str]]
"""(ONNX node, name of the Relax variable it emitted last), in order of emission."""


def trace(before: Any, after: Any, results: Results) -> list[tuple[str, ...]]:
    """For each binding of `after.main`, the nodes whose values it computes, in order.

    Args:
        before: the legalized module, one kernel per call.
        after: the same module after FuseOps, before FuseTIR.
    """
    numbers: dict[Any, Any] = {parameter: ("input", i) for i, parameter in enumerate(before["main"].params)}
    node_of: dict[Any, str] = {}
    last = {name: position for position, (_, name) in enumerate(results)}
    position = 0
    for variable, value in _bindings(before["main"].body):
        numbers[variable] = number = _number(value, numbers)
        if position < len(results):
            node_of.setdefault(number, results[position][0])
        position = max(position, last.get(str(variable.name), -1) + 1)
    numbers = {parameter: ("input", i) for i, parameter in enumerate(after["main"].params)}
    traced = []
    for variable, value in _bindings(after["main"].body):
        found: dict[str, None] = {}
        numbers[variable] = _read(after, value, numbers, node_of, found)
        traced.append(tuple(found))
    return traced


def _bindings(body: Any) -> Iterator[tuple[Any, Any]]:
    for block in body.blocks:
        for binding in block.bindings:
            yield binding.var, binding.value


def _read(module: Any, value: Any, numbers: dict[Any, Any], node_of: dict[Any, str], found: dict[str, None]) -> Any:
    """Number of `value` in the fused module; the nodes met on the way are added to `found`."""
    inner = module[value.op] if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar) else None
    if inner is None:
        number = _number(value, numbers)
        _note(number, node_of, found)
        return number
    local = {p: _number(a, numbers) for p, a in zip(inner.params, value.args, strict=True)}
    for variable, part in _bindings(inner.body):
        local[variable] = _number(part, local)
        _note(local[variable], node_of, found)
    return _number(inner.body.body, local)


def _note(number: Any, node_of: dict[Any, str], found: dict[str, None]) -> None:
    if number in node_of:
        found[node_of[number]] = None


def _number(expression: Any, numbers: dict[Any, Any]) -> Any:
    """Equal for expressions that compute the same value from the same inputs."""
    if isinstance(expression, relax.Var):
        return numbers[expression]
    if isinstance(expression, relax.Tuple):
        return hash(("tuple", *(_number(item, numbers) for item in expression.fields)))
    if isinstance(expression, relax.TupleGetItem):
        return hash(("item", int(expression.index), _number(expression.tuple_value, numbers)))
    if isinstance(expression, relax.Call):
        operator = getattr(expression.op, "name", None) or expression.op.name_hint
        return hash((str(operator), *(_number(item, numbers) for item in expression.args)))
    if isinstance(expression, tvm.ir.GlobalVar):
        return str(expression.name_hint)
    return tvm_ffi.structural_hash(expression)
