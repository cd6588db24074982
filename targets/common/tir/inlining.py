"""Elementwise blocks become one block, in which every value has a name: an expression grows by a sum, not a product.

    t[i] = sigmoid(x[i])    y[i] = x[i] * t[i]    z[i] = y[i] * y[i]
      ->  z[i] = let t = sigmoid(x[i]) in let y = x[i] * t in y * y

TVM's own inlining writes a value out wherever it is read. So it doubles with every y = x * sigmoid(x), and a chain of
them is never done. Names stay in registers, which is as fast as one long expression.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import ir, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import RULE, SCHEDULED
from graphopt.targets.common.tir import ieee
from graphopt.targets.common.tir.blocks import Stage, holds_bfloat16, loads, replaced, stages
from graphopt.targets.common.tir.expressions import parts, rewritten

SHORT = 8
"""Largest expression, in parts, that is written out where it is read once: a name would hide it from patterns."""


_KEPT = {"bool": "int8"}
"""Types of the names of values whose own type has no vectors in memory."""


def inline(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with its elementwise blocks merged, as far as they go over the same elements.

    Blocks up to the last one with a schedule rule belong to that rule, and stay. Kernels with bfloat16 are left to
    TVM's inlining: its legalization to float32 does not look into names, and rejects a name that occurs twice,
    simplified in two ways. `fusion_limits.cut` keeps such kernels small.
    """
    if function.attrs is not None and SCHEDULED in function.attrs:
        return function
    ordered = stages(function)
    if ordered is None or len(ordered) < 2:
        return function
    if any(map(holds_bfloat16, ordered)):
        return function
    anchors = [number for number, stage in enumerate(ordered) if RULE in stage.block.annotations]
    first = anchors[-1] + 1 if anchors else 0
    try:
        return _Merge(function, ordered[:first], ordered[first:]).done()
    except ValueError:  # an expression that is not taken apart
        return function


class _Merge:
    def __init__(self, function: tirx.PrimFunc, before: list[Stage], after: list[Stage]) -> None:
        self.function, self.before, self.after = function, before, after
        own = list(function.body.block.alloc_buffers)
        self.loads = [loads(stage.value) for stage in after]
        self.into: dict[int, int] = {}  # a stage, and the one that it becomes part of
        read_before = [load.source for stage in before for load in loads(stage.value)]
        for number in range(len(after) - 2, -1, -1):
            buffer = after[number].buffer
            temporary = any(buffer.same_as(each) for each in own) and not any(buffer.same_as(e) for e in read_before)
            writers = sum(stage.buffer.same_as(buffer) for stage in after)
            if temporary and writers == 1 and (target := self._target(number)) is not None:
                self.into[number] = target

    def _target(self, number: int) -> int | None:
        """The one stage that all consumers of this one merge into, element by element; None if there is none."""
        stage = self.after[number]
        if stage.reduces or not _own_element(stage):
            return None
        targets = set()
        for reader in range(number + 1, len(self.after)):
            places = [load.indices for load in self.loads[reader] if load.source.same_as(stage.buffer)]
            if not places:
                continue
            targets.add(self.into.get(reader, reader))
            follower = self.after[reader]
            if follower.reduces or follower.extents != stage.extents:
                return None
            if not all(_same(place, follower.variables) for place in places):
                return None
        return targets.pop() if len(targets) == 1 else None

    def done(self) -> tirx.PrimFunc:
        if not self.into:
            return self.function
        gone = [self.after[number].buffer for number in self.into]
        nests = [stage.nest for stage in self.before]
        for number, stage in enumerate(self.after):
            if number not in self.into:
                members = [member for member, target in self.into.items() if target == number]
                nests.append(self._merged(number, sorted(members)) if members else stage.nest)
        return replaced(self.function, nests, lambda buffer: not any(buffer.same_as(each) for each in gone))

    def _places(self, members: list[int], number: int) -> set[int]:
        """The members that indices of loads read: a block declares its reads outside its body, where no name exists."""
        indexing: set[int] = set()
        for member in reversed(members):
            buffer = self.after[member].buffer
            for reader in (*members, number):
                inside = self.loads[reader] if reader in indexing else []
                inner = [part for load in self.loads[reader] for index in load.indices for part in loads(index)]
                if any(load.source.same_as(buffer) for load in (*inside, *inner)):
                    indexing.add(member)
        return indexing

    def _merged(self, number: int, members: list[int]) -> tirx.Stmt:
        """The loops of a stage, with the values of its members bound before its own."""
        stage = self.after[number]
        values: list[tuple[tirx.Buffer, Expr]] = []  # a tensor, and what is there in its place
        names: list[tuple[tirx.Var, Expr]] = []
        read = [load.source for reader in (*members, number) for load in self.loads[reader]]
        places = self._places(members, number)
        for member in members:
            producer = self.after[member]
            value = _moved(producer.value, producer.variables, stage.variables, values)
            twice = sum(source.same_as(producer.buffer) for source in read) > 1
            if member not in places and (twice or _longer(value, SHORT)):
                kind = str(producer.buffer.dtype)
                kept = _KEPT.get(kind, kind)
                name = tirx.Var(f"v{len(names)}", kept)
                names.append((name, ieee.named(value if kept == kind else tirx.Cast(kept, value))))
                value = name if kept == kind else tirx.Cast(kind, name)
            else:
                value = ieee.product_rounded(value)
            values.append((producer.buffer, value))
        body = _moved(stage.value, stage.variables, stage.variables, values)
        for name, value in reversed(names):
            body = tirx.Let(name, value, body)
        return stage.storing(body)


def _own_element(stage: Stage) -> bool:
    """Whether the stage stores, at each of its iterators, one element of a tensor that has no more."""
    return _same(stage.indices, stage.variables) and stage.extents == tuple(int(d) for d in stage.buffer.shape)


def _same(indices: Sequence[Expr], variables: tuple[tirx.Var, ...]) -> bool:
    places = tuple(indices)
    return len(places) == len(variables) and all(a.same_as(b) for a, b in zip(places, variables, strict=True))


def _longer(expression: Expr, limit: int) -> bool:
    return any(number > limit for number, _ in enumerate(parts(expression), 1))


def _moved(
    value: Expr, old: tuple[tirx.Var, ...], new: tuple[tirx.Var, ...], values: list[tuple[tirx.Buffer, Expr]]
) -> Expr:
    """`value` at other iterators, with loads of some tensors replaced, and with names inside it of its own."""
    variables = list(zip(old, new, strict=True))

    def swap(part: Expr) -> Expr | None:
        if isinstance(part, tirx.Var):
            return next((other for variable, other in variables if variable.same_as(part)), None)
        if isinstance(part, ir.TensorLoad):
            return next((other for tensor, other in values if tensor.same_as(part.source)), None)
        if isinstance(part, tirx.Let):
            inner = rewritten(part.value, swap)
            name = tirx.Var(str(part.var.name), str(part.var.ty.dtype))
            variables.append((part.var, name))
            let = tirx.Let(name, inner, rewritten(part.body, swap))
            variables.pop()
            return let
        return None

    return rewritten(value, swap)
