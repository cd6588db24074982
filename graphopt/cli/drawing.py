"""Writes a picture beside its place and renames it, so that nobody sees a part of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from graphopt.errors import GraphoptError


def write(path: Path, text: str, flag: str) -> None:
    """Write `text` to `path`.

    Raises:
        GraphoptError: it cannot be written; `flag` is the one that named the path.
    """
    draft = None
    try:
        descriptor, draft = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.absolute().parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except OSError as error:
        reason = error.strerror or error
        raise GraphoptError(
            f"{flag} {path} cannot be written: {reason}; free some space or name another file"
        ) from error
    finally:
        if draft is not None:
            Path(draft).unlink(missing_ok=True)  # exists only if it was not renamed
