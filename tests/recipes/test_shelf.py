"""Folders that are whole or not there: real processes that race, are interrupted and are killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from paddock.engines.protocol import BuildError
from paddock.recipes import shelf as shelf_module
from paddock.recipes.shelf import BUILDING, MANIFEST, DamagedError, Manifest, Shelf

KEY = "0123456789abcdef"


def write(folder: Path) -> Manifest:
    (folder / "rank-0").mkdir()
    (folder / "rank-0" / "plan").write_bytes(b"plan" * 1000)
    return {"recipe": "demo"}


def never(folder: Path) -> Manifest:
    raise AssertionError("it was there already")


def silent(text: str) -> None:
    pass


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "engines", "this engine")


def names(shelf: Shelf) -> list[str]:
    """What a listing of the folder shows beside the locks."""
    return sorted(f.name for f in shelf.root.iterdir() if f.name != ".locks")


def test_made_once_and_found_again(shelf: Shelf) -> None:
    assert shelf.find(KEY) is None
    entry, made = shelf.make(KEY, "demo", write, note=silent)
    assert made
    assert entry.folder == shelf.root / f"demo-{KEY}"
    assert entry.manifest["recipe"] == "demo"
    again, made = shelf.make(KEY, "other-name", never, note=silent)
    assert not made
    assert again.folder == entry.folder
    found = shelf.find(KEY)
    assert found is not None
    assert found.manifest == entry.manifest
    assert names(shelf) == [f"demo-{KEY}"]


def test_the_manifest_is_readable_and_names_every_file(shelf: Shelf) -> None:
    entry, _ = shelf.make(KEY, "demo", write, note=silent)
    manifest = json.loads((entry.folder / MANIFEST).read_text("utf-8"))
    assert manifest["schema"] == 1
    assert manifest["key"] == KEY
    assert manifest["files"]["rank-0/plan"]["bytes"] == 4000


def test_made_anew_when_asked(shelf: Shelf) -> None:
    shelf.make(KEY, "demo", write, note=silent)

    def other(folder: Path) -> Manifest:
        (folder / "new").write_text("x")
        return {}

    entry, made = shelf.make(KEY, "demo", other, note=silent, again=True)
    assert made
    assert (entry.folder / "new").exists()
    assert not (entry.folder / "rank-0").exists()
    assert names(shelf) == [f"demo-{KEY}"]


def damage_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")


def damage_manifest_type(folder: Path) -> None:
    (folder / MANIFEST).write_text("[]")


def damage_schema(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "schema": 99}))


def damage_key(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "key": "other"}))


def damage_files_table(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "files": {"rank-0/plan": 3}}))


def remove_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def remove_file(folder: Path) -> None:
    (folder / "rank-0" / "plan").unlink()


def shorten_file(folder: Path) -> None:
    (folder / "rank-0" / "plan").write_bytes(b"plan")


def flip_a_byte(folder: Path) -> None:
    file = folder / "rank-0" / "plan"
    content = bytearray(file.read_bytes())
    content[17] ^= 1
    file.write_bytes(content)


DAMAGES = [
    (damage_manifest, "cannot be read"),
    (damage_manifest_type, "not an object"),
    (damage_schema, "schema 99"),
    (damage_key, "another key"),
    (damage_files_table, "expected 3"),
    (remove_manifest, "no manifest.json"),
    (remove_file, "rank-0/plan cannot be read"),
    (shorten_file, "4 bytes, expected 4000"),
    (flip_a_byte, "not as it was written"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_damage_is_found_and_cured(shelf: Shelf, damage: Any, reason: str) -> None:
    entry, _ = shelf.make(KEY, "demo", write, note=silent)
    damage(entry.folder)
    with pytest.raises(DamagedError, match=reason):
        shelf.find(KEY)
    entry, made = shelf.make(KEY, "demo", write, note=silent)
    assert made
    assert shelf.find(KEY) is not None
    assert names(shelf) == [f"demo-{KEY}"]


def test_large_files_are_known_by_size_and_head(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "HASHED_WHOLE", 1000)
    head = b'{"a": 1}'

    def large(folder: Path) -> Manifest:
        content = len(head).to_bytes(8, "little") + head + bytes(5000)
        (folder / "w.safetensors").write_bytes(content)
        return {}

    entry, _ = shelf.make(KEY, "demo", large, note=silent)
    assert "sha256_of_head" in entry.manifest["files"]["w.safetensors"]
    with (entry.folder / "w.safetensors").open("r+b") as file:
        file.seek(10)
        file.write(b"X")
    with pytest.raises(DamagedError, match="not as it was written"):
        shelf.find(KEY)


def test_an_error_leaves_nothing(shelf: Shelf) -> None:
    def fail(folder: Path) -> Manifest:
        write(folder)
        raise BuildError("no")

    with pytest.raises(BuildError, match="no"):
        shelf.make(KEY, "demo", fail, note=silent)
    assert names(shelf) == []
    assert not shelf.is_busy()
    assert shelf.make(KEY, "demo", write, note=silent)[1]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_and_leaves_nothing(shelf: Shelf, number: int) -> None:
    def full(folder: Path) -> Manifest:
        write(folder)
        raise OSError(number, os.strerror(number))

    with pytest.raises(BuildError, match=r"is full.*PADDOCK_HOME"):
        shelf.make(KEY, "demo", full, note=silent)
    assert names(shelf) == []


def test_a_failed_second_build_keeps_the_first(shelf: Shelf) -> None:
    shelf.make(KEY, "demo", write, note=silent)

    def fail(folder: Path) -> Manifest:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shelf.make(KEY, "demo", fail, note=silent, again=True)
    assert shelf.find(KEY) is not None
    assert names(shelf) == [f"demo-{KEY}"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BuildError, match="PADDOCK_HOME"):
        Shelf(tmp_path / "engines", "x").make(KEY, "demo", write, note=silent)


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="PADDOCK_HOME"):
        Shelf(tmp_path / "file" / "engines", "x").make(KEY, "demo", write, note=silent)


def test_last_use_and_size(shelf: Shelf) -> None:
    entry, _ = shelf.make(KEY, "demo", write, note=silent)
    os.utime(entry.folder / MANIFEST, (1000, 1000))
    assert entry.last_used == 1000
    entry.touch()
    assert abs(entry.last_used - time.time()) < 60
    assert shelf.find(KEY) is not None
    assert entry.nbytes >= 4000


def test_removal(shelf: Shelf) -> None:
    entry, _ = shelf.make(KEY, "demo", write, note=silent)
    assert shelf.remove(entry.folder)
    assert names(shelf) == []
    assert shelf.find(KEY) is None


# --- real processes -------------------------------------------------------------------------------

BUILDER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from paddock.recipes.shelf import Shelf

    root, key, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])

    def write(folder):
        (folder / "half").write_text("written")
        print("building", flush=True)
        time.sleep(seconds)
        (folder / "plan").write_text(str(time.time()))
        return {}

    entry, made = Shelf(root, "this engine").make(
        key, "demo", write, note=lambda text: print("note:", text, flush=True)
    )
    print("made" if made else "found", (entry.folder / "plan").read_text(), flush=True)
    """
)


