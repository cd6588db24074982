"""Prefetching: the same items in order; errors arrive, and the thread ends whatever the consumer does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from graphopt.training.data.prefetch import prefetch


def _threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_items_come_in_order() -> None:
    assert list(prefetch(iter(range(100)))) == list(range(100))
    assert list(prefetch(iter(()))) == []
    assert _threads() == 0


def test_no_more_than_the_depth_is_made_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    stream = prefetch(items(), depth=3)
    assert next(stream) == 0
    time.sleep(0.3)
    assert len(made) <= 5  # one was taken, three wait, and one is in the thread's hand
    stream.close()  # type: ignore[attr-defined]
    assert _threads() == 0


def test_an_error_arrives_where_its_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="no more"):
        next(stream)
    assert _threads() == 0


def test_ctrl_c_in_the_consumer_ends_the_thread_and_the_source() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    def consume() -> None:
        stream = prefetch(items())
        try:
            for _ in stream:
                raise KeyboardInterrupt
        finally:
            stream.close()  # type: ignore[attr-defined]

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert closed.wait(5)
    assert _threads() == 0


def test_an_interrupt_inside_the_source_is_no_hang() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(prefetch(items()))
