"""A program of the kernels of `tests.helpers.artifacts` that holds many values long: what recomputation is for."""

from __future__ import annotations

from graphopt.artifact import Artifact
from graphopt.lowering.memory.arena import placed
from graphopt.lowering.memory.stage_problem import stage_problem
from graphopt.program import schedule
from graphopt.program.program import KernelCall, NativeSegment, Place, Port, Program, Stage, Value

N = 1000
SIZE = 4032
"""Bytes of a value, aligned."""


def stage(layers: int = 6, views: bool = False) -> Stage:
    """t_i = 2 t_(i-1), then y = t_n + ... + t_1, the last ones first: every t_i waits for its sum.

    With `views` the sums read the values through views of them.
    """
    names = ["x", *(f"s0_0_t{i}" for i in range(1, layers + 1))]
    calls = [KernelCall("double", (names[i],), (names[i + 1],), origin=(f"double{i + 1}",)) for i in range(layers)]
    values = [Value(name, "float32", (N,), Place.ARENA) for name in names]
    total = names[-1]
    for i in range(layers - 1, 0, -1):
        read = names[i]
        if views:
            read = f"s0_0_view{i}"
            values.append(Value(read, "float32", (N,), Place.VIEW, 0, names[i]))
        result = "y" if i == 1 else f"s0_0_sum{i}"
        values.append(Value(result, "float32", (N,), Place.ARENA))
        calls.append(KernelCall("add", (total, read), (result,), origin=(f"add{i}",)))
        total = result
    segments = (NativeSegment(tuple(calls)),)
    table = {value.name: value for value in values}
    planned, arena = placed(stage_problem(segments, table, ("x",), ("y",)), table)
    return Stage(0, tuple(planned.values()), ("x",), ("y",), segments, arena.nbytes, arena.lower_bound, "kernels.so")


def artifact(kernels: bytes, layers: int = 6, views: bool = False) -> Artifact:
    """The artifact of `stage`."""
    made = (stage(layers, views),)
    ports = (Port("x", "float32", (N,)),), (Port("y", "float32", (N,)),)
    program = Program(made, schedule.build(made, ["x"], 1), *ports)
    return Artifact.create(program, {"kernels.so": kernels}, {})
