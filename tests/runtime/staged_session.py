"""A session of several stages, whose steps run late and in order."""

from __future__ import annotations

from collections import deque
from dataclasses import fields, replace

from paddock.engines.protocol import Session, StepInputs
from paddock.graph.dtype import Array


class StagedSession:
    """What is launched runs when it is collected: nobody can rely on a step being over before.

    Checks that no sequence's token is asked for twice, and that the bound on flights holds.
    """

    def __init__(self, session: Session, stages: int) -> None:
        self._session = session
        self.vocab_size, self.block_size = session.vocab_size, session.block_size
        self.block_bytes, self.state_bytes = session.block_bytes, session.state_bytes
        self.steps_in_flight = stages
        self.flights: deque[StepInputs] = deque()
        self.most_in_flight = 0
        self.fail_launch: Exception | None = None

    def allocate_cache(self, blocks: int, slots: int = 1) -> None:
        self._session.allocate_cache(blocks, slots)

    def launch(self, step: StepInputs) -> None:
        if self.fail_launch is not None:
            error, self.fail_launch = self.fail_launch, None
            raise error
        assert len(self.flights) < self.steps_in_flight
        arrays = {f.name: getattr(step, f.name) for f in fields(step)}
        copied = {name: a.copy() for name, a in arrays.items() if a is not None}
        self.flights.append(replace(step, **copied))
        self.most_in_flight = max(self.most_in_flight, len(self.flights))

    def collect(self) -> Array:
        return self._session.run(self.flights.popleft())

    def run(self, step: StepInputs) -> Array:
        assert not self.flights, "a step is run past those on their way"
        self.launch(step)
        return self.collect()

    def close(self) -> None:
        self._session.close()
