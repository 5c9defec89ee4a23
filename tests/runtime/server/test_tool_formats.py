"""Parsers of what models write: the documented forms, whatever pieces they come in, and anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddock.recipes.pipeline import DEMO
from paddock.runtime.sampling.grammar import GuidanceGrammars
from paddock.runtime.server.formats.deepseek_calls import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    SEPARATOR,
)
from paddock.runtime.server.formats.harmony import HarmonyReasoning
from paddock.runtime.server.formats.reasoning import ReasoningParser, prompt_opens_reasoning
from paddock.runtime.server.formats.tool_deltas import (
    CallArguments,
    CallBegins,
    Content,
    Delta,
    OutputParser,
    Reasoning,
)
from paddock.runtime.server.formats.tool_formats import (
    FORMATS,
    Function,
    Plain,
    detect,
    grammar,
    parser,
    words,
)
from paddock.runtime.server.structures import Rules
from paddock.runtime.text.tokenizer import Tokenizer

# Forms are easier to compare one a line.
# ruff: noqa: E501

Read = tuple[str, str, list[tuple[str, str]]]


def read(reader: OutputParser, pieces: list[str]) -> Read:
    """Reasoning, content, and each call's name and arguments."""
    deltas: list[Delta] = [delta for piece in pieces for delta in reader.push(piece)]
    deltas += reader.finish()
    reasoning = content = ""
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        match delta:
            case Content():
                content += delta.text
            case Reasoning():
                reasoning += delta.text
            case CallBegins():
                assert delta.index == len(calls)
                calls.append((delta.name, ""))
            case CallArguments():
                assert delta.index == len(calls) - 1
                calls[-1] = (calls[-1][0], calls[-1][1] + delta.text)
    return reasoning, content, calls


