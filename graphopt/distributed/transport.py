"""Messages between neighbouring stages over torch.distributed with gloo, overlapped with computation.

A message packs all values of one boundary and one micro-batch. It is sent from, and received into, one of two buffers
per boundary, not the arena: copying a buffer takes microseconds, while the next micro-batch needs the arena's bytes at
once. So the next receive is already in flight while a stage runs, and a send may still be in flight when the next run
starts; nothing in flight is ever overwritten. Sends and receives are posted in the order of the schedule (not in
batches: batched point-to-point calls hang on gloo), and tagged with the micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from graphopt.distributed.watch import LinkError
from graphopt.program.program import Action, Verb
from graphopt.runtime.runner import Runner

_DEPTH = 2
"""Buffers per boundary: one in use, one in flight."""


class Link:
    """One direction of one boundary: the values `action.values` to or from `action.peer`."""

    def __init__(self, runner: Runner, actions: Sequence[Action]) -> None:
        """Args: actions: all sends to one peer, or all receives from one, in order."""
        self.peer = actions[0].peer
        self._parts = [runner.bytes[name] for name in actions[0].values]
        self._micro_batches = [action.micro_batch for action in actions]
        size = sum(part.size for part in self._parts)
        self._buffers: list[npt.NDArray[np.uint8]] = [np.empty(size, np.uint8) for _ in range(_DEPTH)]
        self._tensors = [torch.from_numpy(buffer) for buffer in self._buffers]
        self._works: list[Any] = [None] * _DEPTH
        self._done = 0
        self._posted = 0

    def send(self) -> None:
        """Send the values as they are in the arena now; returns while the bytes are still in flight."""
        slot = self._done % _DEPTH
        self._wait(slot)
        position = 0
        for part in self._parts:
            self._buffers[slot][position : position + part.size] = part
            position += part.size
        if position:
            tag = self._micro_batches[self._done]
            self._works[slot] = self._try(lambda: dist.isend(self._tensors[slot], self.peer, tag=tag))
        self._done += 1

    def prefetch(self) -> None:
        """Post the receives for which a buffer is free."""
        while self._posted < min(len(self._micro_batches), self._done + _DEPTH):
            slot, tag = self._posted % _DEPTH, self._micro_batches[self._posted]
            if self._buffers[slot].size:
                self._works[slot] = self._try(lambda s=slot, t=tag: dist.irecv(self._tensors[s], self.peer, tag=t))
            self._posted += 1

    def receive(self) -> None:
        """Wait for the next message and copy its values into the arena."""
        self.prefetch()
        slot = self._done % _DEPTH
        self._wait(slot)
        position = 0
        for part in self._parts:
            part[:] = self._buffers[slot][position : position + part.size]
            position += part.size
        self._done += 1
        self.prefetch()

    def flush(self) -> None:
        """Wait until everything posted has been sent."""
        for slot in range(_DEPTH):
            self._wait(slot)

    def _wait(self, slot: int) -> None:
        work, self._works[slot] = self._works[slot], None
        if work is not None:
            self._try(work.wait)

    def _try(self, action: Any) -> Any:
        try:
            return action()
        except RuntimeError as error:
            raise LinkError(f"the connection to rank {self.peer} (stage {self.peer}) broke") from error


def links(runner: Runner, actions: Sequence[Action]) -> dict[tuple[Verb, int], Link]:
    """The links of a rank by (SEND or RECV, peer). Posts the receives at once, before any run."""
    grouped: dict[tuple[Verb, int], list[Action]] = {}
    for action in actions:
        if action.verb is not Verb.RUN:
            grouped.setdefault((action.verb, action.peer), []).append(action)
    created = {key: Link(runner, group) for key, group in grouped.items()}
    for (verb, _), link in created.items():
        if verb is Verb.RECV:
            link.prefetch()
    return created
