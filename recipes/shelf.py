"""Folders that are there whole or not at all, each under the key of what it was made from."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from paddock.engines.protocol import BuildError
from paddock.recipes.errors import RecipeError

MANIFEST = "manifest.json"
USED = "last-used"  # an empty file whose time is that of the last opening
SCHEMA = 1
HASHED_WHOLE = 16 << 20  # bytes; of larger files the beginning, where safetensors has its header
BUILDING = ".building-"

Manifest = dict[str, Any]


class DamagedError(Exception):
    """A folder is not what its manifest says; `str()` is the reason."""


@dataclass(frozen=True)
class Entry:
    """A published folder."""

    folder: Path
    manifest: Manifest

    def touch(self) -> None:
        """Note that it is used now. A folder that may not be written is used all the same."""
        with suppress(OSError):
            (self.folder / USED).touch()

    @property
    def last_used(self) -> float:
        """Seconds since the epoch."""
        for file in (self.folder / USED, self.folder / MANIFEST):
            with suppress(OSError):
                return file.stat().st_mtime
        return 0.0

    @property
    def nbytes(self) -> int:
        return sum(f.lstat().st_size for f in self.folder.rglob("*") if not f.is_dir())


class Shelf:
    """Folders `NAME-KEY` under one folder of one file system.

    Publishing is a rename, after everything was written and synced. One process makes a key at a
    time, the others wait for it; what a killed process left is removed by the next that makes
    anything.
    """

    def __init__(self, root: Path, what: str) -> None:
        self.root, self.what = root, what
        self._locks = root / ".locks"

    def find(self, key: str) -> Entry | None:
        """The folder of a key, looked through. Raises `DamagedError`."""
        folder = self._folder(key)
        if folder is None:
            return None
        entry = read(folder)
        if entry.manifest.get("key") != key:
            raise DamagedError(f"its {MANIFEST} is of another key, {entry.manifest.get('key')!r}")
        check_files(entry)
        return entry

    def entries(self) -> Iterator[tuple[Path, Entry | DamagedError]]:
        """All there are, by name, with what is wrong with the damaged ones."""
        if not self.root.is_dir():
            return
        for folder in sorted(self.root.iterdir()):
            if folder.is_dir() and not folder.name.startswith("."):
                try:
                    yield folder, read(folder)
                except DamagedError as error:
                    yield folder, error

    def make(
        self,
        key: str,
        name: str,
        write: Callable[[Path], Manifest],
        *,
        note: Callable[[str], None],
        again: bool = False,
    ) -> tuple[Entry, bool]:
        """The folder of `key`, and whether it was made now.

        `write` fills an empty folder and returns what the manifest shall say. Whatever it raises
        leaves nothing behind. `again` makes it although it is there. Raises `BuildError` where the
        disk is full or may not be written.
        """
        asked = time.time()
        with _disk(self.root), self._lock(key, note):
            with suppress(DamagedError):
                found = self.find(key)
                # Somebody else may have made it anew while this process waited.
                fresh = found is not None and found.manifest.get("made_at", 0.0) >= asked
                if found is not None and (fresh or not again):
                    return found, False
            self._clear_leftovers(key)
            temporary = self.root / f"{BUILDING}{key}-{os.getpid()}"
            try:
                temporary.mkdir()
                manifest = write(temporary)
                manifest = {
                    "schema": SCHEMA,
                    "key": key,
                    **manifest,
                    "made_at": time.time(),
                    "files": describe_files(temporary),
                }
                text = json.dumps(manifest, indent=1, ensure_ascii=False)
                (temporary / MANIFEST).write_text(text + "\n", "utf-8")
                _sync(temporary)
                final = self.root / f"{name}-{key}"
                old = self._folder(key)
                if old is not None:
                    os.replace(old, self.root / f"{BUILDING}{key}-{os.getpid()}-old")
                os.replace(temporary, final)
                _sync_folder(self.root)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
                shutil.rmtree(f"{temporary}-old", ignore_errors=True)
            return Entry(final, manifest), True

    def remove(self, folder: Path) -> bool:
        """Delete a folder; false where somebody is at work on its key."""
        key = folder.name.rpartition("-")[2]
        try:
            with self._file_lock(key).acquire(blocking=False):
                # First out of sight in one step, so that nobody finds half of it.
                gone = self.root / f"{BUILDING}{key}-{os.getpid()}-old"
                os.replace(folder, gone)
                shutil.rmtree(gone, ignore_errors=True)
                return True
        except Timeout:
            return False
        except OSError as error:
            raise RecipeError(f"{folder}: cannot be deleted: {error.strerror or error}") from None

    def is_busy(self) -> bool:
        """Whether any process makes something now."""
        for owner in self._locks.glob("*.owner"):
            try:
                with self._file_lock(owner.stem).acquire(blocking=False):
                    pass
            except Timeout:
                return True
        return False

    def _folder(self, key: str) -> Path | None:
        return next((f for f in self.root.glob(f"*-{key}") if not f.name.startswith(".")), None)

    def _file_lock(self, key: str) -> FileLock:
        return FileLock(self._locks / f"{key}.lock")

    @contextmanager
    def _lock(self, key: str, note: Callable[[str], None]) -> Iterator[None]:
        self._locks.mkdir(parents=True, exist_ok=True)
        lock, owner = self._file_lock(key), self._locks / f"{key}.owner"
        try:
            lock.acquire(blocking=False)
        except Timeout:
            note(f"{_holder(owner)} is making {self.what}; waiting for it")
            lock.acquire(poll_interval=0.1)
        try:
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def _clear_leftovers(self, own: str) -> None:
        """Remove what killed processes left: temporary folders of `own`, which this one holds, and
        of keys that nobody holds."""
        for folder in self.root.glob(f"{BUILDING}*"):
            key = folder.name.removeprefix(BUILDING).partition("-")[0]
            if key == own:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with suppress(Timeout), self._file_lock(key).acquire(blocking=False):
                shutil.rmtree(folder, ignore_errors=True)


def read(folder: Path) -> Entry:
    """The manifest alone. Raises `DamagedError`."""
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise DamagedError(f"it has no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"its {MANIFEST} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise DamagedError(f"its {MANIFEST} is not an object with files")
    if manifest.get("schema") != SCHEMA:
        raise DamagedError(
            f"its {MANIFEST} has schema {manifest.get('schema')!r}, this version reads {SCHEMA}"
        )
    return Entry(folder, manifest)


def check_files(entry: Entry) -> None:
    """Sizes of all files, content of the small ones, the beginning of the large ones."""
    for name, expected in entry.manifest["files"].items():
        file = entry.folder / name
        try:
            found = _describe(file)
        except OSError as error:
            raise DamagedError(f"its file {name} cannot be read: {error.strerror}") from None
        if not isinstance(expected, dict) or found["bytes"] != expected.get("bytes"):
            size = expected.get("bytes") if isinstance(expected, dict) else expected
            raise DamagedError(f"its file {name} has {found['bytes']} bytes, expected {size}")
        if found != expected:
            raise DamagedError(f"its file {name} is not as it was written: another SHA-256")


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    files = (f for f in folder.rglob("*") if f.is_file() and f.name not in (MANIFEST, USED))
    return {str(f.relative_to(folder).as_posix()): _describe(f) for f in sorted(files)}


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.sha256()
        if size <= HASHED_WHOLE:
            digest.update(stream.read())
            return {"bytes": size, "sha256": digest.hexdigest()}
        start = stream.read(8)
        # safetensors: the header's length, then the header; of any other file, a beginning.
        digest.update(start + stream.read(min(int.from_bytes(start, "little"), 1 << 20)))
        return {"bytes": size, "sha256_of_head": digest.hexdigest()}


@contextmanager
def _disk(root: Path) -> Iterator[None]:
    """What the disk refuses, as a `BuildError` that says what to do."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(
            f"{root}: cannot be made: {error.strerror or error}; set PADDOCK_HOME to a folder that"
            " you may write"
        ) from error
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise BuildError(
                f"the disk of {root} is full ({error.strerror}); nothing was kept of this build."
                " Free some space (`paddock cache prune`), or set PADDOCK_HOME to a folder"
                " elsewhere"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise BuildError(
                f"{error.filename or root}: {error.strerror}; set PADDOCK_HOME to a folder that"
                " you may write"
            ) from error
        raise


def _holder(owner: Path) -> str:
    with suppress(OSError):
        return owner.read_text("utf-8").strip() or "another process"
    return "another process"


def _sync(folder: Path) -> None:
    """Everything below `folder` to the disk, so that no crash shows a name without its content."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        elif file.is_dir():
            _sync_folder(file)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # folders cannot be synced there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
