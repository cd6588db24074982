"""Steps compared on the same operands: a step that is wrong shows, and what comes after it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

import graphopt
from graphopt.compiler import compile_model
from graphopt.errors import VerificationError
from graphopt.pipeline.pipeline import Pipeline
from graphopt.verify import forced
from tests.helpers.wrong import Positive
from tests.helpers.wrong import model as small_model

TEXT = """<ir_version: 10, opset_import: ["": 20]>
g (float[4, 8] x, float[8, 8] w) => (float[4, 8] y) {
    m = MatMul(x, w)
    q, s, z = DynamicQuantizeLinear(m)
    d = DequantizeLinear(q, s, z)
    n = MatMul(d, w)
    y = Tanh(n)
}"""
RANDOM = np.random.default_rng(0)
FEEDS = {"x": RANDOM.standard_normal((4, 8), np.float32), "w": RANDOM.standard_normal((8, 8), np.float32)}


def model() -> ir.Model:
    loaded = ir.from_onnx_text(TEXT)
    for node in loaded.graph:
        node.name = f"make_{node.outputs[0].name}"
    ShapeInferencePass()(loaded)
    return loaded


def run(wrong: str = "") -> dict[str, Any]:
    """All values, step by step, with a mistake in one of them that the later ones are computed from."""
    values: dict[str, Any] = {}

    def step(name: str, array: Any) -> Any:
        array = np.array(array)
        if name == wrong:
            array.reshape(-1)[0] += 2
        values[name] = array
        return array

    m = step("m", FEEDS["x"] @ FEEDS["w"])
    low, high = min(m.min(), 0), max(m.max(), 0)
    s = step("s", np.float32((high - low) / 255))
    z = step("z", np.uint8(round(-low / s)))
    q = step("q", np.clip(np.round(m / s) + z, 0, 255).astype(np.uint8))
    d = step("d", (q.astype(np.float32) - z) * s)
    n = step("n", d @ FEEDS["w"])
    step("y", np.tanh(n))
    return values


def test_a_right_run_agrees() -> None:
    assert forced.wrong_steps(model(), run(), FEEDS) == ([], 7)


@pytest.mark.parametrize("name", ["m", "s", "q", "d", "n", "y"])
def test_a_wrong_step_is_the_only_one_that_shows(name: str) -> None:
    wrong, count = forced.wrong_steps(model(), run(name), FEEDS)
    assert name in [each.output for each in wrong]
    # Scale and zero point say of themselves what q is made with: q shows with them, for it has one operand.
    assert {each.output for each in wrong} <= {name, *({"q", "z"} if name == "s" else ())}
    assert count == 7


def test_an_output_that_others_read_is_a_step_too() -> None:
    both = model()
    both.graph.outputs.extend(value for node in both.graph for value in node.outputs if value.name in ("m", "q"))
    assert forced.wrong_steps(both, run(), FEEDS) == ([], 7)
    assert "m" in [each.output for each in forced.wrong_steps(both, run("m"), FEEDS)[0]]


def test_a_byte_may_be_rounded_up_or_down() -> None:
    values = run()
    values["q"] = values["q"].copy()
    values["q"][0, 0] -= 1
    assert [each.output for each in forced.wrong_steps(model(), values, FEEDS)[0]] == ["d"]


HIDDEN = """<ir_version: 10, opset_import: ["": 20]>
g (float[6] x) => (float[6] y) <float s = {0.5}, uint8 z = {9}> {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    y = Neg(d)
}"""


@pytest.mark.parametrize(("x", "agrees"), [(0.75, True), (0.7501, True), (0.7, False)])
def test_what_is_rounded_out_of_sight_may_be_off_by_a_step_at_a_tie_alone(x: float, agrees: bool) -> None:
    hidden = ir.from_onnx_text(HIDDEN)
    ShapeInferencePass()(hidden)
    feeds = {"x": np.array([0, x, 1, 2, -1, 3], np.float32)}
    values = {"y": -np.array([0, 0.5, 1, 2, -1, 3], np.float32)}
    for other in (0.5, 1.0):
        values["y"][1] = -other
        right = agrees or other == round(x / 0.5) * 0.5
        assert (not forced.wrong_steps(hidden, values, feeds)[0]) == right


def test_values_of_other_types_and_ranks_are_left_alone() -> None:
    values = run() | {"n": np.zeros(32, np.float32), "d": np.zeros((4, 8)), "elsewhere": np.zeros(1)}
    assert set(forced.recomputed(model(), values, FEEDS)) == {"m", "q", "s", "z", "y"}


def test_a_program_is_traced_under_the_names_of_the_model() -> None:
    compiled = compile_model(model(), passes="normalize")
    found = forced.traced(compiled.artifact, compiled.pipeline.model, FEEDS)
    assert {"m", "s", "z", "y"} <= set(found)
    assert forced.wrong_steps(compiled.pipeline.model, found, FEEDS) == ([], len(found))


def unstable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.verify.sensitivity.unstable", lambda spreads, _: set(spreads))


def off(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Sessions give outputs that are one too large, and so they do for what is written under the name `step`."""
    session = graphopt.artifact.Artifact.session

    class Off:
        def __init__(self, real: Any) -> None:
            self.real = real

        def run(self, feeds: Any) -> Any:
            return {name: array + 1 for name, array in self.real.run(feeds).items()}

        def trace(self, feeds: Any) -> Any:
            for origin, written in self.real.trace(feeds):
                yield origin, {name: array + (name == step) for name, array in written.items()}

    monkeypatch.setattr(graphopt.artifact.Artifact, "session", lambda self, *a, **k: Off(session(self, *a, **k)))


def test_every_step_is_judged_where_the_end_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    unstable(monkeypatch)
    off(monkeypatch, "")
    compiled = compile_model(model(), verify="ends", inputs=FEEDS)
    assert [note for note in compiled.notes if "no stable value" in note]
    assert [note for note in compiled.notes if "were judged instead" in note]


def test_a_wrong_kernel_is_found_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    unstable(monkeypatch)
    off(monkeypatch, "y")
    with pytest.raises(VerificationError, match=r"the program, judged step by step .*: output y at"):
        compile_model(model(), verify="ends", inputs=FEEDS)


def test_a_wrong_pass_is_found_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    unstable(monkeypatch)
    pipeline = Pipeline((Positive(),))
    with pytest.raises(VerificationError, match=r"the passes, judged step by step .*: output b at"):
        compile_model(small_model(), shapes={"x": (2, 8)}, passes=pipeline, verify="ends")
