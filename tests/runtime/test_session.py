from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from graphopt.artifact import Artifact
from graphopt.errors import ArtifactError, FeedError, GraphoptError
from graphopt.program import schedule
from graphopt.program.program import KernelCall, NativeSegment, Place, Port, Program, Stage, Value

X = np.linspace(-3, 3, 1000, dtype=np.float32)


def test_runs_kernels_on_the_arena(one_stage: Artifact, weight: np.ndarray) -> None:
    session = one_stage.session(threads=1)
    result = session.run({"x": X})
    assert set(result) == {"y"}
    np.testing.assert_array_equal(result["y"], np.maximum(X + weight, 0))
    again = session.run({"x": -X})
    np.testing.assert_array_equal(again["y"], np.maximum(weight - X, 0))
    np.testing.assert_array_equal(result["y"], np.maximum(X + weight, 0))  # the first result is the caller's own


def test_runs_without_saving_and_after_saving_as_file_and_directory(one_stage: Artifact, tmp_path, weight) -> None:
    from graphopt.artifact import open_artifact

    (tmp_path / "dir").mkdir()
    for path in (tmp_path / "model.gopt", tmp_path / "dir"):
        one_stage.save(path)
        result = open_artifact(path).session(threads=2).run({"x": X})
        np.testing.assert_array_equal(result["y"], np.maximum(X + weight, 0))


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input 'x' is missing: feed a float32 array of shape (1000,)"),
        ({"x": X, "z": X}, "there is no input 'z': the program's inputs are x"),
        ({"x": X.astype(np.float64)}, "input 'x' is float64, and float32 is expected"),
        ({"x": X[:-1]}, "input 'x' has shape (999,), and a float32 array of shape (1000,) is expected"),
        ({"x": X.reshape(1, 1000)}, "input 'x' has shape (1, 1000)"),
        ({"x": [1.0, 2.0]}, "input 'x' is a list"),
        ({"x": None}, "input 'x' is a NoneType"),
    ],
)
def test_wrong_feeds_are_refused_in_one_sentence(one_stage: Artifact, feeds: dict, message: str) -> None:
    with pytest.raises(FeedError) as error:
        one_stage.session().run(feeds)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_non_contiguous_feed(one_stage: Artifact, weight: np.ndarray) -> None:
    wide = np.repeat(X, 2)
    np.testing.assert_array_equal(one_stage.session().run({"x": wide[::2]})["y"], np.maximum(X + weight, 0))


def test_measured_arena_is_the_planned_one(one_stage: Artifact) -> None:
    session = one_stage.session()
    (measured,) = session.measure_arena({"x": X})
    assert session.arena_bytes - 64 < measured <= session.arena_bytes


def test_a_kernel_that_leaves_the_arena_is_measured(one_stage: Artifact) -> None:
    session = one_stage.session()
    runner = session._runners[0]
    runner._groups.append(([], range(len(runner._calls), len(runner._calls) + 1)))
    runner._calls.append((lambda: runner._memory.__setitem__(8064 + 100, 1), ()))
    (measured,) = session.measure_arena({"x": X})
    assert measured == 8064 + 101


def test_profile_names_every_call_in_order(one_stage: Artifact, mixed: Artifact) -> None:
    times = one_stage.session().profile({"x": X})
    assert [(item.name, item.origin) for item in times] == [("add", ("Add_0",)), ("relu", ("Relu_0",))]
    assert all(item.seconds > 0 for item in times)
    names = [item.name for item in mixed.session().profile({"x": X})]
    assert names == ["fallback/0.onnx", "relu", "fallback/1.onnx"]


def test_fallback_segments_share_the_arena_and_pass_dynamic_values(mixed: Artifact) -> None:
    session = mixed.session(threads=1)
    for x in (X, np.zeros_like(X), np.eye(1, 1000, 7, dtype=np.float32)[0]):
        result = session.run({"x": x})
        np.testing.assert_array_equal(result["y"], np.maximum(np.abs(x) - np.float32(1), 0))
        np.testing.assert_array_equal(result["nonzero"], np.stack(np.nonzero(x)))
        assert result["count"] == np.count_nonzero(x)


def test_fallback_model_that_is_no_model(mixed: Artifact) -> None:
    broken = Artifact(mixed.program, mixed.manifest, {**mixed.files, "fallback/0.onnx": memoryview(b"rubbish")})
    with pytest.raises(ArtifactError, match=r"refuses the fallback model fallback/0\.onnx"):
        broken.session()


def test_missing_function_is_an_artifact_error(one_stage: Artifact) -> None:
    stage = one_stage.program.stages[0]
    call = KernelCall("nothing", ("x",), ("y",))
    program = replace(one_stage.program, stages=(replace(stage, segments=(NativeSegment((call,)),)),))
    with pytest.raises(ArtifactError, match="no function 'nothing'"):
        Artifact(program, one_stage.manifest, one_stage.files).session()


def test_rubbish_library_is_an_artifact_error(one_stage: Artifact) -> None:
    files = {**one_stage.files, "stage_0.so": memoryview(b"rubbish")}
    artifact = Artifact.create(one_stage.program, {k: bytes(v) for k, v in files.items() if k != "program.json"}, {})
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        artifact.session()


