"""What comes back for a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paddock.runtime.scheduling.request import FinishReason

if TYPE_CHECKING:
    from paddock.runtime.sampling.sampler import SampledToken

PromptLogprobs = tuple["SampledToken | None", ...]


@dataclass(frozen=True, slots=True)
class Increment:
    """News of one sequence. Increments of a sequence, joined, are its `SequenceResult`."""

    index: int
    """Which of the request's `n` sequences."""
    token_ids: tuple[int, ...]
    text: str
    """Text that is final; it lags behind the tokens where they may be part of a stop string or
    end inside a character."""
    logprobs: tuple[SampledToken, ...] | None
    """One for each of `token_ids`, where the request asked for them."""
    finish_reason: FinishReason | None = None
    """Set on the sequence's last increment."""
    stop_reason: int | str | None = None
    """The stop token id or stop string that ended it; None for an end-of-sequence token."""
    prompt_logprobs: PromptLogprobs | None = None
    """One for each token of the prompt (None for the first), once, with sequence 0."""


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """One finished continuation."""

    index: int
    token_ids: tuple[int, ...]
    """Everything generated: the stop token, and the tokens of a stop string, included."""
    text: str
    """Without what ended it, unless `include_stop`."""
    logprobs: tuple[SampledToken, ...] | None
    finish_reason: FinishReason
    stop_reason: int | str | None


@dataclass(frozen=True, slots=True)
class Timing:
    """When things happened to a request, in seconds of the loop's monotonic clock."""

    arrival: float
    first_scheduled: float | None
    """None: it ended in the queue."""
    first_token: float | None
    finished: float
    token_times: tuple[tuple[float, ...], ...]
    """For each sequence, when each of its tokens was there."""

    @property
    def queued_s(self) -> float | None:
        """Seconds in the queue."""
        return None if self.first_scheduled is None else self.first_scheduled - self.arrival

    @property
    def to_first_token_s(self) -> float | None:
        """Seconds from arrival to the first token."""
        return None if self.first_token is None else self.first_token - self.arrival


@dataclass(frozen=True, slots=True)
class RequestResult:
    """All that came of a request."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sequences: tuple[SequenceResult, ...]
    prompt_logprobs: PromptLogprobs | None
    timing: Timing
    prompt_tokens_cached: int
    """Tokens of the prompt that were found in the cache, when it was first scheduled."""

    @property
    def text(self) -> str:
        """The first sequence's text."""
        return self.sequences[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The first sequence's tokens."""
        return self.sequences[0].token_ids


@dataclass(slots=True)
class Event:
    """One token of one sequence, or its end, on its way from the engine loop to the handle."""

    index: int
    token_id: int | None = None
    sampled: SampledToken | None = None
    text: str | None = None
    """None: whoever takes the event detokenizes."""
    hidden: bool = False
    """The token is not part of the text: it ended the sequence."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | None = None
