"""What models write, in any pieces: parsers do not raise, and take time in proportion."""

# What is drawn from is easier to read in full lines.
# ruff: noqa: E501

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddock.runtime.server.formats.deepseek_calls import CALL_BEGIN, CALL_END, SEPARATOR
from paddock.runtime.server.formats.reasoning import ReasoningParser
from paddock.runtime.server.formats.tool_deltas import (
    CallArguments,
    CallBegins,
    Content,
    OutputParser,
)
from paddock.runtime.server.formats.tool_formats import FORMATS, parser
from tests.fuzz.bounds import bounded, fuzz

PIECES = st.one_of(
    st.sampled_from(
        [
            *("<tool_call>", "</tool_call>", "<tool", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python"),
            *("_tag|>", "<think>", "</think>", "<thi", '{"name": "f"', '{"name": ', ', "arguments": '),
            *(', "parameters": ', '"{\\"a\\": 1}"', '"', "\\", "\\u", "d800", "{", "}", "[", "]", ","),
            *(":", ";", "1e999", "-", "null", " ", "\n", "f(a=1)", "[f(", "=", ")", "\0", "\ufffd", "é"),
            *("<|channel|>", "<|message|>", "<|call|>", "<|start|>", "to=functions.f", "<arg_key>", "</arg_key>"),
            *("<arg_value>", "</arg_value>", "<function=", "<parameter=", "</parameter>", "</function>", ">"),
            *(CALL_BEGIN, SEPARATOR, CALL_END, "<|tool_call|>", "<|/tool_call|>", "<tool_calls>", "function"),
            *("lambda: 0", "f'{x}'", "...", "*a", "**b", "9" * 5000, "0x", "b''"),
        ]
    ),
    st.text(max_size=4),
)  # fmt: skip


def _whole(form: str, *, reasons: bool, opened: bool) -> OutputParser:
    return ReasoningParser(parser(form), opened=opened) if reasons else parser(form)


@fuzz(400)
@given(st.sampled_from(FORMATS), st.booleans(), st.booleans(), st.lists(PIECES, max_size=30))
def test_any_output(form: str, reasons: bool, opened: bool, pieces: list[str]) -> None:
    """Calls count up, arguments belong to the newest, and pieces read as the whole does."""
    found = []
    with bounded():
        for parts in (pieces, ["".join(pieces)]):
            reader = _whole(form, reasons=reasons, opened=opened)
            deltas = [delta for piece in parts for delta in reader.push(piece)]
            deltas += reader.finish()
            calls: list[list[str]] = []
            words = ""
            for delta in deltas:
                if isinstance(delta, CallBegins):
                    assert delta.index == len(calls)
                    calls.append([delta.name, ""])
                elif isinstance(delta, CallArguments):
                    assert delta.index == len(calls) - 1
                    calls[-1][1] += delta.text
                elif isinstance(delta, Content):
                    words += delta.text
            found.append((words.strip(), calls))
    assert found[0] == found[1]


LONG = [
    *("<", "<tool_call>", "<tool_call>{", "[TOOL_CALLS]", "[TOOL_CALLS][", "[TOOL_CALLS]f", "{", "["),
    *('{"name": "f", "arguments": {"a": "', '{"name": "f", "arguments": [', "\\", " ", "\n", "<think>"),
    *("[f(a=", "[f(a=-", "[f(a=[", "[f(a=(", "[f(a=x.y", "[f.a", "[f(a='", "a", ";", '{"name": "f"};'),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("repeated", LONG)
def test_long_outputs(form: str, repeated: str) -> None:
    """Eight thousand characters one by one, in time that grows with their number."""
    text = repeated + repeated[-1] * 4_000 + repeated * (4_000 // len(repeated))
    with bounded():
        reader = _whole(form, reasons=True, opened=False)
        started = time.process_time()
        for letter in text:
            reader.push(letter)
        reader.finish()
    assert time.process_time() - started < 1
