"""Chat templates: the text that transformers makes, and nothing that it would not let them do."""

from __future__ import annotations

import dataclasses
import random
import re
import threading
import time
from pathlib import Path
from typing import Any

import jinja2
import pytest
from pydantic import BaseModel

from paddock.graph.errors import PaddockError
from paddock.runtime.errors import RequestError
from paddock.runtime.strict_json import TokenizerError
from paddock.runtime.text import chat_template
from paddock.runtime.text.chat_template import ChatTemplates
from paddock.runtime.text.tokenizer import Tokenizer
from tests.runtime.tiny_tokenizers import DEMO, write_checkpoint

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
HELLO = [{"role": "user", "content": "Hello <b>&\"'"}]


def render(text: str, messages: Any = HELLO, **options: Any) -> str:
    return ChatTemplates({"default": text}, SPECIAL, "here").render(messages, **options)


# --- what transformers makes ---------------------------------------------------------------------

# Written for these tests with the constructs that the families' own templates use.
TEMPLATES = {
    "ChatML (SmolLM2)": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "headers and tools (Llama 3)": """
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 2026" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|head|>system<|/head|>\n\nToday: " + date_string + "\n\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}<|eot|>
{%- if tools_in_user_message and tools %}
    {%- set first = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
    {{- '<|head|>user<|/head|>\n\n' }}
    {%- for t in tools %}{{ t | tojson(indent=2) }}{% endfor %}
    {{- first + "<|eot|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|head|>' + message['role'] + '<|/head|>\n\n'+ message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One tool call at a time!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|head|>assistant<|/head|>\n\n' -}}
        {%- for name, value in call.arguments | items %}
            {{- name + '="' + value ~ '"' }}{% if not loop.last %}{{ ", " }}{% endif %}
        {%- endfor %}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\n\n' }}
{%- endif %}
""",
    "reasoning between turns (Qwen3)": """
{%- if tools %}
    {{- '<|im_start|>system\n# Tools' }}
    {%- for tool in tools %}
        {{- "\n" }}{{- tool | tojson }}
    {%- endfor %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(
            message.content.startswith('<reply>') and message.content.endswith('</reply>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n') %}
            {%- set reasoning = reasoning.split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning)) %}
            {{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (loop.previtem and loop.previtem.role != "tool") %}[{% endif %}
        {{- content }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}]{% endif %}
    {%- else %}
        {{- message.role + ': ' + content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""",
    "generation, macros and modes (SmolLM3)": """
{# the default mode #}
{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- set mode = "/think" if enable_thinking else "/no_think" -%}
{%- macro tool_list(items, label) -%}
{{ label }}: {{ items | map(attribute="function") | map(attribute="name") | join(", ") }}
{%- endmacro -%}
{%- if messages[0].role == "system" -%}
  {%- set text = messages[0].content -%}
  {%- if "/no_think" in text -%}{%- set mode = "/no_think" -%}{%- endif -%}
  {%- set instructions = text.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
<|im_start|>system
Mode: {{ mode }} {{ tool_list(tools, label="Tools") if tools else "" }}
{{ instructions if instructions is defined else "You are helpful." }}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "user" -%}
        {{ "<|im_start|>" + message.role + "\n" + content + "<|im_end|>\n" }}
    {%- elif message.role == "assistant" -%}
        {%- generation -%}
        {%- set shown = content.lstrip("\n") -%}
        {{ "<|im_start|>assistant\n" + shown + "<|im_end|>\n" }}
        {%- endgeneration -%}
    {%- elif message.role == "tool" -%}
        {%- continue -%}
    {%- endif -%}
    {%- if loop.index > 50 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\n" }}{%- endif -%}
""",
    "alternating roles (Mistral)": """
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set spoken = loop_messages | rejectattr("role", "equalto", "tool") %}
{%- for message in spoken | rejectattr("tool_calls", "defined") %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate!") }}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS][" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]" + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS][" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call ids have 9 letters!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
        {%- endfor %}
        {{- "]" + eos_token }}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- "[TOOL_RESULTS]" ~ (message.content if message.content is defined) }}
    {%- endif %}
{%- endfor %}
""",
    "blocks of content": """
{%- for message in messages %}
    {{- message.role | upper | center(12) }}
    {%- if message.content is string %}
        {{- message.content | replace("a", "A") | indent(2) }}
    {%- else %}
        {%- for block in message.content %}
            {{- block.text if block.type == "text" else "<" + block.type + ">" }}
        {%- endfor %}
    {%- endif %}
    {{- "%s of %d" % (loop.index, loop.length) }} {{ "{:>5}|{}".format(loop.index, loop.last) }}
{%- endfor %}
{{ documents | map(attribute='title') | sort | unique | list if documents else [] }}
{{- {"a": [1, 2.5, none, true]} | tojson }} {{ ("x", 1) }} {{ dict(b=1, a=2) | dictsort }}
{{- [1, 2, 3] | sum }} {{ range(3) | list }} {{ messages | length > 2 and "many" or "few" }}
{% autoescape true %}{{ "<" ~ messages[0].role }}{% endautoescape %}
{% filter upper %}filtered{% endfilter %}{% set x %}captured{{ 1 }}{% endset %}{{ x * 2 }}
{% call(y) namespace_call() %}{{ y }}{% endcall %}
""".replace("{% call(y) namespace_call() %}{{ y }}{% endcall %}", ""),
    "indented": """
Roles:
    {% for message in messages %}
        {% if message.role == "user" %}
    user
        {% else %}
    not user {# a remark #}
        {% endif %}
    {% endfor %}
    {{ messages | length }}
""",
    "used once": (
        "{% set users = messages | selectattr('role', 'equalto', 'user') %}"
        "{% for m in users %}a{% endfor %}{% for m in users %}b{% endfor %}"
    ),
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The <b>weather</b> & more: naïve, 日本",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}},
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": HELLO,
    "system": [{"role": "system", "content": " Be nice. /no_think\n"}, *HELLO],
    "turns": [
        *HELLO,
        {"role": "assistant", "content": " <think>\nwhy\n</think>\n\nHi \n"},
        {"role": "user", "content": "And?\n\n"},
    ],
    "reasoning": [*HELLO, {"role": "assistant", "content": "Hi", "reasoning_content": "so"}],
    "thinking": [*HELLO, {"role": "assistant", "content": "Hi", "thinking": "so"}],
    "tools": [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "5 °C", "tool_call_id": "abcdefghi"},
        {"role": "tool", "content": "6 °C"},
        {"role": "assistant", "content": "5 or 6"},
        {"role": "user", "content": "thanks"},
    ],
    "two calls": [*HELLO, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}],
    "blocks": [
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}]},
    ],
    "not alternating": [*HELLO, *HELLO],
}
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"add_generation_prompt": False},
    {"tools": TOOLS},
    {"tools": TOOLS, "tools_in_user_message": False},
    {"enable_thinking": False, "date_string": "2 Jan 2026"},
    {"documents": [{"title": "T", "text": "x"}, {"title": "A", "text": "y"}]},
)


