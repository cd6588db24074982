"""The manifest of a file of ours: JSON text that is a function of its values and holds its own digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The text of a manifest; equal values give equal bytes."""
    return json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"


def own_digest(manifest: Mapping[str, Any]) -> str:
    """What `manifest["sha256"]` has to be: the SHA-256 of all other values."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(manifest_bytes(rest)).hexdigest()
