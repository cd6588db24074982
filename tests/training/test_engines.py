"""Both engines: a step updates the state, what is no state comes back, and what does not fit is refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.errors import FeedError, GraphoptError
from graphopt.graph import state
from graphopt.program.program import Port
from graphopt.training.compiled import CompiledEngine
from graphopt.training.engine import Array, Engine
from graphopt.training.reference import ReferenceEngine
from tests.helpers import step_models


class FakeSession:
    """A session whose state counts the runs."""

    inputs = (Port("x", "float32", (2,)), Port("lr", "float32", ()))
    arena_bytes, threads = 640, 2

    def __init__(self) -> None:
        self._state = {"w": np.zeros(2, np.float32), "step": np.array(0)}

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        self._state = {"w": self._state["w"] - feeds["lr"] * feeds["x"], "step": self._state["step"] + 1}
        return {"loss": np.float32(1.5)}

    def state(self) -> dict[str, Array]:
        return dict(self._state)

    def load_state(self, state: dict[str, Array]) -> None:
        self._state.update(state)


def _linear_feeds(seed: int = 0) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((4, 3)).astype(np.float32)
    y = (x @ [[1.0], [-2.0], [0.5]]).astype(np.float32)
    return {"x": x, "y": y, "lr": np.array(0.1, np.float32)}


@pytest.fixture(scope="module")
def compiled() -> graphopt.Artifact:
    return graphopt.compile(step_models.linear())


@pytest.fixture(params=["onnxruntime", "compiled"])
def engine(request: pytest.FixtureRequest, compiled: graphopt.Artifact) -> Engine:
    if request.param == "onnxruntime":
        return ReferenceEngine(step_models.linear(), threads=1)
    return CompiledEngine(compiled.session(1), {"w": "parameter"})


def test_a_step_is_least_squares_by_hand(engine: Engine) -> None:
    feeds, w = _linear_feeds(), np.zeros((3, 1))
    for _ in range(5):
        difference = feeds["x"] @ w - feeds["y"]
        outputs = engine.step(feeds)
        assert set(outputs) == {"loss"}
        assert outputs["loss"].shape == ()
        assert float(outputs["loss"]) == pytest.approx(float((difference**2).mean()), rel=1e-4)
        w = w - 0.1 * feeds["x"].T @ difference * 2 / 4
    np.testing.assert_allclose(engine.state()["w"], w, rtol=1e-4)


def test_inputs_are_those_that_are_no_state(engine: Engine) -> None:
    assert [port.name for port in engine.inputs] == ["x", "y", "lr"]
    assert engine.memory["parameter"] == 12


def test_the_state_is_a_copy_in_both_directions(engine: Engine) -> None:
    given = {"w": np.full((3, 1), 2, np.float32)}
    engine.load_state(given)
    given["w"][:] = 7
    taken = engine.state()
    taken["w"][:] = 9
    assert (engine.state()["w"] == 2).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"w": np.zeros((3, 2), np.float32)},
        {"w": np.zeros((3, 1))},
        {"w": np.zeros((3, 1), np.float32), "v": np.zeros(1)},
    ],
    ids=["missing", "shape", "dtype", "unknown"],
)
def test_the_state_of_another_model_is_refused(engine: Engine, wrong: dict[str, Array]) -> None:
    before = engine.state()
    with pytest.raises(FeedError, match="state of another model: it"):
        engine.load_state(wrong)
    np.testing.assert_array_equal(engine.state()["w"], before["w"])


def test_a_failed_step_leaves_the_state() -> None:
    engine = ReferenceEngine(step_models.linear())
    engine.step(_linear_feeds())
    before = engine.state()
    with pytest.raises(GraphoptError, match="ONNX Runtime cannot run the step"):
        engine.step({**_linear_feeds(), "x": np.zeros((5, 3), np.float32)})
    np.testing.assert_array_equal(engine.state()["w"], before["w"])


def test_memory_is_by_role() -> None:
    assert ReferenceEngine(step_models.softmax()).memory == {"parameter": 2600, "optimizer": 2560}


def test_the_compiled_engine_asks_little_of_a_session() -> None:
    engine = CompiledEngine(FakeSession(), {"w": "parameter", "step": "counter"}, "0123456789abcdef")
    assert engine.memory == {"parameter": 8, "counter": 8, "arena": 640}
    assert engine.identity == "compiled 0123456789ab on 2 threads"
    outputs = engine.step({"x": np.ones(2, np.float32), "lr": np.array(0.5, np.float32)})
    assert float(outputs["loss"]) == 1.5
    assert engine.state()["w"].tolist() == [-0.5, -0.5]


def test_scalars_keep_their_rank() -> None:
    """A counter is a scalar: one that came back as [1] would not fit the next step's type."""
    body = "loss = ReduceSum <keepdims = 0> (x)\n n_next = Add (n, n)"
    text = f"c (float[2] x, int64 n) => (float loss, int64 n_next) {{ {body} }}"
    model = step_models.step_model(text, {"n": ("counter", "n_next", np.array(3, np.int64))})
    engine = ReferenceEngine(model)
    engine.step({"x": np.ones(2, np.float32)})
    assert engine.state()["n"].shape == ()
    assert int(engine.state()["n"]) == 6


def test_inputs_without_fixed_shapes_are_refused() -> None:
    model = step_models.linear()
    model.graph.inputs[0].shape = ir.Shape(["n", 3])
    with pytest.raises(GraphoptError, match="input x of the step model has no fixed type and shape"):
        ReferenceEngine(model)


def test_bfloat16_is_for_the_compiled_engine() -> None:
    import ml_dtypes

    model = step_models.linear()
    value = next(state.states(model.graph))
    value.const_value = ir.tensor(np.zeros((3, 1), ml_dtypes.bfloat16), name="w")
    value.dtype = ir.DataType.BFLOAT16
    next(v for v in model.graph.outputs if v.name == "w_next").dtype = ir.DataType.BFLOAT16
    with pytest.raises(GraphoptError, match="bfloat16|ONNX Runtime cannot open"):
        ReferenceEngine(model)
