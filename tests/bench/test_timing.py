"""The order of runs, what is counted, and when a block may begin."""

from __future__ import annotations

import threading
import time

import pytest

from graphopt.bench import timing


def _sides(log: list[str]) -> list[timing.Block]:
    return [timing.by_clock(lambda: log.append("a")), timing.by_clock(lambda: log.append("b"))]


def test_blocks_alternate_in_both_orders_and_first_runs_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(timing, "wait_until_quiet", lambda: log.append("|") or True)
    found = timing.interleave(_sides(log), runs=4, rounds=2)
    # A block of each to warm up; then blocks of one uncounted and two counted runs.
    assert "".join(log) == "aabb|aaa|bbb|bbb|aaa"
    assert [[len(block) for block in one] for one in found.rounds] == [[2, 2], [2, 2]]
    assert found.quiet


def test_blocks_take_about_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.02)
    found = timing.interleave([timing.by_clock(lambda: time.sleep(0.002))], rounds=2)
    assert all(3 <= len(one[0]) <= 10 for one in found.rounds)


def test_whoever_has_a_clock_of_its_own_is_asked_for_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "wait_until_quiet", lambda: True)
    asked: list[int] = []

    def block(runs: int) -> list[float]:
        asked.append(runs)
        return [0.05] * runs

    found = timing.interleave([block], rounds=3)
    assert asked == [3, 4, 4, 4]  # as many as fit 0.2 s
    assert found.rounds == (((0.05,) * 4,),) * 3


def test_quiet_is_seen() -> None:
    assert timing.wait_until_quiet()


def test_spinning_threads_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_LONGEST_WAIT", 0.1)
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        assert not timing.wait_until_quiet()
    finally:
        stop.set()
        thread.join()
