"""From a chat request to a prompt, sampling settings, and how to read what the model writes."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paddock.runtime.images.prepared import ImagePrompt
from paddock.runtime.sampling.structured_outputs import StructuredOutputs
from paddock.runtime.server.api_errors import ApiError
from paddock.runtime.server.chat_schema import (
    ChatMessage,
    ChatRequest,
    ChosenTool,
    ImagePart,
    JsonObjectFormat,
    JsonSchemaResponse,
    TextPart,
    Tool,
)
from paddock.runtime.server.formats import reasoning, tool_formats
from paddock.runtime.server.formats.harmony import HarmonyReasoning
from paddock.runtime.server.formats.reasoning import ReasoningTokens
from paddock.runtime.server.formats.tool_deltas import OneCall, OutputParser
from paddock.runtime.server.sampling_fields import sampling_params
from paddock.runtime.server.served import Served
from paddock.runtime.server.served_model import Ask, ServedModel
from paddock.runtime.server.structures import Rules, check_size, structured
from paddock.runtime.server.token_texts import TokenTexts

_OURS = frozenset(
    (
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "self",
    )
)


@dataclass(frozen=True)
class Reading:
    """How a sequence's text is read."""

    tool_format: str
    reasons: bool
    opened: bool
    """The prompt has begun the reasoning."""
    special: bool
    """Special tokens are part of the text."""
    functions: tuple[tool_formats.Function, ...] = ()
    """Those that may be called."""
    one_call: bool = False
    """No call but the first is told of."""

    def parser(self) -> OutputParser:
        calls = tool_formats.parser(self.tool_format, self.functions)
        if self.one_call:
            calls = OneCall(calls)
        if not self.reasons:
            return calls
        return reasoning.ReasoningParser(calls, opened=self.opened)

    def reasoning_tokens(self, texts: TokenTexts) -> ReasoningTokens | HarmonyReasoning | None:
        """A count for one sequence; None: there is nothing to count."""
        if self.tool_format == "harmony":
            return HarmonyReasoning(texts)
        if not self.reasons:
            return None
        return ReasoningTokens(texts, opened=self.opened, special=self.special)

    def call_id(self) -> str:
        if self.tool_format == "mistral":  # its templates take no other form
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True)
class ChatPlan:
    ask: Ask
    reading: Reading


def plan(body: ChatRequest, served: ServedModel, request_id: str) -> ChatPlan:
    """Render, encode and constrain. Raises `RequestError` and `ApiError`."""
    _check(body, served)
    tools = _offered(body)
    prompt = _prompt(body, served, tools)
    token_ids = _token_ids(prompt, body.messages, served)
    template = served.tokenizer.chat_templates.select(with_tools=bool(tools))
    tool_format = served.tool_format(template)
    if not tools and tool_format != "harmony":  # which tells reasoning from the answer as well
        tool_format = "none"
    settings = body.sampling_settings()
    if tool_formats.shows_special_tokens(tool_format):
        settings.setdefault("skip_special_tokens", False)
    most = body.max_completion_tokens or body.max_tokens
    if most is not None:
        settings["max_tokens"] = most
    if body.logprobs:
        settings["logprobs"] = body.top_logprobs or 0
    params = sampling_params(served.sampling_defaults, settings)
    reading = Reading(
        tool_format=tool_format,
        reasons=served.reasons(template) and not prompt.rstrip().endswith(reasoning.CLOSING),
        opened=reasoning.prompt_opens_reasoning(prompt),
        special=not params.skip_special_tokens,
        functions=tuple(
            tool_formats.Function(tool.function.name, tool.function.parameters or {})
            for tool in tools
        ),
        one_call=body.parallel_tool_calls is False,
    )
    wanted = _structure(body, served, tools, reading)
    if wanted is not None:
        settings["structured_outputs"] = wanted
        params = sampling_params(served.sampling_defaults, settings)
    ask = Ask(
        token_ids,
        params,
        priority=body.priority,
        deadline_s=served.deadline(body.deadline_s),
        request_id=request_id,
        cache_salt=body.cache_salt,
    )
    return ChatPlan(ask, reading)


def _check(body: ChatRequest, served: ServedModel) -> None:
    most = served.settings.max_choices
    if (body.n or 1) > most:
        raise ApiError(400, f"n: this server makes {most} continuations at most", param="n")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs: set logprobs to true with it", param="top_logprobs")
    if body.tools is not None:
        check_size(served.settings, "tools", [tool.model_dump() for tool in body.tools])
    names = [tool.function.name for tool in body.tools or ()]
    if len(set(names)) < len(names):
        raise ApiError(400, "tools: two functions have the same name", param="tools")
    if body.tool_choice == "required" and not names:
        raise ApiError(400, "tool_choice: required, and there are no tools", param="tool_choice")
    if isinstance(body.tool_choice, ChosenTool) and body.tool_choice.function.name not in names:
        raise ApiError(
            400,
            f"tool_choice: {body.tool_choice.function.name!r} is not among the tools",
            param="tool_choice",
        )


def _offered(body: ChatRequest) -> list[Tool]:
    """The tools that the model is shown."""
    if not body.tools or body.tool_choice == "none":
        return []
    if isinstance(body.tool_choice, ChosenTool):
        name = body.tool_choice.function.name
        return [tool for tool in body.tools if tool.function.name == name]
    return body.tools


