"""Keeps arithmetic of floats from TVM's simplifiers, which take floats for real numbers.

    a - b    ->    graphopt.ieee.subtract(a, b)    ->    a - b
    hide, before a schedule               reveal, when all passes have run

They turn x - x into 0, (x + c) - c into x, not (a < b) into b <= a, and x == x into true: wrong for NaN, infinities and
roundings. Calls of operators that they do not know stay. Only differences and comparisons give them occasion: sums and
products stay as they are, for schedules look for them.

Two more things are hidden. A name (`let v = ... in`) of a pure value makes TVM write the value out for each use in
passes that only analyze, which takes exponential time in a chain of names. And LLVM and the CUDA compiler contract a
product and a sum to one operation that rounds once: the product of one ONNX node is rounded before another reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import ir, s_tir, tirx

from graphopt.targets import statements
from graphopt.targets.blocks import loads, stages
from graphopt.targets.expressions import children, parts, rebuilt, rewritten
from graphopt.targets.kernels.common import RULE, SCHEDULED

_PREFIX = "graphopt.ieee."
_NAMED = f"{_PREFIX}named"
_BINARY: dict[str, Any] = {
    f"{_PREFIX}subtract": tirx.Sub,
    f"{_PREFIX}equal": tirx.EQ,
    f"{_PREFIX}not_equal": tirx.NE,
    f"{_PREFIX}less": tirx.LT,
    f"{_PREFIX}less_equal": tirx.LE,
    f"{_PREFIX}greater": tirx.GT,
    f"{_PREFIX}greater_equal": tirx.GE,
}
_FENCE = "llvm.arithmetic.fence"


def register() -> None:
    """Make the operators known to TVM; once is enough."""
    if _NAMED in ir.Op.list_op_names():
        return
    for name in (*_BINARY, _NAMED):
        # A value that is not pure is not bound by TVM's analyzers, and not written out.
        effect = tirx.CallEffectKind.ReadState if name == _NAMED else tirx.CallEffectKind.Pure
        ir.register_op_attr(name, "TCallEffectKind", effect.value)
        ir.register_op_attr(name, "TVectorizable", True)
        ir.register_op_attr(name, "TScriptPrinterName", name, level=20)


def named(value: Any) -> Any:
    """`value`, to be bound to a name, or to be rounded before it is read."""
    return ir.Call(ir.Op.get(_NAMED), [value], ret_ty=value.ty)


def hide(function: Any) -> Any:
    """The function with its differences and comparisons of floats hidden, and products rounded where nodes meet.

    What reduces stays as schedules look for it, but for what it reads; so does all that a schedule rule is for.
    """
    if function.attrs is not None and SCHEDULED in function.attrs:
        return function
    body = function.body
    found = stages(function) or []
    last = max((number for number, stage in enumerate(found, 1) if RULE in stage.block.annotations), default=0)
    ruled = [stage.buffer for stage in found[:last]]
    own = list(body.block.alloc_buffers) if isinstance(body, s_tir.SBlockRealize) else []

    def stored(store: Any, reduces: bool) -> Any:
        value = store.value
        if any(store.buffer.same_as(each) for each in ruled):
            return store
        if reduces:
            operands = children(value)
            if len(operands) != 2 or not _loads(operands[0], store.buffer) or _loads(operands[1], store.buffer):
                return store
            new = rebuilt(value, [operands[0], _hidden(operands[1])])
        else:
            new = _hidden(value)
            if isinstance(new, tirx.Mul) and _floating(new) and any(store.buffer.same_as(each) for each in own):
                new = named(new)
        return store if new.same_as(value) else tirx.BufferStore(store.buffer, new, list(store.indices))

    try:
        new = statements.changed(body, _hidden, stored)
    except ValueError:  # an expression that is not taken apart
        return function
    return function if new.same_as(body) else function.with_body(new)


def reveal(fenced: Callable[[Any], Any]) -> Any:
    """The pass that undoes `hide`; names become variables.

    Args:
        fenced: a product as the code generator's target writes one that is not contracted.
    """

    def swap(part: Any) -> Any:
        name = _name(part)
        if name == _NAMED:
            value = rewritten(part.args[0], swap)
            return fenced(value) if isinstance(value, tirx.Mul) and _floating(value) else value
        kind = _BINARY.get(name)
        return None if kind is None else kind(*(rewritten(each, swap) for each in part.args))

    def plain(value: Any) -> Any:
        return rewritten(value, swap)

    def stored(store: Any, _reduces: bool) -> Any:
        names = _Names()
        value = names.hoisted(store.value)
        new = plain(value)
        if not names.found:
            return store if new.same_as(store.value) else tirx.BufferStore(store.buffer, new, list(store.indices))
        body: list[Any] = []
        for buffer, each in names.found:
            body += [tirx.AllocBuffer(buffer), tirx.BufferStore(buffer, plain(each), [_zero()])]
        return tirx.SeqStmt([*body, tirx.BufferStore(store.buffer, new, list(store.indices))])

    def transform(function: Any, _module: Any, _context: Any) -> Any:
        if _PREFIX not in ir.save_json(function):  # which costs less than a walk through a long function
            return function
        return function.with_body(statements.changed(function.body, plain, stored))

    return tirx.transform.prim_func_pass(transform, opt_level=0)


class _Names:
    """Takes the names out of an expression, in the order in which they are computed.

    A name as TVM's generators have it makes their analyzers write its value out again. A variable does not, and LLVM
    keeps it in a register.
    """

    def __init__(self) -> None:
        self.found: list[tuple[Any, Any]] = []  # a variable of one element, and what it holds
        self.places: list[tuple[Any, Any]] = []

    def hoisted(self, expression: Any) -> Any:
        """`expression` with loads of variables; what only a condition computes stays where it is."""
        return rewritten(expression, self._swap)

    def _swap(self, part: Any) -> Any:
        if isinstance(part, tirx.Var):
            return next((load for name, load in self.places if name.same_as(part)), None)
        if _name(part).endswith("if_then_else"):
            operands = [self.hoisted(part.args[0]), *(_renamed(each, self.places) for each in part.args[1:])]
            return rebuilt(part, operands)
        if not isinstance(part, tirx.Let):
            return None
        while isinstance(part, tirx.Let):  # a chain of names may be longer than Python's stack
            value = self.hoisted(part.value)
            if _name(part.value) != _NAMED:
                return tirx.Let(part.var, value, self.hoisted(part.body))
            buffer = tirx.decl_buffer((1,), part.var.ty.dtype, str(part.var.name), scope="local")
            self.found.append((buffer, value))
            self.places.append((part.var, tirx.BufferLoad(buffer, [_zero()])))
            part = part.body
        return self.hoisted(part)


def _renamed(expression: Any, places: list[tuple[Any, Any]]) -> Any:
    def swap(part: Any) -> Any:
        if isinstance(part, tirx.Var):
            return next((load for name, load in places if name.same_as(part)), None)
        return None

    return rewritten(expression, swap)


def _zero() -> Any:
    return tirx.IntImm("int32", 0)


def llvm_fence(product: Any) -> Any:
    """A product of floats that LLVM rounds before it adds to it."""
    return tirx.call_llvm_pure_intrin(product.ty, _FENCE, product)


def holds_names(block: Any) -> bool:
    """Whether a block gives names to values, which are better computed in one place: nothing should inline it."""
    value = getattr(block.body, "value", None)
    if value is None:
        return False
    return any(isinstance(part, tirx.Let) and _name(part.value) == _NAMED for part in parts(value))


def _name(part: Any) -> str:
    return str(part.op.name) if isinstance(part, ir.Call) and isinstance(part.op, ir.Op) else ""


def _floating(value: Any) -> bool:
    return "float" in str(value.ty.dtype)


def _hidden(value: Any) -> Any:
    """`value` with its differences and comparisons of floats as calls."""
    kinds = {kind: name for name, kind in _BINARY.items()}

    def swap(part: Any) -> Any:
        name = kinds.get(type(part))
        if name is None or not _floating(part.a):
            return None
        return ir.Call(ir.Op.get(name), [rewritten(part.a, swap), rewritten(part.b, swap)], ret_ty=part.ty)

    return rewritten(value, swap)


def _loads(value: Any, buffer: Any) -> bool:
    return any(load.source.same_as(buffer) for load in loads(value))