def theirs(text: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> str | None:
    """What transformers makes; None where the template refuses or fails."""
    from transformers.utils.chat_template_utils import render_jinja_template

    options = {"add_generation_prompt": True, **SPECIAL, **options}
    chat = [{k: v for k, v in message.items() if v is not None} for message in messages]
    try:
        result: str = render_jinja_template([chat], chat_template=text, **options)[0][0]
    except Exception:
        return None
    return result


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_those_of_transformers(name: str) -> None:
    pytest.importorskip("transformers", reason="compares with transformers, live")
    text = TEMPLATES[name]
    made = 0
    for messages in CONVERSATIONS.values():
        for options in OPTIONS:
            expected = theirs(text, messages, options)
            if expected is None:
                with pytest.raises(RequestError, match=r"^here: the chat template (refuses|fails)"):
                    render(text, messages, **options)
            else:
                assert render(text, messages, **options) == expected
                made += 1
    assert made > 15


def test_the_demos_conversations_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="compares with it, live")
    reference = transformers.AutoTokenizer.from_pretrained(str(DEMO))
    tokenizer = Tokenizer(DEMO)
    for messages in CONVERSATIONS.values():
        if any(not isinstance(message["content"], str) for message in messages):
            continue
        for prompt in (True, False):
            text = reference.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
            assert tokenizer.apply_chat_template(messages, prompt) == text
            ids = reference.apply_chat_template(
                messages, add_generation_prompt=prompt, return_dict=False
            )
            assert tokenizer.encode_chat(messages, add_generation_prompt=prompt) == ids


