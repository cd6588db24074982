"""Keeps arithmetic of tensors from TVM's simplifiers, which take floats for real numbers.

    a - b    ->    graphopt.ieee.subtract(a, b)    ->    a - b
    hide, before a schedule               reveal, when all passes have run

They turn x - x into 0, (x + c) - c into x, not (a < b) into b <= a, and x == x into true: wrong for NaN, infinities and
roundings. Calls of operators that they do not know stay. Only differences and comparisons are simplified wrongly: sums
and products of floats stay as they are, since schedules match them. Integers from tensors wrap around; indices, for
which the simplifiers are designed, never do. So integer arithmetic of tensors is hidden too.

Three more things are hidden. TVM computes bfloat16 in float32 and drops conversions between the two: what becomes a
bfloat16 is rounded to one while it is a float32. A name (`let v = ... in`) of a pure value makes TVM write the value
out for each use in passes that only analyze, which takes exponential time in a chain of names. And LLVM and the CUDA
compiler contract a product and a sum to one operation that rounds once: the product of one ONNX node is rounded before
another reads it.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import RULE, SCHEDULED
from graphopt.targets.common.tir import statements
from graphopt.targets.common.tir.blocks import loads, stages
from graphopt.targets.common.tir.expressions import children, parts, rebuilt, rewritten

_PREFIX = "graphopt.ieee."
_NAMED = f"{_PREFIX}named"
_ROUNDED = f"{_PREFIX}bfloat16"
_BINARY: dict[str, type[Expr]] = {
    f"{_PREFIX}add": tirx.Add,
    f"{_PREFIX}multiply": tirx.Mul,
    f"{_PREFIX}subtract": tirx.Sub,
    f"{_PREFIX}equal": tirx.EQ,
    f"{_PREFIX}not_equal": tirx.NE,
    f"{_PREFIX}less": tirx.LT,
    f"{_PREFIX}less_equal": tirx.LE,
    f"{_PREFIX}greater": tirx.GT,
    f"{_PREFIX}greater_equal": tirx.GE,
}
_NAMES = {kind: name for name, kind in _BINARY.items()}
_FENCE = "llvm.arithmetic.fence"


def register() -> None:
    """Register the operators with TVM, unless they are registered already."""
    try:
        ir.Op.get(_NAMED)
        return
    except AttributeError:
        pass
    for name in (*_BINARY, _NAMED, _ROUNDED):
        # A value that is not pure is not bound by TVM's analyzers, and not written out.
        effect = tirx.CallEffectKind.ReadState if name == _NAMED else tirx.CallEffectKind.Pure
        ir.register_op_attr(name, "TCallEffectKind", effect.value)
        ir.register_op_attr(name, "TVectorizable", True)
        ir.register_op_attr(name, "TScriptPrinterName", name, level=20)
    ir.register_op_attr("tirx.nearbyint", "TVectorizable", True)  # TVM sets this for its other roundings only


def _operator(name: str) -> ir.Op:
    register()
    return ir.Op.get(name)


def named(value: Expr) -> Expr:
    """`value`, marked to be bound to a name, or to be rounded before it is read."""
    return ir.Call(_operator(_NAMED), [value], ret_ty=value.ty)


def product_rounded(value: Expr) -> Expr:
    """`value` as another node reads it: a product of floats is rounded first."""
    return named(value) if isinstance(value, tirx.Mul) and _floating(value) else value


def difference(a: Expr, b: Expr) -> Expr:
    """`a - b` of floats, hidden from the start: TVM also simplifies definitions when it makes functions of them."""
    return ir.Call(_operator(f"{_PREFIX}subtract"), [a, b], ret_ty=a.ty)


def hide(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with its differences and comparisons of floats hidden, and products rounded where nodes meet.

    A reduction keeps the form that schedules look for; only its operand is hidden. Blocks up to the last one with a
    schedule rule stay as they are.
    """
    if function.attrs is not None and SCHEDULED in function.attrs:
        return function
    body = function.body
    ordered = stages(function) or []
    last = max((number for number, stage in enumerate(ordered, 1) if RULE in stage.block.annotations), default=0)
    ruled = [stage.buffer for stage in ordered[:last]]
    own = list(body.block.alloc_buffers) if isinstance(body, s_tir.SBlockRealize) else []

    def stored(store: tirx.BufferStore, reduces: bool) -> tirx.BufferStore:
        value = store.value
        if any(store.buffer.same_as(each) for each in ruled):
            return store
        if reduces:
            operands = children(value)
            if len(operands) != 2 or not _loads(operands[0], store.buffer) or _loads(operands[1], store.buffer):
                return store
            new = rebuilt(value, [operands[0], _hidden(operands[1], integers=False)])
        else:
            new = _hidden(value)
            if any(store.buffer.same_as(each) for each in own):
                new = product_rounded(new)
        return store if new.same_as(value) else tirx.BufferStore(store.buffer, new, list(store.indices))

    try:
        new = statements.changed(body, _hidden, stored)
    except ValueError:  # an expression that is not taken apart
        return function
    return function if new.same_as(body) else function.with_body(new)


