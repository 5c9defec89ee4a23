"""What the pages show is what happens: their Python runs, their commands work, their links lead."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import paddock.graph.ops  # noqa: F401 - the ops that no page defines
from paddock.graph.op import OPS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    + [path for path in (ROOT / "benchmarks" / "README.md", ROOT / "CHANGELOG.md") if path.exists()]
)
# Commands that download. What can be looked at without a network is looked at.
DOWNLOADS = ("qwen3-0.6b", "minilm", "whisper-", "HuggingFaceTB/", "facebook/cwm")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def label(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text("utf-8").splitlines()
    start: int | None = None
    for i, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = i
        else:
            text = "\n".join(lines[start + 1 : i]) + "\n"
            yield Block(page, start + 2, lines[start].removeprefix("```").strip(), text)
            start = None
    assert start is None, f"{page}: the block at line {start} is never closed"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


@dataclass(frozen=True)
class Command:
    """A line `$ ...` of a console block."""

    label: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


COMMANDS = [
    Command(f"{block.page.relative_to(ROOT)}:{block.line + i}", line.removeprefix("$ "))
    for block in BLOCKS
    if block.language == "console"
    for i, line in enumerate(block.text.splitlines())
    if line.startswith("$ ")
]
PADDOCK = [c for c in COMMANDS if "paddock" in c.words]


def works_here(command: Command) -> bool:
    return not any(name in command.text for name in DOWNLOADS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is built for one page's command is there for the next."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    # `paddock` is the one of this environment, whether it is activated or not.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {
        "PADDOCK_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "PATH": path,
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def python(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The namespace that the blocks of a page share, in an empty folder."""
    monkeypatch.setenv("PADDOCK_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    before = dict(OPS)
    yield {"__name__": "page"}
    OPS.clear()
    OPS.update(before)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(b.page == page and b.language == "python" for b in BLOCKS)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_python_of_a_page_runs_from_top_to_bottom(page: Path, python: dict[str, Any]) -> None:
    blocks = [b for b in BLOCKS if b.page == page and b.language == "python"]
    sys.modules["page"] = sys.modules[__name__]  # where dataclasses look for a class's module
    try:
        for block in blocks:
            # As many lines before it as in the page, so that a traceback names the page's line.
            padded = "\n" * (block.line - 1) + block.text
            exec(compile(padded, str(page), "exec"), python)
    finally:
        del sys.modules["page"]


def slow(command: Command) -> Any:
    """`bench` takes the time that it needs to measure."""
    marks = [pytest.mark.slow] if "bench" in command.words else []
    return pytest.param(command, id=command.label, marks=marks)


def ends(command: Command) -> bool:
    """A server runs until it is told to stop."""
    return command.words[1] != "serve"


@pytest.mark.parametrize("command", [slow(c) for c in PADDOCK if works_here(c) and ends(c)])
def test_commands_work(command: Command, environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        command.text,
        shell=True,
        executable="/bin/bash",
        cwd=tmp_path,
        env=environment,
        input="",  # a chat ends where its input does
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command.label}: {command.text}\n{done.stdout}\n{done.stderr}"
    if "chat" not in command.words:
        assert done.stdout.strip()


@pytest.mark.parametrize(
    "command", [pytest.param(c, id=c.label) for c in PADDOCK if works_here(c) and not ends(c)]
)
def test_servers_start(command: Command, environment: dict[str, str], tmp_path: Path) -> None:
    serving = subprocess.Popen(
        [*command.words, "server.port=0"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stderr is not None
        assert any("Ctrl-C ends it" in line for line in serving.stderr)
        serving.terminate()
        assert serving.wait(60) == 0
    finally:
        serving.kill()
        serving.communicate()


@pytest.mark.parametrize(
    "command", [pytest.param(c, id=c.label) for c in PADDOCK if not works_here(c)]
)
def test_commands_that_download_name_recipes_and_settings_that_there_are(
    command: Command, environment: dict[str, str]
) -> None:
    """The same recipe and overrides can be shown."""
    words = command.words[command.words.index("paddock") + 2 :]
    choice = [w for w in words[: _first_option(words)] if not w.startswith(("plugins=",))]
    done = subprocess.run(
        [sys.executable, "-m", "paddock", "show", *choice],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command.label}: {command.text}\n{done.stderr}"


def _first_option(words: list[str]) -> int:
    return next((i for i, word in enumerate(words) if word.startswith("-")), len(words))


def test_other_commands_are_targets_of_make_and_what_everybody_has() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for command in COMMANDS:
        if command in PADDOCK:
            continue
        program, *arguments = command.words
        assert program in ("make", "git", "pip"), command
        if program == "make":
            assert all(f"\n{target}:" in makefile for target in arguments), command


@pytest.mark.parametrize(
    "block", [pytest.param(b, id=b.label) for b in BLOCKS if b.language == "yaml"]
)
def test_recipes_on_the_pages_are_recipes(
    block: Block, environment: dict[str, str], tmp_path: Path
) -> None:
    """`# folder/name.yaml` in the first line says where it stands."""
    place = Path(block.text.splitlines()[0].removeprefix("# ").strip())
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    file.write_text(block.text, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "paddock", "show", place.stem, "--config-dir", str(place.parent)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{block.label}\n{done.stderr}"


LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            assert anchor in {_anchor(h) for h in headings}, f"{page.name}: {target}"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


PATH = re.compile(
    r"`((?:graph|layers|models|weights|engines|runtime|recipes|tests|docs)/[\w./-]+)`"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_are_there(page: Path) -> None:
    for name in PATH.findall(page.read_text("utf-8")):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_decisions_have_a_number_each_and_say_why() -> None:
    numbers = [int(p.name[:4]) for p in (ROOT / "docs" / "decisions").glob("*.md")]
    assert len(numbers) == len(set(numbers))
    for path in (ROOT / "docs" / "decisions").glob("*.md"):
        text = path.read_text("utf-8")
        assert text.startswith("# ")
        assert "**Context.**" in text
