"""The whole way from a model to numbers: what is native, what falls back, how it is cut, and that it repeats."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tvm_ffi

import graphopt
from graphopt.compiler import compile_model
from graphopt.errors import FeedError, GraphoptError, PipelineError, VerificationError
from graphopt.passes import DEFAULT
from graphopt.verify.oracle import random_inputs
from tests.helpers.compiled import parse, run


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "tpu"}, GraphoptError, "--target tpu is unknown; choose one of llvm"),
        ({"level": "mmx"}, GraphoptError, "CPU level 'mmx' is unknown"),
        ({"verify": "maybe"}, GraphoptError, "--verify maybe is unknown; choose one of off, passes, ends, each"),
        ({"ranks": 0}, GraphoptError, "--ranks must be from 1 to 4096, not 0"),
        ({"micro_batches": -1}, GraphoptError, "--micro-batches must be from 1 to 4096, not -1"),
        ({"passes": "make-faster"}, PipelineError, "make-faster"),
        ({"ranks": 9}, GraphoptError, "--ranks 9 asks for more stages than"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        compile_model(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"), **options)
    assert "\n" not in str(caught.value)


def test_compile_gives_the_artifact_alone() -> None:
    artifact = graphopt.compile(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    y = artifact.session(threads=1).run({"x": np.array([-1, 2], np.float32)})["y"]
    np.testing.assert_array_equal(y, np.array([0, 2], np.float32))


def test_progress_and_seconds_name_the_phases() -> None:
    phases: list[str] = []
    model = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    compilation = compile_model(model, verify="ends", progress=phases.append)
    assert phases == ["load", "passes", "lower", "build", "verify"]
    assert list(compilation.seconds) == phases


@pytest.mark.parametrize("verify", ["ends", "each"])
def test_verify_catches_a_wrong_kernel(verify: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.targets.cpu.converters.table import TABLE

    (right, *_) = TABLE["Exp"]
    wrong = lambda c, inputs: [right(c, [c.builder.emit(inputs[0] + inputs[0])])]  # noqa: E731
    monkeypatch.setitem(TABLE, "Exp", (wrong,))
    model = parse("g (float[8] x) => (float[8] y) { y = Exp(x) }")
    compile_model(model)
    with pytest.raises(VerificationError, match=r"in the compiled program: output y at \[\d\]"):
        compile_model(model, verify=verify)


def test_dump_holds_every_step(tmp_path: Any) -> None:
    compile_model(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"), dump=tmp_path / "d", passes="normalize")
    assert [path.name for path in sorted((tmp_path / "d").glob("*.onnx"))][0].startswith("000")


def test_every_level_that_this_host_can_run() -> None:
    from graphopt.runtime.devices import host
    from graphopt.targets.cpu.machine import LEVELS

    text = """g (float[1, 3, 12, 12] x) => (float[1, 20, 12, 12] y)
        <float[20, 3, 3, 3] w = {W}> { c = Conv<pads=[1, 1, 1, 1]>(x, w) y = Relu(c) }"""
    numbers = np.random.default_rng(0).standard_normal(540).astype(np.float32)
    model = parse(text.replace("{W}", "{" + ", ".join(map(str, numbers)) + "}"))
    for name, level in LEVELS.items():
        if host.features().issuperset(level.features):
            compilation = run(model, level=name)
            assert compilation.artifact.manifest["target"]["level"] == name
            assert not compilation.fallbacks


RESIDUAL = """
g (float[4, 32] x) => (float[4, 32] y, float[4, 32] early)
<float[32, 32] w> {
    a = MatMul(x, w)
    early = Relu(a)
    b = MatMul(early, w)
    c = Add(b, x)
    d = MatMul(c, w)
    e = Relu(d)
    f = Add(e, a)
    h = MatMul(f, w)
    y = Softmax(h)
}
"""


def residual() -> onnx.ModelProto:
    """Skip connections over several cuts: `x` and `a` are read again far from where they are made."""
    weight = np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32) / 6
    model = parse(
        RESIDUAL.replace("<float[32, 32] w> ", "").replace("(float[4, 32] x)", "(float[4, 32] x, float[32, 32] w)")
    )
    model.graph.input.pop()
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return model


def test_several_ranks_give_the_same_bits_as_one() -> None:
    model = residual()
    feeds = random_inputs(ir.from_proto(model), 3)
    alone = run(model, feeds).artifact.session(threads=2).run(feeds)
    for ranks in (2, 3):
        compilation = run(model, feeds, ranks=ranks)
        program = compilation.artifact.program
        assert len(program.stages) == len(program.actions) == ranks
        outputs = compilation.artifact.session(threads=2).run(feeds)
        for name, array in alone.items():
            np.testing.assert_array_equal(outputs[name], array)


@pytest.mark.parametrize("ranks", [1, 2])
def test_micro_batches_join_on_axis_0(ranks: int) -> None:
    model = residual()
    whole = np.random.default_rng(2).standard_normal((12, 32)).astype(np.float32)
    compilation = compile_model(model, ranks=ranks, micro_batches=3)
    outputs = compilation.artifact.session(threads=2).run({"x": whole})
    alone = compile_model(model).artifact.session(threads=2)
    for name in ("y", "early"):
        pieces = [alone.run({"x": whole[4 * i : 4 * i + 4]})[name] for i in range(3)]
        np.testing.assert_array_equal(outputs[name], np.concatenate(pieces))
    with pytest.raises(FeedError):
        compilation.artifact.session(threads=2).run({"x": whole[:4]})


def test_verify_with_micro_batches_and_ranks() -> None:
    compile_model(residual(), ranks=2, micro_batches=2, verify="ends")


def test_a_value_of_unknown_size_cannot_be_sent() -> None:
    model = parse("g (float[4] x) => (int64[1, n] z) { a = NonZero(x) z = Neg(a) }")
    with pytest.raises(GraphoptError, match=r"--ranks 2 would send a, whose size only the run tells"):
        compile_model(model, ranks=2)


def test_compiling_twice_gives_the_same_files() -> None:
    made = []
    for _ in range(2):
        artifact = compile_model(residual(), ranks=2).artifact
        made.append({name: bytes(data) for name, data in artifact.files.items()})
    assert made[0].keys() == made[1].keys()
    for name, data in made[0].items():
        assert data == made[1][name], f"{name} differs"


def test_the_model_that_was_passed_in_is_not_modified() -> None:
    model = residual()
    before = model.SerializeToString(deterministic=True)
    compile_model(model, ranks=2)
    assert model.SerializeToString(deterministic=True) == before


def test_saved_and_opened_again(tmp_path: Any) -> None:
    model = residual()
    feeds = random_inputs(ir.from_proto(model), 0)
    artifact = compile_model(model).artifact
    expected = artifact.session(threads=2).run(feeds)
    artifact.save(tmp_path / "m.gopt")
    outputs = graphopt.open(tmp_path / "m.gopt").session(threads=2).run(feeds)
    for name, array in expected.items():
        np.testing.assert_array_equal(outputs[name], array)


def test_the_arena_is_what_was_planned() -> None:
    model = residual()
    for ranks in (1, 2):
        artifact = compile_model(model, ranks=ranks).artifact
        session = artifact.session(threads=2)
        measured = session.measure_arena(random_inputs(ir.from_proto(model), 0))
        for stage, used in zip(artifact.program.stages, measured, strict=True):
            assert used <= stage.arena_bytes
            assert stage.arena_lower_bound <= stage.arena_bytes <= 1.1 * stage.arena_lower_bound


def test_a_full_temporary_folder_is_refused_before_code_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 3 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(
        GraphoptError, match="has 3 MiB free and compiling needs about 64 MiB; make room, or set TMPDIR"
    ):
        compile_model(parse("g (float[4] x) => (float[4] y) { y = Relu(x) }"))


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_another_precision_is_verified_with_its_own_tolerance(precision: str) -> None:
    made = compile_model("zoo:lenet-digits", precision=precision, verify="each")
    assert set(made.accuracy) == {"logits"}
    assert (1e-5 < made.accuracy["logits"] < 1e-2) == (precision == "fp16")
    assert any("tf32 is a permission that no kernel took" in note for note in made.notes) == (precision == "tf32")
    assert made.artifact.manifest["pipeline"].startswith(DEFAULT.partition("fuse")[0])
    assert f",fuse,precision{{to={precision}}}," in made.artifact.manifest["pipeline"]
    casts = [node for node in made.pipeline.model.graph if node.op_type == "Cast"]
    assert bool(casts) == (precision == "fp16")


def test_precisions_that_cannot_be_had() -> None:
    with pytest.raises(GraphoptError, match="--precision int4 is unknown; choose one of fp32, tf32, fp16, bf16"):
        compile_model("zoo:lenet-digits", precision="int4")
    with pytest.raises(GraphoptError, match="--verify each cannot follow --precision bf16, .* --verify ends compares"):
        compile_model("zoo:lenet-digits", precision="bf16", verify="each")


def test_a_pipeline_without_fuse_gets_the_precision_first() -> None:
    made = compile_model("zoo:lenet-digits", precision="fp16", passes="normalize")
    assert made.artifact.manifest["pipeline"] == "precision{to=fp16},normalize"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_code_for_a_gpu_needs_no_gpu(precision: str) -> None:
    made = compile_model("zoo:lenet-digits", target="cuda", level="sm_80", precision=precision, fallback=False)
    manifest = made.artifact.manifest
    assert manifest["target"] == {"name": "cuda", "gpu": "sm_80", "device": "a100"}
    assert manifest["pipeline"].startswith(
        "hoist-branches,select-branches,normalize,quantized-moves,quantized-products,fuse"
    )
    calls = [call for segment in made.artifact.program.stages[0].segments for call in segment.calls]
    assert {call.symbol for call in calls} == set(manifest["kernels"])
    assert sum(plan["algorithm"] == "product" for plan in manifest["kernels"].values()) == 4


def test_accuracy_is_known_without_the_device() -> None:
    made = compile_model("zoo:lenet-digits", target="cuda", precision="fp16", verify="passes")
    assert 1e-5 < made.accuracy["logits"] < 1e-2
    assert "verify" not in made.seconds


def test_bfloat16_is_verified_by_the_program_that_was_compiled() -> None:
    made = compile_model("zoo:lenet-digits", precision="bf16", verify="ends")
    assert 1e-4 < made.accuracy["logits"] < 4e-2


def test_bfloat16_convolutions_are_native_on_gpus() -> None:
    made = compile_model("zoo:lenet5", target="cuda", precision="bf16", fallback=False)
    assert made.pipeline.model.opset_imports[""] == 22
    assert any("opset 22 is the first" in note for step in made.pipeline.steps for note in step.notes)


def test_verifying_for_a_device_that_is_not_there_fails_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(
        GraphoptError, match="--verify runs what was compiled: the package cuda-bindings is not installed"
    ):
        compile_model("zoo:lenet-digits", target="cuda", verify="ends")


def test_ctrl_c_inside_a_callback_of_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """TVM's foreign functions make an error without text of an interruption: it is no bug of graphopt's."""
    from graphopt.targets.gpu import code

    def interrupted(*_: object) -> None:
        def callback() -> None:
            raise KeyboardInterrupt

        tvm_ffi.convert(callback)()

    monkeypatch.setattr(code, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compile_model("zoo:lenet-digits", target="cuda", costs="roofline", cache=False)


def test_weights_of_both_kinds_of_segments_are_stored_once() -> None:
    """The kernel for Add and the Loop in ONNX Runtime read the same table."""
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 20]>
        g (float[64, 64] x, int64 n) => (float[64, 64] y, float[64, 64] z) {
            y = Add(x, w)
            c = Constant<value = bool {1}>()
            z = Loop(n, c, x) <body = b (int64 i, bool b0, float[64, 64] a) => (bool b1, float[64, 64] o)
                { b1 = Identity(b0)  o = Add(a, w) }>
        }""")
    table = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    weight = ir.Value(name="w", const_value=ir.tensor(table, name="w"), type=ir.TensorType(ir.DataType.FLOAT))
    weight.shape = ir.Shape([64, 64])
    for graph in model.graphs():
        for node in graph:
            for index, value in enumerate(node.inputs):
                if value is not None and value.name == "w":
                    node.replace_input_with(index, weight)
    model.graph.register_initializer(weight)
    compilation = compile_model(model, verify="ends")
    assert [name for name, _ in compilation.fallbacks] == ["z (Loop)"]
    sizes = {name: len(data) for name, data in compilation.artifact.files.items() if not name.endswith(".so")}
    assert sum(sizes.values()) < 1.3 * table.nbytes, sizes


def test_denormal_weights_are_taken_as_zero_unless_they_are_to_be_kept() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[3] x) => (float[3] y) <float[3] w = {1.0, 1e-40, 2.0}>
        { y = Mul(x, w) }"""
    model = onnx.parser.parse_model(text)
    flushed, kept = compile_model(model), compile_model(model, keep_denormals=True)
    assert any("denormal" in note for step in flushed.pipeline.steps for note in step.notes)
    x = {"x": np.ones(3, np.float32)}
    assert flushed.artifact.session().run(x)["y"][1] == 0
    assert kept.artifact.session().run(x)["y"][1] == np.float32(1e-40)
