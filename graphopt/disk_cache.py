"""A bounded folder of files by digest in the user's cache directory: what is old and unused makes room for the new.

Several processes may use one folder. A file is written beside and renamed, so nobody sees half of one; its use shows in
its modification time; and what another process removed meanwhile is simply absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "GRAPHOPT_CODE_CACHE"
"""Environment variable: a folder for compiled code instead of `graphopt` in the user's cache directory."""

OBJECT_BYTES = 2 << 30
LIBRARY_BYTES = 1 << 30
"""Sizes that the folders are kept below."""

_ABANDONED_SECONDS = 3600.0
_TEMPORARY = ".tmp"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a folder holds."""

    files: int
    nbytes: int


class DiskCache:
    """Entries of bytes by name. What cannot be read or written is as if it were not there: a cache never fails."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Args: limit: bytes that `trim` leaves at most."""
        self.folder, self.limit = folder, limit

    def get(self, name: str) -> bytes | None:
        """The entry, checked against the digest stored with it; None if it is missing, damaged or another's."""
        path = self.folder / name
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if data[:32] != _digest(name, data[32:]):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        self.touch(path)
        return data[32:]

    def put(self, name: str, content: bytes) -> None:
        """Add or replace an entry."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(suffix=_TEMPORARY, dir=self.folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_digest(name, content))
                    file.write(content)
                Path(temporary).replace(self.folder / name)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise

    def touch(self, path: Path) -> None:
        """Note that a file of the folder was used just now."""
        with contextlib.suppress(OSError):
            os.utime(path)

    def trim(self) -> None:
        """Remove the files that were not used for longest until the rest fits, and what broken writers left."""
        now = time.time()
        found = []
        for entry, status in self._files():
            if entry.name.endswith(_TEMPORARY):
                if now - status.st_mtime > _ABANDONED_SECONDS:
                    _remove(entry.path)
            else:
                found.append((status.st_mtime_ns, entry.path, status.st_size))
        total = sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            if total <= self.limit:
                return
            _remove(path)
            total -= size

    def usage(self) -> Usage:
        """Files in the folder and their bytes."""
        sizes = [status.st_size for _, status in self._files()]
        return Usage(len(sizes), sum(sizes))

    def clear(self) -> Usage:
        """Remove every file; what there was."""
        before = self.usage()
        for entry, _ in self._files():
            _remove(entry.path)
        return before

    def _files(self) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_file(follow_symlinks=False):
                        yield entry, entry.stat(follow_symlinks=False)


def _digest(name: str, content: bytes) -> bytes:
    """Of the content as that of `name`: a file under the name of another is as damaged as one with other bytes."""
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def objects() -> DiskCache:
    """Object files of kernels, each with the digest of its content in front."""
    return DiskCache(_root() / "objects", OBJECT_BYTES)


def libraries() -> DiskCache:
    """Shared objects unpacked from artifacts, named by their digests, as the dynamic loader needs them."""
    return DiskCache(_root() / "libraries", LIBRARY_BYTES)


def _root() -> Path:
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    from platformdirs import user_cache_path

    return Path(user_cache_path("graphopt"))
