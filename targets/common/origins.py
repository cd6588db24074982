"""Which ONNX nodes a fused kernel computes, traced by data dependences: not by names, emission order or equal values.

A node owns the Relax variables that its outputs are computed from and that no node before it owns. Fusion regroups
calls and renames variables, but both modules are the same graph of calls: walked in parallel from their results back
to their inputs, operand by operand, they meet the same call at the same time, also where calls are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

Owners = Mapping[relax.Var, str]
"""The ONNX node of each Relax variable; variables are the same where they are the same object."""


def claim(
    owners: dict[relax.Var, str], variable: relax.Var, node: str, definition: Callable[[relax.Var], relax.Expr | None]
) -> None:
    """Let `node` own `variable` and the variables that it is computed from, up to those that have an owner.

    Args:
        definition: the expression that a variable is bound to; None for a parameter.
    """
    waiting = [variable]
    while waiting:
        variable = waiting.pop()
        if variable not in owners and (value := definition(variable)) is not None:
            owners[variable] = node
            waiting.extend(_variables(value))


def legalized(owners: Owners, module: tvm.IRModule) -> dict[relax.Var, str]:
    """The owners after LegalizeOps, which keeps every variable and may compute it in more steps than one."""
    definitions = dict(bindings(module["main"]))
    extended = dict(owners)
    for variable, node in owners.items():
        for operand in _variables(definitions.get(variable)):
            claim(extended, operand, node, definitions.get)
    return extended


def trace(before: tvm.IRModule, after: tvm.IRModule, owners: Owners) -> dict[relax.Var, tuple[str, ...]]:
    """For each variable of `after.main`, the nodes that compute its value, in order.

    Args:
        before: the legalized module, one kernel per call.
        after: the same module after FuseOps, before FuseTIR.
        owners: of the variables of `before`.
    """
    nodes = [owners.get(variable) for variable, _ in bindings(before["main"])]
    matches: dict[int, set[int]] = {}
    seen: set[tuple[_Step, _Step]] = set()
    waiting = [(_result(before), _result(after))]
    while waiting:
        old, new = waiting.pop()
        if isinstance(old, tuple) and isinstance(new, tuple):
            waiting.extend(zip(old, new, strict=False))
        elif isinstance(old, _Step) and isinstance(new, _Step) and (old, new) not in seen:
            seen.add((old, new))
            if old.operator == new.operator:
                matches.setdefault(new.position, set()).add(old.position)
                waiting.append((old.operands, new.operands))
    traced = {}
    for position, (variable, _) in enumerate(bindings(after["main"])):
        named = (nodes[old] for old in sorted(matches.get(position, ())))
        traced[variable] = tuple(dict.fromkeys(node for node in named if node is not None))
    return traced


def bindings(function: relax.Function) -> Iterator[tuple[relax.Var, relax.Expr]]:
    """Variable and expression of each binding."""
    for block in function.body.blocks:
        for binding in block.bindings:
            yield binding.var, binding.value


def _variables(expression: relax.Expr | None) -> Iterator[relax.Var]:
    """The variables that the expression reads."""
    if isinstance(expression, relax.Var):
        yield expression
    elif isinstance(expression, relax.Call | relax.Tuple):
        for part in expression.args if isinstance(expression, relax.Call) else expression.fields:
            yield from _variables(part)
    elif isinstance(expression, relax.TupleGetItem):
        yield from _variables(expression.tuple_value)


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One call of a module; `position` is the binding of `main` with the call, or with the call of its function."""

    operator: str
    operands: tuple[Any, ...]
    position: int


def _result(module: tvm.IRModule) -> Any:
    """What `main` returns: nested tuples of steps, and None for parameters and constants."""
    known: dict[relax.Var, Any] = {}
    for position, (variable, value) in enumerate(bindings(module["main"])):
        known[variable] = _evaluate(module, value, known, position)
    return _evaluate(module, module["main"].body.body, known, -1)


def _evaluate(module: tvm.IRModule, expression: relax.Expr, known: Mapping[relax.Var, Any], position: int) -> Any:
    """Steps in place of variables; the calls of a grouped function are steps of its caller."""
    if isinstance(expression, relax.Var):
        return known.get(expression)
    if isinstance(expression, relax.Tuple):
        return tuple(_evaluate(module, item, known, position) for item in expression.fields)
    if isinstance(expression, relax.TupleGetItem):
        fields = _evaluate(module, expression.tuple_value, known, position)
        return fields[int(expression.index)] if isinstance(fields, tuple) else fields
    if not isinstance(expression, relax.Call):
        return None
    operands = tuple(_evaluate(module, item, known, position) for item in expression.args)
    if not isinstance(expression.op, tvm.ir.GlobalVar):
        kernel = expression.args[0] if expression.args else None
        name = str(kernel.name_hint) if isinstance(kernel, tvm.ir.GlobalVar) else ""
        return _Step(f"{getattr(expression.op, 'name', expression.op)} {name}", operands, position)
    inner = module[expression.op]
    local = dict(zip(inner.params, operands, strict=True))
    for variable, value in bindings(inner):
        local[variable] = _evaluate(module, value, local, position)
    return _evaluate(module, inner.body.body, local, position)
