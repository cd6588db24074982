"""ONNX's node suite on the compiler: natively, strict both ways against a list, and with fallback against ONNX Runtime.

Native means that no node runs in ONNX Runtime. The operands that decide a shape (`backend.SHAPE_OPERANDS`: axes, sizes,
pads, ...) are inputs in this suite and constants in models; natively they are compiled in with the case's own values.
With fallback nothing is compiled in, and every case that ONNX Runtime passes has to pass.

After a change, `python tests/test_onnx_backend.py` writes the list anew; look at what it adds before committing it.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.backend.test.case.test_case import TestCase as NodeCase

from graphopt import backend
from graphopt.errors import FeedError, GraphoptError, UnsupportedError

LIST = Path(__file__).with_name("onnx_node_expected_failures.txt")
SHARE = 0.55
"""Of the cases, natively; the list may only shrink."""


@functools.cache
def cases() -> dict[str, NodeCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, about the overflows that the cases are about
        from onnx.backend.test.loader import load_model_tests

        return {case.name: case for case in load_model_tests(kind="node")}


@functools.cache
def expected_failures() -> dict[str, str]:
    lines = (line.partition(" ") for line in LIST.read_text().splitlines() if line and not line.startswith("#"))
    return {name: reason.strip() for name, _, reason in lines}


def arrays(items: Any) -> list[Any]:
    return [onnx.numpy_helper.to_array(item) if isinstance(item, onnx.TensorProto) else item for item in items]


def data(case: NodeCase) -> tuple[list[Any], list[Any]]:
    assert case.data_sets is not None
    inputs, outputs = case.data_sets[0]
    return arrays(inputs), arrays(outputs)


def check(case: NodeCase, expected: list[Any], outputs: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.runner import Runner

        Runner.assert_similar_outputs(expected, list(outputs), case.rtol, case.atol)


def shape_constants(case: NodeCase, inputs: list[Any]) -> dict[str, Any]:
    assert case.model is not None
    wanted = backend.shape_inputs(case.model)
    names = [value.name for value in case.model.graph.input]
    return {name: given for name, given in zip(names, inputs, strict=False) if name in wanted}


def attempt(case: NodeCase, constants: Mapping[str, Any], *, fallback: bool) -> tuple[str, bool]:
    """Why the case fails ("" where it passes), and whether it was compiled without fallback."""
    inputs, expected = data(case)
    native = not fallback
    try:
        assert case.model is not None
        prepared = backend.prepare(case.model, fallback=fallback, constants=constants)
        outputs = prepared.run(inputs)
        native = not prepared.compilation.fallbacks
        check(case, expected, outputs)
    except UnsupportedError as error:
        return str(error).partition("forbids ONNX Runtime: ")[2] or str(error), native
    except (GraphoptError, AssertionError, TypeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}", native
    return "", native


def natively(case: NodeCase) -> str:
    inputs, _ = data(case)
    return attempt(case, shape_constants(case, inputs), fallback=False)[0]


def onnxruntime_passes(case: NodeCase) -> bool:
    """Whether ONNX Runtime passes by itself; a case of a newer IR version is tried as the newest that it reads."""
    inputs, expected = data(case)
    model = onnx.ModelProto()
    assert case.model is not None
    model.CopyFrom(case.model)
    model.ir_version = min(model.ir_version, 13)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in model.graph.input]
        check(case, expected, session.run(None, dict(zip(names, inputs, strict=False))))
    except Exception:  # noqa: BLE001  whatever it is that ONNX Runtime cannot do
        return False
    return True


@pytest.mark.parametrize("name", cases())
def test_node_case(name: str) -> None:
    case = cases()[name]
    failure = natively(case)
    expected = expected_failures().get(name)
    if expected is None:
        assert not failure, f"fails natively, and {LIST.name} does not expect it: {failure}"
    else:
        assert failure, f"passes natively: remove it from {LIST.name}"
    inputs, _ = data(case)
    if not failure and not shape_constants(case, inputs):
        return  # with fallback it is the same program
    failure, _ = attempt(case, {}, fallback=True)
    assert not failure or not onnxruntime_passes(case), f"ONNX Runtime passes, and with fallback: {failure}"


def test_the_list_names_cases_once_with_reasons_and_is_short_enough() -> None:
    lines = [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(expected_failures())
    assert set(expected_failures()) <= set(cases())
    assert all(expected_failures().values())
    assert len(cases()) - len(lines) >= SHARE * len(cases())


# ---------------------------------------------------------------- the interface


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}')


def test_run_node_infers_the_outputs() -> None:
    x = np.array([[1.0, -2.0]], np.float32)
    (y,) = backend.run_node(onnx.helper.make_node("Abs", ["x"], ["y"]), [x])
    np.testing.assert_array_equal(y, abs(x))
    info = [(np.dtype(np.float32), (1, 2))]
    (y,) = backend.run_node(onnx.helper.make_node("Abs", ["x"], ["y"]), {"x": x}, outputs_info=info)
    np.testing.assert_array_equal(y, abs(x))


def test_inputs_come_by_order_by_name_or_alone() -> None:
    rep = backend.prepare(model("agraph (float[2] x) => (float[2] y) { y = Neg(x) }"))
    x = np.array([1, 2], np.float32)
    for given in (x, [x], (x,), {"x": x}):
        np.testing.assert_array_equal(rep.run(given)[0], -x)
    with pytest.raises(FeedError, match="2 inputs were given, and the model has 1"):
        rep.run([x, x])


def test_a_constant_is_compiled_in_and_held_against_what_is_fed() -> None:
    source = model("agraph (float[2, 3] x, int64[1] axes) => (float[1, 3] y) { y = ReduceSum(x, axes) }")
    before = source.SerializeToString()
    x, axes = np.ones((2, 3), np.float32), np.array([0])
    assert backend.shape_inputs(source) == ("axes",)
    rep = backend.prepare(source, fallback=False, constants={"axes": axes})
    np.testing.assert_array_equal(rep.run([x, axes])[0], [[2, 2, 2]])
    np.testing.assert_array_equal(rep.run({"x": x})[0], [[2, 2, 2]])
    with pytest.raises(FeedError, match="input 'axes' was compiled in with another value"):
        rep.run([x, np.array([1])])
    with pytest.raises(GraphoptError, match="'z' cannot become a constant: the inputs are x, axes"):
        backend.prepare(source, constants={"z": axes})
    assert source.SerializeToString() == before


def test_open_shapes_are_compiled_for_when_they_come() -> None:
    rep = backend.prepare(model("agraph (float[n, m] x) => (float[n, m] y) { y = Neg(x) }"), fallback=False)
    with pytest.raises(GraphoptError, match="input 'x' has an open shape: the model is compiled by its first run"):
        _ = rep.compilation
    for shape in ((2, 3), (1, 5), (2, 3)):
        x = np.ones(shape, np.float32)
        np.testing.assert_array_equal(rep.run([x])[0], -x)
        assert rep.compilation.artifact.program.inputs[0].shape == shape


def test_shape_inputs_are_found_behind_other_nodes_but_not_behind_shape() -> None:
    source = model(
        """agraph (float[2, 3] x, int64[1] a, int64[1] b) => (float[r, s] y)
        { n = Shape(x)  c = Concat<axis = 0>(a, b)  d = Mul(c, n)  y = Reshape(x, d) }"""
    )
    assert backend.shape_inputs(source) == ("a", "b")


def test_without_fallback_every_node_without_a_native_form_is_named() -> None:
    source = model("agraph (float[2, 2] x) => (float y, float z) { y = Det(x)  n = Neg(x)  z = Det(n) }")
    with pytest.raises(UnsupportedError, match=r"2 of 3 nodes .* y \(Det\): .*; z \(Det\): "):
        backend.prepare(source, fallback=False)
    x = np.array([[1, 2], [3, 4]], np.float32)
    np.testing.assert_allclose(backend.run_model(source, [x]), [-2, -2], rtol=1e-5)


def test_devices() -> None:
    for device in ("CPU", "CPU:0", "CUDA", "OPENCL:0"):
        assert backend.supports_device(device)
    assert not backend.supports_device("CUDA:1")
    source = model("agraph (float[2] x) => (float[2] y) { y = Neg(x) }")
    assert backend.is_compatible(source)
    with pytest.raises(GraphoptError, match="the device TPU is unknown to this backend: use CPU, CUDA, OPENCL"):
        backend.prepare(source, "TPU")


def write_list() -> None:
    lines = ["# Cases of ONNX's node suite that do not run natively, and why: see test_onnx_backend.py."]
    passed = 0
    for name, case in sorted(cases().items()):
        failure = natively(case)
        passed += not failure
        if failure:
            lines.append(f"{name} {failure}"[:160].rstrip())
    LIST.write_text("\n".join(lines) + "\n")
    sys.stdout.write(f"{passed} of {len(cases())} pass natively, {passed / len(cases()):.1%}\n")


if __name__ == "__main__":
    write_list()