@pytest.mark.parametrize("content", ["So it", "So it  ", "", [{"type": "text", "text": "So it"}]])
def test_the_last_message_can_be_gone_on_with(content: Any) -> None:
    trims = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"
    keeps = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    blocks = "{% for m in messages %}<{{ m.role }}>{{ m.content[0].text }}</>{% endfor %}"
    messages = [*HELLO, {"role": "assistant", "content": content}]
    for text in (trims, keeps) if isinstance(content, str) else (blocks,):
        made = render(text, messages, continue_final_message=True, add_generation_prompt=False)
        written = content if isinstance(content, str) else content[0]["text"]
        assert made.endswith("<assistant>" + (written.strip() if text == trims else written))
        if pytest.importorskip("transformers"):
            options = {"continue_final_message": True, "add_generation_prompt": False}
            assert made == theirs(text, messages, options)
    with pytest.raises(RequestError, match="set one of them to false"):
        render(trims, messages, continue_final_message=True)
    with pytest.raises(RequestError, match="does not write out the last message"):
        render(
            "{{ messages[0].content }}",
            messages,
            continue_final_message=True,
            add_generation_prompt=False,
        )


# --- which template ------------------------------------------------------------------------------


def test_templates_are_chosen_by_name_and_by_tools() -> None:
    templates = ChatTemplates({"default": "D", "tool_use": "T", "rag": "R"}, {}, "here")
    assert templates.names == ("default", "tool_use", "rag")
    assert templates.render(HELLO) == "D"
    assert templates.render(HELLO, tools=TOOLS) == "T"
    assert templates.render(HELLO, tools=TOOLS, chat_template="rag") == "R"
    assert templates.render(HELLO, chat_template="{{ messages|length }}") == "1"
    with pytest.raises(RequestError, match="no template is called 'reg'; nearest is 'rag'"):
        templates.render(HELLO, chat_template="reg")
    with pytest.raises(RequestError, match="none is the default; choose one of a, b"):
        ChatTemplates({"a": "", "b": ""}, {}, "here").render(HELLO)
    with pytest.raises(RequestError, match=r"here: no chat template, .* base model"):
        ChatTemplates({}, {}, "here").render(HELLO)


def test_templates_come_from_where_transformers_looks(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="compares with it, live")

    def compare(folder: Path) -> str:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
        expected = tokenizer.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True)
        assert Tokenizer(folder).apply_chat_template(HELLO) == expected
        return str(expected)

    config = {"eos_token": "<|end|>", "chat_template": "config{{ eos_token }}"}
    write_checkpoint(tmp_path, tokenizer_config=config)
    assert compare(tmp_path) == "config<|end|>"
    several = [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]
    write_checkpoint(tmp_path, tokenizer_config=config | {"chat_template": several})
    assert compare(tmp_path) == "D"
    assert Tokenizer(tmp_path).apply_chat_template(HELLO, chat_template="rag") == "R"
    (tmp_path / "chat_template.jinja").write_text("file {{ eos_token }}\n", encoding="utf-8")
    assert compare(tmp_path) == "file <|end|>"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("R2", encoding="utf-8")
    assert compare(tmp_path) == "file <|end|>"
    assert Tokenizer(tmp_path).apply_chat_template(HELLO, chat_template="rag") == "R2"
    own = Tokenizer(tmp_path, chat_template="own {{ eos_token }}")
    assert own.apply_chat_template(HELLO) == "own <|end|>"


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: the conversation is empty"),
        ("hello", "messages: expected a list of messages, found str"),
        ({"role": "user"}, "messages: expected a list of messages, found dict"),
        (["hello"], r"messages\[0\]: expected an object with role and content, found str"),
        ([*HELLO, {"content": "x"}], r"messages\[1\].role: expected a string"),
        ([{"role": 5, "content": "x"}], r"messages\[0\].role: expected a string"),
        ([{"role": "user", "content": b"x"}], r"messages\[0\].content: .* found bytes"),
        ([{"role": "user", "content": [object()]}], r"messages\[0\].content\[0\]: .* found object"),
    ],
)
def test_messages_are_checked(messages: Any, message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}"):
        render("{{ messages[0].content }}", messages)


