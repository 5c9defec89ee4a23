"""`/v1/responses`: the same as a chat, in the form of OpenAI's newer API."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from paddock.runtime.handle import RequestHandle
from paddock.runtime.outputs import Increment, SequenceResult
from paddock.runtime.server.api_errors import ApiError, as_api_error
from paddock.runtime.server.chat import ask, chat_logprobs
from paddock.runtime.server.chat_plan import Reading
from paddock.runtime.server.chat_schema import (
    CalledFunction,
    ChatMessage,
    ChatRequest,
    ChosenFunction,
    ChosenTool,
    FunctionDefinition,
    ImagePart,
    ImageURL,
    JsonSchemaFormat,
    JsonSchemaResponse,
    Part,
    ResponseFormat,
    Tool,
    ToolCall,
)
from paddock.runtime.server.documented import STREAMED_OR_NOT
from paddock.runtime.server.event_stream import EventStream, event, while_connected
from paddock.runtime.server.formats.tool_deltas import Content, joined
from paddock.runtime.server.increments import finish_of, results
from paddock.runtime.server.request_context import RequestContext, context_of
from paddock.runtime.server.response_events import Event, ResponseBuilder
from paddock.runtime.server.responses_schema import (
    FlatJsonSchema,
    InputCall,
    InputCallOutput,
    InputImage,
    InputItem,
    InputPart,
    InputReasoning,
    InputTokensDetails,
    OutputLogprob,
    OutputTokensDetails,
    ResponseChosenTool,
    ResponseObject,
    ResponseReasoning,
    ResponseRequest,
    ResponseTool,
    ResponseUsage,
)
from paddock.runtime.server.sampling_fields import SamplingFields
from paddock.runtime.server.served_model import ServedModel
from paddock.runtime.server.strict_body import StrictRoute
from paddock.runtime.server.usage import usage_of

WANTS_LOGPROBS = "message.output_text.logprobs"


def routes(served: ServedModel) -> APIRouter:
    router = APIRouter(route_class=StrictRoute)

    @router.post(
        "/v1/responses", response_model=ResponseObject, responses=STREAMED_OR_NOT, tags=["generate"]
    )
    async def create_response(body: ResponseRequest, request: Request) -> Response:
        """Continue a conversation; nothing is kept of it."""
        served.check_name(body.model)
        context = context_of(request)
        chat = _as_chat(body)
        handle, reading = await while_connected(request, ask(served, chat, context.request_id))
        answer = _Answer(body, served, context, handle, reading)
        if body.stream:
            return EventStream([handle], answer, write_timeout_s=served.settings.write_timeout_s)
        return await while_connected(request, answer.whole())

    return router


class _Answer:
    def __init__(
        self,
        body: ResponseRequest,
        served: ServedModel,
        context: RequestContext,
        handle: RequestHandle,
        reading: Reading,
    ) -> None:
        self._served = served
        self._context = context
        self._handle = handle
        self._parser = reading.parser()
        self._reasoned = reading.reasoning_tokens(served.token_texts)
        self._made = 0
        self._logprobs: list[OutputLogprob] = []  # of tokens whose text was not told yet
        self._builder = ResponseBuilder(_response(body, served, context, handle), reading)

    async def whole(self) -> Response:
        [result] = await results([self._handle])
        [sequence] = result.sequences
        for _ in self._events(sequence):
            pass  # they add up in the response
        return JSONResponse(self._builder.response.model_dump(mode="json"))

    # --- as a stream (see `event_stream.Events`) ----------------------------------------------

    def begin(self) -> bytes:
        return _written(self._builder.begin())

    def push(self, number: int, increment: Increment) -> bytes:
        return _written(self._events(increment))

    def end(self) -> bytes:
        return b""  # the last increment has ended it

    def fail(self, error: Exception) -> bytes:
        answer = as_api_error(error)
        self._context.failed_midway(answer, error)
        return _written(self._builder.fail(answer.detail.code or "server_error", str(answer)))

    def _events(self, increment: Increment | SequenceResult) -> Iterator[Event]:
        self._made += len(increment.token_ids)
        if self._reasoned is not None:
            self._reasoned.push(increment.token_ids)
        if increment.logprobs:
            found = chat_logprobs(increment.logprobs, self._served.token_texts).content
            self._logprobs += [OutputLogprob.model_validate(one.model_dump()) for one in found]
        deltas = self._parser.push(increment.text)
        if increment.finish_reason is not None:
            deltas += self._parser.finish()
        for delta in joined(deltas):
            logprobs: list[OutputLogprob] = []
            if isinstance(delta, Content):
                logprobs, self._logprobs = self._logprobs, []
            yield from self._builder.add(delta, logprobs)
        if increment.finish_reason is not None:
            finish, _ = finish_of(increment.finish_reason, increment.stop_reason)
            yield from self._builder.end(finish, self._usage())

    def _usage(self) -> ResponseUsage:
        prompt, cached = len(self._handle.prompt_token_ids), self._handle.prompt_tokens_cached
        reasoning = self._reasoned.count if self._reasoned is not None else 0
        self._context.usage = usage_of(prompt, self._made, cached, reasoning)
        return ResponseUsage(
            input_tokens=prompt,
            input_tokens_details=InputTokensDetails(cached_tokens=cached),
            output_tokens=self._made,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning),
            total_tokens=prompt + self._made,
        )


def _written(events: Iterable[Event]) -> bytes:
    return b"".join(
        event(json.dumps(told, ensure_ascii=False, separators=(",", ":")), told["type"])
        for told in events
    )


def _response(
    body: ResponseRequest, served: ServedModel, context: RequestContext, handle: RequestHandle
) -> ResponseObject:
    """The answer before anything was generated."""
    params = handle.params
    text = body.text.model_dump(exclude_none=True, by_alias=True) if body.text else {}
    return ResponseObject(
        id=f"resp_{context.request_id}",
        created_at=context.created,
        status="in_progress",
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        model=served.name,
        output=[],
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning=body.reasoning or ResponseReasoning(),
        temperature=params.temperature,
        text={"format": {"type": "text"}, **text},
        tool_choice=body.tool_choice or "auto",
        tools=body.tools or [],
        top_logprobs=body.top_logprobs or 0,
        top_p=params.top_p,
        user=body.user,
        metadata=body.metadata or {},
    )


def _as_chat(body: ResponseRequest) -> ChatRequest:
    """The same request in the older form. Raises `ApiError`."""
    messages = _messages(body.input)
    if body.instructions is not None:
        messages.insert(0, ChatMessage(role="system", content=body.instructions))
    shared = {name: getattr(body, name) for name in SamplingFields.model_fields}
    wants_logprobs = WANTS_LOGPROBS in (body.include or ())
    return ChatRequest(
        model=body.model,
        messages=messages,
        max_completion_tokens=body.max_output_tokens,
        logprobs=wants_logprobs,
        top_logprobs=body.top_logprobs if wants_logprobs else None,
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(body),
        structured_outputs=body.structured_outputs,
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
        chat_template_kwargs=body.chat_template_kwargs,
        **shared,
    )


def _choice(body: ResponseRequest) -> Literal["none", "auto", "required"] | ChosenTool | None:
    if isinstance(body.tool_choice, ResponseChosenTool):
        chosen = ChosenFunction(name=body.tool_choice.name)
        return ChosenTool(type="function", function=chosen)
    return body.tool_choice


def _format(body: ResponseRequest) -> ResponseFormat | None:
    described = body.text.format if body.text else None
    if not isinstance(described, FlatJsonSchema):
        return described
    plain = described.model_dump(by_alias=True, exclude={"type"})
    return JsonSchemaResponse(
        type="json_schema", json_schema=JsonSchemaFormat.model_validate(plain)
    )


def _tool(tool: ResponseTool) -> Tool:
    described = tool.model_dump(exclude={"type"})
    return Tool(type="function", function=FunctionDefinition(**described))


def _content(content: str | list[InputPart]) -> str | list[Part]:
    if isinstance(content, str):
        return content
    return [
        ImagePart(type="image_url", image_url=ImageURL(url=part.image_url))
        if isinstance(part, InputImage)
        else part
        for part in content
    ]


def _messages(items: str | list[InputItem]) -> list[ChatMessage]:
    """Items as messages: reasoning and calls belong to the assistant's message around them."""
    if isinstance(items, str):
        return [ChatMessage(role="user", content=items)]
    messages: list[ChatMessage] = []
    reasoning: str | None = None
    for item in items:
        last = messages[-1] if messages else None
        match item:
            case InputReasoning():
                parts = item.content or item.summary
                reasoning = "\n".join(part.text for part in parts) or None
                continue
            case InputCall():
                called = CalledFunction(name=item.name, arguments=item.arguments)
                call = ToolCall(id=item.call_id, function=called)
                if last is not None and last.role == "assistant" and reasoning is None:
                    last.tool_calls = [*(last.tool_calls or ()), call]
                    continue
                made = ChatMessage(role="assistant", content=None, tool_calls=[call])
            case InputCallOutput():
                made = ChatMessage(role="tool", content=item.output, tool_call_id=item.call_id)
            case _:
                made = ChatMessage(role=item.role, content=_content(item.content))
        if made.role == "assistant" and reasoning is not None:
            made.reasoning_content = reasoning
        reasoning = None
        messages.append(made)
    if not messages:
        raise ApiError(400, "input: there is no message in it", param="input")
    return messages
