"""The engine loop without its thread, on a clock that stands still unless it is told to go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddock.engines.protocol import Session
from paddock.runtime.handle import RequestHandle
from paddock.runtime.intake import Intake
from paddock.runtime.outputs import RequestResult
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.admission import Admission
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.scheduling.prefix_hash import PrefixHasher
from paddock.runtime.scheduling.request import FinishReason, Request
from paddock.runtime.scheduling.scheduler import Decision, Scheduler
from paddock.runtime.steps.pipelined_stepper import PipelinedStepper
from paddock.runtime.steps.stepper import Stepper
from tests.runtime.history_session import HistorySession
from tests.runtime.letter_tokenizer import VOCAB_SIZE, LetterTokenizer
from tests.runtime.staged_session import StagedSession


def make_limits(**changes: Any) -> Limits:
    """Small limits; `changes` over them."""
    values: dict[str, Any] = {
        "max_sequences": 4,
        "max_tokens_per_step": 16,
        "max_context": 64,
        "cache_blocks": 64,
        "max_queued_requests": 100,
        "max_queued_tokens": 10_000,
    }
    return Limits(**(values | changes))


class Harness:
    """Submit, then `step()`; after each step every invariant is checked."""

    def __init__(
        self,
        limits: Limits,
        *,
        block_size: int = 4,
        session: Session | None = None,
        keeps_state: bool = False,
        stages: int = 1,
    ) -> None:
        """A session that is not the default has no tokenizer, and no text. With several `stages`
        as many steps are in flight."""
        self.now = 0.0
        self.limits = limits
        self.session = HistorySession(
            vocab_size=VOCAB_SIZE, block_size=block_size, limits=limits, keeps_state=keeps_state
        )
        driven: Session = session or self.session
        if stages > 1:
            driven = StagedSession(driven, stages)
        driven.allocate_cache(limits.cache_blocks, limits.max_sequences)
        hasher = PrefixHasher(driven.block_size)
        tokenizer = None if session else LetterTokenizer()
        self.admission = Admission(limits, self.clock)
        self.intake = Intake(driven, limits, tokenizer, hasher, self.clock)
        reuse = not driven.state_bytes
        self.scheduler = Scheduler(limits, driven.block_size, hasher, reuse=reuse)
        self.stages = stages
        kind = PipelinedStepper if stages > 1 else Stepper
        self.stepper = kind(
            driven,
            limits,
            self.scheduler,
            self.admission,
            eos_token_ids=self.intake.eos_token_ids,
            clock=self.clock,
        )
        self.handles: dict[int, RequestHandle] = {}
        self.decisions: list[Decision] = []
        self._watch_decisions()

    def clock(self) -> float:
        return self.now

    def submit(
        self,
        prompt: str | Sequence[int],
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        salt: str = "",
        **params: Any,
    ) -> Request:
        request = self.intake.request(
            prompt,
            SamplingParams(**({"temperature": 0.0} | params)),
            priority=priority,
            deadline_s=deadline_s,
            request_id=None,
            cache_salt=salt,
        )
        self.admission.enter(request)
        self.handles[request.number] = RequestHandle(request, self.cancel)
        self.stepper.add(request)
        return request

    def cancel(self, request: Request) -> None:
        self.stepper.end(request, FinishReason.CANCELLED)
        self._publish()

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.stepper.step()
            self._publish()
            self.scheduler.audit()

    def run(self, *, steps: int = 10_000) -> None:
        """Until nothing is left to do."""
        while not self.stepper.idle:
            assert steps, "it does not end"
            self.step()
            steps -= 1
        self.check_empty()

    def result(self, request: Request) -> RequestResult:
        """Of a finished request."""
        return self.handles[request.number].result(timeout_s=0)

    def check_empty(self) -> None:
        """Nothing is held for anybody."""
        assert self.scheduler.pool.held == 0
        assert self.admission.requests == self.admission.tokens == 0
        assert not self.scheduler.running
        assert self.scheduler.queued == 0

    def _publish(self) -> None:
        for number, events in self.stepper.take_events().items():
            self.handles[number].publish(events)

    def _watch_decisions(self) -> None:
        schedule = self.scheduler.schedule

        def watched(**settings: Any) -> Decision:
            decision = schedule(**settings)
            self.decisions.append(decision)
            if self.stages == 1:
                best = self.scheduler.running[0]
                going = any(chunk.sequence is best for chunk in decision.chunks)
                assert going, "the best one stands"
            return decision

        self.scheduler.schedule = watched  # type: ignore[method-assign]
