"""A digest of the files that decide what code is generated, so that kernels of other sources are not reused."""

from __future__ import annotations

import functools
import hashlib
import time
from pathlib import Path

_IMPORTED = time.time()  # `load_target` imports this file before the others


@functools.cache
def digest() -> str:
    """SHA-256 of every Python file of this package, in order of their names."""
    folder = Path(__file__).parents[1]
    hasher = hashlib.sha256()
    for path in _files(folder):
        hasher.update(str(path.relative_to(folder)).encode())
        hasher.update(hashlib.sha256(path.read_bytes()).digest())
    return hasher.hexdigest()


def unchanged(folder: Path = Path(__file__).parents[1], imported: float = _IMPORTED) -> bool:
    """Whether the files are still those that this process imported, so that `digest` is that of the code that runs."""
    return all(path.stat().st_mtime < imported for path in _files(folder))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))
