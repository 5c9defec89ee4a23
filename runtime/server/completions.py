"""`/v1/completions`: prompts in, texts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from paddock.runtime.handle import RequestHandle
from paddock.runtime.outputs import Increment, PromptLogprobs
from paddock.runtime.sampling.logprobs import SampledToken
from paddock.runtime.server.api_errors import ApiError, as_api_error
from paddock.runtime.server.completion_schema import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from paddock.runtime.server.documented import STREAMED_OR_NOT
from paddock.runtime.server.event_stream import (
    DONE,
    EventStream,
    Template,
    event,
    while_connected,
)
from paddock.runtime.server.increments import finish_of, results
from paddock.runtime.server.request_context import RequestContext, context_of
from paddock.runtime.server.sampling_fields import sampling_params
from paddock.runtime.server.served_model import Ask, ServedModel
from paddock.runtime.server.strict_body import StrictRoute
from paddock.runtime.server.structures import structured
from paddock.runtime.server.token_texts import TokenTexts
from paddock.runtime.server.usage import Usage, usage_of, usage_of_results

USUAL_MAX_TOKENS = 16


def routes(served: ServedModel) -> APIRouter:
    router = APIRouter(route_class=StrictRoute)

    @router.post(
        "/v1/completions", response_model=Completion, responses=STREAMED_OR_NOT, tags=["generate"]
    )
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continue one or several prompts."""
        served.check_name(body.model)
        context = context_of(request)
        handles = await while_connected(
            request, served.submit(lambda: _asks(body, served, context.request_id))
        )
        answer = _Answer(body, served, context, handles)
        if body.stream:
            return EventStream(handles, answer, write_timeout_s=served.settings.write_timeout_s)
        return await while_connected(request, answer.whole())

    return router


def _asks(body: CompletionRequest, served: ServedModel, request_id: str) -> list[Ask]:
    """The requests that the body comes to. Raises `RequestError` and `ApiError`."""
    prompts = _token_ids(body, served)
    choices = len(prompts) * (body.n or 1)
    if choices > served.settings.max_choices:
        raise ApiError(
            400,
            f"{len(prompts)} prompts with n of {body.n or 1} make {choices} continuations; this"
            f" server makes {served.settings.max_choices} at most for one request",
            param="n",
        )
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(400, "best_of is taken only where it equals n", param="best_of")
    settings = body.sampling_settings()
    most = body.max_tokens
    if most is None:
        most = served.sampling_defaults.get("max_tokens", USUAL_MAX_TOKENS)
    # None at all: one is made, for the prompt has to be run, and not shown.
    settings["max_tokens"] = max(most, 1)
    if body.logprobs is not None:
        settings["logprobs"] = body.logprobs
        if body.echo:
            settings["prompt_logprobs"] = body.logprobs
    if body.structured_outputs is not None:
        wanted = body.structured_outputs.model_dump(by_alias=True, exclude_none=True)
        settings["structured_outputs"] = structured(served.settings, "structured_outputs", **wanted)
    params = sampling_params(served.sampling_defaults, settings)
    return [
        Ask(
            prompt,
            params,
            priority=body.priority,
            deadline_s=served.deadline(body.deadline_s),
            request_id=request_id if len(prompts) == 1 else f"{request_id}-{number}",
            cache_salt=body.cache_salt,
        )
        for number, prompt in enumerate(prompts)
    ]


def _token_ids(body: CompletionRequest, served: ServedModel) -> list[list[int]]:
    prompts: list[str | list[int]]
    match body.prompt:
        case str():
            prompts = [body.prompt]
        case [int(), *_]:
            prompts = [body.prompt]  # type: ignore[list-item]
        case _:
            prompts = body.prompt  # type: ignore[assignment]
    encode = served.tokenizer.encode
    return [
        encode(prompt, body.add_special_tokens) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]


@dataclass
class _Shown:
    """What was sent of one choice."""

    offset: int = 0  # of the next token in the text
    tokens: int = 0
    begun: bool = False
    held_logprobs: tuple[SampledToken, ...] = ()