PARIS = '{"city": "Paris", "days": [1, {"a": "}]\\" {"}]}'
CALL = f'{{"name": "weather", "arguments": {PARIS}}}'
LLAMA = f'{{"name": "weather", "parameters": {PARIS}}}'
ONE = [("weather", PARIS)]
WRITTEN: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", "", ONE),
    ("hermes", f"Let me look.\n<tool_call>\n{CALL}\n</tool_call>", "Let me look.", ONE),
    ("hermes", f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\n", "", ONE * 2),
    ("hermes", "I am <b>bold</b> <tool", "I am <b>bold</b> <tool", []),
    ("hermes", "  two words \n", "  two words \n", []),
    ("hermes", f"<tool_call>{CALL}</tool_call> and words", "and words", ONE),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1')]),
    ("hermes", "<tool_call>nonsense</tool_call>", "nonsense</tool_call>", []),
    ("llama3_json", LLAMA, "", ONE),
    ("llama3_json", f"<|python_tag|>{LLAMA}; {LLAMA}", "", ONE * 2),
    ("llama3_json", f" [{LLAMA}, {LLAMA}]", "", ONE * 2),
    ("llama3_json", "The weather is {fine}.", "The weather is {fine}.", []),
    ("llama3_json", '{"city": "Paris"}', '{"city": "Paris"}', []),
    ("llama3_json", "<|python", "<|python", []),
    ("mistral", f"[TOOL_CALLS] [{CALL}, {CALL}]", "", ONE * 2),
    ("mistral", f"[TOOL_CALLS]weather[ARGS]{PARIS}[TOOL_CALLS]f{{}}", "", [*ONE, ("f", "{}")]),
    ("mistral", f"Hm. [TOOL_CALLS]weather{PARIS}", "Hm.", ONE),
    ("mistral", "[TOOL] is no marker", "[TOOL] is no marker", []),
    ("pythonic", '[weather(city="Paris", days=[1, 2]), f()]', "", [("weather", '{"city": "Paris", "days": [1, 2]}'), ("f", "{}")]),
    ("pythonic", "[1, 2, 3] is a list", "[1, 2, 3] is a list", []),
    ("pythonic", "[f(__import__('os'))]", "[f(__import__('os'))]", []),
    ("json", LLAMA, "", ONE),
    ("none", CALL, CALL, []),
    ("harmony", f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{PARIS}<|call|>", "", ONE),
    ("harmony", f"<|start|>assistant to=functions.weather<|channel|>commentary json<|message|> {PARIS}<|call|>", "", ONE),
    ("harmony", "<|channel|>final<|message|>It rains.<|return|>", "It rains.", []),
    ("harmony", "It <|rains", "It <|rains", []),
    ("harmony", "<|channel|>commentary to=functions.f<|message|><|call|>", "", [("f", "{}")]),
    ("deepseek", f"{CALLS_BEGIN}{CALL_BEGIN}function{SEPARATOR}weather\n```json\n{PARIS}\n```{CALL_END}\n{CALL_BEGIN}function{SEPARATOR}f\n```json\n{{}}\n```{CALL_END}{CALLS_END}", "", [*ONE, ("f", "{}")]),
    ("deepseek", f"I look.\n\n{CALLS_BEGIN}{CALL_BEGIN}weather{SEPARATOR}{PARIS}{CALL_END}{CALLS_END}", "I look.", ONE),
    ("deepseek", f"a < b and {CALL_BEGIN[:7]}", f"a < b and {CALL_BEGIN[:7]}", []),
    ("glm", "I look.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>7</arg_value>\n<arg_key>days</arg_key>\n<arg_value>[1, 2]</arg_value>\n</tool_call>\n<tool_call>f\n</tool_call>", "I look.", [("weather", '{"city": "7", "days": [1, 2]}'), ("f", "{}")]),
    ("glm", "a <tool bit", "a <tool bit", []),
    ("glm", "<tool_call>no call at all</tool_call>", "no call at all", []),
    ("qwen_coder", "<tool_call>\n<function=weather>\n<parameter=city>\n7\n</parameter>\n<parameter=note>\ntwo\nlines > one\n</parameter>\n</function>\n</tool_call>", "", [("weather", '{"city": "7", "note": "two\\nlines > one"}')]),
    ("qwen_coder", "<function=f>\n<parameter=n>\n7\n</parameter>\n</function>", "", [("f", '{"n": 7}')]),
    ("granite", f"<|tool_call|>[{CALL}, {CALL}]", "", ONE * 2),
    ("granite", f"I look. <|tool_call|>[{CALL}]<|/tool_call|>", "I look.", ONE),
    ("granite", "<|tool_call|>none", "none", []),
    ("jamba", f"<tool_calls>[\n{CALL}\n]</tool_calls>", "", ONE),
    ("nemotron", f"<TOOLCALL>[{CALL}]</TOOLCALL> there", "there", ONE),
    ("command", f'<|START_ACTION|>[\n    {{"tool_call_id": "0", "tool_name": "weather", "parameters": {PARIS}}}\n]<|END_ACTION|>', "", ONE),
    ("command", "<|START_RESPONSE|>It rains.<|END_RESPONSE|>", "It rains.", []),
    ("internlm", f"I look.<|action_start|><|plugin|>\n{LLAMA}<|action_end|>", "I look.", ONE),
]  # fmt: skip
CALLABLE = [Function("weather", {"properties": {"city": {"type": "string"}}}), Function("f", {})]


@pytest.mark.parametrize(("form", "text", "content", "calls"), WRITTEN)
def test_forms_are_read(form: str, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert read(parser(form, CALLABLE), [text]) == ("", content, calls)
    assert read(parser(form, CALLABLE), list(text)) == ("", content, calls)


@given(st.sampled_from(WRITTEN), st.lists(st.integers(0, 200)))
def test_pieces_make_no_difference(written: Any, cuts: list[int]) -> None:
    form, text, content, calls = written
    places = sorted({min(cut, len(text)) for cut in cuts})
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    assert read(parser(form, CALLABLE), pieces) == ("", content, calls)


def test_arguments_come_while_they_are_written() -> None:
    reader = parser("hermes")
    assert reader.push('<tool_call>\n{"name": "f", "argu') == [CallBegins(0, "f")]
    assert reader.push('ments": {"a": "x') == [CallArguments(0, '{"a": "x')]
    assert reader.push('y"}}') == [CallArguments(0, 'y"}')]


MARKS = [
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<function=", "<parameter=", ">", "</parameter>",
    "</function>", "<|tool_call|>", CALL_BEGIN, SEPARATOR, CALL_END, "function", "<|channel|>", "<|message|>",
    "<|start|>", "<|call|>", "commentary to=functions.f", "analysis", "<|action_start|><|plugin|>",
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<think>", "</think>",
    '{"name": "f"', ', "arguments": ', ', "parameters": ', '"', "\\", "{", "}", "[", "]", ",", ":", "1",
    " ", "\n", "text", "é", "f(a=1)",
]  # fmt: skip


@given(
    st.sampled_from(FORMATS),
    st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=5)), max_size=30),
    st.booleans(),
)
def test_nothing_that_a_model_writes_is_too_much(
    form: str, pieces: list[str], opened: bool
) -> None:
    """No exception, no loss of plain text, and the same whatever the pieces."""
    text = "".join(pieces)
    for functions in ([], CALLABLE):
        found = read(ReasoningParser(parser(form, functions), opened=opened), pieces)
        for cut in (list(text), [text]):
            assert read(ReasoningParser(parser(form, functions), opened=opened), cut) == found
    if not opened and not any(mark in text for mark in ("{", "[", "<")):
        assert found == ("", text, [])


