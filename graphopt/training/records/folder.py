"""A folder of checkpoints: the last few by step, and the best one.

step-0000000400.safetensors   step-0000000500.safetensors   best.safetensors
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from graphopt.errors import GraphoptError
from graphopt.training.records.checkpoint import Checkpoint, Position, load, save

_NAME = re.compile(r"step-(\d{10,})\.safetensors")
_DRAFT = re.compile(r"\.(step-\d+|best)\.safetensors\..*tmp")
BEST = "best.safetensors"


class CheckpointFolder:
    """Checkpoints of one training."""

    def __init__(self, path: Path, keep: int = 3) -> None:
        """Use the folder `path`, made at the first `save`.

        Args:
            path: a folder of checkpoints, an empty one, or one that does not exist.
            keep: how many of the last checkpoints stay; the best stays besides.

        Raises:
            GraphoptError: `path` is a file, or its folder does not exist, or `keep` is below 1.
        """
        if keep < 1:
            raise GraphoptError(f"at least one checkpoint is kept, not {keep}; give --keep 1 or more")
        if path.exists() and not path.is_dir():
            raise GraphoptError(f"the checkpoints go into a folder, and {path} is a file; name another place")
        if not path.absolute().parent.is_dir():
            raise GraphoptError(f"the folder {path.parent} does not exist, so {path} cannot be made in it; make it")
        self.path, self.keep = path, keep

    def files(self) -> list[Path]:
        """The checkpoints by step, the last one last."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(
                (each for each in self.path.iterdir() if _NAME.fullmatch(each.name)),
                key=lambda each: int(each.name[5:].partition(".")[0]),
            )
        return []

    def last(self) -> Checkpoint | None:
        """The last checkpoint; None if there is none.

        Raises:
            GraphoptError: it is damaged; an older one is named, if there is one.
        """
        files = self.files()
        return load(files[-1]) if files else None

    def prepare(self) -> None:
        """Make the folder, remove what a killed training left half written, and see that a file can be written.

        Raises:
            GraphoptError: the folder cannot be made or written to.
        """
        try:
            self.path.mkdir(exist_ok=True)
            for each in self.path.iterdir():
                if _DRAFT.fullmatch(each.name):
                    each.unlink(missing_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise GraphoptError(
                f"checkpoints cannot be written to {self.path}: {error.strerror or error}; name another folder"
            ) from error

    def place(self, position: Position) -> Path:
        """Where the checkpoint of a position goes; the folder is made.

        Raises:
            GraphoptError: it cannot be made.
        """
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise GraphoptError(f"the folder {self.path} cannot be made: {reason}; name another place") from error
        return self.path / f"step-{position.step:010d}.safetensors"

    def save(self, checkpoint: Checkpoint, best: bool = False) -> Path:
        """Write a checkpoint, make it the best one if asked, and remove those that are too old.

        Raises:
            GraphoptError: it cannot be written; the earlier ones are intact.
        """
        path = self.place(checkpoint.position)
        save(path, checkpoint)
        try:
            if best:
                self._make_best(path)
            for old in self.files()[: -self.keep]:
                old.unlink(missing_ok=True)
            _sync(self.path)
        except OSError as error:
            where, reason = error.filename or self.path, error.strerror or error
            raise GraphoptError(f"{where} cannot be replaced: {reason}; the checkpoint {path} is complete") from error
        return path

    def _make_best(self, path: Path) -> None:
        """`best` becomes a second name of the file, or a copy where the file system has none."""
        draft = self.path / f".{BEST}.{os.getpid()}.tmp"
        draft.unlink(missing_ok=True)
        try:
            try:
                os.link(path, draft)
            except OSError:
                shutil.copyfile(path, draft)
            draft.replace(self.path / BEST)
        finally:
            draft.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Force renames to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