def test_what_else_is_given_is_checked() -> None:
    with pytest.raises(RequestError, match=r"tools\[0\]: expected an object, found str"):
        render("", tools=["x"])
    with pytest.raises(RequestError, match="documents: expected a list of objects, found dict"):
        render("", documents={})
    with pytest.raises(RequestError, match=r"variable: .* found object"):
        render("", variable=object())
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    with pytest.raises(RequestError, match=r"nested more than 64 deep"):
        render("", [{"role": "user", "content": deep}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n{% if %}", "here: the chat template has an error in line 2: "),
        ("{{ messages", "here: the chat template has an error in line 1: "),
        ("{% nonsense %}", "Encountered unknown tag 'nonsense'"),
        ("{{ x | nonsense }}", "No filter named 'nonsense'"),
        ("{{ " + "(" * 4000 + "1" + ")" * 4000 + " }}", "nested too deeply"),
        ("{% for x in [1] %}" * 150 + "{% endfor %}" * 150, "nested too deeply"),
        ("x" * (1 << 18), "the chat template has 262144 characters; more than"),
    ],
)
def test_templates_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as error:
        render(text)
    assert "\n" not in str(error.value)


def test_a_template_that_refuses_is_quoted() -> None:
    with pytest.raises(RequestError, match=r"^here: .* refuses this conversation: no user\?$"):
        render("{{ raise_exception('no user?') }}")
    with pytest.raises(RequestError, match=r"^here: .* fails on .*: TypeError: "):
        render("{{ 1 + 'a' }}")
    with pytest.raises(RequestError, match="'nothing' is undefined"):
        render("{{ nothing.at.all }}")


# --- the sandbox ---------------------------------------------------------------------------------

ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ ''['__cla' ~ 'ss__'] }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ messages | map(attribute='role.__class__') | list }}",
    "{{ ['a'] | map('attr', '__class__') | list }}",
    "{{ messages | selectattr('__class__') | list }}",
    "{{ messages | groupby('__class__') }}",
    "{{ messages | sum(attribute='__len__') }}",
    "{{ cycler.__init__.__globals__.os.getcwd }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ range.__class__ }}",
    "{{ dict.__base__ }}",
    "{{ dict.mro() }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__closure__ }}",
    "{{ strftime_now.__code__.co_consts }}",
    "{{ self._TemplateReference__context }}",
    "{{ self.__init__.__globals__ }}",
    "{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}{{ m._func }}",
    "{{ (messages | map('string')).gi_frame }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__.__mro__}'.format_map([1]) }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ ('{0.__class__}' | safe).format(1) }}",
    "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
    "{{ ['{0.__class__}'] | map('format', 1) | list }}",
    "{{ '{0.__class__}' | attr('format') }}",
    "{% set x = namespace(__class__=1) %}{{ x }}",
    "{% set x = namespace() %}{% set x.__init__ = 1 %}",
    "{{ namespace(a=1)['_Namespace__attrs'] }}",
    "{{ (1).__add__(1) }}",
    "{{ ''.join.__self__.__class__ }}",
    "{{ messages.append(1) }}{{ messages | length }}",
    "{{ messages[0].update({'role': 'x'}) }}{{ messages[0].role }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages.__setitem__(0, 1) }}",
    "{% include '/etc/passwd' %}",
    "{% include '../../../../../etc/passwd' ignore missing %}",
    "{% import 'os' as os %}{{ os }}",
    "{% from 'os' import path %}{{ path }}",
    "{% extends '/etc/passwd' %}",
    "{% do messages.append(1) %}",
    "{{ environment }}{{ context }}{{ config }}{{ request }}{{ __builtins__ }}",
    "{{ __import__('os') }}",
    "{{ open('/etc/passwd') }}",
    "{{ self.environment }}",
)


LEAK = re.compile(r"<class|<module|<built-in|<bound|<frame|<code|<generator|__main__|root:|uid=")


