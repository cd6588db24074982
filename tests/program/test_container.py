"""The container is a zip that others read, whatever its size."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from graphopt.program import container
from tests.helpers.sample_artifact import sample


def test_the_file_is_a_zip_that_others_read_with_members_at_64_bytes(tmp_path: Path) -> None:
    path = sample().save(tmp_path / "model.gopt")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("fallback/0.onnx") == b"model"
        data = path.read_bytes()
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            content = archive.read(info)
            assert any(data[at : at + len(content)] == content for at in range(0, len(data), 64))


def test_zip_frames_beyond_four_gigabytes_are_consistent() -> None:
    """Sizes only: the frame of a 9 GB zip, laid over a file that has a hole instead of the contents."""
    members = [container.Member("a", 5 << 30, 1), container.Member("b", 4 << 30, 2), container.Member("c", 3, 3)]
    frame = container.frame(members)
    assert all(start % 64 == 0 for start in frame.starts)
    for (header_, start, member), following in zip(
        zip(frame.headers, frame.starts, members, strict=True), (*frame.starts[1:], None), strict=True
    ):
        end = start + member.size
        assert following is None or following - len(frame.headers[members.index(member) + 1]) == end
        assert len(header_) < 256
    assert frame.tail_start == frame.starts[-1] + 3


@pytest.mark.slow
def test_a_sparse_file_beyond_four_gigabytes_opens_in_zipfile(tmp_path: Path) -> None:
    members = [container.Member("big", (1 << 32) + 5, 0), container.Member("after", 4, 0x8587D865)]
    frame = container.frame(members)
    path = tmp_path / "big.zip"
    with path.open("wb") as file:
        for header_, start in zip(frame.headers, frame.starts, strict=True):
            file.seek(start - len(header_))
            file.write(header_)
        file.write(b"abcd")
        file.write(frame.tail)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("big").file_size == (1 << 32) + 5
        assert archive.getinfo("after").file_size == 4
