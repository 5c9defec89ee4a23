"""`/v1/completions`: what is asked and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from paddock.runtime.server.sampling_fields import Body, SamplingFields, TokenId, Tokens
from paddock.runtime.server.usage import Usage

TokenIds = Annotated[list[TokenId], Field(min_length=1)]
PromptText = Annotated[str, Field(min_length=1)]


class StreamOptions(Body):
    include_usage: bool | None = None
    """A last chunk without choices has the usage."""
    continuous_usage_stats: bool | None = None
    """Every chunk has the usage so far."""
    include_obfuscation: bool | None = None
    """Is taken and does nothing."""


class StructuredOutputsBody(Body):
    """What the text must be; exactly one of these."""

    json_schema: Annotated[dict[str, Any] | bool | str | None, Field(alias="json")] = None
    """A JSON schema, or the text of one."""
    json_object: bool | None = None
    """True: any JSON object."""
    regex: str | None = None
    """A regular expression that the whole text matches (Rust's syntax, no look-around)."""
    choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    grammar: str | None = None
    """A context-free grammar in llguidance's form of Lark, beginning at `start`."""


class CompletionRequest(SamplingFields):
    """As OpenAI's, with vLLM's extras."""

    model: str
    prompt: (
        PromptText
        | TokenIds
        | Annotated[list[PromptText], Field(min_length=1)]
        | Annotated[list[TokenIds], Field(min_length=1)]
    )
    max_tokens: Annotated[Tokens, Field(ge=0)] | None = None
    """None: the recipe's, else 16, as OpenAI has it."""
    echo: bool | None = None
    """The prompt stands before each text; with `logprobs`, its tokens are reported too."""
    logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Taken where it equals `n`."""
    suffix: Literal[""] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    add_special_tokens: bool = True
    """Add what the tokenizer adds to a text, mostly a token at its beginning."""
    structured_outputs: StructuredOutputsBody | None = None
    user: str | None = None
    """Is taken and does nothing."""


class CompletionLogprobs(BaseModel):
    """Lists of equal length, an entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: int | str | None = None
    """The stop string or stop token that ended the text, or `deadline`."""


class Completion(BaseModel):
    """An answer; as a stream, its pieces."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
