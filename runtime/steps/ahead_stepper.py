"""Steps that are launched before the tokens of the one before are known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np

from paddock.engines.protocol import Choices, ChoosingSession
from paddock.graph.dtype import Array
from paddock.runtime.sampling.sampler import LogitsError, SampledToken
from paddock.runtime.scheduling.request import FinishReason, Sequence, State
from paddock.runtime.stats import StepReport
from paddock.runtime.steps.step_planner import PlannedStep
from paddock.runtime.steps.stepper import Stepper


class AheadStepper(Stepper):
    """For a `ChoosingSession`: while step N runs, N + 1 is planned and launched, then N is told.

        host    plan 1 | plan 2 | tell 1, plan 3 | tell 2, plan 4 | ...
        device         | step 1          | step 2         | step 3 ...

    The tokens of N stand in N + 1 as numbers that the device replaces. What N turns out to have
    ended is in N + 1 all the same, and what that makes of it is dropped: the device works in
    order, so blocks that were given back are written by their next owner later. Tokens are the
    same as those of `Stepper`, one step later.

    Sequences whose choice needs the tokens before it, or the logits themselves (penalties, bans,
    grammars, log-probabilities), make the steps that hold them wait, as those of `Stepper` do.
    """

    _flight: PlannedStep | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, and nothing on its way."""
        return self._flight is None and super().idle

    def step(self) -> StepReport | None:
        """Launch a step and tell what the one before it chose; None where there was neither."""
        started = self._clock()
        self.expire(started)
        planned = self._plan_ahead(started)
        if planned is None:
            return self._report(None, started, self._clock()) if self._settle() else None
        if not self._is_plain(planned):
            self._settle()
            return super().step()  # which decides anew: some may have ended
        planned_at = self._clock()
        try:
            self._chooser.choose(planned.inputs, _choices(planned.sampled))
        except MemoryError as error:
            # Nothing of the step has happened. Fewer sequences need less memory.
            self._settle()
            if not self.scheduler.preempt_worst():
                self.fail(planned, error)
            return self._report(None, started, planned_at)
        except Exception as error:
            self._settle()
            self.fail(planned, error)
            return self._report(planned, started, planned_at, failed=True)
        self.scheduler.advance(planned.decision)
        for sequence in planned.sampled:
            sequence.append(-1 - sequence.slot)
            sequence.pending += 1
            sequence.sampler.spend_chance()
            made = sequence.generated + sequence.pending
            sequence.closing = made >= sequence.request.max_tokens
        self._settle()
        self._flight = planned
        return self._report(planned, started, planned_at)

    @property
    def _chooser(self) -> ChoosingSession:
        return cast(ChoosingSession, self._session)

    def _plan_ahead(self, now: float) -> PlannedStep | None:
        """The next step, or None where nothing can be run before the flight has landed."""
        if self.scheduler.idle:
            self.scheduler.most_running = self.scheduler.limits.max_sequences
            return None
        preemptions = self.scheduler.counters.preemptions
        decision = self.scheduler.schedule()
        if self._flight is not None:
            if not decision.chunks:
                return None
            if self.scheduler.counters.preemptions != preemptions:
                # A preempted sequence begins again from its tokens: they have to be known.
                self._settle()
                if self.scheduler.idle:
                    return None
                decision = self.scheduler.schedule()
        return self._lay_out(decision, now)

    def _is_plain(self, planned: PlannedStep) -> bool:
        return not planned.prompts and all(s.sampler.plain for s in planned.sampled)

    def _settle(self) -> bool:
        """Take in what the step on its way chose; false: there is none."""
        planned, self._flight = self._flight, None
        if planned is None:
            return False
        try:
            tokens = self._chooser.chosen().tolist()
        except Exception as error:
            self.fail(planned, error)
            return True
        now = self._clock()
        self.scheduler.register(planned.decision)
        for sequence, token in zip(planned.sampled, tokens, strict=True):
            if sequence.state is State.FINISHED:
                continue
            try:
                if token < 0:
                    raise LogitsError(f"{sequence.sampler.name}: its logits are no numbers", (0,))
                self._accept(sequence, SampledToken(token), now)
            except Exception as error:
                self.end(sequence.request, FinishReason.ERROR, error)
        return True

    def _report(
        self, planned: PlannedStep | None, started: float, planned_at: float, failed: bool = False
    ) -> StepReport:
        self.steps += 1
        return StepReport(
            number=self.steps,
            started=started,
            sequences=len(planned.decision.chunks) if planned else 0,
            tokens=planned.decision.tokens if planned else 0,
            sampled=len(planned.sampled) if planned else 0,
            plan_s=planned_at - started,
            run_s=self._clock() - planned_at,
            sample_s=0.0,
            commit_s=0.0,
            failed=failed,
        )


def _choices(sequences: list[Sequence]) -> Choices:
    """How the device chooses each sequence's token."""
    params = [sequence.request.params for sequence in sequences]
    drawn = [(s.request.params, s.sampler.chance) for s in sequences]
    return Choices(
        temperatures=_array((0.0 if p.greedy else p.temperature for p in params), "f4"),
        top_ks=_array((p.top_k for p in params), "i4"),
        top_ps=_array((p.top_p for p in params), "f4"),
        min_ps=_array((p.min_p for p in params), "f4"),
        chances=_array((0.0 if p.greedy else chance() for p, chance in drawn), "f8"),
        slots=_array((s.slot for s in sequences), "i4"),
    )


def _array(values: Iterable[float], kind: str) -> Array:
    return np.array(list(values), np.dtype(kind))
