"""NCHW to and from the channel-blocked layout NCHWc: squares of b channels x b positions, transposed in registers.

A square is b vectors. In log2(b) rounds, at distances d = b/2 ... 1, vectors i and i + d exchange the halves of their
pairs of d lanes (Eklundh's transposition), so every load and store is a full vector. The last square of a map overlaps
the one before it where the positions are no multiple of b; it writes the same numbers again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import tvm
from tvm import s_tir, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import SCHEDULED, const, round_up

Stores = Callable[[list[tirx.Var]], list[tirx.BufferStore]]

SQUARES_PER_TASK = 8
"""Squares per iteration of the parallel loop: enough to hide its overhead, few enough to keep all cores busy."""


def possible(shape: tuple[int, ...], block: int, dtype: str) -> bool:
    """Whether a planar tensor [N, C, H, W] has squares: b a power of two, and at least b positions."""
    return dtype == "float32" and block in (4, 8, 16) and shape[2] * shape[3] >= block


def to_blocked(shape: tuple[int, ...], block: int, dtype: str, groups: int = 1) -> tirx.PrimFunc:
    """x[N, C, H, W] -> y[N, ceil(C / b), H, W, b], zeros in the padded lanes.

    With `groups` > 1 the channels are shuffled on the way: channel i of group g becomes channel i * groups + g.
    """
    return _move(shape, block, dtype, True, groups)


def from_blocked(shape: tuple[int, ...], block: int, dtype: str) -> tirx.PrimFunc:
    """x[N, ceil(C / b), H, W, b] -> y[N, C, H, W] = `shape`."""
    return _move(shape, block, dtype, False, 1)


def _move(shape: tuple[int, ...], b: int, dtype: str, from_planar: bool, groups: int) -> tirx.PrimFunc:
    n, c, h, w = shape
    blocks, positions = round_up(c, b) // b, h * w
    planar = tirx.decl_buffer([_extent(d) for d in shape], dtype, "planar")
    blocked = tirx.decl_buffer([_extent(d) for d in (n, blocks, h, w, b)], dtype, "blocked")
    squares = round_up(positions, b) // b
    tasks = round_up(squares, SQUARES_PER_TASK) // SQUARES_PER_TASK
    task, inner = _index("task"), _index("square")
    image, rest = task // (blocks * tasks), task % (blocks * tasks)
    block, first = rest // tasks, rest % tasks * SQUARES_PER_TASK
    start = tirx.min((first + inner) * b, _extent(positions - b))

    # Rows of H and W are contiguous, so a run of positions is a run of columns of row 0, whatever W is.
    def row(i: int) -> list[Expr]:
        channel = block * b + i
        if groups > 1:
            channel = channel % groups * (c // groups) + channel // groups
        return [image, channel, _extent(0), tirx.Ramp(start, _extent(1), b)]

    def lanes(j: int) -> list[Expr]:
        return [image, block, _extent(0), start + j, tirx.Ramp(_extent(0), _extent(1), b)]

    def square(rows: int) -> tirx.SeqStmt:
        zero = tirx.Broadcast(const(0, dtype), b)
        if from_planar:
            loads = [tirx.BufferLoad(planar, row(i)) if i < rows else zero for i in range(b)]
            return transposed(loads, dtype, lambda v: [tirx.BufferStore(blocked, v[j], lanes(j)) for j in range(b)])
        loads = [tirx.BufferLoad(blocked, lanes(j)) for j in range(b)]
        return transposed(loads, dtype, lambda v: [tirx.BufferStore(planar, v[i], row(i)) for i in range(rows)])

    body = square(b)
    if c % b:
        body = tirx.IfThenElse(block < blocks - 1, body, square(c % b)) if blocks > 1 else square(c % b)
    body = tirx.IfThenElse(first + inner < squares, body, None) if squares % SQUARES_PER_TASK else body
    body = tirx.For(inner, _extent(0), _extent(SQUARES_PER_TASK), tirx.ForKind.SERIAL, body)
    body = tirx.For(task, _extent(0), _extent(n * blocks * tasks), tirx.ForKind.PARALLEL, body)
    order = (planar, blocked) if from_planar else (blocked, planar)
    root = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", body))
    return tirx.PrimFunc(list(order), root).with_attr({SCHEDULED: 1, "s_tir": True, "tirx.noalias": True})


def transposed(vectors: list[Expr], dtype: str, stores: Stores) -> tirx.SeqStmt:
    """Statements that transpose the square of `vectors` and store the result."""
    b = len(vectors)
    bound: list[tuple[tirx.Var, Expr]] = []

    def bind(value: Expr) -> tirx.Var:
        variable = tirx.Var(f"v{len(bound)}", f"{dtype}x{b}")
        bound.append((variable, value))
        return variable

    current = [bind(vector) for vector in vectors]
    for rounds in exchanges(b):
        current = [bind(tirx.Shuffle([current[i], current[j]], lanes)) for i, j, lanes in rounds]
    return tirx.SeqStmt([*(tirx.Bind(variable, value) for variable, value in bound), *stores(current)])


def exchanges(b: int) -> Iterator[list[tuple[int, int, list[tirx.IntImm]]]]:
    """The rounds that transpose a square of b vectors: for each new vector two old ones, and the lanes of both."""
    distance = b // 2
    while distance:
        low = [tirx.IntImm("int32", j if not j & distance else b + j - distance) for j in range(b)]
        high = [tirx.IntImm("int32", j + distance if not j & distance else b + j) for j in range(b)]
        yield [(i & ~distance, i | distance, high if i & distance else low) for i in range(b)]
        distance //= 2


def _extent(value: int) -> tirx.IntImm:
    return tvm.tirx.IntImm("int64", value)


def _index(name: str) -> tirx.Var:
    return tirx.Var(name, "int64")
