"""The engine of generated code: a session of the compiled step model, which keeps the state in its own memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from graphopt.errors import FeedError
from graphopt.program.program import Port
from graphopt.training.engine import Array, mismatch


class StatefulSession(Protocol):
    """What is asked of a `Session`: `run` updates the state, and returns the outputs that are none."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The inputs that are no state."""

    @property
    def threads(self) -> int:
        """Threads of every kernel."""

    @property
    def arena_bytes(self) -> int:
        """Planned bytes of all arenas."""

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """One step."""

    def state(self) -> dict[str, Array]:
        """The state values by name."""

    def load_state(self, state: dict[str, Array]) -> None:
        """Replace the state values."""


class CompiledEngine:
    """Runs a compiled step model."""

    def __init__(self, session: StatefulSession, roles: Mapping[str, str], code: str = "") -> None:
        """Wrap the session.

        Args:
            session: of the compiled step model; its state is what training begins with.
            roles: state value -> its role, for the account of memory.
            code: digest of the program and its kernels.
        """
        self._session, self._code = session, code
        state = session.state()
        self._expected = {name: np.broadcast_to(np.zeros((), each.dtype), each.shape) for name, each in state.items()}
        self._memory: dict[str, int] = {}
        for name, array in state.items():
            kind = roles.get(name, "state")
            self._memory[kind] = self._memory.get(kind, 0) + array.nbytes
        self._memory["arena"] = session.arena_bytes

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What a step is given."""
        return self._session.inputs

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes of the state by role, and of the arena."""
        return self._memory

    @property
    def identity(self) -> str:
        """The generated code, and its threads."""
        return f"compiled {self._code[:12]} on {self._session.threads} threads"

    def step(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run one step; see `Engine.step`."""
        return {name: np.asarray(value) for name, value in self._session.run(feeds).items()}

    def state(self) -> dict[str, Array]:
        """Copies of the state values by name."""
        return {name: np.array(value) for name, value in self._session.state().items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Replace the state values; see `Engine.load_state`."""
        if (why := mismatch(self._expected, state)) is not None:
            raise FeedError(f"this is the state of another model: {why}; load one of this model")
        self._session.load_state(dict(state))


def code_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Digest of the program and its kernels, without the numbers that training begins with."""
    code = {name: each["sha256"] for name, each in files.items() if not name.endswith(".safetensors")}
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()