def test_long_output_takes_linear_time() -> None:
    import time

    started = time.perf_counter()
    for form in FORMATS:
        reader = parser(form)
        for _ in range(20_000):
            reader.push('{"a": [')
        reader.finish()
    assert time.perf_counter() - started < 20


THOUGHT: list[tuple[str, bool, Read]] = [
    ("<think>\nhm, so\n</think>\n\nYes.", False, ("hm, so", "Yes.", [])),
    ("hm</think>Yes. </think>", True, ("hm", "Yes. </think>", [])),
    ("Yes <think>no</think>", False, ("", "Yes <think>no</think>", [])),
    ("<think>never ends", False, ("never ends", "", [])),
    ("<thin", False, ("", "<thin", [])),
    ("", True, ("", "", [])),
]


@pytest.mark.parametrize(("text", "opened", "expected"), THOUGHT)
def test_reasoning_is_told_apart(text: str, opened: bool, expected: Read) -> None:
    assert read(ReasoningParser(Plain(), opened=opened), [text]) == expected
    assert read(ReasoningParser(Plain(), opened=opened), list(text)) == expected


def test_harmony_has_its_own_reasoning() -> None:
    text = (
        "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary"
        f" to=functions.weather <|constrain|>json<|message|>{PARIS}<|call|>"
    )
    assert read(parser("harmony"), list(text)) == ("I look.", "", ONE)
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    )
    for functions in ([], CALLABLE):
        assert read(parser("harmony", functions), list(text)) == ("Hm.", "Yes.", [])


def test_reasoning_on_a_channel_is_counted() -> None:
    class Texts:
        def __init__(self, texts: list[str]) -> None:
            self.text = texts.__getitem__

    pieces = [
        *("<|channel|>", "ana", "lysis", "<|message|>", "I", " look", "<|end|>"),
        *("<|start|>", "assistant", "<|channel|>", "final", "<|message|>", "It", " rains"),
    ]
    counted = HarmonyReasoning(Texts(pieces))  # type: ignore[arg-type]
    counted.push(range(5))
    counted.push(range(5, len(pieces)))
    assert counted.count == 7


