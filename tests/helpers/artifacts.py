"""A small library of kernels, and programs of it, for the tests of the runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from graphopt.artifact import Artifact
from graphopt.program import schedule
from graphopt.program.program import FallbackSegment, KernelCall, NativeSegment, Place, Port, Program, Stage, Value
from graphopt.program.weights import weights_bytes

N = 1000


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A shared object with kernels over N elements; `double` is parallel, `slow` takes some 0.1 s."""
    import tvm
    from tvm import te, tirx

    def unary(name: str, dtype: str, function: Callable[[object], object]) -> object:
        x = te.placeholder((N,), name="x", dtype=dtype)
        y = te.compute((N,), lambda i: function(x[i]), name="y")
        return te.create_prim_func([x, y]).with_attr("global_symbol", name)

    x = te.placeholder((N,), name="x")
    w = te.placeholder((N,), name="w")
    total = te.compute((N,), lambda i: x[i] + w[i], name="total")
    parallel = tvm.s_tir.Schedule(unary("double", "float32", lambda v: v + v))
    (loop,) = parallel.get_loops(parallel.get_sblock("y"))
    parallel.parallel(loop)
    many = te.reduce_axis((0, 100_000), name="many")
    late = te.compute((N,), lambda i: te.sum(x[i] * many.astype("float32"), axis=many), name="late")
    functions = {
        "slow": te.create_prim_func([x, late]).with_attr("global_symbol", "slow"),
        "relu": unary("relu", "float32", lambda v: te.max(v, tirx.const(0, "float32"))),
        "relu_bfloat16": unary("relu_bfloat16", "bfloat16", lambda v: te.max(v, tirx.const(0, "bfloat16"))),
        "not_bool": unary("not_bool", "bool", tirx.Not),
        "add": te.create_prim_func([x, w, total]).with_attr("global_symbol", "add"),
        "double": parallel.mod["main"].with_attr("global_symbol", "double"),
    }
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    tvm.compile(tvm.IRModule(functions), target=tvm.target.Target({"kind": "llvm"})).export_library(str(path))
    return path.read_bytes()


def arena(name: str, offset: int, shape: tuple[int, ...] = (N,), dtype: str = "float32") -> Value:
    return Value(name, dtype, shape, Place.ARENA, offset)


@pytest.fixture(scope="session")
def weight() -> np.ndarray:
    return np.linspace(-1, 1, N, dtype=np.float32)


@pytest.fixture(scope="session")
def one_stage(kernels: bytes, weight: np.ndarray) -> Artifact:
    """y = relu(x + w), with the sum at a place of its own."""
    stage = Stage(
        index=0,
        values=(arena("x", 0), arena("sum", 4032), arena("y", 0), Value("w", "float32", (N,), Place.WEIGHT)),
        inputs=("x",),
        outputs=("y",),
        segments=(
            NativeSegment(
                (
                    KernelCall("add", ("x", "w"), ("sum",), origin=("Add_0",)),
                    KernelCall("relu", ("sum",), ("y",), origin=("Relu_0",)),
                )
            ),
        ),
        arena_bytes=8064,
        arena_lower_bound=8064,
        library="stage_0.so",
        weights="weights_0.safetensors",
    )
    port = Port("x", "float32", (N,))
    program = Program((stage,), schedule.build((stage,), ["x"]), (port,), (Port("y", "float32", (N,)),))
    files: dict[str, bytes | Path] = {
        "stage_0.so": kernels,
        "weights_0.safetensors": weights_bytes({"odd": np.zeros(3, np.int8), "w": weight}),
    }
    return Artifact.create(program, files, {"pipeline": ""})


