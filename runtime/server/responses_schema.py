"""`/v1/responses`: what is asked and what is answered. Nothing is stored between requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from paddock.runtime.server.chat_schema import (
    FunctionName,
    JsonObjectFormat,
    JsonSchemaFormat,
    TextFormat,
    TextPart,
)
from paddock.runtime.server.completion_schema import StructuredOutputsBody
from paddock.runtime.server.sampling_fields import Body, Never, SamplingFields, Tokens

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class _Item(BaseModel):
    """What a client got in an answer it may send back whole; what is not needed is passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)


class InputImage(_Item):
    """An image, of a model that sees."""

    type: Literal["input_image"]
    image_url: Annotated[str, Field(min_length=1)]
    """As that of a chat."""
    file_id: None = None
    detail: str | None = None
    """Is taken and does nothing: an image has the size that the model's files say."""


InputPart = Annotated[TextPart | InputImage, Field(discriminator="type")]


class InputMessage(_Item):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[InputPart], Field(min_length=1)]


class InputCall(_Item):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class InputCallOutput(_Item):
    type: Literal["function_call_output"]
    call_id: str
    output: str | Annotated[list[TextPart], Field(min_length=1)]


class ReasoningText(_Item):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class SummaryText(_Item):
    type: Literal["summary_text"] = "summary_text"
    text: str


class InputReasoning(_Item):
    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None
    summary: list[SummaryText] = []


def _kind(item: Any) -> Any:
    """An item's `type`, which a message may leave out."""
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputCallOutput, Tag("function_call_output")]
    | Annotated[InputReasoning, Tag("reasoning")],
    Discriminator(
        _kind,
        custom_error_type="unknown_item",
        custom_error_message=(
            "Input should be a message, function_call, function_call_output or reasoning"
        ),
    ),
]


class ResponseTool(Body):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseChosenTool(Body):
    type: Literal["function"]
    name: FunctionName


class FlatJsonSchema(JsonSchemaFormat):
    type: Literal["json_schema"]


class ResponseText(Body):
    format: (
        Annotated[TextFormat | JsonObjectFormat | FlatJsonSchema, Field(discriminator="type")]
        | None
    ) = None
    verbosity: str | None = None


class ResponseReasoning(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Is taken and does nothing: the reasoning is shown whole."""
    generate_summary: str | None = None


class ResponseStreamOptions(Body):
    include_obfuscation: bool | None = None


class ResponseRequest(SamplingFields):
    """As OpenAI's, with vLLM's extras."""

    model: str
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: Annotated[Tokens, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        None
    )
    tools: Annotated[list[ResponseTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseChosenTool | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    reasoning: ResponseReasoning | None = None
    structured_outputs: StructuredOutputsBody | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    store: bool | None = None
    """Is taken: answers are never stored, and say so."""
    background: Never | None = None
    # What this server cannot do may be said to be absent.
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    image: None = None
    moderation: None = None
    context_management: None = None
    background_options: None = None
    access_programs: None = None
    truncation: Literal["disabled"] | None = None
    # Hints of OpenAI's service, which are taken and do nothing here.
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    max_tool_calls: int | None = None


class OutputTopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class OutputLogprob(OutputTopLogprob):
    top_logprobs: list[OutputTopLogprob]


class OutputText(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[OutputLogprob] = []


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Status = "in_progress"
    content: list[OutputText] = []


class OutputReasoning(BaseModel):
    id: str
    type: Literal["reasoning"] = "reasoning"
    status: Status = "in_progress"
    summary: list[SummaryText] = []
    content: list[ReasoningText] = []


class OutputCall(BaseModel):
    id: str
    type: Literal["function_call"] = "function_call"
    status: Status = "in_progress"
    call_id: str
    name: str
    arguments: str = ""


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputTokensDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"]


class ResponseError(BaseModel):
    code: str
    message: str


class ResponseObject(BaseModel):
    """An answer; `output` grows while it is streamed."""

    id: str
    object: Literal["response"] = "response"
    created_at: float
    completed_at: float | None = None
    status: Status
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: ResponseReasoning
    store: Literal[False] = False
    background: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["none", "auto", "required"] | ResponseChosenTool
    tools: list[ResponseTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    metadata: dict[str, str]
    service_tier: Literal["default"] = "default"