def test_arguments_in_other_forms_come_while_they_are_written() -> None:
    deepseek = parser("deepseek")
    assert deepseek.push(f"{CALL_BEGIN}f{SEPARATOR}{{") == [
        CallBegins(0, "f"),
        CallArguments(0, "{"),
    ]
    assert deepseek.push('"a": 1') == [CallArguments(0, '"a": 1')]
    glm = parser("glm")
    assert glm.push("<tool_call>f\n<arg_key>a</arg_key>") == [CallBegins(0, "f")]
    assert glm.push("<arg_value>1</arg_value>") == [CallArguments(0, '{"a": 1')]
    assert glm.push("</tool_call>") == [CallArguments(0, "}")]
    harmony = parser("harmony")
    assert harmony.push("<|channel|>commentary to=functions.f<|message|>") == [CallBegins(0, "f")]
    assert harmony.push('{"a"') == [CallArguments(0, '{"a"')]


def test_calls_may_follow_reasoning() -> None:
    text = f"<think>I look</think>\n<tool_call>\n{CALL}\n</tool_call>"
    found = read(ReasoningParser(parser("hermes"), opened=False), list(text))
    assert found == ("I look", "", ONE)


def test_prompts_show_whether_they_begin_the_reasoning() -> None:
    assert prompt_opens_reasoning("<|assistant|>\n<think>\n")
    assert not prompt_opens_reasoning("<|assistant|>\n")
    assert not prompt_opens_reasoning("<think>\n\n</think>\n\n")


def test_formats_are_found_in_templates() -> None:
    assert detect("... <tool_call>\n{...} ...") == "hermes"
    assert detect("{{ '[TOOL_CALLS] ' }}") == "mistral"
    assert detect("<|python_tag|>") == "llama3_json"
    assert detect("'<tool_call>' + name + '<arg_key>'") == "glm"
    assert detect("<tool_call>\n<function=f>") == "qwen_coder"
    assert detect("'<|start|>assistant<|channel|>final'") == "harmony"
    assert detect("{{ message.content }}") == "json"
    assert json.loads(PARIS)["city"] == "Paris"


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
NAMED = {"hermes": "<tool_call>\n{}\n</tool_call>", "mistral": "[TOOL_CALLS][{}]"}


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "none"])
def test_a_strict_function_may_be_called_and_only_rightly(
    name: str, tokenizer: Tokenizer, grammars: GuidanceGrammars
) -> None:
    """Words, words and a call, or a call; never arguments that the schema does not allow."""
    rules = Rules()
    functions = [Function("weather", SCHEMA), Function("time", {})]
    rules.calls(grammar(name, functions, parallel=True, tokenizer=tokenizer, after_words=True))
    rules.words(words(name, tokenizer))
    key = "parameters" if name == "llama3_json" else "arguments"
    form = NAMED.get(name, "{}")

    def call(function: str, arguments: str) -> str:
        return form.replace("{}", f'{{"name": "{function}", "{key}": {arguments}}}')

    right = [call("weather", '{"city": "Rome"}'), call("time", '{"any": [1]}')]
    wrong = [call("weather", '{"city": "Oslo"}'), call("weather", "{}"), call("rain", "{}")]
    said = ["It rains.", " two lines\nof <b>words</b>", "", "Rome {and} [brackets]"]
    if name in NAMED:
        right += [f"I look.\n{one}" for one in right]
        wrong += [f"I look.\n{one}" for one in wrong]
    for text in [*right, *said]:
        assert writable(text, rules, tokenizer, grammars), text
        assert len(read(parser(name, functions), [text])[2]) == (text in right), text
    for text in wrong:
        assert not writable(text, rules, tokenizer, grammars), text


def writable(text: str, rules: Rules, tokenizer: Tokenizer, grammars: GuidanceGrammars) -> bool:
    """Whether the grammar lets a model write just this, and end."""
    constraint = grammars.constraint(rules.structure())
    for token in tokenizer.encode(text, add_special_tokens=False):
        if constraint.finished or not constraint.allowed()[token]:
            return False
        constraint.accept(token)
    ends = [*tokenizer.eos_token_ids]
    return constraint.finished or bool(constraint.allowed()[ends].any())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DEMO)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Iterator[GuidanceGrammars]:
    made = GuidanceGrammars(tokenizer, tokenizer.vocab_size)
    yield made
    made.close()
