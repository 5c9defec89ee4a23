"""A compiler that dies or is stopped is an error message, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt import subprocess_build
from paddock.engines.tensorrt.flavours import Flavour
from paddock.engines.tensorrt.subprocess_build import compile_in_subprocess
from paddock.graph import DType
from paddock.recipes import pipeline
from paddock.recipes.compose import compose
from tests.engines.tensorrt.networks import Model

CHILDREN = Path("/proc/self/task")
needs_children = pytest.mark.skipif(
    not CHILDREN.exists(), reason="finds the compiler's process in Linux's /proc"
)


def compilers() -> list[int]:
    """Processes that this one started to compile."""
    found = []
    for thread in CHILDREN.iterdir():
        for child in (thread / "children").read_text("ascii").split():
            command = Path("/proc", child, "cmdline").read_bytes()
            if b"paddock.engines.tensorrt.compile" in command:
                found.append(int(child))
    return found


class Strike:
    """Sends a signal to the compiler when it tells of its progress for the first time."""

    def __init__(self, number: int) -> None:
        self.number, self.struck = number, 0

    def __call__(self, done: float, total: float) -> None:
        if not self.struck:
            (process,) = compilers()
            os.kill(process, self.number)
            self.struck = process


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the compiler's folder lies meanwhile."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@needs_children
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_its_death_is_told(flavour: Flavour, scratch: Path, name: str) -> None:
    strike = Strike(signal.Signals[name])
    with pytest.raises(BuildError) as failure:
        compile_in_subprocess(Model("llama", DType.F16).request(), None, strike)
    assert strike.struck
    first, *words = str(failure.value).splitlines()
    assert f"TensorRT's compiler died ({name}" in first
    assert "while it built for sm89" in first
    assert ("out of memory" in first) == (name == "SIGKILL")
    assert words[-1].startswith("  the compiler's whole log: ")
    log = Path(words[-1].rpartition(": ")[2])
    assert words[0].strip() in log.read_text("utf-8")
    assert list(scratch.iterdir()) == [log], "its folder is gone"
    assert compilers() == []


@needs_children
def test_a_ctrl_c_ends_the_compiler(flavour: Flavour, scratch: Path) -> None:
    def interrupt(done: float, total: float) -> None:
        assert len(compilers()) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_in_subprocess(Model("llama", DType.F16).request(), None, interrupt)
    assert compilers() == []
    assert list(scratch.iterdir()) == []


@needs_children
def test_a_build_that_died_leaves_no_engine(
    flavour: Flavour, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PADDOCK_HOME", str(tmp_path))
    overrides = ["engine=tensorrt", "engine.flavour=tensorrt_rtx", "engine.target=[sm89]"]
    recipe = compose("demo", overrides).recipe
    real = subprocess_build._run
    for _ in range(2):  # the first leaves no lock that the second would wait for
        strike = Strike(signal.SIGSEGV)
        with monkeypatch.context() as patch:
            patch.setattr(subprocess_build, "_run", lambda folder, _, s=strike: real(folder, s))
            with pytest.raises(BuildError, match=r"compiler died \(SIGSEGV\)"):
                pipeline.build(recipe)
        assert strike.struck
        left = [f for f in (tmp_path / "engines").rglob("*") if f.is_file()]
        assert all(".locks" in f.parts for f in left), left


def test_an_exit_without_a_word_is_told(
    flavour: Flavour, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own end, as where a package is broken: an interpreter that cannot start."""
    monkeypatch.setenv("PYTHONHOME", str(scratch))
    with pytest.raises(BuildError, match=r"ended with exit code \d+ while") as failure:
        compile_in_subprocess(Model("llama").request(), None, None)
    assert "encodings" in str(failure.value), "its last words are there"
