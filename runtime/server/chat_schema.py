"""`/v1/chat/completions`: what is asked and what is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from paddock.runtime.server.completion_schema import StreamOptions, StructuredOutputsBody
from paddock.runtime.server.sampling_fields import Body, Never, SamplingFields, Tokens
from paddock.runtime.server.usage import Usage

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class TextPart(BaseModel):
    """A part of a message; parts of a message are joined by line breaks."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str = ""
    refusal: str = ""


class ImageURL(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    url: Annotated[str, Field(min_length=1)]
    """`data:image/png;base64,...`; http and https where `server.image_hosts` names the host."""
    detail: str | None = None
    """Is taken and does nothing: an image has the size that the model's files say."""


class ImagePart(BaseModel):
    """An image, of a model that sees."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class CalledFunction(BaseModel):
    name: str
    arguments: str
    """JSON, if the model wrote any."""


class ToolCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(BaseModel):
    """More fields than these are handed to the chat template as they are."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Sequence[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    # Older and other forms, which would be lost on the template.
    function_call: None = None
    audio: None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.content and self.content != "" and self.role != "assistant":
            raise ValueError(f"the {self.role}'s message has no content")
        return self


class FunctionDefinition(Body):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema; none: no arguments."""
    strict: bool | None = None
    """True: the arguments of its calls follow the schema. Where `tool_choice` is `required` or
    names a function, they do in any case."""


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition


class ChosenFunction(Body):
    name: FunctionName


class ChosenTool(Body):
    type: Literal["function"]
    function: ChosenFunction


class JsonSchemaFormat(Body):
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]


class JsonSchemaResponse(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaResponse, Field(discriminator="type")
]


class ChatRequest(SamplingFields):
    """As OpenAI's, with vLLM's extras."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[Tokens, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Tokens, Field(ge=1)] | None = None
    """Comes before `max_tokens`. Neither: the recipe's, else up to the context."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsBody | None = None

    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    """`none` turns reasoning off where the chat template can; the template sees the word."""
    include_reasoning: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, e.g. `{"enable_thinking": false}`."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    """Leave the last message open, to go on with it; no new one is begun then."""
    documents: Annotated[list[dict[str, Any]], Field(max_length=256)] | None = None

    modalities: list[Literal["text"]] | None = None
    # What this server cannot do may be said to be absent.
    audio: None = None
    functions: None = None
    function_call: None = None
    moderation: None = None
    web_search_options: None = None
    store: Never | None = None
    # Hints of OpenAI's service, which are taken and do nothing here.
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    verbosity: str | None = None
    prediction: dict[str, Any] | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


ChatFinish = Literal["stop", "length", "tool_calls"]


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinish
    stop_reason: int | str | None = None
    """The stop string or stop token that ended the text, or `deadline`."""


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(BaseModel):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(BaseModel):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class MessageDelta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinish | None = None
    stop_reason: int | str | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
