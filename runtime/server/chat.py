"""`/v1/chat/completions`: a conversation in, its next message out."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from paddock.runtime.handle import RequestHandle
from paddock.runtime.outputs import Increment, SequenceResult
from paddock.runtime.sampling.logprobs import SampledToken
from paddock.runtime.server.api_errors import as_api_error
from paddock.runtime.server.chat_plan import ChatPlan, Reading, plan
from paddock.runtime.server.chat_schema import (
    AnswerMessage,
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatFinish,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    FunctionDelta,
    MessageDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
)
from paddock.runtime.server.documented import STREAMED_OR_NOT
from paddock.runtime.server.event_stream import (
    DONE,
    EventStream,
    Template,
    event,
    while_connected,
)
from paddock.runtime.server.formats.tool_deltas import (
    CallArguments,
    CallBegins,
    Content,
    Delta,
    Reasoning,
    joined,
)
from paddock.runtime.server.increments import finish_of, results
from paddock.runtime.server.request_context import RequestContext, context_of
from paddock.runtime.server.served_model import Ask, ServedModel
from paddock.runtime.server.strict_body import StrictRoute
from paddock.runtime.server.token_texts import TokenTexts
from paddock.runtime.server.usage import Usage, usage_of, usage_of_results


def routes(served: ServedModel) -> APIRouter:
    router = APIRouter(route_class=StrictRoute)

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses=STREAMED_OR_NOT,
        tags=["generate"],
    )
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Continue a conversation."""
        served.check_name(body.model)
        context = context_of(request)
        handle, reading = await while_connected(request, ask(served, body, context.request_id))
        answer = _Answer(body, served, context, handle, reading)
        if body.stream:
            return EventStream([handle], answer, write_timeout_s=served.settings.write_timeout_s)
        return await while_connected(request, answer.whole())

    return router


async def ask(
    served: ServedModel, body: ChatRequest, request_id: str
) -> tuple[RequestHandle, Reading]:
    """Queue a chat. Raises `RequestError` and `ApiError`."""
    planned: list[ChatPlan] = []

    def asks() -> Sequence[Ask]:
        planned.append(plan(body, served, request_id))
        return [planned[0].ask]

    [handle] = await served.submit(asks)
    return handle, planned[0].reading


class ReadAnswer:
    """The parts of one whole text."""

    def __init__(self, reading: Reading, text: str) -> None:
        parser = reading.parser()
        self.content = ""
        self.reasoning = ""
        self.calls: list[ToolCall] = []
        for delta in joined([*parser.push(text), *parser.finish()]):
            match delta:
                case Content():
                    self.content += delta.text
                case Reasoning():
                    self.reasoning += delta.text
                case CallBegins():
                    called = CalledFunction(name=delta.name, arguments="")
                    self.calls.append(
                        ToolCall(id=reading.call_id(), type="function", function=called)
                    )
                case CallArguments():
                    self.calls[delta.index].function.arguments += delta.text


