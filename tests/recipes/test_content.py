"""Hashes of files that are remembered, and of the project's own code."""

import json
import os
import sys
from pathlib import Path

import pytest

from paddock.recipes import content
from paddock.recipes.content import ContentHashes, source_hash


@pytest.fixture
def hashes(tmp_path: Path) -> ContentHashes:
    return ContentHashes(tmp_path / "home" / "file-hashes.json")


def test_remembered_until_the_file_is_written_anew(hashes: ContentHashes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    seen: list[tuple[float, float]] = []
    [first] = hashes.of([file], lambda done, total: seen.append((done, total)))
    assert seen == [(3.0, 3.0)]
    assert first == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert hashes.of([file], lambda done, total: seen.append((done, total))) == [first]
    assert len(seen) == 1
    times = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copying program may
    assert hashes.of([file]) != [first]


def test_a_damaged_memo_costs_time_alone(hashes: ContentHashes, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    found = hashes.of([file])
    memo = tmp_path / "home" / "file-hashes.json"
    for text in ("", "[]", "{", '{"x": 3}', json.dumps({str(file): 3})):
        memo.write_text(text)
        assert hashes.of([file]) == found


def test_nowhere_to_remember(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "a").write_bytes(b"one")
    assert len(ContentHashes(tmp_path / "file" / "memo.json").of([tmp_path / "a"])) == 1


def test_files_that_are_gone_are_forgotten(hashes: ContentHashes, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        hashes.of([tmp_path / name])
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_text("bb")
    hashes.of([tmp_path / "b"])
    memo = json.loads((tmp_path / "home" / "file-hashes.json").read_text())
    assert list(memo) == [str(tmp_path / "b")]


def test_source_of_modules_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "part.py").write_text("a = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def fresh() -> tuple[str, str]:
        source_hash.cache_clear()
        return source_hash("some_package"), source_hash("some_package.part")

    whole, part = fresh()
    (package / "other.py").write_text("b = 2\n")
    assert fresh()[0] != whole
    assert fresh()[1] == part
    (package / "part.py").write_text("a = 2\n")
    assert fresh()[1] != part
    assert source_hash("paddock.graph") != source_hash("paddock.engines")
    sys.modules.pop("some_package", None)


def test_code_without_source_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    content.source_hash.cache_clear()
    assert source_hash("builtins") != source_hash("sys")
