"""Failure detection between ranks: a small mesh of TCP connections beside the transport.

The transport reports a dead peer only to ranks that talk to it at that moment, and not which rank died first. So every
pair of ranks keeps one more connection. A thread of each rank writes a heartbeat on all of them and reads what arrives:
the end of a stream means that the process is gone (the kernel closes the sockets of a process killed with -9 at once),
silence for longer than the limit that it hangs. The rank that notices tells the others which one, so all name the same
rank; then it ends its process, because the main thread may be blocked in the transport or computing.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from graphopt.errors import RankError

_BEAT, _DONE, _FAILED = b"b", b"d", b"f"
_TOKEN_BYTES = 32


class LinkError(RankError):
    """The transport lost a peer. The watch knows better which rank failed first."""


class Store(Protocol):
    """The part of torch.distributed's key-value store that is used; `get` waits for the key."""

    def set(self, key: str, value: str) -> None:
        """Store `value` under `key`."""

    def get(self, key: str) -> bytes:
        """The value of `key`, once it is there."""


@dataclass
class _Peer:
    rank: int
    connection: socket.socket
    last_heard: float
    pending: bytes = b""
    done: bool = False


class Watch:
    """Connects to all other ranks and watches them until `finish` or `fail`.

    Attributes:
        doing: current action of this rank, for messages, such as `0SEND3>1`.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        ranks: int,
        limit: float,
        start_limit: float,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect to all other ranks and start watching.

        Args:
            store: the key-value store that all ranks share.
            rank: this rank, of `ranks`.
            limit: seconds of silence after which a rank counts as lost.
            start_limit: seconds the others may take to connect.
            alive: called with every heartbeat, the first time when all are connected.

        Raises:
            RankError: some rank did not connect in time.
        """
        self.doing = "start"
        self._rank = rank
        self._limit = limit
        self._alive = alive
        self._lock = threading.Lock()
        self._all_done = threading.Event()
        self._closing = False
        self._wake, self._woken = socket.socketpair()
        self._peers = _connect(store, rank, ranks, start_limit)
        if not self._peers:
            self._all_done.set()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Report that this rank has done all its actions, and wait until all others have."""
        self.doing = "waiting for the other ranks to finish"
        self._tell(_DONE)
        self._all_done.wait()
        self._close()

    def fail(self, reason: str) -> None:
        """Tell all other ranks that this one gives up, so that they end at once and name it."""
        self._tell(_FAILED + json.dumps([self._rank, f"failed ({reason})"]).encode())
        self._close()

    def _close(self) -> None:
        self._closing = True
        self._wake.send(b"!")
        self._thread.join(timeout=self._interval + 1)
        for connection in (self._wake, self._woken, *(peer.connection for peer in self._peers)):
            connection.close()

    @property
    def _interval(self) -> float:
        return min(1.0, self._limit / 4)

    def _tell(self, message: bytes) -> None:
        with self._lock:
            for peer in self._peers:
                try:
                    peer.connection.sendall(message + b"\n")
                except OSError:
                    continue  # the reading side notices

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        for peer in self._peers:
            selector.register(peer.connection, selectors.EVENT_READ, peer)
        selector.register(self._woken, selectors.EVENT_READ, None)
        beat = 0.0
        while not self._closing:
            now = time.monotonic()
            if now - beat >= self._interval:
                beat = now
                self._tell(_BEAT)
                self._alive()
            for key, _ in selector.select(self._interval):
                if key.data is None:
                    break
                if not self._read(key.data):
                    selector.unregister(key.data.connection)
                    key.data.last_heard = float("inf")
            silent = [
                peer for peer in self._peers if not peer.done and time.monotonic() - peer.last_heard > self._limit
            ]
            if silent:
                self._lost(silent[0].rank, f"has not answered for {self._limit:g} s")
        selector.close()

    def _read(self, peer: _Peer) -> bool:
        """Read what `peer` sent; False at the end of its stream."""
        try:
            data = peer.connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            if not peer.done and not self._closing:
                self._lost(peer.rank, "was lost")
            return False
        peer.last_heard = time.monotonic()
        *lines, peer.pending = (peer.pending + data).split(b"\n")
        for line in lines:
            if line == _DONE:
                peer.done = True
            elif line.startswith(_FAILED):
                rank, reason = json.loads(line[len(_FAILED) :])
                if rank != self._rank:
                    self._lost(int(rank), str(reason))
        if all(other.done for other in self._peers):
            self._all_done.set()
        return True

    def _lost(self, rank: int, reason: str) -> None:
        """Report the lost rank, tell the others, and end the process."""
        doing = self.doing
        self._tell(_FAILED + json.dumps([rank, reason]).encode())
        end(f"rank {rank} (stage {rank}) {reason} while rank {self._rank} was in {doing}: start the run again")


def end(message: str) -> None:
    """Print the error and end the process from any thread, even if others are blocked."""
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    os._exit(1)


def _connect(store: Store, rank: int, ranks: int, limit: float) -> list[_Peer]:
    """One connection to every other rank: this rank connects to those below it and accepts those above."""
    deadline = time.monotonic() + limit
    if rank == 0:
        store.set("watch/token", secrets.token_hex(_TOKEN_BYTES // 2))
    host = _own_address()
    connections: dict[int, socket.socket] = {}
    with socket.create_server((host, 0), backlog=ranks) as server:
        store.set(f"watch/{rank}", f"{host} {server.getsockname()[1]}")
        token = _ask(store, "watch/token", 0)
        for other in range(rank):
            address, port = _ask(store, f"watch/{other}", other).decode().rsplit(" ", 1)
            left = max(0.1, deadline - time.monotonic())
            call = functools.partial(socket.create_connection, (address, int(port)), left)
            connections[other] = _in_time(call, other)
            connections[other].sendall(token + rank.to_bytes(4, "little"))
        while len(connections) < ranks - 1:
            missing = min(set(range(ranks)) - {rank} - set(connections))
            server.settimeout(max(0.1, deadline - time.monotonic()))
            connection, _ = _in_time(server.accept, missing)
            connection.settimeout(5)
            try:
                greeting = connection.recv(_TOKEN_BYTES + 4, socket.MSG_WAITALL)
            except OSError:
                greeting = b""
            caller = int.from_bytes(greeting[_TOKEN_BYTES:], "little")
            if secrets.compare_digest(greeting[:_TOKEN_BYTES], token) and rank < caller < ranks:
                connections[caller] = connection
            else:
                connection.close()  # not from one of our ranks
    now = time.monotonic()
    for connection in connections.values():
        connection.settimeout(5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return [_Peer(other, connections[other], now) for other in sorted(connections)]


def _ask(store: Store, key: str, rank: int) -> bytes:
    value: bytes = _in_time(lambda: store.get(key), rank)
    return value


def _in_time(action: Callable[[], Any], rank: int) -> Any:
    try:
        return action()
    except (OSError, RuntimeError) as error:
        raise RankError(f"rank {rank} (stage {rank}) did not start in time: look at its output") from error


def _own_address() -> str:
    """The address of this machine as the machine of rank 0 sees it."""
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    if master in ("127.0.0.1", "localhost", "::1"):
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 9))  # sends nothing: only chooses the interface
        return str(probe.getsockname()[0])