def _prompt(body: ChatRequest, served: ServedModel, tools: Sequence[Tool]) -> str:
    variables: dict[str, Any] = {}
    if body.reasoning_effort is not None:
        variables["reasoning_effort"] = body.reasoning_effort
        variables["enable_thinking"] = body.reasoning_effort != "none"
    variables |= body.chat_template_kwargs or {}
    return chat_text(
        served,
        body.messages,
        tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        documents=body.documents,
        variables=variables,
    )


def chat_text(
    served: Served,
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    documents: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any],
) -> str:
    """A conversation as the model is given it. Raises `RequestError` and `ApiError`."""
    for name in variables:
        if name in _OURS or name.startswith("_") or not name.isidentifier():
            raise ApiError(
                400,
                f"chat_template_kwargs: {name!r} is not the request's to set there",
                param="chat_template_kwargs",
            )
    writer = served.sight or served.tokenizer
    return writer.apply_chat_template(
        [_message(message) for message in messages],
        add_generation_prompt=add_generation_prompt and not continue_final_message,
        tools=[tool.model_dump(exclude_none=True) for tool in tools] or None,
        documents=documents,
        continue_final_message=continue_final_message,
        **variables,
    )


def _message(message: ChatMessage) -> Mapping[str, Any]:
    """A message as templates expect it: text as one string, arguments as objects."""
    plain = message.model_dump(exclude_none=True)
    refusal = plain.pop("refusal", None)
    if message.role == "developer":
        plain["role"] = "system"
    if isinstance(message.content, list):
        parts = [_part(part) for part in message.content]
        if any(isinstance(part, ImagePart) for part in message.content):
            plain["content"] = parts
        else:
            plain["content"] = "\n".join(part["text"] for part in parts)
    elif message.content is None:
        plain["content"] = refusal or ""
    for call in plain.get("tool_calls", ()):
        try:
            arguments = json.loads(call["function"]["arguments"])
        except (ValueError, RecursionError):
            continue
        if isinstance(arguments, dict):
            call["function"]["arguments"] = arguments
    return plain


def _part(part: TextPart | ImagePart) -> dict[str, str]:
    """As templates of models that see expect it."""
    if isinstance(part, ImagePart):
        return {"type": "image"}
    return {"type": "text", "text": part.refusal if part.type == "refusal" else part.text}


def _token_ids(
    prompt: str, messages: Sequence[ChatMessage], served: ServedModel
) -> Sequence[int] | ImagePrompt:
    """The conversation with its images. Raises `RequestError` and `ApiError`."""
    urls = [
        part.image_url.url
        for message in messages
        if isinstance(message.content, list)
        for part in message.content
        if isinstance(part, ImagePart)
    ]
    if served.sight is None:
        if urls:
            raise ApiError(400, f"{served.name} sees no images; send text", param="messages")
        return served.tokenizer.encode(prompt, add_special_tokens=False)
    source = served.settings.image_source()
    if len(urls) > source.limits.max_images:
        raise ApiError(
            400,
            f"a conversation has {source.limits.max_images} images at most here, this one"
            f" {len(urls)}",
            param="messages",
        )
    return served.sight.encode(prompt, [source.fetch(url) for url in urls], source.limits)


def _structure(
    body: ChatRequest, served: ServedModel, tools: Sequence[Tool], reading: Reading
) -> StructuredOutputs | None:
    """What the text must be: calls where they are required, else what the format says."""
    wanted = _format(body, served)
    forced = body.tool_choice == "required" or isinstance(body.tool_choice, ChosenTool)
    strict = any(tool.function.strict for tool in tools)
    if wanted is None and not forced and not strict:
        return None
    if wanted is not None and wanted.grammar is not None:
        return wanted  # of the user's own: it is for the whole text
    if wanted is not None and not tools and not reading.reasons:
        return wanted
    rules = Rules()
    if tools:
        rules.calls(
            tool_formats.grammar(
                reading.tool_format,
                [
                    tool_formats.Function(
                        t.function.name,
                        (t.function.parameters or {}) if forced or t.function.strict else {},
                    )
                    for t in tools
                ],
                parallel=body.parallel_tool_calls is not False,
                after_words=wanted is None and not forced,
                tokenizer=served.tokenizer,
            )
        )
    if wanted is not None and not forced:
        rules.text(wanted)
    elif not forced:
        rules.words(tool_formats.words(reading.tool_format, served.tokenizer))
    if reading.reasons:
        rules.thinking(opened=reading.opened)
    return rules.structure()


def _format(body: ChatRequest, served: ServedModel) -> StructuredOutputs | None:
    settings = served.settings
    if body.structured_outputs is not None:
        wanted = body.structured_outputs.model_dump(by_alias=True, exclude_none=True)
        return structured(settings, "structured_outputs", **wanted)
    match body.response_format:
        case JsonObjectFormat():
            return structured(settings, "response_format", json_object=True)
        case JsonSchemaResponse(json_schema=described):
            schema = described.schema_ if described.schema_ is not None else {"type": "object"}
            return structured(settings, "response_format", json=schema)
        case _:
            return None
