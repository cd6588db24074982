"""The bounded folder of files: checked, least recently used out, used by several processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graphopt import disk_cache
from graphopt.disk_cache import DiskCache, Usage


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "made" / "when needed", 1000)


def test_what_was_put_is_found(cache: DiskCache) -> None:
    assert cache.get("a") is None
    cache.put("a", b"first")
    cache.put("a", b"second")
    cache.put("empty", b"")
    assert (cache.get("a"), cache.get("empty"), cache.get("b")) == (b"second", b"", None)


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 32 + b"first", None])
def test_a_damaged_entry_is_absent_and_goes(cache: DiskCache, damage: bytes | None) -> None:
    cache.put("a", b"first")
    path = cache.folder / "a"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    assert cache.get("a") is None
    assert not path.exists()
    cache.put("a", b"again")
    assert cache.get("a") == b"again"


def test_nothing_is_left_beside_the_entries(cache: DiskCache) -> None:
    cache.put("a", b"first")
    assert [path.name for path in cache.folder.iterdir()] == ["a"]


def test_what_was_not_used_for_longest_makes_room(cache: DiskCache) -> None:
    now = time.time()
    for age, name in enumerate(("d", "c", "b", "a")):  # 332 bytes each with their digests
        cache.put(name, bytes(300))
        os.utime(cache.folder / name, (now - 100 * (4 - age),) * 2)
    assert cache.get("d") is not None  # used now: c is the oldest
    cache.trim()
    assert sorted(path.name for path in cache.folder.iterdir()) == ["a", "b", "d"]
    cache.trim()
    assert cache.usage() == Usage(3, 996)


def test_what_a_broken_writer_left_goes_after_a_while(cache: DiskCache) -> None:
    cache.put("a", b"first")
    fresh, old = cache.folder / "fresh.tmp", cache.folder / "old.tmp"
    fresh.write_bytes(bytes(10))
    old.write_bytes(bytes(10))
    os.utime(old, (time.time() - 7200,) * 2)
    cache.trim()
    assert sorted(path.name for path in cache.folder.iterdir()) == ["a", "fresh.tmp"]


def test_clearing_tells_what_there_was(cache: DiskCache) -> None:
    assert cache.clear() == Usage(0, 0)
    cache.put("a", b"12345678")
    assert cache.clear() == Usage(1, 40)
    assert cache.usage() == Usage(0, 0)
    assert cache.get("a") is None


def test_a_folder_that_cannot_be_made_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / "file" / "cache", 1000)
    cache.put("a", b"first")
    cache.trim()
    assert cache.get("a") is None
    assert cache.clear() == Usage(0, 0)


def test_links_are_not_followed_when_clearing(cache: DiskCache, tmp_path: Path) -> None:
    cache.put("a", b"first")
    (tmp_path / "precious").write_text("kept")
    (cache.folder / "link").symlink_to(tmp_path / "precious")
    cache.clear()
    assert (tmp_path / "precious").read_text() == "kept"


_WRITER = """
import sys
from pathlib import Path
from graphopt.disk_cache import DiskCache
cache = DiskCache(Path(sys.argv[1]), 40_000)
for step in range(150):
    name = f"k{step % 7}"
    found = cache.get(name)
    assert found is None or found == name.encode() * 3000, "half an entry was seen"
    cache.put(name, name.encode() * 3000)
    if step % 10 == 0:
        cache.trim()
"""


def test_several_processes_see_whole_entries(tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-P", "-c", _WRITER, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_the_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(disk_cache.VARIABLE, str(tmp_path / "here"))
    assert disk_cache.objects().folder == tmp_path / "here" / "objects"
    monkeypatch.delenv(disk_cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert disk_cache.libraries().folder == tmp_path / "graphopt" / "libraries"


def test_an_entry_under_the_name_of_another_is_none(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    cache.put("a", b"one")
    cache.put("b", b"two")
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "c").rename(tmp_path / "b")
    assert (cache.get("a"), cache.get("b")) == (None, None)
