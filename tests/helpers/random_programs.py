"""Random small graphs on special values, compiled and held against ONNX Runtime.

    python tests/random_programs.py [--seed 0] [--count 200] [--target llvm]

What a graph computes exactly must be ONNX Runtime's result bit by bit, but for the sign of a zero: sums, products,
comparisons, choices and conversions of NaN, infinities, zeros, denormals and extremes. So nothing may be simplified as
if floats were real numbers. Functions that libraries round in different ways, reductions and products of matrices end a
graph; their results may differ by rounding, and by nothing else.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

import graphopt
from graphopt.errors import GraphoptError

Array = NDArray[Any]

SHAPES = ((6, 8), (1, 8), (6, 1), (8,), ())
"""They broadcast to the first one."""

FLOATS = ("float32", "float64", "float16")
INTEGERS = ("int32", "int64", "int8", "uint8")

UNARY = {
    "float32": ("Neg", "Abs", "Sqrt", "Reciprocal", "Floor", "Ceil", "Round", "Relu", "Sign"),
    "float64": ("Neg", "Abs", "Sqrt", "Reciprocal", "Floor", "Ceil", "Round", "Relu", "Sign"),
    "float16": ("Neg", "Abs"),
    **dict.fromkeys(("int32", "int64"), ("Neg", "Abs", "Sign")),
    **dict.fromkeys(("int8",), ("Neg", "Abs")),
    "bool": ("Not",),
}  # fmt: skip
BINARY = {
    **dict.fromkeys(("float32", "float64"), ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu")),
    "float16": ("Max", "Min"),
    **dict.fromkeys(("int32", "int64"), ("Add", "Sub", "Mul", "Max", "Min", "BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    **dict.fromkeys(("int8", "uint8"), ("Max", "Min", "BitwiseAnd", "BitwiseXor")),
    "bool": ("And", "Or", "Xor", "Equal"),
}
COMPARISONS = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
ENDS = ("Exp", "Tanh", "Sigmoid", "Erf", "Softplus", "Elu", "ReduceSum", "ReduceMean", "ReduceL2", "Softmax", "MatMul")
CASTS = {
    **dict.fromkeys(("float32", "float64"), ("float32", "float64", "float16", "bfloat16", "bool", "int64")),
    "float16": ("float32", "bool"),
    **dict.fromkeys(("int32", "int64"), ("float32", "float64", "int32", "int64", "int8", "uint8", "bool")),
    **dict.fromkeys(("int8", "uint8"), ("float32", "int32", "int64", "bool")),
    "bool": ("float32", "float64", "int32", "int64", "uint8"),
}
"""By source; those of floats that are no integers of a type give what the processor gives, so few are tried."""


def special(dtype: str, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """Extremes among ordinary numbers."""
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        pool = [0, 1, 2, 3, 7, limits.max, limits.min, limits.max - 1, *([-1, -2, -5] if kind.kind == "i" else [])]
    else:
        info = np.finfo(kind)
        pool = [
            *(0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3.0, 0.1, -0.3, 100.0, -7.25, 1e4),
            *(np.inf, -np.inf, np.nan, info.max, info.min, info.tiny, -info.tiny, info.smallest_subnormal),
        ]
    drawn = random.choice(np.array(pool, dtype=kind), shape)
    if kind.kind == "f":
        drawn = np.where(random.random(shape) < 0.4, random.standard_normal(shape).astype(kind), drawn)
    return np.asarray(drawn, dtype=kind)


@dataclass
class Program:
    """A graph as it grows; `values` are names with dtype and shape, `exact` those whose bits are known."""

    random: np.random.Generator
    feeds: dict[str, Array] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    nodes: list[Any] = field(default_factory=list)
    values: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    ends: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    def pick(self, items: Any) -> Any:
        return items[int(self.random.integers(len(items)))]

    def operand(self, dtype: str) -> str:
        """A value of this dtype: one that is there, mostly, else an input or a constant."""
        known = [name for name, (kind, _) in self.values.items() if kind == dtype]
        if known and self.random.random() < 0.8:
            return str(self.pick(known[-6:]))
        constant = self.random.random() < 0.3
        array = special(dtype, () if constant else self.pick(SHAPES), self.random)
        name = f"c{len(self.constants)}" if constant else f"x{len(self.feeds)}"
        (self.constants if constant else self.feeds)[name] = array
        self.values[name] = dtype, array.shape
        return name

    def node(
        self, op: str, inputs: list[str], dtype: str, shape: tuple[int, ...] | None = None, **attributes: Any
    ) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        if shape is None:
            shape = np.broadcast_shapes(*(self.values[each][1] for each in inputs))
        self.values[name] = dtype, shape
        return name

    def grow(self) -> None:
        """One more node."""
        dtype = str(self.pick(("float32",) * 5 + ("float64", "float16", "int32", "int64", "int8", "uint8", "bool")))
        roll = self.random.random()
        if roll < 0.2 and dtype in UNARY:
            self.node(self.pick(UNARY[dtype]), [self.operand(dtype)], dtype)
        elif roll < 0.6 and dtype in BINARY:
            op, a, b = self.pick(BINARY[dtype]), self.operand(dtype), self.operand(dtype)
            if op == "PRelu" and np.broadcast_shapes(self.values[a][1], self.values[b][1]) != self.values[a][1]:
                op = "Mul"
            self.node(op, [a, b], dtype)
        elif roll < 0.75 and dtype in (*FLOATS, "int32", "int64"):
            self.node(self.pick(COMPARISONS), [self.operand(dtype), self.operand(dtype)], "bool")
        elif roll < 0.85 and dtype in ("float32", "int64", "uint8"):
            chosen = self.node("Where", [self.operand("bool"), self.operand(dtype), self.operand(dtype)], dtype)
            if dtype == "float32":  # ONNX Runtime adds zeros to what it chooses, and -0.0 becomes 0.0
                self.node("Abs", [chosen], dtype)
                del self.values[chosen]
        elif dtype in CASTS:
            self.convert(dtype)

    def convert(self, dtype: str) -> None:
        target = self.pick(CASTS[dtype])
        made = self.node("Cast", [self.operand(dtype)], target, to=proto(target))
        if target == "bfloat16":  # the processor knows no more of it than conversions
            self.node("Cast", [made], dtype, to=proto(dtype))
            del self.values[made]

    def end(self) -> None:
        """Functions that round, on some of the values."""
        for name, (dtype, shape) in list(self.values.items()):
            if dtype != "float32" or self.random.random() < 0.6 or name in self.constants:
                continue
            op = str(self.pick(ENDS))
            if op in ("ReduceSum", "ReduceMean", "MatMul"):  # else extremes cancel in one order and not in another
                name = self.node("Clip", [name, "low", "high"], dtype, shape)
                del self.values[name]
            if op.startswith("Reduce") or op == "Softmax":
                if not shape:
                    continue
                keep = {"keepdims": 1} if op.startswith("Reduce") else {"axis": -1}
                made = self.node(op, [name], dtype, (1,) * len(shape) if "keepdims" in keep else shape, **keep)
            elif op == "MatMul":
                if len(shape) < 2:
                    continue
                weight = f"c{len(self.constants)}"
                self.constants[weight] = self.random.standard_normal((shape[1], 5)).astype(np.float32)
                made = self.node(op, [name, weight], dtype, (shape[0], 5))
            else:
                made = self.node(op, [name], dtype)
            self.ends[made] = self.values.pop(made)

    def model(self) -> Any:
        """Every value is an output."""
        graph = helper.make_graph(
            self.nodes,
            "program",
            [helper.make_tensor_value_info(n, proto(str(a.dtype)), a.shape) for n, a in self.feeds.items()],
            [helper.make_tensor_value_info(n, proto(k), s) for n, (k, s) in self.results().items()],
            [onnx.numpy_helper.from_array(array, name) for name, array in (self.constants | _LIMITS).items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def results(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Values that no node reads, and ends: the others are inside, where they may be fused."""
        read = {name for node in self.nodes if node.output[0] not in self.ends for name in node.input}
        made = {name: kind for name, kind in self.values.items() if name.startswith("v") and name not in read}
        return made | self.ends


