"""TensorBoard event files: records framed as TFRecord, each a protobuf message `Event` of scalars.

    record   length: uint64 | crc of length: uint32 | message | crc of message: uint32     little endian
    Event    1 wall_time: double | 2 step: int64 | 3 file_version: string | 5 summary | 7 session_log
    Summary  1 value, repeated: 1 tag: string, 2 simple_value: float

Checksums are CRC-32C, rotated by 15 and offset by 0xa282ead8 ("masked"). Formats:
https://www.tensorflow.org/tutorials/load_data/tfrecord and tensorflow/core/util/event.proto.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from graphopt.errors import GraphoptError

_VERSION = "brain.Event:2"
_STARTED = 1
"""`SessionLog.START`: a reader drops events of this step and later ones, which a killed run left."""


def _make_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_TABLE = _make_table()


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of `data`; records are short, so a table in Python is enough."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def framed(message: bytes) -> bytes:
    """The message as a record."""
    length = struct.pack("<Q", len(message))
    return length + _masked(length) + message + _masked(message)


def event(wall_time: float, step: int, scalars: Mapping[str, float]) -> bytes:
    """An `Event` with scalars by tag."""
    values = b"".join(
        _field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value)) for tag, value in scalars.items()
    )
    return _head(wall_time, step) + _field(5, values)


class EventFile:
    """An event file of one run."""

    def __init__(self, folder: Path, step: int | None = None) -> None:
        """Begin a file in `folder`.

        Args:
            folder: TensorBoard's log folder; it exists.
            step: of a resumed training the steps that are done: earlier files may hold later ones, which no longer
                count.

        Raises:
            GraphoptError: it cannot be written.
        """
        now = time.time()
        # TensorBoard asks for "tfevents" in the name, and reads files in the order of their names.
        self.path = folder / f"events.out.tfevents.{int(now):010d}.{time.time_ns() % 10**9:09d}.graphopt"
        self._file: IO[bytes] | None = None
        try:
            self._file = self.path.open("xb")
        except OSError as error:
            raise _cannot(self.path, error) from error
        self._write(_head(now, 0) + _field(3, _VERSION.encode()))
        if step is not None:
            self._write(_head(now, step + 1) + _field(7, b"\x08" + _varint(_STARTED)))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add scalars of a step, without waiting for the disk."""
        self._write(event(time.time(), step, scalars))

    def flush(self) -> None:
        """Give everything to the system."""
        assert self._file is not None
        try:
            self._file.flush()
        except OSError as error:
            raise _cannot(self.path, error) from error

    def close(self) -> None:
        """End the file."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                raise _cannot(self.path, error) from error

    def _write(self, message: bytes) -> None:
        assert self._file is not None
        try:
            self._file.write(framed(message))
        except OSError as error:
            raise _cannot(self.path, error) from error


def _cannot(path: Path, error: OSError) -> GraphoptError:
    return GraphoptError(f"--metrics: {path} cannot be written: {error.strerror or error}; name another folder")


def _head(wall_time: float, step: int) -> bytes:
    return b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(step)


def _field(number: int, content: bytes) -> bytes:
    """A field of length-delimited content."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
