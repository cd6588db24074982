"""A bounded folder of files by digest in the user's cache directory: least recently used files are removed first.

Several processes may use one folder. A file is written under a temporary name and renamed, so no process sees half of
one; its modification time records its last use; a file that another process removed meanwhile is simply absent.
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
"""Size limits of the folders, in bytes."""

_ABANDONED_SECONDS = 3600.0
_TEMPORARY = ".tmp"


@dataclass(frozen=True, slots=True)
class Usage:
    """Number and bytes of the files of a folder."""

    files: int
    nbytes: int


class DiskCache:
    """Entries of bytes by name. An entry that cannot be read or written counts as absent: a cache never fails."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Args: limit: most bytes that `trim` leaves."""
        self.folder, self.limit = folder, limit

    def get(self, name: str) -> bytes | None:
        """The entry, checked against the digest stored with it; None if it is missing, damaged or of another name."""
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
        """Record that a file of the folder was used just now."""
        with contextlib.suppress(OSError):
            os.utime(path)

    def trim(self) -> None:
        """Remove the least recently used files until the rest fits, and the temporary files of interrupted writers."""
        now = time.time()
        entries = []
        for entry, status in self._files():
            if entry.name.endswith(_TEMPORARY):
                if now - status.st_mtime > _ABANDONED_SECONDS:
                    _remove(entry.path)
            else:
                entries.append((status.st_mtime_ns, entry.path, status.st_size))
        total = sum(size for _, _, size in entries)
        for _, path, size in sorted(entries):
            if total <= self.limit:
                return
            _remove(path)
            total -= size

    def usage(self) -> Usage:
        """Number of files in the folder, and their bytes."""
        sizes = [status.st_size for _, status in self._files()]
        return Usage(len(sizes), sum(sizes))

    def clear(self) -> Usage:
        """Remove every file; returns what was removed."""
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
    """Digest of `content` under `name`: a file under the name of another counts as damaged."""
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def objects() -> DiskCache:
    """Object files of kernels, each preceded by the digest of its content."""
    return DiskCache(_root() / "objects", OBJECT_BYTES)


def libraries() -> DiskCache:
    """Shared objects unpacked from artifacts, named by their digests, for the dynamic loader."""
    return DiskCache(_root() / "libraries", LIBRARY_BYTES)


def _root() -> Path:
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    from platformdirs import user_cache_path

    return Path(user_cache_path("graphopt"))
