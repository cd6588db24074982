"""The artifact: everything that a compiled model needs to run, in one zip file (`model.gopt`) or one directory.

    manifest.json         versions, target, pipeline, choices, and size and SHA-256 of every file, and of itself
    program.json          the Program
    stage_0.so ...        compiled kernels
    weights_0.safetensors constants
    state_0.safetensors   what values that live from run to run hold before the first one
    fallback/...onnx      models that ONNX Runtime runs

Nothing in an artifact is code except the shared objects, and all digests are checked before anything is used.
Files are mapped into memory, so opening costs one pass over the bytes, and weights are read in place.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import ArtifactError
from graphopt.program import container
from graphopt.program import json as program_json
from graphopt.program.check import file_name_problem, problems
from graphopt.program.contents import Contents
from graphopt.program.files import map_file, sha256, write_file
from graphopt.program.manifest import manifest_bytes, own_digest
from graphopt.program.program import FallbackSegment, Place, Program
from graphopt.program.strict import strict_json
from graphopt.runtime.devices import device, host

if TYPE_CHECKING:
    from graphopt.runtime.session import Session

FORMAT = 1
"""Version of the artifact's layout; another version is refused."""

MANIFEST = "manifest.json"
PROGRAM = "program.json"
_RESERVED = ("format", "graphopt", "files", "sha256")
_MAX_MANIFEST = 64 << 20