@pytest.mark.parametrize("text", ESCAPES)
def test_nothing_reaches_outside(text: str) -> None:
    messages = [dict(HELLO[0])]
    try:
        made = render(text, messages)
    except PaddockError as error:
        made = str(error)
    assert not LEAK.search(made)
    # What refuses it is the sandbox, not a limit that some other text would keep under.
    assert "was stopped" not in made
    assert messages == HELLO


def test_what_would_leak_is_recognised() -> None:
    outside = jinja2.Environment(loader=jinja2.FileSystemLoader("/"))
    leaks = 0
    for text in ESCAPES:
        try:
            made = outside.from_string(text).render(messages=[dict(HELLO[0])])
        except Exception as error:
            made = str(error)
        leaks += bool(LEAK.search(made))
    assert leaks > 15


def test_an_object_is_given_as_plain_data() -> None:
    class Content(str):
        def escape(self) -> str:
            return "escaped"

    @dataclasses.dataclass
    class Turn:
        role: str
        content: str

        def get(self) -> str:
            return "got"

    class Model(BaseModel):
        role: str
        content: list[int]

    text = "{% for m in messages %}{{ m.content }}{{ m.escape }}{{ m.content.escape }}{% endfor %}"
    messages: Any = [
        {"role": "user", "content": Content("a")},
        Turn("user", "b"),
        Model(role="user", content=[1, True]),
    ]
    assert render(text, messages) == "ab[1, 1]"


