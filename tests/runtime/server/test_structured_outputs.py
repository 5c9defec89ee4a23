"""What a text must be, it is: JSON under 500 random schemas, regular expressions, choices, Lark."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from paddock import LLM, SamplingParams
from paddock.runtime.errors import RequestError
from paddock.runtime.sampling.structured_outputs import StructuredOutputs
from tests.runtime.server.random_schemas import random_schema
from tests.runtime.server.serving import Serving

ASKED: Any = [{"role": "user", "content": "Tell me about a file."}]


def test_json_is_valid_under_500_random_schemas(llm: LLM) -> None:
    """Sampled, so that chance is in it; what is cut off by length is no failure, but
    few are."""
    schemas = [random_schema(seed) for seed in range(500)]
    params = [
        SamplingParams(
            temperature=1.0,
            seed=number,
            max_tokens=500,
            structured_outputs=StructuredOutputs(json=schema),
        )
        for number, schema in enumerate(schemas)
    ]
    completions = llm.generate(["The answer: "] * len(schemas), params)
    complete = 0
    for number, (schema, completion) in enumerate(zip(schemas, completions, strict=True)):
        if completion.finish_reason == "length":
            continue
        complete += 1
        try:
            Draft202012Validator(schema).validate(json.loads(completion.text))
        except (ValueError, ValidationError) as error:
            pytest.fail(f"schema {number}: {schema}\n{completion.text!r}\n{error}")
    assert complete >= 480


def test_without_the_constraint_hardly_any_would_be(llm: LLM) -> None:
    """So the test above can fail."""
    text = llm.generate("The answer: ", SamplingParams(temperature=1.5, seed=1, max_tokens=50))
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(text[0].text)


@pytest.mark.parametrize(
    ("wanted", "valid"),
    [
        ({"regex": r"[a-f]{2,5}-\d{1,3}"}, r"[a-f]{2,5}-\d{1,3}"),
        (
            {"choice": ["yes", "no", 'a "quoted" \\ one', "ünï\n"]},
            r'yes|no|a "quoted" \\ one|ünï\n',
        ),
        ({"grammar": 'start: "a" b{1,3}\nb: "x" | "(" b ")"'}, r"a[x()]+"),
        ({"json_object": True}, r"(?s)\{.*\}"),
        ({"json": '{"type": "integer", "minimum": 3, "maximum": 5}'}, r"[345]"),
        ({"json": True}, r"(?s).+"),
    ],
)
def test_other_forms_through_http(client: openai.OpenAI, wanted: Any, valid: str) -> None:
    for seed in range(3):
        answer = client.completions.create(
            model="demo",
            prompt="Say",
            max_tokens=200,
            temperature=1.3,
            seed=seed,
            extra_body={"structured_outputs": wanted},
        )
        [choice] = answer.choices
        if choice.finish_reason == "stop":
            assert re.fullmatch(valid, choice.text), choice.text


def test_response_formats_of_a_chat(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"type": "integer"}},
        "required": ["name", "size"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="demo",
        messages=ASKED,
        n=4,
        seed=1,
        temperature=1.0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "file", "schema": schema, "strict": True},
        },
    )
    for choice in answer.choices:
        Draft202012Validator(schema).validate(json.loads(choice.message.content or ""))
    assert len({choice.message.content for choice in answer.choices}) > 1
    free = client.chat.completions.create(
        model="demo", messages=ASKED, response_format={"type": "json_object"}, max_tokens=300
    )
    if free.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(free.choices[0].message.content or ""), dict)


def test_the_clients_own_parser_of_models(client: openai.OpenAI) -> None:
    from pydantic import BaseModel

    class Verdict(BaseModel):
        good: bool
        grade: int

    parsed = client.chat.completions.parse(model="demo", messages=ASKED, response_format=Verdict)
    assert isinstance(parsed.choices[0].message.parsed, Verdict)


def test_a_complete_text_ends_whatever_else_is_asked(llm: LLM) -> None:
    """`ignore_eos` and `min_tokens` cannot make more of it."""
    wanted = StructuredOutputs(choice=("yes",))
    for more in ({"ignore_eos": True}, {"min_tokens": 20}):
        [done] = llm.generate("Well?", SamplingParams(structured_outputs=wanted, **more))
        assert (done.text, done.finish_reason) == ("yes", "stop")


def test_penalties_and_bias_do_not_break_the_grammar(llm: LLM) -> None:
    wanted = StructuredOutputs(regex="(ab){5,10}")
    params = SamplingParams(
        structured_outputs=wanted,
        repetition_penalty=50.0,
        presence_penalty=2.0,
        logit_bias={300: 100.0},
        temperature=1.0,
        n=4,
    )
    for sequence in llm.generate("Go", params)[0].sequences:
        assert re.fullmatch("(ab){5,10}", sequence.text)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"json": {"type": "nothing"}}, "nothing"),
        ({"json": {"$ref": "https://example.com/schema"}}, "retrieve|fetch"),
        ({"json": {"$ref": "file:///etc/passwd"}}, "retrieve|fetch"),
        ({"json": "{no json"}, "not JSON"),
        ({"json": False}, "no text is valid"),
        ({"regex": "(?=ahead)"}, "look-ahead|lookaround"),
        ({"regex": "("}, "regex"),
        ({"regex": "(a{1000}){1000}{100}"}, "too many|fuel|limit|complex"),
        ({"grammar": "start: missing"}, "missing"),
        ({"grammar": "nothing"}, ""),
    ],
)
def test_what_is_no_grammar_is_refused_and_soon(
    server: Serving, llm: LLM, wanted: Any, message: str
) -> None:
    body = {"model": "demo", "prompt": "A", "max_tokens": 2, "structured_outputs": wanted}
    status, _, answer = server.ask("/v1/completions", body)
    assert status == 400, answer
    assert re.search(message, answer["error"]["message"]), answer
    with pytest.raises(RequestError):
        llm.generate("A", SamplingParams(structured_outputs=StructuredOutputs(**wanted)))
    assert server.ask("/health")[0] == 200


@pytest.mark.parametrize(
    "wanted",
    [{}, {"regex": "a", "choice": ["b"]}, {"json_object": False}, {"json": {}, "grammar": "x"}],
)
def test_exactly_one_form(server: Serving, wanted: Any) -> None:
    body = {"model": "demo", "prompt": "A", "structured_outputs": wanted}
    status, _, answer = server.ask("/v1/completions", body)
    assert status == 400
    assert "one of json" in answer["error"]["message"]


def test_schemas_are_bounded(server: Serving) -> None:
    def ask(schema: Any) -> Any:
        described = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        body = {"model": "demo", "messages": ASKED, "response_format": described}
        return server.ask("/v1/chat/completions", body)

    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"properties": {"a": deep}}
    status, _, answer = ask(deep)
    assert (status, "deep" in answer["error"]["message"]) == (400, True)
    status, _, answer = ask({"enum": [f"word {number}" for number in range(20_000)]})
    assert (status, "KiB" in answer["error"]["message"]) == (400, True)
