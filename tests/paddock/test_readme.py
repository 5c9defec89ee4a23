"""The README's commands that download get as far as the network; what is shown, it shows.

That all others work, and its Python, is tested with every other page: tests/test_docs.py.
"""

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


@pytest.mark.parametrize("command", [c for c in COMMANDS if NEEDS_A_NETWORK.search(c)])
def test_a_command_that_downloads(
    command: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """Up to the network all is well: there is nothing wrong with the command line."""
    script = f'paddock() {{ "{sys.executable}" -m paddock "$@"; }}; {command}'
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
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "HF_HUB_OFFLINE" in done.stderr


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


def test_there_are_commands_and_programs() -> None:
    assert len(COMMANDS) >= 8
    assert any(NEEDS_A_NETWORK.search(c) for c in COMMANDS)
    assert blocks("python")
    assert all(word in README for word in ("make demo", "make test"))
