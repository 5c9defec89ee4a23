"""Chat templates: the text that a model expects a conversation to be written as.

What a template sees is what transformers' `apply_chat_template` shows it; where it runs is
`paddock.runtime.text.template_sandbox`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from pydantic import BaseModel

from paddock.graph.errors import nearest
from paddock.runtime.errors import RequestError
from paddock.runtime.strict_json import TokenizerError
from paddock.runtime.text.template_sandbox import (
    Meter,
    SandboxedTemplates,
    TemplateTooCostly,
    metered,
    weigh,
)

Message = Mapping[str, Any]

MAX_TEMPLATE_CHARACTERS = 1 << 17
"""The longest templates in use have about a quarter of this."""
MAX_DEPTH = 64
"""Of lists and objects within a message, a tool or a document."""
RENDER_SECONDS = 2.0
"""CPU time that one rendering may take: thousands of messages take some hundredths of it."""

_CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that a message's reasoning goes by; templates read the first, some the second."""


class ChatTemplates:
    """A checkpoint's chat templates: one, or several by name."""

    def __init__(
        self, templates: Mapping[str, str], special_tokens: Mapping[str, str], source: str
    ) -> None:
        """templates: by name, `default` the usual one; special_tokens: variables, e.g. bos_token;
        source: where they come from, for errors: the checkpoint's folder, or a setting.
        """
        self._templates = dict(templates)
        self._special_tokens = dict(special_tokens)
        self._source = source
        self._compiled: dict[str, jinja2.Template] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._templates)

    def select(self, name_or_text: str | None = None, *, with_tools: bool = False) -> str:
        """A template's text, chosen as transformers does: `tool_use` where there are tools."""
        if name_or_text is not None:
            if name_or_text in self._templates:
                return self._templates[name_or_text]
            if "{" not in name_or_text:  # a name, not a template
                raise RequestError(
                    f"chat_template: no template is called {name_or_text!r}"
                    f"{nearest(name_or_text, self._templates)}; {self._source} has "
                    f"{', '.join(self._templates) or 'none'}"
                )
            return name_or_text
        if with_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" in self._templates:
            return self._templates["default"]
        if self._templates:
            raise RequestError(
                f"{self._source}: several chat templates and none is the default; choose one of "
                f"{', '.join(self._templates)}"
            )
        raise RequestError(
            f"{self._source}: no chat template, so this cannot be chatted with (it may be a base "
            "model); give it plain text, or a template of your own as chat_template"
        )

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        tools, documents: as their JSON objects; chat_template: the name of one of several, or a
        template's text; continue_final_message: leave the last message open, to go on with it;
        variables: more for the template, e.g. `enable_thinking`. Raises `RequestError` for
        messages that the template refuses and for templates that fail or make too much, and
        `TokenizerError` for templates that cannot be compiled.
        """
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message goes on with the last message and add_generation_prompt "
                "starts a new one: set one of them to false"
            )
        text = self.select(chat_template, with_tools=tools is not None)
        given = {
            **self._special_tokens,
            **{name: _plain(name, value) for name, value in variables.items()},
            "messages": _chat(messages),
            "tools": _objects("tools", tools),
            "documents": _objects("documents", documents),
            "add_generation_prompt": add_generation_prompt,
        }
        final = _open_final_message(given["messages"]) if continue_final_message else None
        rendered = self._run(text, given)
        return rendered if final is None else _cut_after(rendered, final)

    def _run(self, text: str, variables: dict[str, Any]) -> str:
        template = self._compile(text)
        # What a template may make is in proportion to what it is given.
        size = (1 << 20) + 8 * weigh(list(variables.values()))
        try:
            meter = Meter(value_size=size, total_size=64 * size, seconds=RENDER_SECONDS)
            with metered(meter):
                rendered = template.render(variables)
                meter.charge(len(rendered))
                return rendered
        except TemplateTooCostly as error:
            raise RequestError(f"{self._source}: the chat template was stopped: {error}") from None
        except RecursionError:
            raise RequestError(
                f"{self._source}: the chat template was stopped: it calls itself endlessly"
            ) from None
        except jinja2.TemplateError as error:
            raise RequestError(
                f"{self._source}: the chat template refuses this conversation: {error}"
            ) from None
        except Exception as error:  # the template's own mistakes: wrong types, missing keys, ...
            raise RequestError(
                f"{self._source}: the chat template fails on this conversation: "
                f"{type(error).__name__}: {error}"
            ) from None

    def _compile(self, text: str) -> jinja2.Template:
        if text in self._compiled:
            return self._compiled[text]
        if len(text) > MAX_TEMPLATE_CHARACTERS:
            raise TokenizerError(
                f"{self._source}: the chat template has {len(text)} characters; more than "
                f"{MAX_TEMPLATE_CHARACTERS} are not taken"
            )
        try:
            template = SandboxedTemplates().from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise TokenizerError(
                f"{self._source}: the chat template has an error in line {error.lineno}: "
                f"{error.message}"
            ) from None
        except (RecursionError, MemoryError, SyntaxError):
            raise TokenizerError(
                f"{self._source}: the chat template is nested too deeply"
            ) from None
        if len(self._compiled) >= 8:  # callers may bring templates of their own
            self._compiled.clear()
        self._compiled[text] = template
        return template


def _chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages in plain types, keys without a value left out, reasoning under every name."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(
            f"messages: expected a list of messages, found {type(messages).__name__}"
        )
    if not messages:
        raise RequestError("messages: the conversation is empty; give at least one message")
    chat = []
    for i, message in enumerate(messages):
        plain = _plain(f"messages[{i}]", message)
        if not isinstance(plain, dict):
            raise RequestError(
                f"messages[{i}]: expected an object with role and content, found "
                f"{type(message).__name__}"
            )
        plain = {key: value for key, value in plain.items() if value is not None}
        if not isinstance(plain.get("role"), str):
            raise RequestError(f"messages[{i}].role: expected a string, as in 'user'")
        reasoning = next((plain[name] for name in _REASONING if name in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        chat.append(plain)
    return chat


def _objects(name: str, values: Sequence[Mapping[str, Any]] | None) -> list[Any] | None:
    if values is None:
        return None
    plain = _plain(name, values)
    if not isinstance(plain, list):
        raise RequestError(f"{name}: expected a list of objects, found {type(values).__name__}")
    for i, value in enumerate(plain):
        if not isinstance(value, dict):
            raise RequestError(f"{name}[{i}]: expected an object, found {type(value).__name__}")
    return plain


def _plain(where: str, value: Any, depth: int = 0) -> Any:
    """A copy in JSON's own types: what a template is given has no methods but theirs."""
    if depth > MAX_DEPTH:
        raise RequestError(f"{where}: nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, BaseModel):
        return _plain(where, value.model_dump(), depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(where, dataclasses.asdict(value), depth)
    if isinstance(value, Mapping):
        return {
            _plain(where, key, depth + 1): _plain(f"{where}.{key}", item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(f"{where}[{i}]", item, depth + 1) for i, item in enumerate(value)]
    raise RequestError(
        f"{where}: expected text, numbers, lists or objects, found {type(value).__name__}"
    )


def _open_final_message(messages: list[dict[str, Any]]) -> str:
    """Mark the end of the last message's text; returns that text."""
    content = messages[-1].get("content")
    if isinstance(content, str):
        messages[-1]["content"] = content + _CONTINUE
        return content
    for block in reversed(content if isinstance(content, list) else []):
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            text: str = block["text"]
            block["text"] = text + _CONTINUE
            return text
    raise RequestError("continue_final_message: the last message has no text to go on with")


def _cut_after(rendered: str, final: str) -> str:
    """The rendering up to the mark in its last message (transformers' `continue_final_message`)."""
    mark = rendered.rfind(_CONTINUE.strip())
    if mark < 0 or final.strip() not in rendered:
        raise RequestError(
            "continue_final_message: the chat template does not write out the last message as it "
            "is, so it cannot be gone on with"
        )
    if rendered.startswith(_CONTINUE, mark):
        return rendered[:mark]
    return rendered[:mark].rstrip()  # the template trims, so the space before the mark is its own
