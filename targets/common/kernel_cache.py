"""The base of every kernel cache: entries are keyed by the digest of everything that decides their content."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from graphopt.disk_cache import DiskCache

Entry = TypeVar("Entry")


class KernelCache(ABC, Generic[Entry]):
    """Entries in a folder that machines, devices and versions may share, keyed by the kernel and its context."""

    def __init__(self, files: DiskCache, context: Mapping[str, Any]) -> None:
        """Set up the cache; nothing is read yet.

        Args:
            files: the folder.
            context: JSON values that decide the content of entries, besides the texts that are compiled.
        """
        self._files = files
        self._context = json.dumps(context, sort_keys=True)
        self._grown = False

    def key(self, *parts: str) -> str:
        """The name of the entry for `parts`, the texts that were compiled."""
        return hashlib.sha256("\n".join((self._context, *parts)).encode()).hexdigest()

    def get(self, *parts: str) -> Entry | None:
        """The entry for `parts`; None if it is missing or corrupt."""
        content = self._files.get(self.key(*parts))
        return None if content is None else self.read(content)

    def put(self, entry: Entry, *parts: str) -> None:
        """Keep the entry for `parts`."""
        self._files.put(self.key(*parts), self.write(entry))
        self._grown = True

    def trim(self) -> None:
        """Evict old entries if an entry was added."""
        if self._grown:
            self._files.trim()
            self._grown = False

    @abstractmethod
    def read(self, content: bytes) -> Entry:
        """The entry from its bytes."""

    @abstractmethod
    def write(self, entry: Entry) -> bytes:
        """The bytes of an entry."""
