"""Steps: what is decided, run and told, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paddock.engines.protocol import Session, SessionLost
from paddock.graph.dtype import Array
from paddock.models.images import ImageForm
from paddock.runtime.outputs import Event
from paddock.runtime.sampling.sampler import LogitsError, SampledToken, prompt_logprobs, sample
from paddock.runtime.scheduling.admission import Admission
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.scheduling.rank_queue import RankQueue
from paddock.runtime.scheduling.request import FinishReason, Request, Sequence, State
from paddock.runtime.scheduling.scheduler import Decision, Scheduler
from paddock.runtime.stats import StepReport
from paddock.runtime.steps.step_planner import PlannedStep, PromptRows, StepPlanner


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step's logits came to."""

    tokens: list[tuple[Sequence, SampledToken]]
    prompts: list[tuple[Sequence, list[SampledToken]]]
    broken: list[tuple[Sequence, Exception]]
    """Sequences whose own logits or settings made it impossible."""


class Stepper:
    """The engine loop without its thread: `step()` until `idle`.

    A step is `plan`, `execute`, `sample` and `commit`; only `commit` changes what the scheduler
    believes to be in the cache. Not thread-safe.
    """

    def __init__(
        self,
        session: Session,
        limits: Limits,
        scheduler: Scheduler,
        admission: Admission,
        *,
        eos_token_ids: frozenset[int],
        clock: Callable[[], float],
        image_form: ImageForm | None = None,
    ) -> None:
        """`image_form`: what images are to a model that sees."""
        self._session = session
        self._admission = admission
        self._eos_token_ids = eos_token_ids
        self._clock = clock
        self.scheduler = scheduler
        self._planner = StepPlanner(limits, session.block_size, scheduler.block_rows, image_form)
        self._deadlines: RankQueue[Request] = RankQueue()
        self._events: dict[int, list[Event]] = {}
        self.steps = 0
        self.failed_steps = 0
        self.generated_tokens = 0
        self.requests_finished = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.scheduler.idle

    def add(self, request: Request) -> None:
        """Take a request in."""
        self.scheduler.add(request)
        if request.deadline is not None:
            self._deadlines.push((request.deadline, float(request.number)), request)

    def end(self, request: Request, reason: FinishReason, error: Exception | None = None) -> None:
        """End all sequences of a request that have not ended; its blocks are free at once."""
        if error is not None and not request.finished:
            request.error = error
        for sequence in request.sequences:
            if sequence.state is not State.FINISHED:
                event = Event(sequence.index)
                try:
                    self._finish(sequence, event, reason)
                except Exception as unexpected:
                    request.error = unexpected
                    self._finish(sequence, event, FinishReason.ERROR)
                self._tell(request, event)

    def expire(self, now: float) -> None:
        """End the requests whose deadline has come."""
        while (first := self._deadlines.first()) and first[0][0] <= now:
            self.end(first[1], FinishReason.DEADLINE)

    def take_events(self) -> dict[int, list[Event]]:
        """What is to be told since the last call, by request number."""
        events, self._events = self._events, {}
        return events

    def step(self) -> StepReport | None:
        """One step, or None where nothing was left to do.

        An error in the engine, or in sampling, ends the requests of the step and no others.
        Raises `SessionLost` where no further step can run.
        """
        started = self._clock()
        self.expire(started)
        if self.scheduler.idle:
            return None
        return self._run(self.plan(started), started)

    def _run(self, planned: PlannedStep, started: float) -> StepReport:
        planned_at = ran_at = sampled_at = self._clock()
        failed = False
        try:
            logits = self.execute(planned)
            ran_at = self._clock()
            sampled = self.sample(planned, logits)
            sampled_at = self._clock()
        except SessionLost:
            raise
        except Exception as error:
            self.fail(planned, error)
            ran_at = sampled_at = self._clock()
            failed = True
        else:
            self.commit(planned, sampled, sampled_at)
        self.steps += 1
        return StepReport(
            number=self.steps,
            started=started,
            sequences=len(planned.decision.chunks),
            tokens=planned.decision.tokens,
            sampled=len(planned.sampled),
            plan_s=planned_at - started,
            run_s=ran_at - planned_at,
            sample_s=sampled_at - ran_at,
            commit_s=self._clock() - sampled_at,
            failed=failed,
        )

    def plan(self, now: float) -> PlannedStep:
        """Decide the next step and lay out its arrays."""
        return self._lay_out(self.scheduler.schedule(), now)

    def _lay_out(self, decision: Decision, now: float) -> PlannedStep:
        if not decision.chunks:
            raise AssertionError(
                f"nothing to run, yet {self.scheduler.queued} sequences wait and "
                f"{len(self.scheduler.running)} run"
            )
        for chunk in decision.chunks:
            request = chunk.sequence.request
            if request.first_scheduled is None:
                request.first_scheduled = now
                request.prompt_tokens_cached = chunk.past
                self._admission.leave(request)
        return self._planner.plan(decision)

    def execute(self, planned: PlannedStep) -> Array:
        """Run the engine: f32 logits [R, V], valid until the next call."""
        return self._session.run(planned.inputs)

    def sample(self, planned: PlannedStep, logits: Array) -> Sampled:
        """Choose the next tokens, and read the prompts' log-probabilities."""
        rows = logits if planned.sampled_rows is None else logits[planned.sampled_rows]
        tokens, broken = _sample_sound(rows, planned.sampled)
        prompts: list[tuple[Sequence, list[SampledToken]]] = []
        for part in planned.prompts:
            try:
                prompts.append((part.sequence, _prompt_part(logits, part)))
            except LogitsError as error:
                broken.append((part.sequence, error))
        return Sampled(tokens, prompts, broken)

    def commit(self, planned: PlannedStep, sampled: Sampled, now: float) -> None:
        """The step has happened: tell the scheduler and whoever waits for the tokens."""
        self.scheduler.commit(planned.decision)
        self.tell(sampled, now)

    def tell(self, sampled: Sampled, now: float) -> None:
        """Give everybody what was sampled."""
        for sequence, logprobs in sampled.prompts:
            sequence.prompt_logprobs += logprobs
        for sequence, error in sampled.broken:
            self.end(sequence.request, FinishReason.ERROR, error)
        for sequence, token in sampled.tokens:
            if sequence.state is State.FINISHED:
                continue
            try:
                self._accept(sequence, token, now)
            except Exception as error:
                self.end(sequence.request, FinishReason.ERROR, error)

    def fail(self, planned: PlannedStep, error: Exception) -> None:
        """The step has not happened: end its requests. Nothing it wrote will be looked at."""
        self.failed_steps += 1
        for chunk in planned.decision.chunks:
            self.end(chunk.sequence.request, FinishReason.ERROR, error)

    def _accept(self, sequence: Sequence, token: SampledToken, now: float) -> None:
        request, token_id = sequence.request, token.token_id
        params = request.params
        if sequence.pending:
            sequence.settle(token_id)
        else:
            sequence.append(token_id)
        sequence.sampler.append(token_id)
        sequence.token_times.append(now)
        self.generated_tokens += 1
        made = sequence.generated

        event = Event(sequence.index, token_id)
        if params.logprobs is not None:
            event.sampled = token
        if made == 1 and sequence.index == 0 and params.prompt_logprobs is not None:
            event.prompt_logprobs = (None, *sequence.prompt_logprobs)

        reason: FinishReason | None = None
        # Before `min_tokens` the sampler takes none of these.
        if token_id in self._eos_token_ids and not params.ignore_eos:
            reason = FinishReason.STOP
        elif token_id in request.stop_token_ids:
            reason = FinishReason.STOP
            event.stop_reason = token_id
        hidden = reason is not None and not params.include_stop
        if params.stop:
            # Here and not in the handle, because it decides whether the sequence goes on.
            stream = request.streams[sequence.index]
            may_stop = made > params.min_tokens
            event.text = "" if hidden else stream.push(token_id, may_stop=may_stop)
            if stream.found is not None:
                reason = FinishReason.STOP
                event.stop_reason = stream.found
        else:
            event.hidden = hidden
        if reason is None and sequence.sampler.complete:
            reason = FinishReason.STOP
        if reason is None and made >= request.max_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            self._finish(sequence, event, reason)
        self._tell(request, event)

    def _finish(self, sequence: Sequence, event: Event, reason: FinishReason) -> None:
        request = sequence.request
        if request.params.stop:
            broken = reason is FinishReason.ERROR
            rest = "" if broken else request.streams[sequence.index].finish()
            event.text = (event.text or "") + rest
        self.scheduler.finish(sequence)
        event.finish_reason = reason
        request.unfinished -= 1
        request.finish_reason = reason
        if request.finished:
            request.finished_at = self._clock()
            self.requests_finished += 1
            self._admission.leave(request)
            if request.deadline is not None:
                self._deadlines.discard((request.deadline, float(request.number)))

    def _tell(self, request: Request, event: Event) -> None:
        events = self._events.get(request.number)
        if events is None:
            self._events[request.number] = [event]
        else:
            events.append(event)


def _sample_sound(
    rows: Array, sequences: list[Sequence]
) -> tuple[list[tuple[Sequence, SampledToken]], list[tuple[Sequence, Exception]]]:
    """Sample every row from which a token can be chosen; which the others are, and why not."""
    broken: list[tuple[Sequence, Exception]] = []
    while True:
        try:
            tokens = sample(rows, [sequence.sampler for sequence in sequences])
            return list(zip(sequences, tokens, strict=True)), broken
        except LogitsError as error:
            broken += [(sequences[row], error) for row in error.rows]
            sound = [row for row in range(len(sequences)) if row not in error.rows]
            rows, sequences = rows[sound], [sequences[row] for row in sound]


def _prompt_part(logits: Array, part: PromptRows) -> list[SampledToken]:
    count = part.sequence.request.params.prompt_logprobs
    assert count is not None
    return prompt_logprobs(logits[part.start : part.stop], part.next_token_ids, count)
