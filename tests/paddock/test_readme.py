"""What the README tells people to type works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
NEEDS_A_NETWORK = re.compile(
    r"paddock (generate|chat|build|embed|classify) \S*(/|qwen|llama|smol|minilm)"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


COMMANDS = [
    line.removeprefix("$ ").partition("  #")[0].strip()
    for block in blocks("console")
    for line in block.splitlines()
    if line.startswith("$ ") and "paddock " in line
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command(command: str, environment: dict[str, str], tmp_path: Path) -> None:
    if NEEDS_A_NETWORK.search(command):
        # Up to the network all is well: there is nothing wrong with the command line.
        command = f"{command} </dev/null"
        expected = 1
    else:
        expected = 0
    script = f'paddock() {{ "{sys.executable}" -m paddock "$@"; }}; set -o pipefail; {command}'
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment | {"HF_HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr
    if expected:
        assert "HF_HUB_OFFLINE" in done.stderr
    elif "chat" not in command:  # which has nobody to talk with
        assert done.stdout


@pytest.mark.parametrize("program", blocks("python"))
def test_a_program(program: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_a_recipe_of_ones_own(environment: dict[str, str], tmp_path: Path) -> None:
    (recipe,) = (block for block in blocks("yaml") if block.startswith("# mine/"))
    (tmp_path / "assistant.yaml").write_text(recipe)
    command = ["show", "assistant", "--config-dir", str(tmp_path), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "paddock", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"weights": "int8"' in done.stdout


def test_there_are_commands_programs_and_recipes() -> None:
    assert len(COMMANDS) >= 8
    assert blocks("python")
    assert all(word in README for word in ("make demo", "make test"))
