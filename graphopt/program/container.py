"""The single-file form of an artifact: a zip whose members are stored uncompressed, each at a multiple of 64 bytes.

Such a file is mapped into memory and its members are used in place; any zip tool lists and extracts them. Everything
that is not content (headers, padding, directory) is a function of the members' names, sizes and CRCs. The reader
rebuilds it from those and compares every byte: nothing can hide in a header, and every changed byte is detected.

Layout: APPNOTE.TXT 6.3 (PKWARE), always with the ZIP64 records so that weights may pass 4 GiB.

The standard `zipfile` reads and writes such files too, but it neither aligns members nor notices changes in the bytes
that it does not read.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from graphopt.errors import ArtifactError
from graphopt.program.program import ALIGNMENT

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_ZIP64_END = struct.Struct("<4sQ2H2I4Q")
_ZIP64_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_TAIL = _ZIP64_END.size + _ZIP64_LOCATOR.size + _END.size

_VERSION = 45  # ZIP64
_UTF8 = 1 << 11
_DATE = (1 << 5) | 1  # 1 January 1980, the earliest: equal artifacts are equal files
_MAX32 = 0xFFFFFFFF
_PAD_EXTRA = 0xD935  # the alignment field that Android's zipalign writes
_UNIX_FILE = (0o100644 << 16) & _MAX32
_MAX_MEMBERS = 10_000


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the zip: `crc` is CRC-32 of its `size` bytes."""

    name: str
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class Frame:
    """All of the zip except the contents: the local header before each member, its start, and the tail."""

    headers: tuple[bytes, ...]
    starts: tuple[int, ...]
    tail: bytes
    tail_start: int


def frame(members: Sequence[Member]) -> Frame:
    """The bytes around the contents of `members`, in order."""
    headers, starts, central = [], [], []
    position = 0
    for member in members:
        offset = position
        name = member.name.encode()
        sizes = struct.pack("<2H2Q", 1, 16, member.size, member.size)
        bare = _LOCAL.size + len(name) + len(sizes) + 4
        padding = -(offset + bare) % ALIGNMENT
        extra = sizes + struct.pack("<2H", _PAD_EXTRA, padding) + bytes(padding)
        common = (_VERSION, _UTF8, 0, 0, _DATE, member.crc, _MAX32, _MAX32, len(name))
        headers.append(_LOCAL.pack(b"PK\x03\x04", *common, len(extra)) + name + extra)
        starts.append(offset + len(headers[-1]))
        position = starts[-1] + member.size
        extra = struct.pack("<2H3Q", 1, 24, member.size, member.size, offset)
        made_by = (3 << 8) | _VERSION
        record = _CENTRAL.pack(b"PK\x01\x02", made_by, *common, len(extra), 0, 0, 0, _UNIX_FILE, _MAX32)
        central.append(record + name + extra)
    directory = b"".join(central)
    count = len(members)
    end = position + len(directory)
    tail = directory
    tail += _ZIP64_END.pack(
        b"PK\x06\x06", _ZIP64_END.size - 12, _VERSION, _VERSION, 0, 0, count, count, len(directory), position
    )
    tail += _ZIP64_LOCATOR.pack(b"PK\x06\x07", 0, end, 1)
    tail += _END.pack(b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, _MAX32, _MAX32, 0)
    return Frame(tuple(headers), tuple(starts), tail, position)


def pieces(contents: Mapping[str, memoryview]) -> Iterator[bytes | memoryview]:
    """The bytes of the zip whose members are `contents`, in order."""
    around = frame([Member(name, len(data), zlib.crc32(data)) for name, data in contents.items()])
    for header, data in zip(around.headers, contents.values(), strict=True):
        yield header
        yield data
    yield around.tail


