"""Files of an artifact: mapped for reading, and written to a temporary name before they are renamed."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import tempfile
from pathlib import Path

from graphopt.errors import ArtifactError


def sha256(data: memoryview) -> str:
    """The SHA-256 digest of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def map_file(path: Path) -> memoryview:
    """The file's bytes, mapped. Private and writable, because kernel arguments must be; the file is never changed."""
    # Without waiting: a pipe that nobody writes to would never open.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ArtifactError(f"{path} is not a regular file")
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def write_file(target: Path, *pieces: bytes | memoryview) -> None:
    """Write a temporary file next to `target` and rename it: readers see the old file or the new one, never a part."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.absolute().parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
