"""What is asked of the engine loop, and the sequences that answer it."""

from __future__ import annotations

from array import array
from enum import Enum, StrEnum

import numpy as np
import numpy.typing as npt

from paddock.graph.dtype import Array
from paddock.runtime.images.grid_positions import GridPositions
from paddock.runtime.images.prepared import PlacedImage
from paddock.runtime.sampling.sampler import SampledToken, SequenceSampler
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.text.text_stream import TextStream

TokenIds = npt.NDArray[np.int64]


class FinishReason(StrEnum):
    """Why a sequence got no more tokens."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


class State(Enum):
    """Where a sequence is in the scheduler."""

    WAITING = "waiting"  # in the queue, never scheduled or preempted
    FOLLOWING = "following"  # waits until another sequence has computed a prefix they share
    RUNNING = "running"  # has a slot and blocks
    FINISHED = "finished"


class Request:
    """A prompt, how to continue it, and `params.n` sequences that do."""

    def __init__(
        self,
        number: int,
        prompt_token_ids: TokenIds,
        params: SamplingParams,
        *,
        arrival: float,
        max_tokens: int,
        request_id: str,
        priority: int,
        deadline: float | None,
        aging_s: float,
        root_digest: bytes,
        block_digests: list[bytes],
        samplers: list[SequenceSampler],
        streams: list[TextStream],
        source_token_ids: TokenIds | None = None,
        source_features: Array | None = None,
        images: tuple[PlacedImage, ...] = (),
        grid_positions: GridPositions | None = None,
        told: tuple[int, int] | None = None,
    ) -> None:
        """`number` is unique and grows; `arrival` and `deadline` are times of the loop's clock.

        `max_tokens` is the bound that holds: `params.max_tokens` and the context both kept.
        `block_digests` are those of the prompt's full blocks, after `root_digest`. `samplers`
        and `streams`, one for each sequence, choose the tokens and make the text.
        `source_token_ids` is what an encoder-decoder's encoder reads; the prompt is then what its
        answers begin with. `source_features` [places, size] is what one hears instead; its ids
        are zeros then. `images` are those that tokens of the prompt stand for, in their order.
        `grid_positions`: where tokens are that are not at one number, as the model is told it.
        `told`: the tokens (from, before) behind which `prompt_logprobs` looks, all but the last.
        """
        self.number = number
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self.source_token_ids = source_token_ids
        self.source_features = source_features
        self.images = images
        self.grid_positions = grid_positions
        self.told = told
        self.params = params
        self.priority = priority
        self.arrival = arrival
        self.deadline = deadline
        self.max_tokens = max_tokens
        # Waiting counts for what priority counts: with linear aging the order of two requests
        # never changes, so the queue is never sorted anew. A smaller rank goes first, and every
        # request is outranked by finitely many others, so nobody starves.
        self.rank_time = arrival + priority * aging_s
        self.stop_token_ids = frozenset(params.stop_token_ids)
        self.root_digest = root_digest
        self.streams = streams
        self.sequences = [
            Sequence(self, index, sampler, list(block_digests))
            for index, sampler in enumerate(samplers)
        ]
        self.unfinished = params.n
        self.finish_reason: FinishReason | None = None  # of the sequence that ended last
        self.error: BaseException | None = None
        self.first_scheduled: float | None = None
        self.finished_at = 0.0
        self.prompt_tokens_cached = 0

    @property
    def asked_token_ids(self) -> TokenIds:
        """What was asked: the source where it is of tokens, else the prompt."""
        if self.source_token_ids is None or self.source_features is not None:
            return self.prompt_token_ids
        return self.source_token_ids

    @property
    def prompt_length(self) -> int:
        return len(self.asked_token_ids)

    @property
    def finished(self) -> bool:
        return self.unfinished == 0


class Sequence:
    """One continuation of a request's prompt."""

    def __init__(
        self, request: Request, index: int, sampler: SequenceSampler, block_digests: list[bytes]
    ) -> None:
        self.request = request
        self.index = index
        self.rank = (request.rank_time, float(request.number), float(index))
        self.state = State.WAITING

        self.prompt_length = len(request.prompt_token_ids)
        self.length = self.prompt_length
        source = request.source_token_ids
        self.source_length = 0 if source is None else len(source)
        self._tokens = request.prompt_token_ids  # shared until the first token is appended
        self.digests = block_digests  # of its full blocks, as far as they are known
        self.sampler = sampler

        # Kept by the scheduler.
        self.slot = -1
        self.blocks: list[int] = []
        self.source_blocks: list[int] = []  # those of what its encoder made, for the decoder
        self.computed = 0  # tokens whose keys and values are in the cache
        self.registered = 0  # blocks whose content the pool knows
        self.following: bytes | None = None  # the digest it waits for
        self.preemptions = 0

        # Kept by a stepper that runs ahead of the tokens.
        self.pending = 0
        """The last tokens, as many, are on their way: numbers below 0 stand in their places."""
        self.closing = False
        """The last of them ends it: no step goes on from there."""

        # Prompt log-probabilities are asked of the first sequence alone: they are all the same.
        wanted = request.params.prompt_logprobs is not None and index == 0
        first, before = request.told or (0, self.prompt_length - 1)
        self.prompt_rows = before if wanted else 0
        self.prompt_logprobs: list[SampledToken | None] = []  # of tokens 1, 2, ... of the prompt
        if wanted:
            self.prompt_logprobs += [None] * first

        self.token_times = array("d")

    @property
    def generated(self) -> int:
        """Tokens made so far, and known."""
        return self.length - self.prompt_length - self.pending

    @property
    def token_ids(self) -> TokenIds:
        """Prompt and generated tokens [length]; a view, valid until the next `append`."""
        return self._tokens[: self.length]

    def token_at(self, position: int) -> int:
        """One of its tokens."""
        return int(self._tokens[position])

    def append(self, token_id: int) -> None:
        """Add a generated token."""
        if self.length == len(self._tokens):
            capacity = self.length + min(max(64, self.generated), self.request.max_tokens)
            grown = np.empty(capacity + 1, np.int64)
            grown[: self.length] = self._tokens
            self._tokens = grown
        self._tokens[self.length] = token_id
        self.length += 1

    def settle(self, token_id: int) -> None:
        """The first of the pending tokens is known now."""
        self._tokens[self.length - self.pending] = token_id
        self.pending -= 1