SLOW = ("loops in loops", "loops with tests", "branching recursion")
COSTLY = {
    "a long range": "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "loops with tests": (
        "{% for i in range(99999) %}{% for j in range(99999) if 0 %}{% endfor %}{% endfor %}"
    ),
    "text in loops": (
        "{% macro m() %}{% for i in range(99999) %}{% for j in range(99999) %}"
        + "A" * 999
        + "{% endfor %}{% endfor %}{% endmacro %}{{ m() }}"
    ),
    "constants in loops": (
        "{% set x %}{% for i in range(99999) %}{% for j in range(99999) %}{{ 'a' | center(99999) }}"
        "{% endfor %}{% endfor %}{% endset %}"
    ),
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching recursion": (
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(99) }}"
    ),
    "a recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a recursive block": "{% block a %}{{ self.a() }}{% endblock %}",
    "text times a number": "{{ 'a' * 10**10 }}",
    "a number times text": "{{ 10**10 * 'a' }}",
    "a list times a number": "{{ ([1] * 10**10) | length }}",
    "a power": "{{ 10 ** (10**8) }}",
    "squares": (
        "{% set n = namespace(x=7) %}{% for i in range(24) %}{% set n.x = n.x * n.x %}{% endfor %}"
    ),
    "bytes as a number": "{{ (1).from_bytes(('a' * 99999).encode(), 'big') }}",
    "digits as a number": "{{ ('1' * 99999) | int(0, 2) }}",
    "doubled by ~": (
        "{% set n = namespace(x='a') %}"
        "{% for i in range(24) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
    ),
    "doubled by +": (
        "{% set n = namespace(x='a') %}"
        "{% for i in range(24) %}{% set n.x = n.x + n.x %}{% endfor %}"
    ),
    "lists of lists": (
        "{% set n = namespace(x=[], y=[]) %}{% for i in range(24) %}"
        "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}"
        "{{ n.x == n.y }}"
    ),
    "tuples of tuples": (
        "{% set n = namespace(x=(), y=()) %}{% for i in range(24) %}"
        "{% set n.x = (n.x, n.x) %}{% set n.y = (n.y, n.y) %}{% endfor %}"
        "{{ n.x == n.y }}"
    ),
    "dicts of dicts": (
        "{% set n = namespace(x={}, y={}) %}{% for i in range(24) %}"
        "{% set n.x = {1: n.x, 2: n.x} %}{% set n.y = {1: n.y, 2: n.y} %}{% endfor %}"
        "{{ n.x == n.y }}"
    ),
    "views of views": (
        "{% set n = namespace(x={}) %}{% for i in range(24) %}"
        "{% set n.x = dict(a=n.x.items(), b=n.x.items()) %}{% endfor %}{{ n.x | string }}"
    ),
    "many times one text": "{% set s = 'a' * 99999 %}{{ [s] * 99999 }}",
    "replace": "{% set s = 'a' * 99999 %}{{ s.replace('a', s) }}",
    "the filter replace": "{% set s = 'a' * 99999 %}{{ s | replace('a', s) }}",
    "join": "{% set s = 'a' * 9999 %}{{ s.join(range(9999) | map('string')) }}",
    "the filter join": "{% set s = 'a' * 9999 %}{{ range(9999) | join(s) }}",
    "sums of lists": "{{ ([[1] * 10] * 9999) | sum(start=[]) }}",
    "a lazy filter": "{{ range(99999) | map('center', 99999) | list | length }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "zfill": "{{ 'a'.zfill(width=10**10) if 0 else 'a'.zfill(10**10) }}",
    "expandtabs": "{{ ('\t' * 99999).expandtabs(99999) }}",
    "to_bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "translate": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "punycode": "{{ ('aé' * 49999).encode('punycode') }}",
    "indent": "{{ 'a\n' | indent(10**10) }}",
    "indent with text": "{% set s = 'a' * 99999 %}{{ ('a\n' * 99999) | indent(s) }}",
    "wordwrap": "{% set s = 'a' * 99999 %}{{ s | wordwrap(1, wrapstring=s) }}",
    "batch": "{{ ('a' * 999999) | batch(1) | list | length }}",
    "a format's width": "{{ '%10000000000d' % 1 }}",
    "a format's given width": "{{ '%*d' % (10**10, 1) }}",
    "a format's many widths": "{{ '%99999d' * 2000 % range(2000) | list }}",
    "the filter format": "{{ '%10000000000d' | format(1) }}",
    "str.format": "{{ '{:10000000000}'.format(1) }}",
    "str.format's given width": "{{ '{0:{1[a]}}'.format(1, {'a': 10**10}) }}",
    "str.format's many fields": "{{ ('{0:>99999}' * 2000).format(1) }}",
    "strftime_now": "{{ strftime_now('%10000000000c') }}",
    "strftime_now's many widths": "{{ strftime_now('%99999c' * 2000) }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "tojson's indent": "{{ [1] | tojson(indent=10**10) }}",
    "tojson's separators": (
        "{% set s = 'a' * 99999 %}{{ range(9999) | list | tojson(separators=(s, s)) }}"
    ),
    "urlize": "{{ ('http://a.b/(' * 49999) | urlize }}",
    "pprint": "{{ ([[[1] * 10] * 100] * 100) | pprint }}",
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_a_template_uses_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where it is not the time that is bounded, it is not the time that stops it.
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.2 if name in SLOW else 30)
    started = time.thread_time()
    with pytest.raises(RequestError, match=r"here: the chat template was stopped: |Range too big"):
        render(COSTLY[name])
    assert time.thread_time() - started < 3


def test_the_time_is_bounded_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.1)
    with pytest.raises(RequestError, match=r"it runs for more than 0\.1 seconds"):
        render(COSTLY["loops in loops"])


def test_long_conversations_are_no_more_than_ordinary() -> None:
    generator = random.Random(0)
    messages = [
        {"role": role, "content": "x" * generator.randrange(5000)}
        for _ in range(1000)
        for role in ("user", "assistant")
    ]
    for name in ("ChatML (SmolLM2)", "reasoning between turns (Qwen3)"):
        made = render(TEMPLATES[name], messages)
        assert len(made) > sum(len(message["content"]) for message in messages)


def test_a_text_that_grows_with_every_message_is_allowed() -> None:
    text = (
        "{% set n = namespace(x='') %}"
        "{% for m in messages %}{% set n.x = n.x ~ m.content %}{% endfor %}{{ n.x }}"
    )
    messages = [{"role": "user", "content": "x" * 1000}] * 300
    assert len(render(text, messages)) == 300_000


def test_threads_do_not_share_what_they_may_use() -> None:
    templates = ChatTemplates({"default": "{% for i in range(2000) %}{{ i }}{% endfor %}"}, {}, "x")
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(templates.render(HELLO))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["".join(map(str, range(2000)))] * 8
