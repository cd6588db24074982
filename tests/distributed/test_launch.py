"""What the launcher does when a rank, or the launcher itself, is killed or stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from graphopt.artifact import Artifact
from graphopt.distributed.control import Child, Reporter, Step

CODE = """
import pathlib, signal, sys
import numpy as np
from graphopt.errors import RankError
from graphopt.distributed import launch
artifact, output, timeout, launch.START_LIMIT = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
before = signal.getsignal(signal.SIGTERM)
try:
    launch.launch(pathlib.Path(artifact), 3, {"x": np.zeros(2_000_000, np.float32)}, pathlib.Path(output), timeout, 1)
except (RankError, SystemExit, KeyboardInterrupt) as error:
    assert signal.getsignal(signal.SIGTERM) is before
    print(type(error).__name__, error)
"""


@contextmanager
def launcher(artifact: Artifact, folder: Path, timeout: float, start_limit: float = 100.0) -> Iterator[psutil.Popen]:
    """The launcher as a process of its own; afterwards nothing of it is left, whatever the test did."""
    path = artifact.save(folder / "model.gopt")
    command = [sys.executable, "-P", "-c", CODE, str(path), str(folder / "out"), str(timeout), str(start_limit)]
    with psutil.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        seen: list[psutil.Process] = []
        try:
            yield process
        finally:
            with suppress(psutil.NoSuchProcess):
                seen = process.children()
            for each in (process, *seen):
                with suppress(psutil.NoSuchProcess):
                    each.kill()


def workers(process: psutil.Popen, computing: bool) -> list[psutil.Process]:
    """The three ranks in order, as soon as they exist; or only when they have computed for a while."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        with suppress(psutil.Error):
            children = {child.environ().get("RANK"): child for child in process.children()}
            found = [children[rank] for rank in ("0", "1", "2") if rank in children]
            if len(found) == 3 and (not computing or all(child.cpu_times().user > 8 for child in found)):
                return found
        time.sleep(0.05)
    raise AssertionError("the ranks never came so far")


def test_a_rank_that_is_killed_before_it_connects_ends_the_run_at_once(slow_pipeline: Artifact, tmp_path: Path) -> None:
    with launcher(slow_pipeline, tmp_path, timeout=60) as process:
        children = workers(process, computing=False)
        children[1].send_signal(signal.SIGKILL)
        out, _ = process.communicate(timeout=30)
        assert "rank 1 (stage 1) was killed by SIGKILL while it was starting and loading its libraries" in out
        assert not any(child.is_running() for child in children)


def test_a_rank_that_is_stopped_before_it_connects_is_named_and_killed(slow_pipeline: Artifact, tmp_path: Path) -> None:
    with launcher(slow_pipeline, tmp_path, timeout=5, start_limit=10) as process:
        children = workers(process, computing=False)
        children[1].send_signal(signal.SIGSTOP)
        out, _ = process.communicate(timeout=60)
        assert "RankError rank 1 (stage 1) did not connect to the other ranks within 10 s" in out
        assert "loading its libraries, and is stopped" in out
        assert not any(child.is_running() for child in children)


def test_ranks_that_stop_later_are_named_within_the_limit(slow_pipeline: Artifact, tmp_path: Path) -> None:
    with launcher(slow_pipeline, tmp_path, timeout=4) as process:
        children = workers(process, computing=True)
        children[1].send_signal(signal.SIGSTOP)
        out, _ = process.communicate(timeout=40)
        assert "RankError rank 1 (stage 1) has not answered for 4 s while rank" in out
        assert not any(child.is_running() for child in children)


def test_when_all_ranks_stop_the_launcher_notices(slow_pipeline: Artifact, tmp_path: Path) -> None:
    with launcher(slow_pipeline, tmp_path, timeout=4) as process:
        children = workers(process, computing=True)
        for child in children:
            child.send_signal(signal.SIGSTOP)
        out, _ = process.communicate(timeout=40)
        assert "has not answered for" in out
        assert not any(child.is_running() for child in children)


@pytest.mark.parametrize("computing", [False, True])
@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGTERM, "SystemExit 143"), (signal.SIGINT, "KeyboardInterrupt"), (signal.SIGKILL, "")],
)
def test_when_the_launcher_is_ended_all_ranks_end(
    slow_pipeline: Artifact, tmp_path: Path, number: signal.Signals, said: str, computing: bool
) -> None:
    with launcher(slow_pipeline, tmp_path, timeout=60) as process:
        children = workers(process, computing)
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
        assert out.strip() == said
        _, alive = psutil.wait_procs(children, timeout=20)
        assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []


def test_the_line_tells_steps_and_never_goes_back(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with subprocess.Popen([sys.executable, "-P", "-c", ""]) as process, (tmp_path / "log").open("w+b") as log:
        child = Child(3, process, log, reading)
        child.listen()
        assert (child.step, child.name) == (Step.LOADING, "rank 3 (stage 3)")
        reporter = Reporter(writing)
        for step in (Step.MEETING, Step.ENDING, Step.RUNNING):
            reporter.report(step)
        child.listen()
        assert child.step is Step.ENDING
        for _ in range(100_000):  # more than a pipe holds
            reporter.report(Step.ENDING)
        child.close()
    os.close(writing)
    Reporter(None).report(Step.RUNNING)
