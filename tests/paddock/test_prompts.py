"""Prompts come from flags, files and stdin, and what is wrong in them is named by its line."""

import io
import sys
from pathlib import Path

import pytest

from paddock.commands.arguments import UsageError
from paddock.commands.prompts import Prompt, gather


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> "Stdin":
    return Stdin(monkeypatch)


class Stdin:
    """Stands for what is piped in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def holds(self, content: bytes) -> None:
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def written(tmp_path: Path, content: str | bytes, name: str = "prompts.txt") -> str:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


def test_flags_come_first_then_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "three\n\n  four \r\n")
    assert [p.content for p in gather(["one", "two"], file)] == ["one", "two", "three", "  four "]
    assert gather([], file)[1].origin == f"{file}:3"


def test_stdin_is_one_prompt_with_dash_or_with_nothing_else(stdin: Stdin) -> None:
    for texts in (["-"], []):
        stdin.holds("Grüße,\nzwei Zeilen\n".encode())
        assert gather(texts, None) == [Prompt("Grüße,\nzwei Zeilen", "stdin")]


def test_stdin_may_be_a_file_of_prompts(stdin: Stdin) -> None:
    stdin.holds(b"one\ntwo\n")
    assert [p.content for p in gather([], "-")] == ["one", "two"]
    with pytest.raises(UsageError, match="stdin can be read once"):
        gather(["-"], "-")


def test_json_lines_by_name_and_by_look(tmp_path: Path) -> None:
    lines = (
        '{"prompt": "a", "id": 7, "sampling": {"seed": 1}}\n'
        '{"prompt": [1, 2]}\n'
        '"b"\n'
        '{"messages": [{"role": "user", "content": "c"}]}\n'
    )
    for name in ("p.jsonl", "p.txt"):
        found = gather([], written(tmp_path, lines, name))
        assert [p.content for p in found] == [
            "a",
            [1, 2],
            "b",
            [{"role": "user", "content": "c"}],
        ]
        assert (found[0].id, found[0].settings) == (7, {"seed": 1})


def test_text_that_only_looks_like_json_is_text(tmp_path: Path) -> None:
    assert [p.content for p in gather([], written(tmp_path, "{this is\nno JSON}\n"))] == [
        "{this is",
        "no JSON}",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"promt": "a"}', "p.jsonl:1: no key 'promt'; nearest is 'prompt'"),
        ("{", "p.jsonl:1: not a line of JSON"),
        ("[" * 100_000, "p.jsonl:1: not a line of JSON"),
        ("7", "p.jsonl:1: expected an object with a prompt, found 7"),
        ('{"prompt": ""}', "p.jsonl:1: the prompt is empty"),
        ('{"prompt": []}', "p.jsonl:1: the prompt is empty"),
        ('{"prompt": [1, "a"]}', "expected text or a list of token ids"),
        ('{"prompt": [true]}', "expected text or a list of token ids"),
        ('{"prompt": 5}', "expected a text or token ids, found 5"),
        ('{"prompt": "a", "messages": []}', "either a prompt or messages"),
        ('{"id": 1}', "either a prompt or messages"),
        ('{"messages": "a"}', "expected a list of messages, found a text"),
        ('{"messages": [{"content": "a"}]}', 'each message is {"role": ..., "content": ...}'),
        ('{"prompt": "\\ud800"}', "not valid UTF-8"),
        ('{"prompt": "a", "sampling": 1}', "sampling: expected an object, found 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, expected: str) -> None:
    with pytest.raises(UsageError) as raised:
        gather([], written(tmp_path, line, "p.jsonl"))
    assert expected in str(raised.value)


@pytest.mark.parametrize("texts", [[""], ["a", ""]])
def test_an_empty_prompt_is_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="--prompt: the prompt is empty"):
        gather(texts, None)


def test_empty_stdin_and_an_empty_file_are_refused(tmp_path: Path, stdin: Stdin) -> None:
    stdin.holds(b"")
    with pytest.raises(UsageError, match="stdin: the prompt is empty"):
        gather([], None)
    with pytest.raises(UsageError, match="no prompts in it"):
        gather([], written(tmp_path, "\n \n"))


def test_bytes_that_are_no_utf8_are_named_with_file_and_line(tmp_path: Path, stdin: Stdin) -> None:
    file = written(tmp_path, b"fine\nalso fine\nna\xefve\n")
    with pytest.raises(UsageError, match=r"prompts.txt: line 3: not valid UTF-8 \(byte 0xef\)"):
        gather([], file)
    stdin.holds(b"caf\xe9")
    with pytest.raises(UsageError, match="stdin: line 1: not valid UTF-8"):
        gather([], None)
    with pytest.raises(UsageError, match="--prompt: not valid UTF-8"):
        gather(["\udcff"], None)


def test_a_byte_order_mark_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    assert gather([], written(tmp_path, b"\xef\xbb\xbfhello"))[0].content == "hello"


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent.txt: No such file"):
        gather([], str(tmp_path / "absent.txt"))
