"""The commands that need no engine, and how every command fails: one line and an exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paddock.__main__ import COMMANDS
from tests.paddock.conftest import Run


def failed(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that a failure prints; nothing else was printed."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("paddock: error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("paddock: error: ").strip()


def test_help_names_every_command(paddock: Run) -> None:
    for arguments in ([], ["--help"], ["help"], ["-h"]):
        done = paddock(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(f"  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_its_options(paddock: Run, command: str) -> None:
    done = paddock(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: paddock {command}")
    assert "--debug" in done.stdout
    assert paddock("help", command).stdout == done.stdout


def test_transcribe_asks_for_a_sound(paddock: Run) -> None:
    done = paddock("transcribe", "demo")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_version(paddock: Run) -> None:
    assert paddock("--version").stdout.startswith("paddock ")


def test_help_imports_nothing_heavy(environment: dict[str, str]) -> None:
    program = (
        "import sys; from paddock.__main__ import main; main(['--help']); main(['bench', '-h']);"
        "heavy = {'numpy', 'pydantic', 'hydra', 'openvino', 'tokenizers', 'huggingface_hub'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]\n"


def test_list_has_one_line_for_each_recipe(paddock: Run) -> None:
    header, *lines = paddock("list").stdout.splitlines()
    assert header.split() == ["name", "family", "size", "engine", "needs"]
    described = [json.loads(line) for line in paddock("list", "--json").stdout.splitlines()]
    assert [line.split()[0] for line in lines] == [recipe["name"] for recipe in described]
    (demo,) = (recipe for recipe in described if recipe["name"] == "demo")
    assert (demo["family"], demo["engine"], demo["problem"]) == ("Llama", "openvino", "")


def test_list_shows_recipes_of_the_users_own(paddock: Run, tmp_path: Path) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    (own / "tiny.yaml").write_text("defaults: [demo, _self_]\nfamily: Mine\nsize: 1M\n")
    (own / "broken.yaml").write_text("defaults: [demo, _self_]\nnonsense: 1\n")
    done = paddock("list", "--config-dir", own)
    assert done.returncode == 0
    assert any(line.split()[:3] == ["tiny", "Mine", "1M"] for line in done.stdout.splitlines())
    assert "broken.yaml: cannot be used: " in done.stderr
    assert "nonsense" in done.stderr


def test_show_says_where_each_value_comes_from(paddock: Run) -> None:
    done = paddock("show", "demo", "quant=int8", "limits.max_sequences=16")
    lines = {line.split(":")[0].strip(): line for line in done.stdout.splitlines()}
    assert lines["max_sequences"].endswith("# command line")
    assert "recipes/quant/int8.yaml:" in lines["weights"]
    assert "recipes/demo.yaml" in lines["checkpoint"]
    shown = json.loads(paddock("show", "-cn", "demo", "quant=int8", "--json").stdout)
    assert shown["recipe"]["quant"]["weights"] == "int8"
    assert "int8.yaml" in shown["sources"]["quant.weights"]


def test_a_name_with_a_slash_is_a_checkpoint(paddock: Run) -> None:
    for name in ("Qwen/Qwen3-0.6B@main", './it\'s "mine"', 'back\\"slash/\\'):
        shown = json.loads(paddock("show", name, "--json").stdout)["recipe"]
        assert (shown["name"], shown["checkpoint"]) == ("auto", name)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lst", "no command 'lst'; nearest is 'list'"),
        ("xyzzy", "no command 'xyzzy'; there are list, show"),
        ("--verson", "paddock has no option --verson; nearest is '--version'"),
        ("list demo", "paddock list takes no 'demo'"),
        ("list --jsn", "paddock list has no option --jsn; nearest is '--json'"),
        ("show", "which recipe?"),
        ("show demo other", "expected one recipe and overrides (key=value)"),
        ("show dmo", "no recipe 'dmo'; nearest is 'demo'"),
        ("show demo quant=int9", "quant has no option 'int9'; nearest"),
        ("show demo engine.treads=2", "no key 'engine.treads'; nearest"),
        ("show demo limits.max_sequences=many", "limits.max_sequences"),
        ("show demo limits.max_sequences=1,2", "--multirun"),
        ("show demo --config-dir nowhere", "--config-dir nowhere"),
        ("show --config-name", "expected one argument"),
        ("generate", "which recipe?"),
        ("generate demo --promt x", "no option --promt; nearest are '--prompt'"),
        ("generate demo --prompt", "--prompt"),
        ("generate demo --prompt= ", "the prompt is empty"),
        ("generate demo --prompts-file absent", "absent: No such file"),
        ("generate demo --prompt x --temperature warm", "--temperature: expected X, found 'warm'"),
        ("generate demo --prompt x --temperature -1", "temperature"),
        ("generate demo --prompt x --max-tokens 0", "max_tokens"),
        ("generate demo --prompt x --system y", "--system is a message of a chat: add --chat"),
        ("generate dmo --prompt x", "no recipe 'dmo'; nearest is 'demo'"),
        ("chat dmo", "no recipe 'dmo'; nearest is 'demo'"),
        ("chat demo --n 2", "a chat has one answer"),
        ("build demo --rebild", "no option --rebild; nearest is '--rebuild'"),
        ("bench demo --batch-sizes 1,x", "--batch-sizes: expected numbers like 1,4,8"),
        ("bench demo --batch-sizes 0", "--batch-sizes"),
        ("bench demo --new-tokens 1", "--new-tokens from 2"),
        ("cache prun", "'prun'; nearest is 'prune'"),
        ("cache", "list or prune"),
        ("demo demo", "overrides (key=value)"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    paddock: Run, line: str, expected: str, paddock_home: Path
) -> None:
    before = sorted(paddock_home.rglob("*"))
    assert expected in failed(paddock(*line.strip().split(" ")), 2)
    assert sorted(paddock_home.rglob("*")) == before


def test_debug_adds_the_traceback(paddock: Run) -> None:
    for arguments in (["--debug", "show", "dmo"], ["show", "dmo", "--debug"]):
        done = paddock(*arguments)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("paddock: error: no recipe 'dmo'")


def test_arguments_that_are_no_utf8_are_refused(paddock: Run) -> None:
    done = paddock("generate", "demo", "--prompt", b"\xff")
    assert "--prompt: not valid UTF-8" in failed(done, 2)


def test_stdin_that_is_no_utf8_names_the_line(paddock: Run) -> None:
    done = paddock("generate", "demo", stdin=b"good\nna\xefve\n")
    assert "stdin: line 2: not valid UTF-8 (byte 0xef)" in failed(done, 2)


def test_a_file_that_is_no_utf8_names_file_and_line(paddock: Run, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"good\n\xff\n")
    done = paddock("generate", "demo", "--prompts-file", "p.txt")
    assert "p.txt: line 2: not valid UTF-8 (byte 0xff)" in failed(done, 2)


def test_a_json_line_with_a_bad_setting_names_its_line(paddock: Run, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('"a"\n{"prompt": "b", "sampling": {"temprature": 1}}\n')
    done = paddock("generate", "demo", "--prompts-file", "p.jsonl")
    assert "p.jsonl:2: " in failed(done, 2)
    assert "temprature" in done.stderr


def test_a_reader_that_goes_away_is_no_error(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", '"$0" -m paddock list | head -1; echo "${PIPESTATUS[0]}"', sys.executable],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    first, status = done.stdout.splitlines()
    assert first.startswith("name")
    assert status in ("0", "141")  # 0: all was in the pipe before its reader left
    assert done.stderr == ""


def test_a_full_output_is_reported(environment: dict[str, str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "paddock", "list"],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "paddock: error: No space left on device\n"


def test_every_locale_will_do(paddock: Run) -> None:
    done = paddock("show", "./Grüße", "--json", LC_ALL="en_US.ISO-8859-1", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["recipe"]["checkpoint"] == "./Grüße"
    done = paddock("show", "./Grüße", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
