"""After a pause the workers of the pool wake on other cores than the one they work for; then all is as it was."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

import graphopt
from graphopt.runtime import stage
from graphopt.runtime.devices import placement

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="there is one core only"
)

MODEL = """
    <ir_version: 10, opset_import: ["": 20]>
    g (float[256, 1024] x) => (float[256, 1024] y) { y = Exp(x) }
"""
FEEDS = {"x": np.zeros((256, 1024), np.float32)}


class Seen:
    """Where the workers were allowed while kernels ran."""

    def __init__(self) -> None:
        self.allowed: list[set[int]] = []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Seen:
    """Looks while kernels run, as on a machine where nothing else does."""
    found, run = Seen(), stage.StageRunner.run

    def looking(self: Any) -> None:
        found.allowed = [os.sched_getaffinity(worker) for worker in placement._pools.workers]
        run(self)

    monkeypatch.setattr(stage.StageRunner, "run", looking)
    load(tmp_path, monkeypatch, "0.00 0.00 0.00 1/100 4711")
    monkeypatch.setattr(placement, "PAUSE", 0.0)
    return found


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "loadavg").write_text(text)
    monkeypatch.setattr(placement, "_LOAD", folder / "loadavg")


@pytest.fixture(scope="module")
def session() -> Any:
    return graphopt.compile(onnx.parser.parse_model(MODEL), threads=2).session(threads=2)


def everywhere() -> list[set[int]]:
    return [os.sched_getaffinity(0)] * len(placement._pools.workers)


def test_workers_wake_on_other_cores(seen: Seen, session: Any) -> None:
    """One core is left out, the one on which the thread was when the run began."""
    session.run(FEEDS)
    assert seen.allowed
    assert [len(allowed) for allowed in seen.allowed] == [len(os.sched_getaffinity(0)) - 1] * len(seen.allowed)


def test_after_the_run_they_may_be_everywhere(seen: Seen, session: Any) -> None:
    session.run(FEEDS)
    assert seen.allowed != everywhere()
    assert [os.sched_getaffinity(worker) for worker in placement._pools.workers] == everywhere()


def test_also_if_the_run_fails(seen: Seen, session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(stage.StageRunner, "run", failing)
    with pytest.raises(RuntimeError, match="no"):
        session.run(FEEDS)
    assert [os.sched_getaffinity(worker) for worker in placement._pools.workers] == everywhere()


@pytest.mark.parametrize("text", ["0.00 0.00 0.00 9/100 4711", "0.00", "", "a b c d e"])
def test_not_where_others_run_or_nobody_knows(
    seen: Seen, session: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tmp_path, monkeypatch, text.replace("9/", f"{os.cpu_count() or 1}/"))
    session.run(FEEDS)
    assert seen.allowed == everywhere()


def test_not_without_a_pause(seen: Seen, session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session.run(FEEDS)
    monkeypatch.setattr(placement, "PAUSE", 3600.0)
    session.run(FEEDS)
    assert seen.allowed == everywhere()


def test_not_for_one_thread(seen: Seen) -> None:
    graphopt.compile(onnx.parser.parse_model(MODEL), threads=1).session(threads=1).run(FEEDS)
    assert seen.allowed == everywhere()


def test_every_thread_knows_the_workers_of_its_own_pool(seen: Seen, session: Any) -> None:
    mine = list(placement._pools.workers)
    others: list[list[int]] = []

    def run() -> None:
        session.run(FEEDS)
        others.append(list(placement._pools.workers))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert others
    assert not set(others[0]) & set(mine)


def test_not_those_of_the_process_that_was_forked(seen: Seen, session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement._pools, "process", os.getpid() + 1)
    session.run(FEEDS)
    assert seen.allowed == everywhere()


def test_a_trace_that_is_given_up_leaves_nothing_behind(seen: Seen, session: Any) -> None:
    trace = session.trace(FEEDS)
    next(trace)
    assert [os.sched_getaffinity(worker) for worker in placement._pools.workers] != everywhere()
    trace.close()
    assert [os.sched_getaffinity(worker) for worker in placement._pools.workers] == everywhere()


def test_a_worker_that_has_ended_is_left_alone(seen: Seen, session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement._pools, "workers", [2**22 + 1])
    monkeypatch.setattr(stage.StageRunner, "run", lambda self: None)
    session.run(FEEDS)
