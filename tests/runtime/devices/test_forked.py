"""A forked child runs, opens and compiles, whatever its parent did before."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.runtime.devices.host import available_cpus

SECONDS = 100
X = np.linspace(-1, 1, 256 * 256, dtype=np.float32).reshape(256, 256)


@pytest.fixture(scope="module")
def artifact() -> graphopt.Artifact:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[256, 256] x) => (float[256, 256] y) { y = MatMul(x, x) }'
    )
    return graphopt.compile(model)


def forked(work: Callable[[], bool]) -> int:
    """The exit code of a child that does `work`: 0 if it gives True, -9 if it does not end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 says that other threads may hold locks
        child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -9


@pytest.mark.skipif(available_cpus() < 2, reason="a pool has workers where there is more than one processor")
def test_a_session_runs_in_a_forked_child(artifact: graphopt.Artifact) -> None:
    session = artifact.session(threads=2)
    expected = session.run({"x": X})["y"]

    def same(ran: graphopt.Session) -> bool:
        return bool(np.array_equal(ran.run({"x": X})["y"], expected))

    assert forked(lambda: same(session) and same(session)) == 0
    assert forked(lambda: forked(lambda: same(session)) == 0) == 0, "a child of a child"
    assert forked(lambda: same(artifact.session(threads=2))) == 0, "a session of the child's own"
    assert same(session), "the parent goes on"


def test_a_model_is_compiled_in_a_forked_child(artifact: graphopt.Artifact) -> None:
    artifact.session().run({"x": X})
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[300, 300] x) => (float[300, 300] y)'
        " <float[300, 300] w = {" + ", ".join(["0.5"] * 90000) + "}> { t = Transpose(w) s = Exp(t) y = MatMul(x, s) }"
    )
    x = np.ones((300, 300), np.float32)
    assert (
        forked(lambda: bool(np.allclose(graphopt.compile(model).session().run({"x": x})["y"], 300 * np.exp(0.5)))) == 0
    )
