"""Bodies near to valid ones, mutated: each has a documented answer, and the server lives on."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.server.serving import Serving

VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "demo",
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}],
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
        "stream_options": {"include_usage": True},
        "logit_bias": {"5": 1.0},
        "stop": ["x"],
        "max_tokens": 2,
    },
    "/v1/responses": {
        "model": "demo",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            {"type": "reasoning", "summary": []},
        ],
        "text": {"format": {"type": "json_object"}},
        "max_output_tokens": 2,
    },
    "/v1/completions": {
        "model": "demo",
        "prompt": ["A", "B"],
        "structured_outputs": {"regex": "[ab]+"},
        "n": 2,
        "max_tokens": 2,
    },
    "/tokenize": {"messages": [{"role": "user", "content": "Hi"}], "tools": []},
    "/detokenize": {"tokens": [1, 2, 3]},
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.just([]),
    st.just({}),
    st.just([[[]]]),
    st.just({"type": "text"}),
    st.lists(st.integers(-5, 5000), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, Any]:
    """A route, and a body of which some places hold something else."""
    path = draw(st.sampled_from(sorted(VALID)))
    return path, _mutate(draw, VALID[path])


def _mutate(draw: st.DrawFn, value: Any) -> Any:
    if draw(st.integers(0, 11)) == 0:
        return draw(ODD)
    if isinstance(value, dict):
        return {key: _mutate(draw, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mutate(draw, item) for item in value]
    return value


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_every_body_has_an_answer(server: Serving, asked: tuple[str, Any]) -> None:
    path, body = asked
    if isinstance(body, dict) and not isinstance(body.get("max_tokens", 1), int):
        body = {**body, "max_tokens": 2}
    data = json.dumps(body).encode("utf-8", "surrogatepass")
    status, headers, answer = server.ask(path, data)
    assert status in (200, 400, 404), (status, answer, body)
    assert headers["x-request-id"]
    if status != 200:
        assert answer["error"]["message"]


def test_and_the_server_is_as_it_was(server: Serving) -> None:
    server.wait_until(running=0, waiting=0, cache_use=0.0)
    assert server.ask("/health")[0] == 200
    assert "Traceback" not in server.log