def read(
    data: memoryview, path: str, kind: str = "artifact", remedy: str = "compile the model again"
) -> dict[str, memoryview]:
    """The members of a zip laid out by `frame`: name -> bytes, not copied.

    Args:
        data: the complete file.
        path: what it is called in error messages, `kind` what it should be, `remedy` how to get one.

    Raises:
        ArtifactError: the file is no such zip, or was changed outside its members.
    """
    bad = _broken(data)
    if bad is not None:
        raise ArtifactError(f"{path} is not a graphopt {kind} or is damaged: {bad}; {remedy}")
    *_, count, size, start = _ZIP64_END.unpack(data[-_TAIL : -_TAIL + _ZIP64_END.size])
    members = _members(bytes(data[start : start + size]), count)
    if isinstance(members, str):
        raise ArtifactError(f"{path} is damaged: {members}; {remedy}")
    expected = frame(members)
    if expected.tail_start + len(expected.tail) != len(data):
        wanted = expected.tail_start + len(expected.tail)
        raise ArtifactError(
            f"{path} is damaged: its members make a file of {wanted} bytes, and it has {len(data)}; {remedy}"
        )
    contents = {}
    for member, header, begin in zip(members, expected.headers, expected.starts, strict=True):
        at = begin - len(header)
        if data[at:begin] != header:
            place = at + _first_difference(bytes(data[at:begin]), header)
            raise ArtifactError(
                f"{path} is damaged: the header of its member {_shown(member.name)} is wrong at byte {place}; {remedy}"
            )
        contents[member.name] = data[begin : begin + member.size]
    tail = bytes(data[expected.tail_start :])
    if tail != expected.tail:
        place = expected.tail_start + _first_difference(tail, expected.tail)
        raise ArtifactError(f"{path} is damaged: its directory is wrong at byte {place}; {remedy}")
    return contents


def _broken(data: memoryview) -> str | None:
    """What is wrong with the start or the end of the file, or None."""
    if not len(data):
        return "it is empty"
    if bytes(data[:4]) not in (b"PK\x03\x04", b"PK\x06\x06"):
        return "it does not begin as a zip file does"
    if len(data) < _TAIL or bytes(data[-_END.size :][:4]) != b"PK\x05\x06":
        return _cut(data)
    signature, *_, count, size, start = _ZIP64_END.unpack(data[-_TAIL : -_TAIL + _ZIP64_END.size])
    if signature != b"PK\x06\x06":
        return f"it has no ZIP64 end record at byte {len(data) - _TAIL}"
    if count > _MAX_MEMBERS:
        return f"it has {count} members, more than {_MAX_MEMBERS}"
    if start + size + _TAIL != len(data):
        return f"its end record describes a file of {start + size + _TAIL} bytes, and it has {len(data)}"
    return None


def _cut(data: memoryview) -> str:
    """Where a truncated file ends: follows the members from the start as far as they are complete."""
    position = 0
    while position + _LOCAL.size <= len(data):
        signature, *_, name_length, extra_length = _LOCAL.unpack(data[position : position + _LOCAL.size])
        name_start = position + _LOCAL.size
        start = name_start + name_length + extra_length
        sizes = bytes(data[name_start + name_length : start][4:12])
        if signature != b"PK\x03\x04" or len(sizes) < 8:
            break
        end = start + int.from_bytes(sizes, "little")
        if end > len(data):
            name = bytes(data[name_start : name_start + name_length]).decode(errors="replace")
            return (
                f"it has no end record and is cut off at byte {len(data)}, where {_shown(name)} goes on to byte {end}"
            )
        position = end
    return f"it has no end record at its last byte {len(data)}, so that it is cut off or something was appended"


def _first_difference(left: bytes, right: bytes) -> int:
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _shown(name: str) -> str:
    return repr(name[:100])


def _members(directory: bytes, count: int) -> list[Member] | str:
    """The members that the directory lists, in order; or what is wrong with it."""
    members: list[Member] = []
    names: set[str] = set()
    position = 0
    for number in range(count):
        if position + _CENTRAL.size > len(directory):
            return f"its directory ends before entry {number}"
        fields = _CENTRAL.unpack_from(directory, position)
        crc, name_length, extra_length = fields[7], fields[10], fields[11]
        name_start = position + _CENTRAL.size
        extra_start = name_start + name_length
        position = extra_start + extra_length
        if extra_length != 28 or position > len(directory):
            return f"entry {number} of its directory has wrong lengths"
        try:
            name = directory[name_start:extra_start].decode()
        except UnicodeDecodeError:
            return f"entry {number} of its directory has a name that is no text"
        (size,) = struct.unpack_from("<Q", directory, extra_start + 4)
        if name in names:
            return f"its directory has the member {_shown(name)} twice"
        if size >= 1 << 62:
            return f"its member {_shown(name)} has the impossible size {size}"
        names.add(name)
        members.append(Member(name, size, crc))
    return members if position == len(directory) else f"its directory goes on after its {count} entries"
