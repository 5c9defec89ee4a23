"""`paddock generate`, `build` and `cache` through real processes, end to end."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.paddock.conftest import Run
from tests.paddock.test_cli import failed

GREEDY = ["--temperature", "0", "--max-tokens", "12"]


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_one_prompt_is_printed_alone(paddock: Run) -> None:
    done = paddock("generate", "demo", "--prompt", "The ls command", *GREEDY, "-q")
    assert (done.returncode, done.stderr) == (0, "")
    (record,) = lines(paddock("generate", "demo", "-p", "The ls command", *GREEDY, "--json"))
    assert done.stdout == record["text"].removesuffix("\n") + "\n"
    echoed = paddock("generate", "demo", "-p", "The ls command", *GREEDY, "--echo").stdout
    assert echoed == "The ls command" + done.stdout
    assert paddock("generate", "demo", *GREEDY, stdin=b"The ls command\n").stdout == done.stdout


def test_json_says_everything(paddock: Run) -> None:
    (record,) = lines(
        paddock("generate", "demo", "-p", "A file", *GREEDY, "--logprobs", "2", "--json")
    )
    assert record["index"] == 0
    assert record["prompt"] == "A file"
    assert len(record["token_ids"]) == 12
    assert (record["finish_reason"], record["stop_reason"]) == ("length", None)
    usage, timings = record["usage"], record["timings"]
    assert usage["completion_tokens"] == 12
    assert usage["prompt_tokens"] > 1
    assert 0 < timings["to_first_token_s"] <= timings["total_s"]
    assert timings["tokens_per_s"] > 0
    assert [token["token_id"] for token in record["logprobs"]] == record["token_ids"]
    first = record["logprobs"][0]
    assert len(first["top"]) == 2
    assert first["top"][0]["token_id"] == first["token_id"]  # greedy
    assert "".join(token["token"] for token in record["logprobs"]).strip() in record["text"]


def test_several_prompts_keep_their_order(paddock: Run, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("The cp command\n\nA symbolic link\n")
    done = paddock("generate", "demo", "-p", "The ls command", "--prompts-file", "p.txt", *GREEDY)
    assert [line for line in done.stdout.splitlines() if line.startswith("==>")] == [
        "==> 1/3 <==",
        "==> 2/3 <==",
        "==> 3/3 <==",
    ]
    alone = paddock("generate", "demo", "-p", "A symbolic link", *GREEDY).stdout
    assert done.stdout.endswith(f"==> 3/3 <==\n{alone}")


def test_json_lines_carry_ids_settings_and_messages(paddock: Run, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "The file", "id": "a", "sampling": {"max_tokens": 3}}\n'
        '{"prompt": [0, 300, 301], "id": 7}\n'
        '{"messages": [{"role": "user", "content": "What is ls?"}]}\n'
    )
    done = paddock("generate", "demo", "--prompts-file", "p.jsonl", *GREEDY, "--json", "--n", "2")
    records = lines(done)
    assert [r["index"] for r in records] == [0, 0, 1, 1, 2, 2]
    assert [r["sequence"] for r in records] == [0, 1] * 3
    assert [r.get("id") for r in records] == ["a", "a", 7, 7, None, None]
    assert [len(r["token_ids"]) for r in records[:3]] == [3, 3, 12]
    assert records[2]["usage"]["prompt_tokens"] == 3


def test_chat_applies_the_template(paddock: Run) -> None:
    question = ["-p", "What is ls?", *GREEDY, "--json"]
    (plain,) = lines(paddock("generate", "demo", *question))
    (chat,) = lines(paddock("generate", "demo", "--chat", *question))
    (told,) = lines(paddock("generate", "demo", "--chat", "--system", "Be brief.", *question))
    tokens = [r["usage"]["prompt_tokens"] for r in (plain, chat, told)]
    assert tokens[0] < tokens[1] < tokens[2]
    assert chat["text"] != plain["text"]


def test_a_seed_gives_the_same_text_again(paddock: Run) -> None:
    arguments = ["-p", "The file", "--temperature", "0.9", "--seed", "4", "--max-tokens", "20"]
    texts = {paddock("generate", "demo", *arguments).stdout for _ in range(2)}
    assert len(texts) == 1
    arguments[5] = "5"
    assert paddock("generate", "demo", *arguments).stdout not in texts


def test_a_stop_text_ends_it(paddock: Run) -> None:
    arguments = ["-p", "The ls command", "--temperature", "0", "--stop", "set up", "--json"]
    (record,) = lines(paddock("generate", "demo", *arguments))
    assert (record["finish_reason"], record["stop_reason"]) == ("stop", "set up")
    assert "set" not in record["text"]


def test_the_reference_engine_says_the_same(paddock: Run) -> None:
    arguments = ["-p", "The ls command", *GREEDY]
    compiled = paddock("generate", "demo", *arguments).stdout
    assert paddock("generate", "demo", "engine=reference", *arguments).stdout == compiled


@pytest.mark.parametrize("as_chat", [[], ["--chat"]])
def test_a_prompt_beyond_the_limit_fails_before_anything_is_built(
    paddock: Run, tmp_path: Path, as_chat: list[str]
) -> None:
    (tmp_path / "p.txt").write_text("short\n" + "word " * 2000)
    home = tmp_path / "home"
    done = paddock("generate", "demo", "--prompts-file", "p.txt", *as_chat, PADDOCK_HOME=str(home))
    message = failed(done, 1)
    assert message.startswith("p.txt:2: the prompt has 2")
    assert "1024" in message
    assert not home.exists()
    done = paddock(
        "generate", "demo", "limits.max_context=16", "-p", "word " * 30, PADDOCK_HOME=str(home)
    )
    assert "limits.max_context (16)" in failed(done, 1)


def test_token_ids_outside_the_vocabulary_fail_before_anything_is_built(
    paddock: Run, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": [1, 4096]}\n')
    home = tmp_path / "home"
    done = paddock("generate", "demo", "--prompts-file", "p.jsonl", PADDOCK_HOME=str(home))
    assert failed(done, 1).startswith("p.jsonl:1: ")
    assert "4096" in done.stderr
    assert not home.exists()


def test_a_reader_that_goes_away_ends_it_quietly(environment: dict[str, str]) -> None:
    command = '"$0" -m paddock generate demo -p The --ignore-eos --max-tokens 900 | head -c 1'
    done = subprocess.run(
        ["bash", "-c", command + '; echo "${PIPESTATUS[0]}"', sys.executable],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout[1:].strip() == "141"
    assert done.stderr == ""


def test_build_says_what_where_and_why(paddock: Run, tmp_path: Path) -> None:
    home = {"PADDOCK_HOME": str(tmp_path / "home")}
    first = paddock("build", "demo", **home)
    assert first.returncode == 0
    assert "built: " in first.stdout
    assert "because nothing was built of demo yet" in first.stdout
    again = paddock("build", "demo", **home)
    assert again.stdout.startswith("found in the cache")
    changed = paddock("build", "demo", "quant=int8", **home)
    assert "because quant: was none, now int8" in changed.stdout
    folder = Path(paddock("build", "demo", "--quiet", **home).stdout.strip())
    assert (folder / "manifest.json").is_file()
    described = json.loads(paddock("build", "demo", "--json", **home).stdout)
    assert (described["folder"], described["cached"]) == (str(folder), True)

    listed = lines(paddock("cache", "list", "--json", **home))
    assert {record["recipe"] for record in listed} == {"demo"}
    assert len(listed) == 2
    assert len(paddock("cache", "list", **home).stdout.splitlines()) == 3
    assert paddock("cache", "prune", "--days", "1", **home).stdout == "0 deleted, 0 B freed\n"
    pruned = paddock("cache", "prune", "--all", **home)
    assert pruned.returncode == 0
    assert f"deleted {folder}" in pruned.stdout
    assert lines(paddock("cache", "list", "--json", **home)) == []


def test_a_damaged_engine_folder_is_built_again(paddock: Run, tmp_path: Path) -> None:
    home = {"PADDOCK_HOME": str(tmp_path / "home")}
    folder = Path(paddock("build", "demo", "-q", **home).stdout.strip())
    (folder / "manifest.json").write_text("{")
    again = paddock("build", "demo", **home)
    assert again.returncode == 0, again.stderr
    assert "because" in again.stdout
    assert paddock("build", "demo", **home).stdout.startswith("found in the cache")


def test_a_checkpoint_folder_needs_no_recipe(paddock: Run, tmp_path: Path) -> None:
    import shutil

    import paddock as package

    copy = tmp_path / "my-model"
    shutil.copytree(Path(package.__file__).parent / "demo", copy)
    arguments = ["-p", "The ls command", *GREEDY]
    text = paddock("generate", "./my-model", "dtype=f32", *arguments)
    assert text.stdout == paddock("generate", "demo", *arguments).stdout


def test_demo_shows_what_it_did_and_what_to_type_next(paddock: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = paddock("demo", PADDOCK_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert f"kept in {home}" in done.stdout
    assert "tokens/s" in done.stdout
    assert "paddock chat demo" in done.stdout
    assert len(done.stdout) > 800  # there is text in it
