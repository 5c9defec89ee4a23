"""Ctrl-C anywhere: exit code 130, no traceback, nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.paddock.conftest import Run


@contextmanager
def started_as(
    command: list[str], environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.communicate()


def process(
    *arguments: str, environment: dict[str, str], **variables: str
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return started_as([sys.executable, "-m", "paddock", *arguments], environment | variables)


def interrupted(started: subprocess.Popen[bytes]) -> tuple[str, str]:
    """Press Ctrl-C; what was written to stdout and stderr since."""
    started.send_signal(signal.SIGINT)
    stdout, stderr = started.communicate(timeout=180)
    assert started.returncode == 130, stderr.decode()
    assert b"Traceback" not in stderr
    assert b"Exception" not in stderr
    return stdout.decode(errors="replace"), stderr.decode()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def leftovers(home: Path) -> list[Path]:
    """Everything below `home` that is no published folder, no lock and no hash."""
    return [path for path in home.rglob("*") if ".building" in path.name]


@pytest.mark.parametrize("shelf", ["weights", "engines"])
def test_during_a_build_nothing_is_left_behind(
    paddock: Run, environment: dict[str, str], tmp_path: Path, shelf: str
) -> None:
    home = tmp_path / "home"
    variables = {"PADDOCK_HOME": str(home)}
    with process("build", "demo", environment=environment, **variables) as started:
        wait_until(lambda: any((home / shelf).glob(".building-*")) or started.poll() is not None)
        interrupted(started)
    assert leftovers(home) == []
    assert not list((home / "engines").glob("demo-*"))
    assert paddock("build", "demo", **variables).stdout.startswith("built: ")
    assert paddock("build", "demo", **variables).stdout.startswith("found in the cache")


# Before it says that it has begun, there is Python's own start, with nobody to take a signal.
BEGINS = (
    "import sys; from paddock.__main__ import main; from paddock.commands import interrupt;"
    "interrupt.watch(); print('begun', flush=True); sys.exit(main())"
)


@contextmanager
def begun(*arguments: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with started_as([sys.executable, "-c", BEGINS, *arguments], environment) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"begun\n"
        yield started


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6])
def test_at_any_moment(environment: dict[str, str], after_s: float, paddock_home: Path) -> None:
    command = ("bench", "demo", "--rounds", "1000", "--quiet")
    with begun(*command, environment=environment) as started:
        time.sleep(after_s)
        assert interrupted(started) == ("", "")
    assert leftovers(paddock_home) == []


def run_with(environment: dict[str, str], folder: Path, program: str) -> str:
    """Run a program that gets a Ctrl-C where `strike()` stands."""
    (folder / "strike.py").write_text(
        "import os, signal, time\n"
        "def strike():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(0.05)\n"
    )
    before = "import sys, time\nfrom paddock.commands import interrupt\ninterrupt.watch()\n"
    done = subprocess.run(
        [sys.executable, "-c", before + program],
        cwd=folder,
        env=environment | {"PYTHONPATH": f"{environment['PYTHONPATH']}:{folder}"},
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_during_an_import_it_is_put_off(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("from strike import strike\nstrike()\n")
    program = (
        "try:\n"
        "    import slow\n"
        "    time.sleep(30)\n"
        "except KeyboardInterrupt:\n"
        "    print('slow' in sys.modules, interrupt.struck())\n"
    )
    assert run_with(environment, tmp_path, program) == "True True\n"


def test_what_python_would_forget_strikes_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    program = (
        "from strike import strike\n"
        "class Dying:\n"
        "    def __del__(self): strike()\n"
        "try:\n"
        "    Dying()\n"
        "    time.sleep(30)\n"
        "except KeyboardInterrupt:\n"
        "    print('struck')\n"
    )
    assert run_with(environment, tmp_path, program) == "struck\n"


def test_while_text_is_generated(environment: dict[str, str]) -> None:
    arguments = ("generate", "demo", "-p", "The ls command", "--ignore-eos", "--max-tokens", "900")
    with process(*arguments, "engine=reference", environment=environment) as started:
        assert started.stdout is not None
        first = os.read(started.stdout.fileno(), 1)  # the first text is there
        assert first
        stdout, stderr = interrupted(started)
    assert len(stdout) < 3000
    assert "error" not in stderr


def test_while_a_file_of_prompts_is_worked_on(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("The ls command\n" * 500)
    arguments = ("generate", "demo", "--prompts-file", str(file), "--json", "--ignore-eos")
    with process(*arguments, "--max-tokens", "100", environment=environment) as started:
        assert started.stdout is not None
        assert os.read(started.stdout.fileno(), 1)
        stdout, _ = interrupted(started)
    assert stdout.count("\n") < 500


def test_while_a_prompt_is_typed_or_piped(environment: dict[str, str]) -> None:
    for command in ("generate", "chat"):
        with begun(command, "demo", environment=environment) as started:
            time.sleep(1.5)  # by then it reads, on a machine that is not busy
            interrupted(started)
