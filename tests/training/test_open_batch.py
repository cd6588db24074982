"""A model that was exported for one batch takes others, or says why it cannot."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import models
from graphopt.errors import ModelError
from graphopt.frontend.load import as_given
from graphopt.training.build import StepOptions, build_step
from graphopt.training.open_batch import fixed_batch, open_batch
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.model_proto import text
from tests.helpers.step_models import softmax_inference


def _model(graph: str) -> ir.Model:
    return ir.from_proto(text(graph))


RESHAPES = {
    "flat": "s = Constant <value_ints = [2, 12]> ()\n y = Reshape (x, s)",
    "the rest is open": "s = Constant <value_ints = [2, 4, -1]> ()\n y = Reshape (x, s)",
    "merged": "s = Constant <value_ints = [6, 4]> ()\n y = Reshape (x, s)",
    "zero may be kept": "s = Constant <value_ints = [2, 12]> ()\n y = Reshape <allowzero = 1> (x, s)",
    "follows already": "s = Constant <value_ints = [0, 12]> ()\n y = Reshape (x, s)",
}


@pytest.mark.parametrize("name", RESHAPES)
def test_reshapes_follow_the_batch(name: str) -> None:
    opened = open_batch(_model(f"g (float[2,3,4] x) => (float[m,n] y) {{ {RESHAPES[name]} }}"))
    x = np.arange(84, dtype=np.float32).reshape(7, 3, 4)
    assert run_onnxruntime(opened, {"x": x})["y"].size == x.size


def test_an_exported_network() -> None:
    given = as_given(models.build("lenet-digits")).model
    assert fixed_batch(given) == 1
    images = models.digits()[0][:5]
    together = run_onnxruntime(open_batch(given), {"image": images})["logits"]
    alone = [run_onnxruntime(given, {"image": image[np.newaxis]})["logits"][0] for image in images]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        ("g (float[1,3] x) => (float[3] y) { a = Constant <value_ints = [0]> ()\n y = ReduceMax<keepdims = 0>(x, a) }",
         "layers depend on the batch"),
        ("g (float[1,3] x) => (float y) { y = ReduceSum <keepdims = 0> (x) }", "an output has no batch"),
        ("g (float[2,3] x, float[5] z) => (float[2,3] y) { y = Neg (x) }", "its inputs have no batch in common"),
        ("g (float[1,4] x) => (float[2,2] y) { s = Constant <value_ints = [2, 2]> ()\n y = Reshape (x, s) }",
         "layers depend on the batch"),
    ],
)  # fmt: skip
def test_what_depends_on_the_batch_is_refused(graph: str, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        open_batch(_model(graph))


def test_the_sentence_says_what_to_do() -> None:
    model = text("g (float[1,3] x) => (float y) { y = ReduceSum <keepdims = 0> (x) }")
    with pytest.raises(ModelError, match="fixed batch of 1, not 32, and .*; export .*, or give --batch 1"):
        build_step(model, StepOptions())


def test_an_open_batch_is_left_alone() -> None:
    assert fixed_batch(ir.from_proto(softmax_inference())) is None
    assert fixed_batch(ir.from_proto(softmax_inference(7))) == 7
