"""TensorBoard's format, read by a parser of its own: protobuf's descriptors, and a checksum bit by bit."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import GraphoptError
from graphopt.training.records.events import EventFile, crc32c, framed

FIELDS = {
    "SessionLog": [("status", 1, "INT32", "")],
    "Value": [("tag", 1, "STRING", ""), ("simple_value", 2, "FLOAT", "")],
    "Summary": [("value", 1, "MESSAGE", "Value")],
    "Event": [
        ("wall_time", 1, "DOUBLE", ""),
        ("step", 2, "INT64", ""),
        ("file_version", 3, "STRING", ""),
        ("summary", 5, "MESSAGE", "Summary"),
        ("session_log", 7, "MESSAGE", "SessionLog"),
    ],
}
"""The part of tensorflow/core/util/event.proto that is written."""


def _event_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="tb", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            label = kinds.LABEL_REPEATED if field == "value" else kinds.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label, type=getattr(kinds, f"TYPE_{kind}"))
            if of:
                added.type_name = f".tb.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tb.Event"))


def _slow_crc(data: bytes) -> int:
    """CRC-32C by the definition: division by the polynomial 0x1EDC6F41, bits reversed."""
    crc = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            top = (crc ^ byte >> bit) & 1
            crc = crc >> 1 ^ (0x82F63B78 * top)
    return crc ^ 0xFFFFFFFF


def _messages(content: bytes) -> list[bytes]:
    found = []
    while content:
        (size,) = struct.unpack_from("<Q", content)
        for start, end in ((0, 8), (12, 12 + size)):
            (masked,) = struct.unpack_from("<I", content, end)
            rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
            assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == _slow_crc(content[start:end])
        found.append(content[12 : 12 + size])
        content = content[16 + size :]
    return found


def _events(path: Path) -> list[Any]:
    return [_event_class().FromString(message) for message in _messages(path.read_bytes())]


def test_the_checksum_is_that_of_the_standard() -> None:
    """RFC 3720, B.4."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


@given(st.binary(max_size=200))
def test_checksums_and_frames(data: bytes) -> None:
    assert crc32c(data) == _slow_crc(data)
    assert _messages(framed(data) * 2) == [data, data]


def test_a_reader_finds_what_was_written(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.add(1, {"train/loss": 2.5, "train/lr": 1e-4})
    file.add(300, {"test/accuracy": 0.98})
    file.close()
    assert "tfevents" in file.path.name
    first, *events = _events(file.path)
    assert first.file_version == "brain.Event:2"
    assert first.wall_time > 1.7e9
    found = [(each.step, {value.tag: value.simple_value for value in each.summary.value}) for each in events]
    assert found == [
        (1, {"train/loss": 2.5, "train/lr": pytest.approx(1e-4)}),
        (300, {"test/accuracy": pytest.approx(0.98)}),
    ]


def test_a_resumed_run_takes_back_later_steps(tmp_path: Path) -> None:
    """TensorBoard drops events from the step of a START on."""
    file = EventFile(tmp_path, step=40)
    file.close()
    start = _events(file.path)[1]
    assert (start.session_log.status, start.step) == (1, 41)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(GraphoptError, match="--metrics: .* cannot be written: No such file"):
        EventFile(tmp_path / "missing")
