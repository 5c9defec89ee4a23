"""A build cache of one's own, and one that the tests of a run share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paddock.recipes.pipeline import DEMO


class Notes:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stages: dict[str, tuple[float, float | None]] = {}

    def note(self, text: str) -> None:
        assert "\n" not in text
        self.lines.append(text)

    def update(self, stage: str, done: float, total: float | None, unit: str) -> None:
        assert total is None or 0 <= done <= total
        self.stages[stage] = (done, total)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PADDOCK_HOME."""
    folder = tmp_path / "home"
    monkeypatch.setenv("PADDOCK_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A PADDOCK_HOME for tests that only read what is built in it."""
    folder = tmp_path_factory.mktemp("shared-home")
    kept = os.environ.get("PADDOCK_HOME")
    os.environ["PADDOCK_HOME"] = str(folder)
    yield folder
    if kept is None:
        os.environ.pop("PADDOCK_HOME", None)
    else:
        os.environ["PADDOCK_HOME"] = kept


@pytest.fixture
def copy_of_demo(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder with the demo checkpoint; fields of its config.json changed, or None: gone."""

    def copy(name: str = "checkpoint", **config: object) -> Path:
        folder = tmp_path / name
        shutil.copytree(DEMO, folder)
        found = json.loads((folder / "config.json").read_text("utf-8")) | config
        kept = {key: value for key, value in found.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept), "utf-8")
        return folder

    return copy
