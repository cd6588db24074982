"""The contents of an artifact as the runtime reads them: the program, the manifest, and files by name."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import disk_cache
from graphopt.errors import ArtifactError
from graphopt.program.files import map_file, sha256, write_file
from graphopt.program.program import Program, Stage
from graphopt.program.weights import Array, Entry, numpy_dtype, read_index


@dataclass(frozen=True)
class Contents:
    """`manifest` is the parsed manifest.json; `files` maps the name of every other file to its bytes."""

    program: Program
    manifest: Mapping[str, Any]
    files: Mapping[str, memoryview]

    @property
    def constants(self) -> tuple[str, ...]:
        """Inputs of the model whose default values were compiled in; the program takes no feed for them."""
        names = self.manifest.get("constants", [])
        return tuple(map(str, names)) if isinstance(names, list) else ()

    def weights(self, name: str) -> tuple[memoryview, dict[str, Entry]]:
        """The bytes of the weights file `name`, and where each tensor lies in them."""
        return self.files[name], read_index(self.files[name], name)

    def weight_arrays(self, stage: Stage, names: Sequence[str]) -> dict[str, Array]:
        """Tensors of the stage's weights file by name, as views of its bytes."""
        return self._arrays(stage.weights, names)

    def state_arrays(self, stage: Stage) -> dict[str, Array]:
        """What the state values of the stage hold before the first run, as views of the artifact's bytes."""
        return self._arrays(stage.initial, [state.value for state in stage.states])

    def _arrays(self, file: str, names: Sequence[str]) -> dict[str, Array]:
        data, index = self.weights(file) if names else (memoryview(b""), {})
        arrays = {}
        for name in names:
            entry = index[name]
            part = np.frombuffer(data[entry.start : entry.start + entry.nbytes], np.uint8)
            arrays[name] = part.view(numpy_dtype(entry.dtype)).reshape(entry.shape)
        return arrays

    def library_file(self, name: str) -> Path:
        """A file on disk with the bytes of the shared object `name`, for the dynamic loader.

        The file is kept in the user's cache under its digest and checked again before use; a temporary directory
        replaces the cache where that cannot be written. The cache keeps the most recently used files, up to a size
        limit.
        """
        digest = self.manifest["files"][name]["sha256"]
        cache = disk_cache.libraries()
        for folder in (cache.folder, None):
            try:
                if folder is None:
                    folder = Path(tempfile.mkdtemp(prefix="graphopt-"))
                    atexit.register(shutil.rmtree, folder, ignore_errors=True)
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                file = folder / f"{digest}.so"
                if file.is_file() and sha256(map_file(file)) == digest:
                    cache.touch(file)
                else:
                    write_file(file, self.files[name])
                    cache.trim()
                return file
            except OSError as error:
                failure = error
        raise ArtifactError(f"library {name} cannot be unpacked to {folder}: {failure}") from failure
