"""Where fusion ends, so that no kernel grows without bound.

    parts(v) = own(v) + parts of what v reads element by element, each counted once
                      + parts of what v reads at other places, once for each place

What is read element by element has a name in the kernel (`inlining`). What is read otherwise, transposed or from a
smaller tensor, is written out wherever it is read; so is everything in a kernel with bfloat16 in it, which has no
names. A value with more than MOST parts is computed from results that lie in memory: TVM does not fuse a
value that its dataflow block outputs, so those results become such values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm import ir, relax, tirx

from graphopt.targets.common import origins
from graphopt.targets.common.converters.base import INJECTIVE, REDUCTION
from graphopt.targets.common.tir import blocks
from graphopt.targets.common.tir.expressions import parts

MOST = 2000
"""Parts of the expressions in one kernel. A sigmoid has 60; LLVM takes a tenth of a second for a thousand."""

NAMED = 400
"""Most parts of a value that is read at other places than its own; a larger one has names, and stays in memory."""


@dataclass(frozen=True, slots=True)
class _Kernel:
    """One operator: `parts` of its own expressions, and how often it reads each operand at other places."""

    pattern: int
    parts: int
    elsewhere: tuple[int, ...]  # 0: element by element
    reads: tuple[int, ...]
    nameless: bool


@dataclass(frozen=True, slots=True)
class _Held:
    """Size of a value that may be fused: parts of it and of the values inside it, each once, and all written out."""

    inside: dict[relax.Var | tuple[relax.Var, relax.Var], int]
    written: int
    nameless: bool

    @property
    def size(self) -> int:
        return self.written if self.nameless else sum(self.inside.values())


def cut(module: ir.IRModule) -> ir.IRModule:
    """Return `module`, legalized and with operator patterns, with the large values of `main` kept in memory."""
    main = module["main"]
    known: dict[ir.GlobalVar, _Kernel] = {}
    held: dict[relax.Var, _Held] = {}
    cuts: dict[relax.Var, relax.Var] = {}
    for variable, value in origins.bindings(main):
        if not isinstance(value, relax.Call) or str(getattr(value.op, "name", "")) != "relax.call_tir":
            continue
        if value.args[0] not in known:
            known[value.args[0]] = _kernel(module[value.args[0]])
        kernel = known[value.args[0]]
        so_far = _Held({variable: kernel.parts}, kernel.parts, kernel.nameless)
        if kernel.pattern <= REDUCTION:
            operands = [
                (operand, held[operand], count, reads)
                for operand, count, reads in zip(value.args[1].fields, kernel.elsewhere, kernel.reads, strict=False)
                if operand in held and operand not in cuts
            ]
            for operand, producer, count, reads in sorted(operands, key=lambda each: each[1].size):
                within = producer.inside if count == 0 else {(variable, operand): producer.size * count}
                added = _Held(
                    {**so_far.inside, **within},
                    so_far.written + reads * producer.written,
                    so_far.nameless or producer.nameless,
                )
                if added.size > MOST or (count and producer.size > NAMED):
                    cuts[operand] = relax.Var(str(operand.name), operand.ty)
                else:
                    so_far = added
        if kernel.pattern <= INJECTIVE:
            held[variable] = so_far
    return _kept(module, cuts) if cuts else module


def _kernel(function: tirx.PrimFunc) -> _Kernel:
    attributes = function.attrs or {}
    pattern = int(attributes["op_pattern"]) if "op_pattern" in attributes else 8
    stages = blocks.stages(function)
    unknown = _Kernel(pattern, MOST, (0,) * len(function.params), (1,) * len(function.params), False)
    if stages is None:
        return unknown
    try:
        size = sum(sum(1 for _ in parts(stage.value)) for stage in stages)
        read = [list(_loads(stages, parameter)) for parameter in function.params]
    except ValueError:  # an expression that is not taken apart
        return unknown
    own = {str(list(stages[-1].variables))}
    elsewhere = tuple(len({str(list(load.indices)) for load in loads} - own) for loads in read)
    nameless = any(map(blocks.holds_bfloat16, stages))
    return _Kernel(pattern, size, elsewhere, tuple(map(len, read)), nameless)


def _loads(stages: list[blocks.Stage], parameter: tirx.Var) -> Iterator[ir.TensorLoad]:
    for stage in stages:
        yield from (load for load in blocks.loads(stage.value) if load.source.same_as(parameter))


def _kept(module: ir.IRModule, fresh: dict[relax.Var, relax.Var]) -> ir.IRModule:
    """The module with these variables of `main` replaced by outputs of the dataflow block that binds them."""
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


def _substituted(value: relax.Expr, fresh: dict[relax.Var, relax.Var]) -> relax.Expr:
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