@dataclass(frozen=True)
class Artifact(Contents):
    """A compiled model. Create one with `graphopt.compile` or `open_artifact`; `session()` runs it."""

    @staticmethod
    def create(
        program: Program, files: Mapping[str, bytes | memoryview | Path], manifest: Mapping[str, Any]
    ) -> Artifact:
        """Create an artifact from a new program.

        Args:
            program: must satisfy `graphopt.program.check.problems`; program.json is written from it.
            files: every file that the program names, as bytes or as the path of a file (which is mapped, and may be
                deleted afterwards, but must not be changed).
            manifest: JSON values to store with it. `target.arch` and `target.features` (flags of /proc/cpuinfo) say
                which processors may open it.

        Raises:
            ArtifactError: the program is not valid, a file is missing, or a name is not allowed.
        """
        from graphopt.version import VERSION

        reasons = problems(program)
        if reasons:
            raise ArtifactError(f"the program is not valid: {reasons[0]}")
        for key in _RESERVED:
            if key in manifest:
                raise ArtifactError(f"the manifest key {key!r} is reserved: choose another name")
        contents = {PROGRAM: memoryview(program_json.dumps(program))}
        for name, content in sorted(files.items()):
            if (reason := file_name_problem(name)) is not None or name in (MANIFEST, PROGRAM):
                raise ArtifactError(reason or f"the file name {name!r} is reserved: choose another name")
            contents[name] = map_file(content) if isinstance(content, Path) else memoryview(content)
        listed = {name: {"bytes": len(contents[name]), "sha256": digest} for name, digest in _digests(contents).items()}
        document = {**manifest, "format": FORMAT, "graphopt": VERSION, "files": listed}
        try:
            document = json.loads(json.dumps(document, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"the manifest cannot be written as JSON: {error}") from None
        document["sha256"] = own_digest(document)
        artifact = Artifact(program, document, contents)
        artifact._check_references()
        return artifact

    def with_program(self, program: Program) -> Artifact:
        """An artifact of another program with the same files.

        Raises:
            ArtifactError: the program is not valid, or needs a file that is not there.
        """
        files = {name: content for name, content in self.files.items() if name != PROGRAM}
        manifest = {key: value for key, value in self.manifest.items() if key not in _RESERVED}
        return Artifact.create(program, files, manifest)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the artifact to `path`: a directory if `path` ends in "/" or is one, else a single zip file.

        It is written under a temporary name and renamed, so that an existing artifact stays complete if anything fails.
        A symbolic link stays a link.

        Raises:
            ArtifactError: it cannot be written, or `path` is a directory that is no artifact, or a device.
        """
        target = Path(path).resolve() if Path(path).is_symlink() else Path(path)
        as_directory = os.fspath(path).endswith(os.sep) or target.is_dir()
        try:
            if target.exists() and not (target.is_dir() or target.is_file()):
                raise ArtifactError(f"{target} is no regular file; name one")
            if as_directory:
                _save_directory(target, self._everything())
            else:
                write_file(target, *container.pieces(self._everything()))
        except OSError as error:
            raise ArtifactError(f"{target} cannot be written: {error.strerror or error}") from error
        return target

    def session(self, threads: int | None = None) -> Session:
        """A session that runs the program in this process, on `threads` threads (default: one per physical core)."""
        from graphopt.runtime.session import Session

        return Session(self, threads=threads)

    def _everything(self) -> dict[str, memoryview]:
        return {MANIFEST: memoryview(manifest_bytes(self.manifest)), **self.files}

    def _check_references(self) -> None:
        """Check that every file that the program names exists, and that its weights match in dtype and shape."""
        for stage in self.program.stages:
            names = [stage.library, stage.weights, stage.initial]
            names += [segment.model for segment in stage.segments if isinstance(segment, FallbackSegment)]
            for name in filter(None, names):
                if name not in self.files:
                    raise ArtifactError(f"the artifact has no file {name!r}, which stage {stage.index} needs")
            index = self.weights(stage.weights)[1] if stage.weights else {}
            initial = self.weights(stage.initial)[1] if stage.initial else {}
            for segment in stage.segments:
                missing = set(segment.weights) - set(index) if isinstance(segment, FallbackSegment) else ()
                if missing:
                    raise ArtifactError(f"weight {min(missing)!r} of a fallback model is not in {stage.weights}")
            for value in stage.values:
                if value.place not in (Place.WEIGHT, Place.STATE):
                    continue
                constant = value.place is Place.WEIGHT
                entry, file = (
                    (index.get(value.name), stage.weights) if constant else (initial.get(value.name), stage.initial)
                )
                if entry is None or (entry.dtype, entry.shape) != (value.dtype, value.shape):
                    raise ArtifactError(
                        f"{value.place} {value.name!r} of stage {stage.index} is not in {file} "
                        f"as {value.dtype} {value.shape}"
                    )


def open_artifact(path: str | os.PathLike[str], *, check_cpu: bool = True) -> Artifact:
    """Open an artifact and check it completely: the file's layout, every digest, the program, and this processor.

    Args:
        path: a `.gopt` file or an artifact directory.
        check_cpu: refuse an artifact whose kernels this processor cannot execute.

    Raises:
        ArtifactError: it is missing, damaged, changed, of another format, or for another processor.
    """
    target = Path(path)
    try:
        contents = _read_directory(target) if target.is_dir() else container.read(map_file(target), str(target))
    except OSError as error:
        raise ArtifactError(
            f"{target} cannot be opened ({error.strerror or error}); name an artifact that graphopt compile wrote"
        ) from error
    manifest = _read_manifest(contents.pop(MANIFEST, None), target)
    listed = manifest["files"]
    if set(listed) != set(contents):
        odd = sorted(set(listed) ^ set(contents))[0]
        raise ArtifactError(f"{target} is damaged: its manifest and its files disagree about {odd[:100]!r}")
    for name, digest in _digests(contents).items():
        if digest != listed[name]["sha256"] or len(contents[name]) != listed[name]["bytes"]:
            raise ArtifactError(
                f"{target} was changed after it was written: {name} has another SHA-256; compile it again"
            )
    if PROGRAM not in contents:
        raise ArtifactError(f"{target} is damaged: it has no {PROGRAM}")
    if check_cpu:
        _check_cpu(manifest, target)
    _check_runtime(manifest, target)
    artifact = Artifact(program_json.loads(bytes(contents[PROGRAM])), manifest, contents)
    artifact._check_references()
    return artifact


def _read_manifest(data: memoryview | None, path: Path) -> dict[str, Any]:
    if data is None or len(data) > _MAX_MANIFEST:
        raise ArtifactError(
            f"{path} is not a graphopt artifact: it has no {MANIFEST}; name what graphopt compile wrote"
        )
    manifest = strict_json(bytes(data), f"{MANIFEST} of {path}")
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise ArtifactError(f"{path} is not a graphopt artifact: its {MANIFEST} names no format")
    if manifest["format"] != FORMAT:
        raise ArtifactError(
            f"{path} has format {str(manifest['format'])[:20]} and this graphopt reads {FORMAT}: "
            "compile the model again"
        )
    listed = manifest.get("files")
    if manifest.get("sha256") != own_digest(manifest) or bytes(data) != manifest_bytes(manifest):
        raise ArtifactError(
            f"{path} was changed after it was written: {MANIFEST} has another SHA-256; compile it again"
        )
    if not isinstance(listed, dict) or not all(map(_is_listing, listed.values())):
        raise ArtifactError(f"{path} is damaged: its {MANIFEST} does not list its files")
    for name in listed:
        if (reason := file_name_problem(name)) is not None:
            raise ArtifactError(f"{path} is damaged: {reason}")
    return manifest


def _is_listing(item: object) -> bool:
    return isinstance(item, dict) and set(item) == {"bytes", "sha256"}


def _check_cpu(manifest: Mapping[str, Any], path: Path) -> None:
    target = manifest.get("target")
    if not isinstance(target, dict):
        return
    arch = target.get("arch")
    if isinstance(arch, str) and arch != host.architecture():
        raise ArtifactError(
            f"{path} was built for {arch} and this machine is {host.architecture()}: compile it again here"
        )
    needed = target.get("features")
    missing = sorted(set(map(str, needed)) - host.features()) if isinstance(needed, list) else []
    if missing:
        raise ArtifactError(
            f"{path} was built for a processor with {', '.join(missing)}, which this one lacks: compile it again here"
        )


def _check_runtime(manifest: Mapping[str, Any], path: Path) -> None:
    """Check TVM's version: CPU kernels call its runtime, whose interface changes with it; GPU kernels need none."""
    versions = manifest.get("versions")
    built = versions.get("apache-tvm") if isinstance(versions, dict) else None
    if built is None or device.needs_device(manifest):
        return
    try:
        here = importlib.metadata.version("apache-tvm")
    except importlib.metadata.PackageNotFoundError:
        raise ArtifactError(f"{path} needs apache-tvm {str(built)[:40]}, which is not installed: install it") from None
    if built != here:
        raise ArtifactError(
            f"{path} was built with apache-tvm {str(built)[:40]} and {here} is installed: compile it again here"
        )


def _digests(contents: Mapping[str, memoryview]) -> dict[str, str]:
    """SHA-256 of every file, one thread per file: hashing releases the interpreter lock."""
    with ThreadPoolExecutor(max_workers=min(8, host.available_cpus())) as pool:
        return dict(zip(contents, pool.map(sha256, contents.values()), strict=True))


def _read_directory(path: Path) -> dict[str, memoryview]:
    """manifest.json and the files it lists. Other files are ignored."""
    if not (path / MANIFEST).is_file():
        raise ArtifactError(
            f"{path} is not a graphopt artifact: it has no {MANIFEST}; name what graphopt compile wrote"
        )
    contents = {MANIFEST: map_file(path / MANIFEST)}
    for name in _read_manifest(contents[MANIFEST], path)["files"]:
        file = path / name
        parts = [path.joinpath(*Path(name).parts[: depth + 1]) for depth in range(len(Path(name).parts))]
        if any(part.is_symlink() for part in parts) or not file.is_file():
            raise ArtifactError(f"{path} is damaged: {name} is missing or a link")
        contents[name] = map_file(file)
    return contents


def _save_directory(target: Path, contents: Mapping[str, memoryview]) -> None:
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise ArtifactError(f"{target} is a directory with other files in it: give the artifact a path of its own")
    parent = target.absolute().parent
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=parent))
    try:
        for name, data in contents.items():
            file = fresh / name
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, data)
        fresh.chmod(0o755)
        _replace_directory(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _replace_directory(fresh: Path, target: Path) -> None:
    if not target.is_dir():
        fresh.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
    target.rename(old)
    try:
        fresh.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