class _Answer:
    def __init__(
        self,
        body: ChatRequest,
        served: ServedModel,
        context: RequestContext,
        handle: RequestHandle,
        reading: Reading,
    ) -> None:
        self._body = body
        self._served = served
        self._context = context
        self._handle = handle
        self._reading = reading
        self._id = f"chatcmpl-{context.request_id}"
        options = body.stream_options
        self._continuous = bool(options and options.continuous_usage_stats)
        self._plain = not self._continuous and not body.logprobs
        self._streamed = [_Streamed(reading, served.token_texts) for _ in range(body.n or 1)]
        self._templates: dict[int, Template] = {}

    async def whole(self) -> Response:
        found = await results([self._handle])
        sequences = found[0].sequences
        usage = self._context.usage = usage_of_results(found, sum(map(self._reasoned, sequences)))
        answer = ChatCompletion(
            id=self._id,
            created=self._context.created,
            model=self._served.name,
            choices=[self._choice(sequence) for sequence in sequences],
            usage=usage,
        )
        return JSONResponse(answer.model_dump(mode="json"))

    def _reasoned(self, sequence: SequenceResult) -> int:
        counted = self._reading.reasoning_tokens(self._served.token_texts)
        if counted is None:
            return 0
        counted.push(sequence.token_ids)
        return counted.count

    def _choice(self, sequence: SequenceResult) -> ChatChoice:
        finish, stop = finish_of(sequence.finish_reason, sequence.stop_reason)
        read = ReadAnswer(self._reading, sequence.text)
        return ChatChoice(
            index=sequence.index,
            message=AnswerMessage(
                content=None if read.calls and not read.content.strip() else read.content,
                reasoning_content=(read.reasoning or None)
                if self._body.include_reasoning
                else None,
                tool_calls=read.calls or None,
            ),
            logprobs=self._logprobs(sequence.logprobs),
            finish_reason=_finish(finish, bool(read.calls)),
            stop_reason=stop,
        )

    # --- as a stream (see `event_stream.Events`) ----------------------------------------------

    def begin(self) -> bytes:
        return b""

    def push(self, number: int, increment: Increment) -> bytes:
        state = self._streamed[increment.index]
        state.made += len(increment.token_ids)
        if state.reasoned is not None:
            state.reasoned.push(increment.token_ids)
        deltas = state.parser.push(increment.text)
        if self._plain and state.begun and increment.finish_reason is None and len(deltas) == 1:
            [delta] = deltas
            if isinstance(delta, Content):
                return self._template(increment.index).fill(delta.text)
        pieces = self._pieces(increment, deltas, state)
        usage = self._usage() if self._continuous and pieces else None
        return b"".join(event(self._chunk(piece, usage)) for piece in pieces)

    def end(self) -> bytes:
        options = self._body.stream_options
        usage = self._context.usage = self._usage()
        if options and options.include_usage:
            return event(self._chunk(None, usage)) + DONE
        return DONE

    def fail(self, error: Exception) -> bytes:
        return self._context.failed_midway(as_api_error(error), error)

    def _template(self, index: int) -> Template:
        """The events of a choice that only bring text."""
        found = self._templates.get(index)
        if found is None:
            found = self._templates[index] = Template(
                lambda text: self._chunk(
                    ChunkChoice(
                        index=index,
                        delta=MessageDelta(content=text),
                        logprobs=None,
                        finish_reason=None,
                    )
                )
            )
        return found

    def _usage(self) -> Usage:
        counts = [state.reasoned for state in self._streamed]
        return usage_of(
            len(self._handle.prompt_token_ids),
            sum(state.made for state in self._streamed),
            self._handle.prompt_tokens_cached,
            sum(count.count for count in counts if count is not None),
        )

    def _pieces(
        self, increment: Increment, deltas: list[Delta], state: _Streamed
    ) -> list[ChunkChoice]:
        finish: ChatFinish | None = None
        stop: int | str | None = None
        if increment.finish_reason is not None:
            plain, stop = finish_of(increment.finish_reason, increment.stop_reason)
            deltas = [*deltas, *state.parser.finish()]
            state.called = state.called or any(isinstance(d, CallBegins) for d in deltas)
            finish = _finish(plain, state.called)
        messages = [m for d in joined(deltas) if (m := self._message(d, state)) is not None]
        if not state.begun:
            state.begun = True
            messages.insert(0, MessageDelta(role="assistant", content=""))
        state.held += increment.logprobs or ()
        if not messages and finish is not None:
            messages.append(MessageDelta())
        choices = [
            ChunkChoice(index=increment.index, delta=message, logprobs=None, finish_reason=None)
            for message in messages
        ]
        if choices and (finish is not None or len(choices) > 1 or state.sent):
            # Log-probabilities go with the first text that their tokens are part of.
            choices[-1].logprobs = self._logprobs(tuple(state.held))
            state.held = []
        if choices:
            state.sent = True
        if finish is not None:
            choices[-1].finish_reason = finish
            choices[-1].stop_reason = stop
        return choices

    def _message(self, delta: Delta, state: _Streamed) -> MessageDelta | None:
        match delta:
            case Content():
                return MessageDelta(content=delta.text)
            case Reasoning():
                if self._body.include_reasoning:
                    return MessageDelta(reasoning_content=delta.text)
                return None
            case CallBegins():
                state.called = True
                call = ToolCallDelta(
                    index=delta.index,
                    id=self._reading.call_id(),
                    type="function",
                    function=FunctionDelta(name=delta.name, arguments=""),
                )
            case CallArguments():
                call = ToolCallDelta(
                    index=delta.index, function=FunctionDelta(arguments=delta.text)
                )
        return MessageDelta(tool_calls=[call])

    def _chunk(self, choice: ChunkChoice | None, usage: Usage | None = None) -> str:
        chunk = ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._context.created,
            model=self._served.name,
            choices=[] if choice is None else [choice],
        )
        if usage is not None:
            chunk.usage = usage
        return chunk.model_dump_json(exclude_unset=True)

    def _logprobs(self, tokens: Sequence[SampledToken] | None) -> ChatLogprobs | None:
        if not self._body.logprobs or tokens is None:
            return None
        return chat_logprobs(tokens, self._served.token_texts)


class _Streamed:
    """What was sent of one choice."""

    def __init__(self, reading: Reading, texts: TokenTexts) -> None:
        self.parser = reading.parser()
        self.reasoned = reading.reasoning_tokens(texts)
        self.made = 0
        self.begun = False
        self.sent = False
        self.called = False
        self.held: list[SampledToken] = []


def _finish(finish: ChatFinish, called: bool) -> ChatFinish:
    return "tool_calls" if called and finish == "stop" else finish


def chat_logprobs(tokens: Sequence[SampledToken], texts: TokenTexts) -> ChatLogprobs:
    """Log-probabilities in the form of OpenAI's chats."""
    return ChatLogprobs(
        content=[
            TokenLogprob(
                token=texts.text(token.token_id),
                logprob=token.logprob or 0.0,
                bytes=texts.utf8(token.token_id),
                top_logprobs=[
                    TopLogprob(token=texts.text(i), logprob=logprob, bytes=texts.utf8(i))
                    for i, logprob in token.top_logprobs
                ],
            )
            for token in tokens
        ],
        refusal=None,
    )
