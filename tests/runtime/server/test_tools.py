"""Tool calls and reasoning end to end: chat templates as models have them, output as they write it.

The demo model was not trained to call tools, so a grammar makes it write what such a model writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from jsonschema import Draft202012Validator

from tests.runtime.server.serving import Serving

# What Qwen3's template shows, in short: tools, calls, their results, and reasoning.
# ruff: noqa: E501
TEMPLATE = """\
{{- '<|bos|>' }}
{%- if tools %}{{ '<|system|>You may call ' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{{- ' as <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call>' }}{% endif %}
{%- for message in messages %}
{{- '<|' + ('user' if message.role == 'tool' else message.role) + '|>' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
{{- '\\n</tool_call>' }}{% endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Of a city", "parameters": SCHEMA},
    },
    {"type": "function", "function": {"name": "time"}},
]
ASKED: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
CALL = r"{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 2}}"


@pytest.fixture(scope="module")
def thinking(
    environment: dict[str, str], server_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    template = tmp_path_factory.mktemp("template") / "template.jinja"
    template.write_text(TEMPLATE)
    with Serving(environment, server_home, "demo", f"chat_template={template}") as started:
        yield started


@pytest.fixture
def thinker(thinking: Serving) -> Iterator[openai.OpenAI]:
    with thinking.client() as made:
        yield made


def says(text: str) -> dict[str, Any]:
    """The model writes just this."""
    return {"structured_outputs": {"grammar": f'start: "{text}"'}}


def streamed(chunks: Any) -> dict[str, Any]:
    """A stream put together as clients do it."""
    found: dict[str, Any] = {"content": "", "reasoning": "", "calls": {}, "finish": None}
    for chunk in chunks:
        [choice] = chunk.choices
        found["content"] += choice.delta.content or ""
        found["reasoning"] += (choice.delta.model_extra or {}).get("reasoning_content") or ""
        for piece in choice.delta.tool_calls or ():
            call = found["calls"].setdefault(piece.index, {"id": piece.id, "arguments": ""})
            if piece.function.name:
                call["name"] = piece.function.name
            call["arguments"] += piece.function.arguments or ""
        found["finish"] = choice.finish_reason or found["finish"]
    return found


def test_calls_are_told_from_words(thinker: openai.OpenAI) -> None:
    text = f"I look.\\n<tool_call>\\n{CALL}\\n</tool_call>\\n<tool_call>\\n{CALL}\\n</tool_call>"
    asked: dict[str, Any] = {
        "model": "demo",
        "messages": ASKED,
        "tools": TOOLS,
        "extra_body": says(text),
    }
    whole = thinker.chat.completions.create(**asked).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content == "I look."
    assert whole.message.tool_calls is not None
    assert [call.type for call in whole.message.tool_calls] == ["function"] * 2
    arguments = {call.function.arguments for call in whole.message.tool_calls}
    assert arguments == {'{"city": "Paris", "days": 2}'}
    assert len({call.id for call in whole.message.tool_calls}) == 2

    found = streamed(thinker.chat.completions.create(stream=True, **asked))
    assert found["content"] == "I look."
    assert found["finish"] == "tool_calls"
    assert [call["name"] for call in found["calls"].values()] == ["weather"] * 2
    assert [call["arguments"] for call in found["calls"].values()] == [*arguments] * 2


def test_one_call_is_told_where_several_are_not_wanted(thinker: openai.OpenAI) -> None:
    """Of a model that makes two by its own choice; with none it would be free to."""
    text = f"I look.\\n<tool_call>\\n{CALL}\\n</tool_call>\\n<tool_call>\\n{CALL}\\n</tool_call>"
    asked: dict[str, Any] = {
        "model": "demo",
        "messages": ASKED,
        "tools": TOOLS,
        "parallel_tool_calls": False,
        "extra_body": says(text),
    }
    message = thinker.chat.completions.create(**asked).choices[0].message
    assert message.tool_calls is not None
    assert len(message.tool_calls) == 1
    found = streamed(thinker.chat.completions.create(stream=True, **asked))
    assert list(found["calls"]) == [0]
    assert json.loads(found["calls"][0]["arguments"]) == {"city": "Paris", "days": 2}
    assert found["finish"] == "tool_calls"


@pytest.mark.parametrize("tools", [TOOLS, None])
def test_channels_are_told_apart(
    environment: dict[str, str], server_home: Path, tmp_path: Path, tools: Any
) -> None:
    """As gpt-oss writes: reasoning is a channel of its own, whether or not there are tools."""
    template = tmp_path / "template.jinja"
    template.write_text(
        "{{ '<|bos|>' }}{% for m in messages %}{{ m.content }}{% endfor %}{{ '<|channel|>'[:0] }}"
    )
    call = CALL.split('arguments\\": ')[1].removesuffix("}")
    text = "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>"
    answer = "final<|message|>It rains."
    if tools:
        answer = f"commentary to=functions.weather <|constrain|>json<|message|>{call}<|call|>"
    with (
        Serving(environment, server_home, "demo", f"chat_template={template}") as server,
        server.client() as client,
    ):
        asked: dict[str, Any] = {
            "model": "demo",
            "messages": ASKED,
            "extra_body": says(text + answer),
        }
        if tools:
            asked["tools"] = tools
        whole = client.chat.completions.create(**asked).choices[0]
        found = streamed(client.chat.completions.create(stream=True, **asked))
    assert whole.message.model_extra is not None
    assert whole.message.model_extra["reasoning_content"] == found["reasoning"] == "I look."
    if tools:
        assert whole.message.tool_calls is not None
        assert found["calls"][0]["name"] == whole.message.tool_calls[0].function.name == "weather"
        assert found["calls"][0]["arguments"] == '{"city": "Paris", "days": 2}'
        assert whole.message.content is None
    else:
        assert whole.message.content == found["content"] == "It rains."


def test_without_tools_the_same_text_is_words(thinker: openai.OpenAI) -> None:
    text = f"<tool_call>\\n{CALL}\\n</tool_call>"
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        answer = thinker.chat.completions.create(
            model="demo", messages=ASKED, extra_body=says(text), **more
        )
        assert answer.choices[0].message.tool_calls is None
        assert (answer.choices[0].message.content or "").startswith("<tool_call>")
        assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_calls_that_are_required_are_valid(
    client: openai.OpenAI, thinker: openai.OpenAI, choice: Any, stream: bool, seed: int
) -> None:
    """With and without a format that the template shows; with reasoning before them."""
    for asking in (client, thinker):
        answer: Any = asking.chat.completions.create(
            model="demo",
            messages=ASKED,
            tools=TOOLS,
            tool_choice=choice,
            parallel_tool_calls=False,
            temperature=1.0,
            seed=seed,
            max_tokens=800,
            stream=stream,
            reasoning_effort="none",
        )
        if stream:
            found = streamed(answer)
            calls = [(c["name"], c["arguments"]) for c in found["calls"].values()]
            finish = found["finish"]
        else:
            message = answer.choices[0].message
            calls = [(c.function.name, c.function.arguments) for c in message.tool_calls]
            finish = answer.choices[0].finish_reason
        [(name, arguments)] = calls
        assert finish == "tool_calls"
        assert name in ("weather", "time")
        if name == "weather":
            Draft202012Validator(SCHEMA).validate(json.loads(arguments))
        else:
            assert choice == "required"
            assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize("stream", [False, True])
def test_a_strict_function_that_the_model_chooses_is_called_rightly(
    server: Serving, client: openai.OpenAI, stream: bool
) -> None:
    """The demo never begins a call by itself, so a bias makes it write an opening brace."""
    [brace] = server.ask("/tokenize", {"prompt": "{", "add_special_tokens": False})[2]["tokens"]
    strict: Any = {**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}
    asked: dict[str, Any] = {
        "model": "demo",
        "messages": ASKED,
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 200,
        "logit_bias": {str(brace): 100},
    }
    loose = client.chat.completions.create(**asked, tools=[TOOLS[0]]).choices[0].message
    assert loose.tool_calls is None
    assert (loose.content or "").startswith("{{")
    if stream:
        chunks = client.chat.completions.create(**asked, tools=[strict], stream=True)
        [called] = streamed(chunks)["calls"].values()
        arguments = called["arguments"]
    else:
        made = client.chat.completions.create(**asked, tools=[strict]).choices[0].message
        assert made.tool_calls is not None
        [one] = made.tool_calls
        assert one.type == "function"
        arguments = one.function.arguments
    Draft202012Validator(SCHEMA).validate(json.loads(arguments))


def test_a_strict_function_leaves_words_as_they_are(client: openai.OpenAI) -> None:
    strict: Any = {**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}
    asked: dict[str, Any] = {"model": "demo", "messages": ASKED, "temperature": 0, "max_tokens": 40}
    texts = [
        client.chat.completions.create(**asked, tools=[tool]).choices[0].message.content
        for tool in (strict, TOOLS[0])
    ]
    assert texts[0] == texts[1]
    assert texts[0]


def test_reasoning_is_apart_from_the_answer(thinker: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": ASKED}
    text = says("<think>\\nParis, hm\\n</think>\\n\\nIt rains.")
    message = thinker.chat.completions.create(**asked, extra_body=text).choices[0].message
    assert message.content == "It rains."
    assert (message.model_extra or {})["reasoning_content"] == "Paris, hm"
    found = streamed(thinker.chat.completions.create(**asked, extra_body=text, stream=True))
    assert (found["reasoning"], found["content"]) == ("Paris, hm", "It rains.")
    hidden = thinker.chat.completions.create(
        **asked, extra_body={**text, "include_reasoning": False}
    )
    assert (hidden.choices[0].message.model_extra or {})["reasoning_content"] is None
    answer = thinker.responses.create(model="demo", input=ASKED, extra_body=text)
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output_text == "It rains."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\\nParis, hm\\n</think>\\n\\nIt rains.", "It rains."),
        ("It rains.", "It rains."),
        ("<think> for ever", ""),
    ],
)
def test_reasoning_tokens_are_counted(thinker: openai.OpenAI, text: str, answer: str) -> None:
    """As many as there are before the answer's first token, streamed or not, two at once."""
    asked: dict[str, Any] = {"model": "demo", "messages": ASKED, "logprobs": True, "n": 2}
    whole = thinker.chat.completions.create(**asked, extra_body=says(text))
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    expected = 0
    for choice in whole.choices:
        assert choice.logprobs is not None
        written = [token.token for token in choice.logprobs.content or ()]
        end = len("".join(written)) - len(answer)  # the end-of-text token has a text as well
        end = "".join(written).find("</think>") + len("</think>") if "</think>" in text else end
        if text.startswith("<think>"):
            sizes = [len("".join(written[:count])) for count in range(len(written) + 1)]
            expected += next(count for count, size in enumerate(sizes) if size >= end)
    assert whole.usage.completion_tokens_details.reasoning_tokens == expected

    options: Any = {"include_usage": True}
    *_, last = thinker.chat.completions.create(
        **asked, extra_body=says(text), stream=True, stream_options=options
    )
    assert last.usage is not None
    assert last.usage.completion_tokens_details == whole.usage.completion_tokens_details
    del asked["messages"], asked["logprobs"], asked["n"]
    response = thinker.responses.create(**asked, input=ASKED, extra_body=says(text))
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens * 2 == expected


def test_reasoning_is_free_where_the_answer_has_a_schema(thinker: openai.OpenAI) -> None:
    """The grammar leaves what stands in <think> alone, and holds the answer to the schema."""
    for seed in range(3):
        answer = thinker.chat.completions.create(
            model="demo",
            messages=ASKED,
            temperature=1.0,
            seed=seed,
            max_tokens=300,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "weather", "schema": SCHEMA},
            },
            logit_bias={},
        )
        [choice] = answer.choices
        if choice.finish_reason == "stop":
            Draft202012Validator(SCHEMA).validate(json.loads(choice.message.content or ""))


def test_no_reasoning_where_it_is_turned_off(thinking: Serving, thinker: openai.OpenAI) -> None:
    shown = thinking.ask(
        "/tokenize",
        {
            "messages": ASKED,
            "chat_template_kwargs": {"enable_thinking": False},
            "return_token_strs": True,
        },
    )[2]
    assert "think" in "".join(shown["token_strs"][-12:])
    answer = thinker.chat.completions.create(
        model="demo", messages=ASKED, reasoning_effort="none", extra_body=says("</think> no")
    )
    assert answer.choices[0].message.content == "</think> no"


def test_results_go_back_into_the_conversation(thinking: Serving) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "time", "arguments": '{"a": 1}'}}
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    _, _, found = thinking.ask("/tokenize", {"messages": messages, "tools": TOOLS})
    _, _, text = thinking.ask("/detokenize", {"tokens": found["tokens"]})
    prompt = text["prompt"]
    assert '<tool_call>\n{"name": "time", "arguments": {"a": 1}}\n</tool_call>' in prompt
    assert prompt.endswith("noon<|assistant|>")
    assert '"description": "Of a city"' in prompt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "same name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "'f'"),
        ({"chat_template_kwargs": {"messages": []}}, "messages"),
        ({"chat_template_kwargs": {"tools": []}}, "tools"),
    ],
)
def test_what_cannot_be_meant_is_refused(server: Serving, changes: Any, message: str) -> None:
    status, _, body = server.ask(
        "/v1/chat/completions", {"model": "demo", "messages": ASKED, **changes}
    )
    assert status == 400
    assert message in body["error"]["message"]
