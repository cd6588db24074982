"""More of the grammar: operators that move data, and those of com.microsoft."""

from __future__ import annotations

import numpy as np

from tests.helpers.random_families import ANY, FLOATS, Family, axes_form, images, whatever
from tests.helpers.random_graphs import Dropped, Graph

MICROSOFT = "com.microsoft"


def pad(g: Graph) -> None:
    x = whatever(g, (*FLOATS, "int32"), least=1)
    rank, dtype = g.array(x).ndim, str(g.array(x).dtype)
    mode = g.pick(("constant", "constant", "reflect", "edge", *(("wrap",) if g.opset >= 19 else ())))
    low = -1 if mode in ("constant", "edge") and g.chance(0.3) else 0
    pads = [g.integer(low, 2) for _ in range(2 * rank)]
    if g.opset < 11:
        g.node("Pad", [x], exact=True, mode=mode, pads=pads, value=0.5)
    else:
        value = [g.setting(2, dtype)] if mode == "constant" and g.chance(0.5) else []
        g.node("Pad", [x, g.setting(pads), *value], exact=True, mode=mode)


def cut(g: Graph) -> None:
    """Slice, forwards and backwards."""
    x = whatever(g, ANY, least=1)
    shape = g.array(x).shape
    axes = sorted(int(a) for a in g.random.permutation(len(shape))[: g.integer(1, 2)])
    backwards = g.opset >= 10 and g.chance(0.3)
    starts, ends, steps = [], [], []
    for axis in axes:
        starts.append(-1 if backwards else g.integer(0, max(0, shape[axis] - 2)))
        ends.append(-(2**31) if backwards else g.pick((shape[axis], 2**31 - 1, -1)))
        steps.append(g.integer(-2, -1) if backwards else g.integer(1, 2))
    if g.opset < 10:
        g.node("Slice", [x], exact=True, starts=starts, ends=ends, axes=axes)
    else:
        g.node("Slice", [x, *(g.setting(each) for each in (starts, ends, axes, steps))], exact=True)


def gather(g: Graph) -> None:
    op, x = g.pick(("Gather", "Gather", "GatherElements", "GatherND")), whatever(g, ANY, least=1)
    shape = g.array(x).shape
    axis = g.axis(len(shape))
    if not g.array(x).size:
        raise Dropped
    low = -shape[axis] if g.opset >= 11 else 0
    if op == "GatherND":
        places = [g.random.integers(0, shape[i], (3, 1)) for i in range(g.integer(1, len(shape)))]
        g.node(op, [x, g.new(np.concatenate(places, 1))], exact=True)
        return
    wanted = g.pick(((), (3,), (2, 2))) if op == "Gather" else shape
    indices = g.random.integers(low, shape[axis], wanted)
    kind = g.pick(("int64", "int32"))
    g.node(op, [x, g.new(np.asarray(indices, kind))], exact=True, axis=axis)


def reverse(g: Graph) -> None:
    x = whatever(g, ANY, least=2)
    shape = g.array(x).shape
    if g.opset < 10 or not g.array(x).size:
        raise Dropped
    time = g.integer(0, 1)
    lengths = np.asarray([g.integer(1, shape[time]) for _ in range(shape[1 - time])], np.int64)
    g.node("ReverseSequence", [x, g.new(lengths)], exact=True, time_axis=time, batch_axis=1 - time)


def scatter(g: Graph) -> None:
    x = whatever(g, (*FLOATS, "int32", "int64"), least=1)
    shape, dtype = g.array(x).shape, str(g.array(x).dtype)
    if not g.array(x).size:
        raise Dropped
    axis = g.axis(len(shape))
    how = {"reduction": g.pick(("none", "add", "mul"))} if g.opset >= 16 else {}
    if g.chance(0.5):
        rows = g.random.permutation(shape[0])[: g.integer(1, 3)].reshape(-1, 1)
        updates = g.operand(dtype, (len(rows), *shape[1:]))
        g.node("ScatterND", [x, g.new(rows.astype(np.int64)), updates], exact=True, **how)
    else:
        count = [*shape]
        count[axis] = 1
        places = g.new(g.random.integers(0, shape[axis], count))
        op = "ScatterElements" if g.opset >= 11 else "Scatter"
        g.node(op, [x, places, g.operand(dtype, count)], exact=True, axis=axis, **how)


