"""Where fusion ends, so that no kernel grows without bound.

    parts(v) = own(v) + parts of what v reads element by element, each counted once
                      + parts of what v reads at other places, once for each place

What is read element by element has a name in the kernel (`inlining`). What is read otherwise, transposed or from a
smaller tensor, is written out wherever it is read. A value with more than MOST parts is computed from results that lie
in memory: TVM's fusion takes no value into a kernel that the function gives out, so those results become such values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvm import ir, relax

from graphopt.targets import blocks, origins
from graphopt.targets.converters.base import INJECTIVE, REDUCTION
from graphopt.targets.expressions import parts

MOST = 2000
"""Parts of the expressions in one kernel. A sigmoid has 60; LLVM takes a tenth of a second for a thousand."""

NAMED = 400
"""Parts of a value that is written out at other places than its own: it has names by then, and stays in memory."""


@dataclass(frozen=True, slots=True)
class _Kernel:
    """Of one operator: `parts` of its own expressions, and how often it reads each operand at other places."""

    pattern: int
    parts: int
    elsewhere: tuple[int, ...]  # 0: element by element


def cut(module: Any) -> Any:
    """The module, legalized and with operator patterns, in whose `main` large values are in memory."""
    main = module["main"]
    known: dict[Any, _Kernel] = {}
    held: dict[Any, dict[Any, int]] = {}  # for a value that may be fused: the parts of it and of what is inside it
    cuts: dict[Any, Any] = {}
    for variable, value in origins.bindings(main):
        if not isinstance(value, relax.Call) or str(getattr(value.op, "name", "")) != "relax.call_tir":
            continue
        if value.args[0] not in known:
            known[value.args[0]] = _kernel(module[value.args[0]])
        kernel = known[value.args[0]]
        inside = {variable: kernel.parts}
        if kernel.pattern <= REDUCTION:
            operands = list(zip(value.args[1].fields, kernel.elsewhere, strict=False))
            for operand, count in sorted(operands, key=lambda each: _size(held.get(each[0]))):
                found = held.get(operand)
                if found is None or operand in cuts:
                    continue
                size = _size(found)
                added = {**inside, **found} if count == 0 else {**inside, (variable, operand): size * count}
                if _size(added) > MOST or (count and size > NAMED):
                    cuts[operand] = relax.Var(str(operand.name), operand.ty)
                else:
                    inside = added
        if kernel.pattern <= INJECTIVE:
            held[variable] = inside
    return _kept(module, cuts) if cuts else module


def _size(inside: dict[Any, int] | None) -> int:
    return sum((inside or {}).values())


def _kernel(function: Any) -> _Kernel:
    attributes = function.attrs or {}
    pattern = int(attributes["op_pattern"]) if "op_pattern" in attributes else 8
    found = blocks.stages(function)
    if found is None:
        return _Kernel(pattern, MOST, tuple(0 for _ in function.params))
    try:
        size = sum(sum(1 for _ in parts(stage.value)) for stage in found)
        places = [
            {str(list(load.indices)) for load in _loads(found, parameter)} - {str(list(found[-1].variables))}
            for parameter in function.params
        ]
    except ValueError:  # an expression that is not taken apart
        return _Kernel(pattern, MOST, tuple(0 for _ in function.params))
    return _Kernel(pattern, size, tuple(len(each) for each in places))


def _loads(found: list[blocks.Stage], parameter: Any) -> Iterator[Any]:
    for stage in found:
        yield from (load for load in blocks.loads(stage.value) if load.source.same_as(parameter))


def _kept(module: Any, fresh: dict[Any, Any]) -> Any:
    """The module in whose `main` these variables are others, which the block that they are bound in gives out."""
    main = module["main"]
    bodies = []
    for block in main.body.blocks:
        bindings = []
        for binding in block.bindings:
            value = _substituted(binding.value, fresh)
            bindings.append(relax.VarBinding(fresh.get(binding.var, binding.var), value))
        bodies.append(type(block)(bindings))
    body = relax.SeqExpr(bodies, _substituted(main.body.body, fresh))
    changed = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
    result = ir.IRModule(dict(module.functions), attrs=module.attrs)
    result.update_func(module.get_global_var("main"), changed)
    return result


def _substituted(value: Any, fresh: dict[Any, Any]) -> Any:
    if isinstance(value, relax.Var):
        return fresh.get(value, value)
    if isinstance(value, relax.Tuple):
        return relax.Tuple([_substituted(each, fresh) for each in value.fields])
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(_substituted(value.tuple_value, fresh), value.index)
    if isinstance(value, relax.Call):
        arguments = [_substituted(each, fresh) for each in value.args]
        return relax.Call(value.op, arguments, value.attrs, value.ty_args, ret_ty=value.ty)
    return value
