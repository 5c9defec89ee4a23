"""What a file or a room of this project contains, as a hash that costs little the second time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

Advance = Callable[[float, float], None]  # bytes done, bytes in all
CHUNK = 8 << 20


class ContentHashes:
    """SHA-256 of files, remembered under `memo` by their place, size and times.

    A file that was written anew has another time of change, which programs cannot set, so that a
    fine-tuned checkpoint of the same shapes is never taken for the one it replaced.
    """

    def __init__(self, memo: Path) -> None:
        self._memo = memo

    def of(self, files: Iterable[Path], advance: Advance = lambda done, total: None) -> list[str]:
        """One hash a file. Raises `OSError`."""
        files = [file.resolve() for file in files]
        known = self._read()
        stamps = [_stamp(file) for file in files]
        total = float(
            sum(s[0] for f, s in zip(files, stamps, strict=True) if _stamped(known, f) != s)
        )
        done = 0.0
        fresh: dict[str, Any] = {}
        for file, stamp in zip(files, stamps, strict=True):
            if _stamped(known, file) == stamp:
                continue
            digest = hashlib.sha256()
            with file.open("rb") as stream:
                while block := stream.read(CHUNK):
                    digest.update(block)
                    done += len(block)
                    advance(done, total)
            fresh[str(file)] = {"stamp": stamp, "sha256": digest.hexdigest()}
        if fresh:
            self._write(fresh)
        return [str((known | fresh)[str(file)]["sha256"]) for file in files]

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._memo.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, fresh: dict[str, Any]) -> None:
        """Add to the memo; without a place to write, files are hashed again the next time."""
        with suppress(OSError):
            self._memo.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self._memo}.lock"):
                kept = {k: v for k, v in self._read().items() if Path(k).exists()}
                temporary = self._memo.with_suffix(f".{os.getpid()}")
                temporary.write_text(json.dumps(kept | fresh, indent=0), "utf-8")
                os.replace(temporary, self._memo)


def _stamped(known: dict[str, Any], file: Path) -> object:
    """The size and times under which a file is remembered."""
    entry = known.get(str(file))
    return entry.get("stamp") if isinstance(entry, dict) and "sha256" in entry else None


def _stamp(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


@cache
def source_hash(*modules: str) -> str:
    """Of the Python files of modules and of packages with all below them."""
    digest = hashlib.sha256()
    for module in modules:
        spec = find_spec(module)
        origin = Path(str(spec.origin)) if spec is not None and spec.origin else None
        if origin is None or not origin.is_file():
            digest.update(f"{module} has no source\n".encode())
            continue
        files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
        for file in files:
            name = file.relative_to(origin.parent).as_posix()
            content = file.read_bytes()
            digest.update(f"{module}/{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