_LIMITS = {"low": np.array(-1e3, np.float32), "high": np.array(1e3, np.float32)}


def proto(dtype: str) -> int:
    return TensorProto.BFLOAT16 if dtype == "bfloat16" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def program(seed: int) -> Program:
    """The program of a seed: some 3 to 30 nodes."""
    made = Program(np.random.default_rng(seed))
    count = int(made.random.integers(3, 24))
    for _ in range(count):
        made.grow()
    made.end()
    return made


def expected(made: Program) -> dict[str, Array] | None:
    """ONNX Runtime's results without its optimizations; None where it has no such kernel."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(made.model().SerializeToString(), options)
    except Exception:  # noqa: BLE001  NOT_IMPLEMENTED has no type of its own
        return None
    names = list(made.results())
    return dict(zip(names, session.run(names, made.feeds), strict=True))


def difference(name: str, got: Array, want: Array, exact: bool) -> str | None:
    """What is wrong with a result, in a sentence; None if nothing is."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{name} is {got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    with np.errstate(all="ignore"):
        same = (got == want) | ((got != got) & (want != want))
        if not exact:
            wide = got.astype(np.float64), want.astype(np.float64)
            finite = np.isfinite(want)
            # what overflows at the very end may do so in one order of a sum and not in another
            largest = np.abs(wide[1][finite]).max(initial=0.0)
            same |= (np.abs(wide[0]) > 1e36) & (np.abs(wide[1]) > 1e36)
            same |= finite & (np.abs(wide[0] - wide[1]) <= 2e-5 * np.abs(wide[1]) + min(1e-6 * largest, 1e30) + 2e-7)
    if same.all():
        return None
    place = tuple(int(i) for i in np.argwhere(~np.asarray(same))[0])
    return f"{name} is {got[place]!r} instead of {want[place]!r} at {place}"


def wrong(seed: int, target: str = "llvm") -> str | None:
    """What is wrong with the program of a seed, in a sentence; "skipped" where ONNX Runtime cannot run it."""
    made = program(seed)
    if not made.results() or not made.feeds:
        return "skipped"
    want = expected(made)
    if want is None:
        return "skipped"
    got = graphopt.compile(made.model(), target=target).session().run(made.feeds)
    for name in want:
        if (why := difference(name, got[name], want[name], name not in made.ends)) is not None:
            return why
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--target", default="llvm")
    options = parser.parse_args()
    failures, skipped = 0, 0
    for seed in range(options.seed, options.seed + options.count):
        try:
            why = wrong(seed, options.target)
        except GraphoptError as error:
            why = f"refused: {error}"
        if why == "skipped":
            skipped += 1
        elif why is not None:
            failures += 1
            sys.stdout.write(f"program {seed}: {why}\n")
    last = options.seed + options.count - 1
    sys.stdout.write(f"programs {options.seed} to {last}: {failures} wrong, {skipped} skipped\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