class _Answer:
    def __init__(
        self,
        body: CompletionRequest,
        served: ServedModel,
        context: RequestContext,
        handles: Sequence[RequestHandle],
    ) -> None:
        self._body = body
        self._served = served
        self._context = context
        self._handles = handles
        self._id = f"cmpl-{context.request_id}"
        self._n = body.n or 1
        self._bare = body.max_tokens == 0
        self._echoes = [
            served.tokenizer.decode(handle.prompt_token_ids) if body.echo else ""
            for handle in handles
        ]
        options = body.stream_options
        self._continuous = bool(options and options.continuous_usage_stats)
        self._plain = not self._continuous and not self._bare and body.logprobs is None
        self._shown = [_Shown() for _ in range(len(handles) * self._n)]
        self._templates: dict[int, Template] = {}

    async def whole(self) -> Response:
        found = await results(self._handles)
        choices = []
        for number, result in enumerate(found):
            for sequence in result.sequences:
                finish, stop = finish_of(sequence.finish_reason, sequence.stop_reason)
                logprobs = None
                if self._body.logprobs is not None:
                    logprobs = self._logprobs(
                        number, result.prompt_logprobs, sequence.logprobs or (), _Shown()
                    )
                choices.append(
                    CompletionChoice(
                        index=number * self._n + sequence.index,
                        text=self._echoes[number] + ("" if self._bare else sequence.text),
                        logprobs=logprobs,
                        finish_reason="length" if self._bare else finish,
                        stop_reason=None if self._bare else stop,
                    )
                )
        usage = usage_of_results(found)
        if self._bare:
            usage = usage_of(usage.prompt_tokens, 0, usage.prompt_tokens_details.cached_tokens)
        self._context.usage = usage
        return JSONResponse(self._completion(choices, usage).model_dump(mode="json"))

    # --- as a stream (see `event_stream.Events`) ----------------------------------------------

    def begin(self) -> bytes:
        return b""

    def push(self, number: int, increment: Increment) -> bytes:
        index = number * self._n + increment.index
        state = self._shown[index]
        state.tokens += 0 if self._bare else len(increment.token_ids)
        if self._plain and state.begun and increment.finish_reason is None:
            # Even of a token whose text is not there yet: clients time tokens by their events.
            return self._template(index).fill(increment.text)
        choice = self._piece(number, increment, state)
        if choice is None:
            return b""
        return event(self._chunk(choice, self._usage() if self._continuous else None))

    def _template(self, index: int) -> Template:
        """The events of a choice that only bring text."""
        found = self._templates.get(index)
        if found is None:
            found = self._templates[index] = Template(
                lambda text: self._chunk(
                    CompletionChoice(
                        index=index, text=text, logprobs=None, finish_reason=None, stop_reason=None
                    ),
                    None,
                )
            )
        return found

    def _chunk(self, choice: CompletionChoice, usage: Usage | None) -> str:
        return self._completion([choice], usage).model_dump_json(exclude_unset=usage is None)

    def end(self) -> bytes:
        options = self._body.stream_options
        usage = self._context.usage = self._usage()
        if options and options.include_usage:
            return event(self._completion([], usage).model_dump_json()) + DONE
        return DONE

    def fail(self, error: Exception) -> bytes:
        return self._context.failed_midway(as_api_error(error), error)

    def _piece(self, number: int, increment: Increment, state: _Shown) -> CompletionChoice | None:
        text = "" if self._bare else increment.text
        if not state.begun:
            text = self._echoes[number] + text
        finish = stop = None
        if increment.finish_reason is not None:
            finish, stop = finish_of(increment.finish_reason, increment.stop_reason)
        sampled = state.held_logprobs + (increment.logprobs or ())
        if not text and finish is None and not self._plain:
            state.held_logprobs = sampled
            return None
        state.held_logprobs = ()
        logprobs = None
        if self._body.logprobs is not None:
            prompt = increment.prompt_logprobs
            if not state.begun and self._body.echo and prompt is None:
                prompt = self._prompt_logprobs(number)
            logprobs = self._logprobs(number, prompt, sampled, state)
        state.begun = True
        if self._bare and finish is not None:
            finish, stop = "length", None
        return CompletionChoice(
            index=number * self._n + increment.index,
            text=text,
            logprobs=logprobs,
            finish_reason=finish,
            stop_reason=stop,
        )

    def _logprobs(
        self,
        number: int,
        prompt: PromptLogprobs | None,
        sampled: Sequence[SampledToken],
        state: _Shown,
    ) -> CompletionLogprobs:
        """Those of the prompt, where it is echoed, and of the text after it."""
        reported: list[tuple[int, SampledToken | None]] = []
        if prompt is not None:
            ids = self._handles[number].prompt_token_ids
            reported += zip_longest(ids, prompt)
        if not self._bare:
            reported += [(token.token_id, token) for token in sampled]
        texts = self._served.token_texts
        found = completion_logprobs(
            reported, texts, with_top=bool(self._body.logprobs), offset=state.offset
        )
        state.offset += sum(texts.shown(token_id) for token_id, _ in reported)
        return found

    def _prompt_logprobs(self, number: int) -> PromptLogprobs | None:
        """Those that came with the request's first sequence, for its others."""
        return self._handles[number].prompt_logprobs

    def _usage(self) -> Usage:
        return usage_of(
            sum(len(handle.prompt_token_ids) for handle in self._handles),
            sum(state.tokens for state in self._shown),
            sum(handle.prompt_tokens_cached for handle in self._handles),
        )

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None) -> Completion:
        return Completion(
            id=self._id,
            object="text_completion",
            created=self._context.created,
            model=self._served.name,
            choices=choices,
            **({} if usage is None else {"usage": usage}),
        )


def completion_logprobs(
    reported: Sequence[tuple[int, SampledToken | None]],
    texts: TokenTexts,
    *,
    with_top: bool,
    offset: int,
) -> CompletionLogprobs:
    """Token ids, each with what is known of it, in the form of OpenAI's completions.

    `offset` is where the first stands in the text, in which special tokens do not show.
    """
    tokens: list[str] = []
    offsets: list[int] = []
    top: list[dict[str, float] | None] = []
    for token_id, known in reported:
        text = texts.text(token_id)
        tokens.append(text)
        offsets.append(offset)
        offset += texts.shown(token_id)
        if known is None:
            top.append(None)
            continue
        # Of tokens that look the same (parts of characters do) the likelier is named. OpenAI adds
        # the token itself where it is not among the likeliest.
        likeliest: dict[str, float] = {}
        for other, logprob in known.top_logprobs:
            likeliest.setdefault(texts.text(other), logprob)
        if known.logprob is not None:
            likeliest.setdefault(text, known.logprob)
        top.append(likeliest)
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[None if known is None else known.logprob for _, known in reported],
        top_logprobs=top if with_top else None,
        text_offset=offsets,
    )