def reveal(fenced: Callable[[Expr], Expr], wide: Callable[[int], str]) -> tvm.transform.Pass:
    """The pass that undoes `hide`; names become variables.

    Args:
        fenced: a product as the code generator's target writes one that is not contracted.
        wide: a type, by bits, in which signed integers may overflow.
    """

    def computed(old: ir.Call, mutator: tvm_ffi.StructuralMutator) -> Expr:
        call = mutator.default_mutate(old)
        name = _name(call)
        if name == _NAMED:
            value = call.args[0]
            return fenced(value) if isinstance(value, tirx.Mul) and _floating(value) else value
        if name == _ROUNDED:
            return _nearest(call.args[0])
        kind = _BINARY.get(name)
        return call if kind is None else _computed(kind, call.args[0], call.args[1], wide)

    def converted(old: tirx.Cast, mutator: tvm_ffi.StructuralMutator) -> Expr:
        cast = mutator.default_mutate(old)
        if not isinstance(cast.value, tirx.Cast) or "bfloat16" not in str(cast.value.ty.dtype):
            return cast
        inner = cast.value.value  # which is rounded
        return inner if str(inner.ty.dtype) == str(cast.ty.dtype) else tirx.Cast(str(cast.ty.dtype), inner)

    def stored(old: tirx.BufferStore, mutator: tvm_ffi.StructuralMutator) -> tirx.BufferStore:
        store = mutator.default_mutate(old)
        return store if store.same_as(old) else _flags_as_bytes(store)

    callbacks = [(ir.Call, computed), (tirx.Cast, converted), (tirx.BufferStore, stored)]

    def transform(function: tirx.PrimFunc, _module: ir.IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
        body = function.body
        if not _calls(body, lambda name: name.startswith(_PREFIX)):
            return function
        if _holds_names(body):
            body = statements.changed(body, lambda value: value, _hoisted)
        return function.with_body(tvm_ffi.structural_mutate(body, callbacks))

    return tirx.transform.prim_func_pass(transform, opt_level=0)


def _computed(kind: type[Expr], a: Expr, b: Expr, wide: Callable[[int], str]) -> Expr:
    """`kind` of two operands; signed integers are computed in a type that does not overflow or may, and cast back."""
    signed, other = str(a.ty.dtype), str(b.ty.dtype)
    if signed != other:  # of integers, some of which TVM narrowed
        signed = max(signed, other, key=lambda dtype: tvm.DataType(dtype).bits)
        a, b = (each if str(each.ty.dtype) == signed else tirx.Cast(signed, each) for each in (a, b))
    if not signed.startswith("int") or kind not in (tirx.Add, tirx.Sub, tirx.Mul):
        return kind(a, b)
    element = tvm.DataType(signed)
    lanes = f"x{element.lanes}" if element.lanes > 1 else ""
    kept = f"{wide(element.bits)}{lanes}"
    return tirx.Cast(signed, kind(tirx.Cast(kept, a), tirx.Cast(kept, b)))


def llvm_wide(bits: int) -> str:
    """Twice the bits: TVM declares to LLVM that no sum overflows, so none may; LLVM narrows the type again."""
    return f"int{2 * bits}"


def c_wide(bits: int) -> str:
    """The unsigned type, which wraps around in C."""
    return f"uint{bits}"


def _hoisted(store: tirx.BufferStore, _reduces: bool) -> tirx.Stmt:
    """The store, after stores of the values that it names into variables."""
    if not _holds_names(store.value):
        return store
    names = _Names()
    value = names.hoisted(store.value)
    if not names.variables:  # each name stands in a value that is computed under a condition
        return store
    body: list[tirx.Stmt] = []
    for buffer, held in names.variables:
        body += [tirx.AllocBuffer(buffer), tirx.BufferStore(buffer, held, [_zero()])]
    return tirx.SeqStmt([*body, tirx.BufferStore(store.buffer, value, list(store.indices))])


def _holds_names(part: Expr | tirx.Stmt) -> bool:
    """Whether `part` gives names to values, or reads one more than once."""
    named = tvm_ffi.structural_walk(part, (tirx.Let, lambda _: tvm_ffi.VisitInterrupt()), order="pre")
    return named is not None or _calls(part, lambda name: name == _ROUNDED)


def _calls(part: Expr | tirx.Stmt, wanted: Callable[[str], bool]) -> bool:
    """Whether an operator whose name is `wanted` is called in `part`."""

    def look(call: ir.Call) -> tvm_ffi.VisitInterrupt | None:
        return tvm_ffi.VisitInterrupt() if wanted(_name(call)) else None

    return tvm_ffi.structural_walk(part, (ir.Call, look), order="pre") is not None


class _Names:
    """Takes the names out of an expression, in the order in which they are computed.

    A name as TVM's generators have it makes their analyzers write its value out again. A variable does not, and LLVM
    keeps it in a register.
    """

    def __init__(self) -> None:
        self.variables: list[tuple[tirx.Buffer, Expr]] = []  # a variable of one element, and what it holds
        self.places: list[tuple[tirx.Var, Expr]] = []

    def hoisted(self, expression: Expr) -> Expr:
        """`expression` with loads of variables; values that are computed under a condition stay where they are."""
        return rewritten(expression, self._swap)

    def _swap(self, part: Expr) -> Expr | None:
        if isinstance(part, tirx.Var):
            return next((load for name, load in self.places if name.same_as(part)), None)
        if _name(part).endswith("if_then_else"):
            operands = [self.hoisted(part.args[0]), *(_renamed(each, self.places) for each in part.args[1:])]
            return rebuilt(part, operands)
        if _name(part) == _ROUNDED:  # which reads its operand more than once
            return rebuilt(part, [self._variable("rounded", self.hoisted(part.args[0]))])
        if not isinstance(part, tirx.Let):
            return None
        while isinstance(part, tirx.Let):  # a chain of names may be longer than Python's stack
            value = self._variable(str(part.var.name), self.hoisted(part.value))
            self.places.append((part.var, value))
            part = part.body
        return self.hoisted(part)

    def _variable(self, name: str, value: Expr) -> ir.TensorLoad:
        buffer = tirx.decl_buffer((1,), value.ty.dtype, name, scope="local")
        self.variables.append((buffer, value))
        return tirx.BufferLoad(buffer, [_zero()])


def _renamed(expression: Expr, places: list[tuple[tirx.Var, Expr]]) -> Expr:
    def swap(part: Expr) -> Expr | None:
        if isinstance(part, tirx.Var):
            return next((load for name, load in places if name.same_as(part)), None)
        return None

    return rewritten(expression, swap)


def _flags_as_bytes(store: tirx.BufferStore) -> tirx.BufferStore:
    """Flags are bytes in memory, and TVM leaves it to code generators to make them that."""
    kind = str(store.value.ty.dtype)
    if not kind.startswith("bool") or str(store.buffer.dtype).startswith("bool"):
        return store
    return tirx.BufferStore(store.buffer, tirx.Cast(kind.replace("bool", "int8"), store.value), list(store.indices))


def _zero() -> Expr:
    return tirx.IntImm("int32", 0)


def llvm_fence(product: Expr) -> Expr:
    """A product of floats that LLVM rounds before it adds to it."""
    return tirx.call_llvm_pure_intrin(product.ty, _FENCE, product)


def holds_names(block: s_tir.SBlock) -> bool:
    """Whether a block gives names to values, which are better computed in one place: nothing should inline it."""
    value = getattr(block.body, "value", None)
    if value is None:
        return False
    return any(isinstance(part, tirx.Let) and _name(part.value) == _NAMED for part in parts(value))


def _name(part: Expr) -> str:
    return str(part.op.name) if isinstance(part, ir.Call) and isinstance(part.op, ir.Op) else ""


def _floating(value: Expr) -> bool:
    return "float" in str(value.ty.dtype)


_COMPUTES = tirx.Cast | tirx.Add | tirx.Sub | tirx.Mul | tirx.Div
"""Kinds of expressions whose bfloat16 is a result of arithmetic."""


def _nearest(x: Expr) -> Expr:
    """The bfloat16 nearest to a float32, ties to even, as a float32: the upper half of its bits. NaN stays."""
    lanes = tvm.DataType(str(x.ty.dtype)).lanes

    def word(value: int) -> Expr:
        one = tirx.const(value, "uint32")
        return one if lanes == 1 else tirx.Broadcast(one, lanes)

    bits = tirx.reinterpret(str(x.ty.dtype).replace("float32", "uint32"), x)
    odd = tirx.BitwiseAnd(tirx.RShift(bits, word(16)), word(1))
    upper = tirx.BitwiseAnd(tirx.Add(tirx.Add(bits, word(0x7FFF)), odd), word(0xFFFF0000))
    return tirx.Select(tirx.EQ(x, x), tirx.reinterpret(x.ty.dtype, upper), x)


def _hidden(value: Expr, integers: bool = True) -> Expr:
    """`value` with its differences and comparisons of floats as calls, and with `integers` arithmetic of data."""
    return _Walk(integers).of(value)[0]


class _Walk:
    """Hides the arithmetic in an expression; tracks of each part whether it depends on tensors, as no index does."""

    def __init__(self, integers: bool) -> None:
        self.integers = integers
        self.names: list[tirx.Var] = []  # of values that tensors decide

    def of(self, part: Expr) -> tuple[Expr, bool]:
        chain = []  # which may be longer than Python's stack
        while isinstance(part, tirx.Let):
            value, data = self.of(part.value)
            if data:
                self.names.append(part.var)
            chain.append((part.var, value))
            part = part.body
        if isinstance(part, ir.TensorLoad):
            new, data = part, True
        elif isinstance(part, tirx.Var):
            new, data = part, any(name.same_as(part) for name in self.names)
        else:
            old = children(part)
            operands = [self.of(each) for each in old]
            data = any(each for _, each in operands)
            same = all(a.same_as(b) for a, (b, _) in zip(old, operands, strict=True))
            new = self._hide(part, part if same else rebuilt(part, [each for each, _ in operands]), data)
        for name, value in reversed(chain):
            new = tirx.Let(name, value, new)
        return new, data

    def _hide(self, old: Expr, new: Expr, data: bool) -> Expr:
        if isinstance(old, _COMPUTES) and str(old.ty.dtype) == "bfloat16":
            wide = new.value if isinstance(new, tirx.Cast) and str(new.value.ty.dtype) == "float32" else None
            wide = tirx.Cast("float32", new) if wide is None else wide
            return tirx.Cast("bfloat16", ir.Call(_operator(_ROUNDED), [wide], ret_ty=wide.ty))
        inner = new.value if isinstance(new, tirx.Cast) else None
        if isinstance(inner, tirx.Cast) and str(inner.ty.dtype) == "bfloat16" and _name(inner.value) == _ROUNDED:
            wide = inner.value
            return wide if str(new.ty.dtype) == "float32" else tirx.Cast(str(new.ty.dtype), wide)
        if _name(new) == "tirx.pow" and isinstance(new.args[1], tirx.FloatImm):  # of 3 and more TVM warns
            return rebuilt(new, [new.args[0], named(new.args[1])])
        name = _NAMES.get(type(old))
        if name is None or str(old.a.ty.dtype) == "bool":
            return new
        hides = not isinstance(old, tirx.Add | tirx.Mul) if _floating(old.a) else self.integers and data
        if not hides:
            return new
        operands = [new.a, new.b]
        if str(old.a.ty.dtype) == "bfloat16":  # TVM would compare the bits of bfloat16 operands of a call
            operands = [tirx.Cast("float32", each) for each in operands]
        return ir.Call(_operator(name), operands, ret_ty=new.ty)


def _loads(value: Expr, buffer: tirx.Buffer) -> bool:
    return any(load.source.same_as(buffer) for load in loads(value))
