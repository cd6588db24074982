"""Large inputs and outputs stay where the caller has them."""

from typing import Any

import numpy as np
import onnx.parser
import pytest

import graphopt
from graphopt.runtime.session import Session
from graphopt.verify.oracle import compare

SHAPE = (1, 8, 40, 40)  # 50 KiB


def compiled(body: str, outputs: str = "float[1,8,40,40] y", constants: str = "") -> Session:
    text = f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[1,8,40,40] x) => ({outputs}) <{constants}> {{ {body} }}"""
    return graphopt.compile(onnx.parser.parse_model(text)).session(threads=2)


def numbers() -> Any:
    return np.random.default_rng(4).standard_normal(SHAPE).astype(np.float32)


def at(array: Any, offset: int) -> Any:
    """A copy of `array` whose address is `offset` past a multiple of 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("offset", [0, 4, 16, 20, 48])
def test_any_address_gives_the_same(offset: int) -> None:
    """Multiples of 16 are read in place, others are copied."""
    session = compiled("a = Sigmoid(x) b = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a) y = Mul(b, x)")
    x = numbers()
    first = session.run({"x": x})["y"]
    again = session.run({"x": at(x, offset)})["y"]
    np.testing.assert_array_equal(first, again)


def test_feeds_that_cannot_be_shared_are_copied() -> None:
    session = compiled("y = Relu(x)")
    x = numbers()
    frozen = x.copy()
    frozen.setflags(write=False)
    wide = np.repeat(x, 2, axis=-1)[..., ::2]
    transposed = np.asfortranarray(x)
    for feed in (frozen, wide, transposed):
        np.testing.assert_array_equal(session.run({"x": feed})["y"], np.maximum(x, 0))


def test_outputs_are_the_callers_own() -> None:
    """A later run changes neither an output nor a feed of an earlier one."""
    session = compiled("y = Add(x, x)")
    x = numbers()
    first = session.run({"x": x})["y"]
    kept = first.copy()
    second = session.run({"x": -x})["y"]
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(second, -kept)
    first[...] = 0
    np.testing.assert_array_equal(session.run({"x": x})["y"], kept)
    np.testing.assert_array_equal(x, numbers())


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("y = Reshape(x, shape)", "float[8,1600] y"),
        ("a = Reshape(x, shape) y = Exp(a) z = Identity(x)", "float[8,1600] y, float[1,8,40,40] z"),
        ("y = Relu(x) z = Reshape(y, shape)", "float[1,8,40,40] y, float[8,1600] z"),
        ("a = Relu(x) y = Concat<axis=1>(a, x)", "float[1,16,40,40] y"),
        ("y = Concat<axis=1>(x, x) a = Reshape(x, shape) z = Neg(a)", "float[1,16,40,40] y, float[8,1600] z"),
        ("y = NonZero(x) z = Neg(x)", "int64[4,n] y, float[1,8,40,40] z"),
    ],
    ids=["view", "input as output", "view of an output", "join", "input twice", "fallback"],
)
def test_values_under_several_names(body: str, outputs: str) -> None:
    """In place or not, a run gives what a run on the arena gives."""
    session = compiled(body, outputs, "int64[2] shape = {8, 1600}" if "shape" in body else "")
    x = numbers()
    for feed in (x, at(-x, 16)):
        expected = session._run({"x": feed}, lambda runner: runner.run())
        assert not compare(expected, session.run({"x": feed}))


def test_memory_is_let_go_after_the_run() -> None:
    session = compiled("y = Neg(x)")
    (runner,) = session._runners
    before = [list(arguments) for _, arguments in runner._calls]
    session.run({"x": numbers()})
    assert [list(map(id, arguments)) for _, arguments in runner._calls] == [list(map(id, a)) for a in before]


def test_a_run_that_fails_lets_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    session = compiled("y = Neg(x)")
    (runner,) = session._runners

    def fail() -> None:
        raise RuntimeError("stopped")

    before = [list(arguments) for _, arguments in runner._calls]
    monkeypatch.setattr(runner, "run", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        session.run({"x": numbers()})
    assert [list(map(id, arguments)) for _, arguments in runner._calls] == [list(map(id, a)) for a in before]