def builder(shelf: Shelf, seconds: float, key: str = KEY) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(shelf.root), key, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdout is not None
    for found in process.stdout:
        if found.startswith(line):
            return found
    raise AssertionError(f"no {line!r}: {process.communicate()[1]}")


def test_two_processes_one_builds_the_other_waits(shelf: Shelf) -> None:
    first = builder(shelf, 2.5)
    wait_for(first, "building")
    second = builder(shelf, 0)
    note = wait_for(second, "note:")
    assert f"process {first.pid}" in note
    assert "this engine" in note
    assert shelf.is_busy()
    made = wait_for(first, "made").split()[1]
    assert wait_for(second, "found").split()[1] == made
    assert first.wait() == second.wait() == 0
    assert not shelf.is_busy()
    assert names(shelf) == [f"demo-{KEY}"]
    for process in (first, second):
        process.communicate()


def test_ctrl_c_leaves_nothing_and_the_next_in_line_builds(shelf: Shelf) -> None:
    first = builder(shelf, 60)
    wait_for(first, "building")
    second = builder(shelf, 0)
    wait_for(second, "note:")
    first.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in first.communicate(timeout=120)[1]
    wait_for(second, "made")
    second.communicate()
    assert names(shelf) == [f"demo-{KEY}"]


def test_ctrl_c_while_waiting(shelf: Shelf) -> None:
    first = builder(shelf, 4)
    wait_for(first, "building")
    second = builder(shelf, 0)
    wait_for(second, "note:")
    second.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in second.communicate(timeout=120)[1]
    wait_for(first, "made")
    first.communicate()
    assert names(shelf) == [f"demo-{KEY}"]


def test_what_a_killed_build_left_is_removed_by_the_next(shelf: Shelf) -> None:
    for key in (KEY, "fedcba9876543210"):
        killed = builder(shelf, 60, key)
        wait_for(killed, "building")
        killed.kill()
        killed.communicate()
    # The second build removed what the first left, and was killed itself.
    assert [n.startswith(f"{BUILDING}fedcba98") for n in names(shelf)] == [True]
    assert not shelf.is_busy()
    assert shelf.find(KEY) is None
    shelf.make(KEY, "demo", write, note=silent)
    assert names(shelf) == [f"demo-{KEY}"]


def test_a_build_at_work_is_left_alone(shelf: Shelf) -> None:
    other = builder(shelf, 3, "fedcba9876543210")
    wait_for(other, "building")
    entry, _ = shelf.make(KEY, "demo", write, note=silent)
    assert [n for n in names(shelf) if n.startswith(BUILDING)]
    busy = shelf.root / "demo-fedcba9876543210"
    busy.mkdir()
    assert not shelf.remove(busy)
    busy.rmdir()
    assert shelf.remove(entry.folder)
    wait_for(other, "made")
    other.communicate()
    assert names(shelf) == ["demo-fedcba9876543210"]