def split(g: Graph) -> None:
    x = whatever(g, ANY, least=1)
    axis = g.axis(g.array(x).ndim)
    extent = g.array(x).shape[axis]
    first = g.integer(0, extent)
    if g.opset >= 18 and g.chance(0.4):
        g.node("Split", [x], outputs=2, exact=True, axis=axis, num_outputs=2)
    elif g.opset >= 13:
        g.node("Split", [x, g.setting([first, extent - first])], outputs=2, exact=True, axis=axis)
    else:
        g.node("Split", [x], outputs=2, exact=True, axis=axis, split=[first, extent - first])


def concat(g: Graph) -> None:
    x = whatever(g, ANY, least=1)
    axis, shape, dtype = g.axis(g.array(x).ndim), list(g.array(x).shape), str(g.array(x).dtype)
    other = [*shape]
    other[axis] = g.integer(1, 3)
    parts = [x, g.operand(dtype, other), g.operand(dtype, shape)]
    g.node("Concat", [parts[int(i)] for i in g.random.permutation(3)[: g.integer(1, 3)]], exact=True, axis=axis)


def reshape(g: Graph) -> None:
    op = g.pick(("Reshape", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Transpose"))
    x = whatever(g, ANY)
    shape = g.array(x).shape
    if op == "Transpose":
        g.node(op, [x], exact=True, **({"perm": [int(i) for i in g.random.permutation(len(shape))]} if shape else {}))
    elif op == "Flatten":
        g.node(op, [x], exact=True, axis=g.integer(0, len(shape)))
    elif op == "Unsqueeze":
        axes_form(g, op, x, sorted(int(a) for a in g.random.permutation(len(shape) + 2)[:2]), 13, exact=True)
    elif op == "Squeeze":
        if 1 not in shape:
            raise Dropped
        axes_form(g, op, x, [i for i, extent in enumerate(shape) if extent == 1][:2], 13, exact=True)
    else:
        front = max(1, len(shape) // 2)
        goal = g.pick(([-1], [0, -1], [1, *shape], [*shape[:front], -1], [int(np.prod(shape[:front])), -1]))
        g.node(op, [x, g.setting(goal)], exact=True)


def repeat(g: Graph) -> None:
    x = whatever(g, ANY)
    shape = g.array(x).shape
    if g.chance(0.5) and g.opset >= 8:
        wide = [2, *(3 if extent == 1 else extent for extent in shape)]
        g.node("Expand", [x, g.setting(g.pick((wide, wide[1:], [1]))) if shape else g.setting([2, 3])], exact=True)
    else:
        g.node("Tile", [x, g.setting([g.integer(1, 2) for _ in shape])], exact=True)


def space(g: Graph) -> None:
    x = images(g, 2, g.pick(("float32", "float32", "uint8")))
    if g.chance(0.5):
        x = g.operand("float32", (1, 8, 3, 4), lambda a: a.ndim == 4 and a.shape[1] % 4 == 0 and a.size > 0)
        mode = {"mode": g.pick(("DCR", "CRD"))} if g.opset >= 11 else {}
        g.node("DepthToSpace", [x], exact=True, blocksize=2, **mode)
    else:
        g.node("SpaceToDepth", [x], exact=True, blocksize=g.pick((1, 2, 3)))


def order(g: Graph) -> None:
    """TopK, CumSum, OneHot, Trilu, Shape."""
    op = g.pick(("TopK", "TopK", "CumSum", "OneHot", "Trilu", "Shape", "NonZero"))
    if op == "TopK":
        x = whatever(g, ("float32", "float32", "float64", "int64"), least=1, exact=True)
        if np.isnan(g.array(x).astype(np.float64)).any():
            raise Dropped  # comparisons with NaN decide by where it stands
        axis = g.axis(g.array(x).ndim)
        k = g.integer(0, min(4, g.array(x).shape[axis]))
        last = {"largest": g.integer(0, 1)} if g.opset >= 11 else {}
        if g.opset < 10:
            g.node(op, [x], outputs=2, exact=True, axis=axis, k=max(1, k))
        else:
            g.node(op, [x, g.setting([k])], outputs=2, exact=True, axis=axis, **last)
    elif op == "CumSum":
        x = whatever(g, ("float32", "float64", "int32", "int64"), least=1)
        where = g.setting(g.axis(g.array(x).ndim), g.pick(("int32", "int64")))
        g.node(op, [x, where], exclusive=g.integer(0, 1), reverse=g.integer(0, 1))
    elif op == "OneHot":
        x = whatever(g, ("int64", "int32"), most=3)
        g.node(op, [x, g.setting(5), g.setting([0, 1], g.pick(("float32", "int64")))], exact=True, axis=g.pick((-1, 0)))
    elif op == "Trilu":
        g.node(op, [whatever(g, least=2), g.setting(g.integer(-2, 2))], exact=True, upper=g.integer(0, 1))
    else:
        g.node(op, [whatever(g, ("float32", "int32"), least=1, exact=True)], exact=True)


def einsum(g: Graph) -> None:
    sizes = {letter: g.integer(1, 5) for letter in "bijkh"}
    equation = g.pick(("ij,jk->ik", "bij,bjk->bik", "bihk,bjhk->bhij", "ij->ji", "ii->i", "bij,j->bi", "i,j->ij",
                       "...ij,...jk->...ik", "bij->b", "ij,ij", "bhij,bjhk->bihk"))  # fmt: skip
    terms = equation.split("->")[0].replace("...", "b").split(",")
    g.node("Einsum", [g.operand("float32", [sizes[c] for c in term]) for term in terms], equation=equation)


def foreign_elements(g: Graph) -> None:
    op, x = g.pick(("Gelu", "FastGelu", "BiasGelu", "QuickGelu")), whatever(g, ("float32",), least=1)
    width = g.array(x).shape[-1:]
    bias = [g.weight("float32", width)] if op == "BiasGelu" or (op == "FastGelu" and g.chance(0.5)) else []
    g.node(op, [x, *bias], domain=MICROSOFT)


def foreign_rows(g: Graph) -> None:
    op = g.pick(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"))
    x = g.operand("float32", (2, g.integer(1, 4), 8), lambda a: a.ndim == 3 and a.size > 0)
    shape = g.array(x).shape
    terms = [g.weight("float32", shape[-1:]) for _ in range(g.integer(1, 3))]
    g.node(
        op, [x, g.operand("float32", shape), *terms[: 2 if "Simplified" in op else 3]], domain=MICROSOFT, epsilon=1e-5
    )


def foreign_products(g: Graph) -> None:
    if g.chance(0.3):
        hidden, heads = g.pick(((8, 2), (4, 1), (12, 3)))
        q, k, v = (g.operand("float32", (2, 5, hidden)) for _ in range(3))
        g.node("MultiHeadAttention", [q, k, v], domain=MICROSOFT, num_heads=heads)
        return
    x = whatever(g, ("float32",), least=2)
    if not g.array(x).size:
        raise Dropped
    ta, tb = g.integer(0, 1), g.integer(0, 1)
    inner, out = g.array(x).shape[-2 if ta else -1], g.integer(1, 9)
    w = g.weight("float32", (out, inner) if tb else (inner, out))
    if g.array(x).ndim == 2 and g.chance(0.4):
        g.node("FusedGemm", [x, w], domain=MICROSOFT, transA=ta, transB=tb, activation=g.pick(("Relu", "Tanh")))
    else:
        g.node("FusedMatMul", [x, w], domain=MICROSOFT, transA=ta, transB=tb, alpha=g.pick((1.0, 0.3)))


MOVES: tuple[Family, ...] = (
    pad,
    pad,
    cut,
    gather,
    reverse,
    scatter,
    split,
    concat,
    reshape,
    reshape,
    repeat,
    space,
    order,
    order,
)
FOREIGN: tuple[Family, ...] = (foreign_elements, foreign_rows, foreign_products)
