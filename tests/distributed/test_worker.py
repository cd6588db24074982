"""Several ranks as real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from graphopt.artifact import Artifact
from graphopt.distributed.launch import launch
from graphopt.errors import FeedError, GraphoptError, RankError
from graphopt.runtime import files


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 1), (3, 40)])
def test_ranks_give_what_one_process_gives(
    pipeline: Callable[[int, int], Artifact], tmp_path: Path, stages: int, micro_batches: int
) -> None:
    artifact = pipeline(stages, micro_batches)
    path = artifact.save(tmp_path / "model.gopt")
    x = np.random.default_rng(0).standard_normal(1000 * micro_batches).astype(np.float32)
    written = launch(path, stages, {"x": x}, tmp_path / "out", timeout=30, threads=1)
    assert written == {"y": tmp_path / "out/y.npy"}
    np.testing.assert_array_equal(np.load(written["y"]), artifact.session().run({"x": x})["y"])


def test_what_is_wrong_is_said_before_any_rank_starts(pipeline: Callable[[int, int], Artifact], tmp_path: Path) -> None:
    path = pipeline(2, 1).save(tmp_path / "model.gopt")
    with pytest.raises(FeedError, match="input 'x' is missing"):
        launch(path, 2, {}, tmp_path / "out")
    with pytest.raises(RankError, match="has 2 stages and cannot run on 3 ranks"):
        launch(path, 3, {"x": np.zeros(1000, np.float32)}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_told_by_its_rank(
    pipeline: Callable[[int, int], Artifact], tmp_path: Path
) -> None:
    path = pipeline(2, 1).save(tmp_path / "model.gopt")
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(RankError, match="output 'y' cannot be written"):
        launch(path, 2, {"x": np.zeros(1000, np.float32)}, tmp_path / "out", timeout=30)


class Ranks:
    """Workers started as torchrun would start them."""

    def __init__(self, artifacts: list[Path], feed: Path, folder: Path, timeout: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.logs = [folder / f"{rank}.log" for rank in range(len(artifacts))]
        self.processes = []
        for rank, artifact in enumerate(artifacts):
            environment = {"RANK": str(rank), "WORLD_SIZE": str(len(artifacts)), "MASTER_ADDR": "127.0.0.1"}
            environment |= {"MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
            command = [sys.executable, "-m", "graphopt.distributed.worker", str(artifact), "--trace", "--threads", "1"]
            command += ["--input", f"x={feed}", "--output", str(folder / "out"), "--timeout", str(timeout)]
            with self.logs[rank].open("wb") as log:
                self.processes.append(subprocess.Popen(command, env={**os.environ, **environment}, stderr=log))

    def wait_for(self, rank: int, text: str) -> None:
        deadline = time.monotonic() + 100
        while text not in self.logs[rank].read_text():
            assert time.monotonic() < deadline, f"rank {rank} never came to {text}"
            assert self.processes[rank].poll() is None, self.logs[rank].read_text()
            time.sleep(0.02)

    def ends(self, ranks: list[int], within: float) -> list[str]:
        """The error each of `ranks` ended with."""
        deadline = time.monotonic() + within
        for rank in ranks:
            assert self.processes[rank].wait(max(0.1, deadline - time.monotonic())) == 1, self.logs[rank].read_text()
        found = [self.logs[rank].read_text() for rank in ranks]
        return [text[text.index("error: ") :].strip() for text in found]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[Path], np.ndarray, float], Ranks]]:
    started: list[Ranks] = []

    def make(artifacts: list[Path], x: np.ndarray, timeout: float) -> Ranks:
        np.save(tmp_path / "x.npy", x)
        started.append(Ranks(artifacts, tmp_path / "x.npy", tmp_path, timeout))
        return started[-1]

    yield make
    for ranks in started:
        for process in ranks.processes:
            process.kill()
            process.wait()


Start = Callable[[list[Path], np.ndarray, float], Ranks]


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_kill_9_of_any_rank_ends_all_others_with_its_name(
    slow_pipeline: Artifact, start: Start, tmp_path: Path, victim: int
) -> None:
    path = slow_pipeline.save(tmp_path / "model.gopt")
    ranks = start([path] * 3, np.zeros(2_000_000, np.float32), 20.0)
    ranks.wait_for(2, "2F0")
    ranks.processes[victim].send_signal(signal.SIGKILL)
    survivors = [rank for rank in range(3) if rank != victim]
    for rank, error in zip(survivors, ranks.ends(survivors, within=20), strict=True):
        assert error.startswith(f"error: rank {victim} (stage {victim}) was lost while rank {rank} was in {rank}"), (
            error
        )
        assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_a_rank_that_stops_answering_is_lost_after_the_limit(
    slow_pipeline: Artifact, start: Start, tmp_path: Path
) -> None:
    path = slow_pipeline.save(tmp_path / "model.gopt")
    ranks = start([path] * 3, np.zeros(2_000_000, np.float32), 3.0)
    ranks.wait_for(2, "2F0")
    ranks.processes[1].send_signal(signal.SIGSTOP)
    for error in ranks.ends([0, 2], within=40):
        assert "rank 1 (stage 1) has not answered for 3 s while rank" in error


def test_ranks_with_different_artifacts_do_not_start(
    pipeline: Callable[[int, int], Artifact], start: Start, tmp_path: Path
) -> None:
    paths = [pipeline(2, count).save(tmp_path / f"{count}.gopt") for count in (1, 2)]
    ranks = start(paths, np.zeros(1000, np.float32), 20.0)
    errors = ranks.ends([0, 1], within=100)
    assert any("have different artifacts (their plan differ)" in error for error in errors)


def test_the_wrong_number_of_ranks(pipeline: Callable[[int, int], Artifact], start: Start, tmp_path: Path) -> None:
    path = pipeline(3, 1).save(tmp_path / "model.gopt")
    ranks = start([path] * 2, np.zeros(1000, np.float32), 20.0)
    assert any("has 3 stages, and 2 ranks were started" in error for error in ranks.ends([0, 1], within=100))


def test_a_wrong_feed_ends_all_ranks_at_once(
    pipeline: Callable[[int, int], Artifact], start: Start, tmp_path: Path
) -> None:
    path = pipeline(2, 1).save(tmp_path / "model.gopt")
    ranks = start([path] * 2, np.zeros(999, np.float32), 20.0)
    assert all("input 'x' has shape (999,)" in error for error in ranks.ends([0, 1], within=100))


def test_torchrun_starts_the_ranks(pipeline: Callable[[int, int], Artifact], tmp_path: Path) -> None:
    path = pipeline(2, 3).save(tmp_path / "model.gopt")
    x = np.arange(3000, dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "-m",
        "graphopt.distributed.worker",
        str(path),
        "--input",
        f"x={tmp_path}/x.npy",
        "--output",
        str(tmp_path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), 4 * x)


def test_the_launcher_names_the_rank_that_was_killed(slow_pipeline: Artifact, tmp_path: Path) -> None:
    """A helper process kills rank 1 of the launcher's children once they compute."""
    path = slow_pipeline.save(tmp_path / "model.gopt")
    code = """
import pathlib, sys, threading, time, os, signal, psutil
import numpy as np
from graphopt.errors import RankError
from graphopt.distributed.launch import launch
def kill():
    while True:
        for child in psutil.Process().children():
            if child.environ().get("RANK") == "1" and child.cpu_times().user > 8:
                child.send_signal(signal.SIGKILL)
                return
        time.sleep(0.1)
threading.Thread(target=kill, daemon=True).start()
try:
    launch(pathlib.Path(sys.argv[1]), 3, {"x": np.zeros(2_000_000, np.float32)}, pathlib.Path(sys.argv[2]), 20.0, 1)
except RankError as error:
    print(error)
"""
    command = [sys.executable, "-P", "-c", code, str(path), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert result.stdout.startswith("rank 1 (stage 1) was killed by SIGKILL; rank 1 (stage 1) was lost while rank ")


def test_output_file_names_stay_in_their_folder(tmp_path: Path) -> None:
    assert files.file_name("y") == "y.npy"
    written = files.write(tmp_path, {"../a/b": np.ones(2), "..": np.zeros(1), "s": np.array(["x", "yz"], object)})
    assert {path.parent for path in written.values()} == {tmp_path}
    assert len(list(tmp_path.iterdir())) == 3
    np.testing.assert_array_equal(files.read(written["../a/b"], "x"), np.ones(2))
    assert files.read(written["s"], "s").tolist() == ["x", "yz"]


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"rubbish")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("x", "empty", "absent"):
        with pytest.raises(FeedError, match=f"input 'x' cannot be read from .*{name}"):
            files.read(tmp_path / f"{name}.npy", "x")
    with pytest.raises(GraphoptError, match="output 'q' is a list"):
        files.write(tmp_path, {"q": [np.ones(1)]})
