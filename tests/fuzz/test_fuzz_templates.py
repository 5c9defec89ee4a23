"""Chat templates and conversations of any kind: a text, or one of the documented errors."""

# What is drawn from is easier to read in full lines.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddock.runtime.errors import RequestError
from paddock.runtime.strict_json import TokenizerError
from paddock.runtime.text.chat_template import ChatTemplates
from paddock.runtime.text.template_sandbox import SandboxedTemplates
from tests.fuzz.bounds import Hung, bounded, fuzz

ENVIRONMENT = SandboxedTemplates()
NAMES = [
    *("messages", "tools", "documents", "add_generation_prompt", "bos_token", "message", "x", "ns"),
    *("loop", "self", "caller", "varargs", "absent", "true", "none"),
    *sorted(ENVIRONMENT.globals),
]
ATTRIBUTES = [
    *("role", "content", "x", "index0", "first", "items", "append", "pop", "update", "setdefault"),
    *("format", "format_map", "join", "split", "replace", "center", "zfill", "ljust", "encode"),
    *(
        "translate",
        "expandtabs",
        "splitlines",
        "strip",
        "upper",
        "casefold",
        "partition",
        "to_bytes",
    ),
    *("__class__", "__mro__", "__subclasses__", "__globals__", "__init__", "__dict__", "mro"),
    *("gi_frame", "cr_frame", "f_globals", "func_code", "_TemplateReference__context", "_context"),
]
CONSTANTS = [
    *("0", "1", "-1", "2.5", "1e308", "9" * 40, "99999999", "''", "'a'", "'{0.__class__}'"),
    *("'{:>99999999}'", "'%99999999d'", "'%s%n'", "'é\U0001f600'", "'\\ud800'", "[]", "{}", "()"),
    *("[1,2]", "{'a': 1}", "none", "true", "'x' * 9999"),
]
FILTERS, TESTS = sorted(ENVIRONMENT.filters), sorted(ENVIRONMENT.tests)
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "and", "or", "in", "not in"]


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arguments = st.lists(inner, max_size=3).map(", ".join)
    attribute = st.sampled_from(ATTRIBUTES)
    return st.one_of(
        st.builds("{}.{}".format, inner, attribute),
        st.builds("{}['{}']".format, inner, attribute),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("{}[{}:{}]".format, inner, inner, inner),
        st.builds("{}({})".format, inner, arguments),
        st.builds("{}.{}({})".format, inner, attribute, arguments),
        st.builds("({} {} {})".format, inner, st.sampled_from(OPERATORS), inner),
        st.builds("({}|{})".format, inner, st.sampled_from(FILTERS)),
        st.builds("({}|{}({}))".format, inner, st.sampled_from(FILTERS), arguments),
        st.builds("({} is {})".format, inner, st.sampled_from(TESTS)),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("[{}]".format, arguments),
        st.builds("{{'k': {}}}".format, inner),
        st.builds("(not {})".format, inner),
    )


EXPRESSIONS = st.recursive(st.sampled_from(NAMES + CONSTANTS), _larger, max_leaves=8)


def _blocks(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    body = st.lists(inner, min_size=1, max_size=3).map("".join)
    return st.one_of(
        st.builds("{{% for x in {} %}}{}{{% endfor %}}".format, EXPRESSIONS, body),
        st.builds("{{% for x in {} recursive %}}{}{{{{ loop(x) }}}}{{% endfor %}}".format, EXPRESSIONS, body),
        st.builds("{{% if {} %}}{}{{% else %}}b{{% endif %}}".format, EXPRESSIONS, body),
        st.builds("{{% set x %}}{}{{% endset %}}".format, body),
        st.builds("{{% macro m(x={}) %}}{}{{{{ m(x) }}}}{{% endmacro %}}{{{{ m(1) }}}}".format, EXPRESSIONS, body),
        st.builds("{{% filter {} %}}{}{{% endfilter %}}".format, st.sampled_from(FILTERS), body),
        st.builds("{{% call(x) {} %}}{}{{% endcall %}}".format, EXPRESSIONS, body),
        st.builds("{{% generation %}}{}{{% endgeneration %}}".format, body),
        st.builds("{{% block b %}}{}{{% endblock %}}".format, body),
    )  # fmt: skip


STATEMENTS = st.one_of(
    st.builds("{{{{ {} }}}}".format, EXPRESSIONS),
    st.builds("{{% set x = {} %}}".format, EXPRESSIONS),
    st.builds("{{% set ns = namespace(x={}) %}}{{% set ns.x = {} %}}".format, EXPRESSIONS, EXPRESSIONS),
    st.builds("{{% {} {} %}}".format, st.sampled_from(["include", "import", "extends", "do"]), EXPRESSIONS),
    st.sampled_from(["{% break %}", "{% continue %}", "{{ super() }}", "{{", "%}", "{#", "{% raw %}", "\n"]),
    st.text(max_size=5),
)  # fmt: skip
TEMPLATES = st.lists(st.recursive(STATEMENTS, _blocks, max_leaves=6), min_size=1, max_size=4).map(
    "".join
)

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "assistant", "system", "tool", "x"]),
                "content": JSON,
            },
            optional={
                "tool_calls": JSON,
                "reasoning_content": JSON,
                "items": JSON,
                "__class__": JSON,
            },
        ),
        JSON,
    ),
    min_size=1,
    max_size=4,
)


def _render(template: str, messages: Any, **more: Any) -> None:
    templates = ChatTemplates({"default": template}, {"bos_token": "<s>"}, "here")
    with bounded():
        try:
            text = templates.render(messages, **more)
        except (RequestError, TokenizerError) as error:
            message = str(error)
            assert "here" in message or "messages" in message or "tools" in message
        else:
            assert isinstance(text, str)
            assert len(text) < 1 << 27


@fuzz(300)
@given(TEMPLATES)
def test_any_template(template: str) -> None:
    _render(template, [{"role": "user", "content": "{{ 7 * 7 }} {0.__class__} %s"}])


@fuzz(100)
@given(st.text(st.sampled_from("{}%#|()[].'\"-+*~ \nabcfor in"), max_size=60))
def test_any_characters(template: str) -> None:
    _render(template, [{"role": "user", "content": "x"}])


REAL = """\
{%- if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}
{%- if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}{% endif %}
{%- for message in messages %}{{ '<|' + message.role + '|>' + message.content }}
{%- for call in message.tool_calls or [] %}{{ call.function.name }}{{ call.function | tojson }}{% endfor %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


@fuzz(150)
@given(MESSAGES, st.one_of(st.none(), st.lists(JSON, max_size=3)), st.booleans())
def test_any_conversation(messages: Any, tools: Any, generation: bool) -> None:
    _render(REAL, messages, tools=tools, add_generation_prompt=generation)


def test_what_hangs_or_takes_memory_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemoryError), bounded():
        bytearray(1 << 31)
    monkeypatch.setattr("tests.fuzz.bounds.SECONDS", 0.05)
    with pytest.raises(Hung), bounded():
        _wait_for_ever()


def _wait_for_ever() -> None:
    while True:
        pass
