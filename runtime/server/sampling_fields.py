"""The sampling fields that every generating route takes, and the `SamplingParams` they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from paddock.runtime.intake import MAX_PRIORITY
from paddock.runtime.sampling.sampling_params import SamplingParams

Stop = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[int, Field(lt=2**31)]


def _is_false(value: bool) -> bool:
    if value:
        raise ValueError("this server cannot do that; leave it out")
    return value


Never = Annotated[
    bool, AfterValidator(_is_false), WithJsonSchema({"type": "boolean", "const": False})
]
"""A field that may say no. (`Literal[False]` would take 0 as well.)"""


class Body(BaseModel):
    """A request's body: a field that it does not know is an error, and so is a value of a type that
    only looks like the field's."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, strict=True, use_attribute_docstrings=True
    )


class SamplingFields(Body):
    """Names are OpenAI's, and vLLM's where OpenAI has none. None: the recipe's default."""

    temperature: Annotated[float, Field(ge=0, le=1000)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """0 and -1 are off."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=4096
    )
    """Added to the logits of token ids, which are written as decimal strings."""
    seed: int | None = None
    """Of its last 64 bits."""
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=64)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[Tokens, Field(ge=0)] | None = None
    bad_words: Annotated[list[Stop], Field(max_length=256)] | None = None
    skip_special_tokens: bool | None = None

    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    """Smaller is more urgent."""
    deadline_s: Annotated[float, Field(gt=0, le=86400)] | None = None
    """Seconds after which the answer ends as it is, with finish reason `length`."""
    cache_salt: Annotated[str, Field(max_length=256)] = ""
    """Cached prefixes are shared among requests with an equal salt only."""

    def sampling_settings(self) -> dict[str, Any]:
        """Fields of `SamplingParams`, without those that the request leaves out."""
        taken = {
            name: value
            for name in _SAME_NAME
            if (value := getattr(self, name)) is not None and value != []
        }
        if self.seed is not None:
            taken["seed"] = self.seed % 2**64
        if taken.get("top_k") == -1:
            taken["top_k"] = 0
        if self.include_stop_str_in_output is not None:
            taken["include_stop"] = self.include_stop_str_in_output
        return taken


_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "n",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "bad_words",
    "skip_special_tokens",
)


def sampling_params(defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> SamplingParams:
    """The recipe's settings with the request's in their place. Raises `RequestError`."""
    return SamplingParams(**{**defaults, **settings})
