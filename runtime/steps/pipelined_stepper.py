"""Several steps in flight, of different sequences: one for each stage of a pipeline."""

from __future__ import annotations

from collections import deque
from typing import cast

from paddock.engines.protocol import PipelinedSession, SessionLost
from paddock.runtime.stats import StepReport
from paddock.runtime.steps.step_planner import PlannedStep
from paddock.runtime.steps.stepper import Stepper


class PipelinedStepper(Stepper):
    """For a `PipelinedSession`: as many steps are launched as it has stages, then the oldest lands.

        stage 0   step 1 | step 2 | step 3 | ...
        stage 1          | step 1 | step 2 | step 3 ...

    The sequences that decode are dealt out over the steps, so that no step waits for a token of
    the one before; a prompt's chunks follow each other, since a stage works in order. That a
    sequence whose token is on its way is in no other step needs nothing: all its tokens count as
    computed, and the next one is not there.

    A preempted sequence begins again from its tokens, which have to be known; and rows of prompt
    log-probabilities are counted as they come. Where either may happen all flights land first.
    """

    _flights: deque[tuple[PlannedStep, float]] | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, and nothing on its way."""
        return not self._flights and super().idle

    def step(self) -> StepReport | None:
        """Launch a step where one can be, and take in the oldest where none can, or all stages
        have one. None where there was neither."""
        flights = self._flights = self._flights if self._flights is not None else deque()
        session = cast(PipelinedSession, self._session)
        started = self._clock()
        self.expire(started)
        if flights and self.scheduler.may_preempt:
            return self._land()
        planned = self._plan_beside(started)
        if planned is None:
            return self._land() if flights else None
        if planned.prompts:
            if flights:
                return self._land()  # what was planned is decided anew
            return self._run(planned, started)
        try:
            session.launch(planned.inputs)
        except SessionLost:
            raise
        except Exception as error:
            self.fail(planned, error)
            return self._report(planned, started, self._clock(), failed=True)
        self.scheduler.advance(planned.decision)
        flights.append((planned, started))
        if len(flights) < session.steps_in_flight:
            return None
        return self._land()

    def _plan_beside(self, now: float) -> PlannedStep | None:
        """The next step of what is not in flight, or None where that is nothing."""
        if self.scheduler.idle:
            return None
        stages = cast(PipelinedSession, self._session).steps_in_flight
        decision = self.scheduler.schedule(parts=stages)
        if not decision.chunks and self._flights:
            return None
        return self._lay_out(decision, now)

    def _land(self) -> StepReport:
        """Take in the oldest flight."""
        assert self._flights
        planned, launched = self._flights.popleft()
        waited_from = self._clock()
        try:
            logits = cast(PipelinedSession, self._session).collect()
            ran_at = self._clock()
            sampled = self.sample(planned, logits)
        except SessionLost:
            raise
        except Exception as error:
            self.fail(planned, error)
            return self._report(planned, launched, waited_from, failed=True)
        sampled_at = self._clock()
        self.scheduler.register(planned.decision)
        self.tell(sampled, sampled_at)
        return self._report(planned, launched, waited_from, ran_at, sampled_at)

    def _report(
        self,
        planned: PlannedStep,
        started: float,
        waited_from: float,
        ran_at: float | None = None,
        sampled_at: float | None = None,
        *,
        failed: bool = False,
    ) -> StepReport:
        """`run_s` is what was waited for; the rest of the step ran beside others."""
        now = self._clock()
        ran_at, sampled_at = ran_at or now, sampled_at or now
        self.steps += 1
        return StepReport(
            number=self.steps,
            started=started,
            sequences=len(planned.decision.chunks),
            tokens=planned.decision.tokens,
            sampled=len(planned.sampled),
            plan_s=0.0,
            run_s=ran_at - waited_from,
            sample_s=sampled_at - ran_at,
            commit_s=now - sampled_at,
            failed=failed,
        )