def pipeline_program(stages: int, micro_batches: int) -> Program:
    """Stage 0 doubles x into v0; stage k adds v0 (a skip through all stages) to the value before: y = 2x * stages."""
    made = []
    for index in range(stages):
        first, last = index == 0, index == stages - 1
        before, after = f"v{index - 1}", "y" if last else f"v{index}"
        if first:
            call = KernelCall("double", ("x",), (after,), origin=("Double",))
            inputs: tuple[str, ...] = ("x",)
        else:
            call = KernelCall("add", ("v0", before), (after,), origin=(f"Add_{index}",))
            inputs = tuple(dict.fromkeys(("v0", before)))
        outputs = (after,) if first or last else ("v0", after)
        names = dict.fromkeys([*inputs, after])
        made.append(
            Stage(
                index=index,
                values=tuple(arena(name, 4032 * position) for position, name in enumerate(names)),
                inputs=inputs,
                outputs=outputs,
                segments=(NativeSegment((call,)),),
                arena_bytes=4032 * len(names),
                arena_lower_bound=4032 * len(names),
                library="kernels.so",
            )
        )
    return Program(
        tuple(made),
        schedule.build(made, ["x"], micro_batches),
        (Port("x", "float32", (N,)),),
        (Port("y", "float32", (N,)),),
        micro_batches,
    )


@pytest.fixture(scope="session")
def pipeline(kernels: bytes) -> Callable[[int, int], Artifact]:
    """(stages, micro-batches) -> artifact computing 2x * stages."""

    def make(stages: int, micro_batches: int) -> Artifact:
        return Artifact.create(pipeline_program(stages, micro_batches), {"kernels.so": kernels}, {})

    return make


@pytest.fixture(scope="session")
def mixed(kernels: bytes) -> Artifact:
    """y = relu(Abs(x) - 1) by ONNX Runtime and a kernel, and the indices of non-zeros, whose number is dynamic."""
    import onnx.parser

    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[1000] x) => (float[1000] m, int64[1, k] nonzero)
        <float one = {1.0}> { a = Abs(x) m = Sub(a, one) nonzero = NonZero(x) }"""
    )
    host = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (int64[1, k] nonzero) => (int64[1] count)
        <int64 axis = {1}> { s = Shape(nonzero) count = Gather(s, axis1) }""".replace("axis1", "last").replace(
            "int64 axis = {1}", "int64[1] last = {1}"
        )
    )
    stage = Stage(
        index=0,
        values=(
            arena("x", 0),
            arena("m", 4032),
            arena("y", 0),
            Value("nonzero", "int64", None, Place.HOST),
            arena("count", 8064, (1,), "int64"),
        ),
        inputs=("x",),
        outputs=("y", "nonzero", "count"),
        segments=(
            FallbackSegment("fallback/0.onnx", ("x",), ("m", "nonzero"), (("NonZero_0", "its shape depends on data"),)),
            NativeSegment((KernelCall("relu", ("m",), ("y",)),)),
            FallbackSegment("fallback/1.onnx", ("nonzero",), ("count",), (("Shape_0", "dynamic"),)),
        ),
        arena_bytes=8128,
        arena_lower_bound=8064,
        library="kernels.so",
    )
    program = Program(
        (stage,),
        schedule.build((stage,), ["x"]),
        (Port("x", "float32", (N,)),),
        (Port("y", "float32", (N,)), Port("nonzero", "int64", None), Port("count", "int64", (1,))),
    )
    files: dict[str, bytes | Path] = {
        "kernels.so": kernels,
        "fallback/0.onnx": model.SerializeToString(),
        "fallback/1.onnx": host.SerializeToString(),
    }
    return Artifact.create(program, files, {})


@pytest.fixture(scope="session")
def slow_pipeline(kernels: bytes) -> Artifact:
    """Three stages that compute for a while on each of 2000 micro-batches: x -> a -> b -> y."""
    made = []
    for index, (before, after) in enumerate((("x", "a"), ("a", "b"), ("b", "y"))):
        values = (arena(before, 0), arena(after, 4032))
        segment = NativeSegment((KernelCall("slow", (before,), (after,)),))
        made.append(Stage(index, values, (before,), (after,), (segment,), 8064, 8064, library="kernels.so"))
    ports = (Port("x", "float32", (N,)),), (Port("y", "float32", (N,)),)
    program = Program(tuple(made), schedule.build(made, ["x"], 2000), *ports, 2000)
    return Artifact.create(program, {"kernels.so": kernels}, {})