def test_kernel_called_with_the_wrong_shape_names_the_kernel(one_stage: Artifact) -> None:
    stage = one_stage.program.stages[0]
    values = tuple(replace(value, shape=(500,)) if value.name == "sum" else value for value in stage.values)
    program = replace(one_stage.program, stages=(replace(stage, values=values),))
    with pytest.raises(GraphoptError, match=r"kernel add of stage 0 \(nodes Add_0\) failed: .*expected 1000"):
        Artifact(program, one_stage.manifest, one_stage.files).session().run({"x": X})


@pytest.mark.parametrize(("dtype", "symbol"), [("bfloat16", "relu_bfloat16"), ("bool", "not_bool")])
def test_bfloat16_and_bool(kernels: bytes, dtype: str, symbol: str) -> None:
    numpy_type = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.bool_
    values = (Value("x", dtype, (1000,), Place.ARENA, 0), Value("y", dtype, (1000,), Place.ARENA, 2048))
    segment = NativeSegment((KernelCall(symbol, ("x",), ("y",)),))
    stage = Stage(0, values, ("x",), ("y",), (segment,), 4096, 0, library="k.so")
    ports = (Port("x", dtype, (1000,)),), (Port("y", dtype, (1000,)),)
    session = Artifact.create(Program((stage,), schedule.build((stage,), "x"), *ports), {"k.so": kernels}, {}).session()
    x = X.astype(numpy_type)
    result = session.run({"x": x})["y"]
    assert result.dtype == numpy_type
    np.testing.assert_array_equal(result, np.logical_not(x) if dtype == "bool" else np.maximum(x, 0))


def test_views_show_the_same_bytes(kernels: bytes) -> None:
    values = (
        Value("x", "float32", (10, 100), Place.ARENA, 0),
        Value("flat", "float32", (1000,), Place.VIEW, of="x"),
        Value("r", "float32", (1000,), Place.ARENA, 4032),
        Value("y", "float32", (2, 500), Place.VIEW, of="r"),
    )
    segment = NativeSegment((KernelCall("relu", ("flat",), ("r",)),))
    stage = Stage(0, values, ("x",), ("y",), (segment,), 8064, 8064, library="k.so")
    ports = (Port("x", "float32", (10, 100)),), (Port("y", "float32", (2, 500)),)
    artifact = Artifact.create(Program((stage,), schedule.build((stage,), "x"), *ports), {"k.so": kernels}, {})
    result = artifact.session().run({"x": X.reshape(10, 100)})["y"]
    np.testing.assert_array_equal(result, np.maximum(X, 0).reshape(2, 500))


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 3), (2, 1), (4, 1), (3, 4)])
def test_all_stages_in_one_process(pipeline: Callable[[int, int], Artifact], stages: int, micro_batches: int) -> None:
    x = np.arange(1000 * micro_batches, dtype=np.float32)
    session = pipeline(stages, micro_batches).session()
    np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * stages * x)
    if micro_batches > 1:
        with pytest.raises(FeedError, match=rf"shape \({1000 * micro_batches},\)"):
            session.run({"x": x[:1000]})


def test_threads_are_what_was_asked_in_every_calling_thread(pipeline: Callable[[int, int], Artifact]) -> None:
    from graphopt.runtime.devices import library

    artifact = pipeline(1, 1)
    current = library.runtime().get_global_func("runtime.NumThreads")
    one, two = artifact.session(threads=1), artifact.session(threads=2)
    seen = []

    def use() -> None:
        for session in (one, two, one):
            session.run({"x": X})
            seen.append(current())

    use()
    other = threading.Thread(target=use)
    other.start()
    other.join()
    assert seen == [1, 2, 1] * 2


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_impossible_thread_counts(one_stage: Artifact, threads: int) -> None:
    with pytest.raises(GraphoptError, match="thread"):
        one_stage.session(threads=threads)


def test_two_threads_may_share_a_session(pipeline: Callable[[int, int], Artifact]) -> None:
    session = pipeline(2, 1).session(threads=1)
    wrong = []

    def use(scale: float) -> None:
        for _ in range(200):
            if not np.array_equal(session.run({"x": X * np.float32(scale)})["y"], 4 * (X * np.float32(scale))):
                wrong.append(scale)

    workers = [threading.Thread(target=use, args=(scale,)) for scale in (1.0, 3.0)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("opset", [12, 20, 22])
def test_a_shape_that_onnx_runtime_infers_otherwise_than_it_computes(opset: int) -> None:
    """A window of ceil_mode that would begin in the padding: inference counts it, the kernel does not."""
    from onnx import parser

    import graphopt

    text = f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[1,1,2] x) => (float[a,b,c] y, int64[a,b,c] i)
        {{ y, i = MaxPool<kernel_shape = [1], strides = [3], ceil_mode = 1>(x) }}"""
    session = graphopt.compile(parser.parse_model(text), costs="roofline").session()
    found = session.run({"x": np.array([[[5.0, 6.0]]], np.float32)})
    assert found["y"].tolist() == [[[5.0]]]
    assert found["i"].tolist() == [[[0]]]
