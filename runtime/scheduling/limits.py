"""How much one engine loop takes on at once."""

from dataclasses import dataclass, fields

from paddock.runtime.errors import LimitsError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the scheduler, all in tokens, blocks or counts unless the name says otherwise.

    A step runs at most `max_sequences` sequences and `max_tokens_per_step` tokens (decode tokens
    and prompt chunks together). A sequence, prompt and generated tokens together, is no longer
    than `max_context` and than what `cache_blocks` blocks hold.
    """

    max_sequences: int
    max_tokens_per_step: int
    max_context: int
    cache_blocks: int
    max_queued_requests: int
    max_queued_tokens: int
    prefill_chunk: int | None = None
    """The most prompt tokens of one sequence in one step; None: whatever the step has room for."""
    max_prompt_logit_rows: int = 128
    """The most logit rows a step spends on prompt log-probabilities (each is a vocabulary wide)."""
    aging_s: float = 10.0
    """One level of priority is worth as much as having arrived this many seconds earlier."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise LimitsError(f"limits.{field.name} must be positive, it is {value}")
        if self.max_tokens_per_step < self.max_sequences:
            raise LimitsError(
                f"limits.max_tokens_per_step ({self.max_tokens_per_step}) must be at least "
                f"limits.max_sequences ({self.max_sequences}), so that every running sequence can "
                "take its token in every step"
            )
        if self.max_queued_tokens < self.max_context:
            raise LimitsError(
                f"limits.max_queued_tokens ({self.max_queued_tokens}) must be at least "
                f"limits.max_context ({self.max_context}), or a long prompt could never be queued"
            )
