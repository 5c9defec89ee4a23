"""What a request asks of sampling: how a token is chosen, and when to stop."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from paddock.graph.errors import nearest
from paddock.runtime.errors import RequestError
from paddock.runtime.sampling.structured_outputs import StructuredOutputs
from paddock.runtime.strict_json import first_problem

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy (`_SAMPLING_EPS` of vLLM's `v1/sample/sampler.py`)."""


def _one_string(value: object) -> object:
    """`stop="END"` is meant as `stop=("END",)`; without this it would be read letter by letter."""
    return (value,) if isinstance(value, str) else value


def _no_booleans(value: object) -> object:
    """Lax keys and values would read `true` as 1."""
    if isinstance(value, dict) and any(
        isinstance(item, bool) for pair in value.items() for item in pair
    ):
        raise ValueError("expected token ids and numbers, found a boolean")
    return value


TokenId = Annotated[int, Field(ge=0, strict=True)]
Text = Annotated[str, Field(min_length=1, strict=True)]


class SamplingParams(BaseModel):
    """Names and meanings are those of vLLM and of OpenAI's API.

    Anything out of bounds raises `RequestError`, one line that names the field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    n: Annotated[int, Field(ge=1, le=1024, strict=True)] = 1
    """How many continuations of the prompt."""
    max_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Tokens to generate at most; None: up to the context limit."""
    min_tokens: Annotated[int, Field(ge=0, strict=True)] = 0
    """End-of-sequence and stop tokens are masked until this many were generated."""
    temperature: Annotated[float, Field(ge=0, le=1000, strict=True)] = 1.0
    """0 is greedy."""
    top_k: Annotated[int, Field(ge=0, strict=True)] = 0
    """Keep the k likeliest tokens (and those as likely as the k-th); 0 is off."""
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0
    """Keep the likeliest tokens whose probabilities add up to this."""
    min_p: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.0
    """Keep tokens at least this fraction as likely as the likeliest."""
    typical_p: Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0
    """Keep the tokens of this mass whose surprise is nearest the entropy (Meister et al. 2022)."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, strict=True)] = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or output."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2, strict=True)] = 0.0
    """Is subtracted once from the logits of tokens in the output."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, strict=True)] = 0.0
    """Is subtracted, times their count, from the logits of tokens in the output."""
    logit_bias: Annotated[
        dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]],
        BeforeValidator(_no_booleans),
    ] = Field(default_factory=dict)
    """Is added to the logits of these token ids (keys may be decimal strings, as JSON has them)."""
    bad_words: Annotated[tuple[Text, ...], BeforeValidator(_one_string)] = ()
    """Texts that are never generated, as tokenized alone or after a space."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64, strict=True)] | None = None
    """The same seed, prompt and settings give the same tokens; None: a fresh seed per request."""
    logprobs: Annotated[int, Field(ge=0, le=100, strict=True)] | None = None
    """Report each token's log-probability, with this many of the likeliest alternatives."""
    prompt_logprobs: Annotated[int, Field(ge=0, le=100, strict=True)] | None = None
    """The same of the prompt's tokens."""
    stop: Annotated[tuple[Text, ...], BeforeValidator(_one_string)] = ()
    """Strings that end the text."""
    stop_token_ids: tuple[TokenId, ...] = ()
    """Token ids that end the sequence."""
    include_stop: Annotated[bool, Field(strict=True)] = False
    """The stop string stays in the text."""
    ignore_eos: Annotated[bool, Field(strict=True)] = False
    """Go on after an end-of-sequence token."""
    skip_special_tokens: Annotated[bool, Field(strict=True)] = True
    """Leave special tokens out of the text."""
    structured_outputs: StructuredOutputs | None = None
    """What the text must be: JSON by a schema, one of several texts, a regular expression, ..."""

    @model_validator(mode="wrap")
    @classmethod
    def _raise_in_one_line(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            params = handler(data)
        except ValidationError as error:
            unknown = [e["loc"][-1] for e in error.errors() if e["type"] == "extra_forbidden"]
            if unknown:
                name = str(unknown[0])
                problem = f"no setting is called {name!r}{nearest(name, cls.model_fields)}"
            else:
                problem = first_problem(error)
            raise RequestError(f"sampling parameters: {problem}") from None
        if params.max_tokens is not None and params.min_tokens > params.max_tokens:
            raise RequestError(
                f"sampling parameters: min_tokens ({params.min_tokens}) must not be greater than "
                f"max_tokens ({params.max_tokens})"
            )
        return params

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without chance."""
        return self.temperature < GREEDY_BELOW
