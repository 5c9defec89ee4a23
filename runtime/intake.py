"""Checking what is asked, in the asker's thread, before anything waits for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from paddock.engines.protocol import Session
from paddock.graph.dtype import Array
from paddock.models.images import ImageForm
from paddock.runtime.errors import RequestError, RequestTooLarge
from paddock.runtime.images.grid_positions import GridPositions
from paddock.runtime.images.prepared import ImagePrompt, PlacedImage
from paddock.runtime.sampling.constraint import Constraint, Grammars
from paddock.runtime.sampling.sampler import SequenceSampler
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.limits import Limits
from paddock.runtime.scheduling.prefix_hash import PrefixHasher
from paddock.runtime.scheduling.request import Request, TokenIds
from paddock.runtime.speech.sound_prompt import SoundPrompt
from paddock.runtime.text.bad_words import bad_words_token_ids
from paddock.runtime.text.text_stream import Decoder, TextStream

MAX_PRIORITY = 100


class TextCodec(Protocol):
    """What the loop needs of a tokenizer; `paddock.runtime.text.tokenizer.Tokenizer` has it."""

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def incremental(
        self, prompt_token_ids: Sequence[int], skip_special_tokens: bool = True
    ) -> Decoder: ...


class Intake:
    """Makes requests of what callers give. Thread-safe: nothing in it changes."""

    def __init__(
        self,
        session: Session,
        limits: Limits,
        tokenizer: TextCodec | None,
        hasher: PrefixHasher,
        clock: Callable[[], float],
        grammars: Grammars | None = None,
        answer_begins: Sequence[int] = (),
        heard: tuple[int, int] | None = None,
        image_form: ImageForm | None = None,
    ) -> None:
        """`answer_begins`: of an encoder-decoder, whose prompts are what the encoder reads;
        `heard`: of one that hears, the shape of features; `image_form`: of one that sees."""
        self._limits = limits
        self._tokenizer = tokenizer
        self._grammars = grammars
        self._hasher = hasher
        self._clock = clock
        self._vocab_size = session.vocab_size
        self._block_size = session.block_size
        self._context = min(limits.max_context, limits.cache_blocks * session.block_size)
        self._answer_begins, self._heard = list(answer_begins), heard
        self._image_form = image_form
        self._numbers = itertools.count()
        self.eos_token_ids = tokenizer.eos_token_ids if tokenizer else frozenset[int]()

    def request(
        self,
        prompt: str | Sequence[int] | ImagePrompt | SoundPrompt,
        params: SamplingParams,
        *,
        priority: int,
        deadline_s: float | None,
        request_id: str | None,
        cache_salt: str,
    ) -> Request:
        """See `EngineLoop.submit`. Raises `RequestError` for what is wrong, naming it."""
        arrival = self._clock()
        number = next(self._numbers)
        images: tuple[PlacedImage, ...] = ()
        sound = prompt if isinstance(prompt, SoundPrompt) else None
        if isinstance(prompt, ImagePrompt):
            images, prompt = tuple(prompt.images), prompt.token_ids
        features = self._features(prompt)
        if isinstance(prompt, SoundPrompt):
            prompt = [0] * len(prompt.features)
        if isinstance(prompt, str):
            prompt = self._encode(prompt)
        source = None
        if self._answer_begins:
            if params.prompt_logprobs is not None and (sound is None or sound.told is None):
                raise RequestError("prompt_logprobs: an encoder gives its prompt no probabilities")
            self._check_source(len(prompt), heard=features is not None)
            begins = sound.begins if sound is not None and sound.begins else self._answer_begins
            source, prompt = self._checked(prompt), begins
        max_tokens = self._max_tokens(len(prompt), params, 0 if source is None else len(source))
        token_ids = self._checked(prompt)
        self._check_images(token_ids, images, params)
        if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            raise RequestError(
                f"priority: expected {-MAX_PRIORITY} (most urgent) to {MAX_PRIORITY}, "
                f"found {priority}"
            )
        if deadline_s is not None and not deadline_s >= 0:
            raise RequestError(f"deadline_s: expected seconds from now, found {deadline_s}")
        root = self._hasher.root(cache_salt.encode("utf-8", "surrogatepass"))
        return Request(
            number,
            token_ids,
            params,
            arrival=arrival,
            max_tokens=max_tokens,
            request_id=request_id if request_id is not None else f"request-{number}",
            priority=priority,
            deadline=None if deadline_s is None else arrival + deadline_s,
            aging_s=self._limits.aging_s,
            root_digest=root,
            block_digests=self._hasher.blocks(root, token_ids, images),
            samplers=self._samplers(token_ids.tolist(), params, sound),
            streams=self._streams(token_ids, params),
            source_token_ids=source,
            source_features=features,
            images=images,
            grid_positions=self._grid_positions(len(token_ids), images),
            told=None if sound is None else sound.told,
        )

    def _encode(self, prompt: str) -> list[int]:
        if self._tokenizer is None:
            raise RequestError("the prompt is text, and this engine loop has no tokenizer")
        return self._tokenizer.encode(prompt)

    def _checked(self, prompt: Sequence[int] | Array) -> TokenIds:
        try:
            token_ids = np.array(prompt)
        except (ValueError, OverflowError) as error:
            raise RequestError(f"the prompt is no list of token ids: {error}") from error
        if token_ids.ndim != 1 or token_ids.dtype.kind not in "iu":
            raise RequestError(
                "the prompt is no list of token ids: it makes an array of "
                f"{token_ids.dtype}{list(token_ids.shape)}"
            )
        low, high = int(token_ids.min()), int(token_ids.max())
        if low < 0 or high >= self._vocab_size:
            raise RequestError(
                f"the prompt holds token id {low if low < 0 else high}, "
                f"outside the vocabulary of {self._vocab_size} tokens"
            )
        return token_ids.astype(np.int64, copy=False)

    def _check_images(
        self, token_ids: TokenIds, images: Sequence[PlacedImage], params: SamplingParams
    ) -> None:
        """That all tokens that stand for images, and no others, have an image."""
        form = self._image_form
        if form is None:
            if images:
                raise RequestError("the prompt has images, and this model sees none")
            return
        placed = np.zeros(len(token_ids), bool)
        end = 0
        for image in images:
            patches = image.image.patches
            if image.start < end or image.stop > len(token_ids):
                raise RequestError("the prompt's images are not in the order of their tokens")
            if patches.shape[1:] != (form.row_size,) or not np.isfinite(patches).all():
                raise RequestError(
                    f"an image's patches {list(patches.shape)} are no finite rows of"
                    f" {form.row_size} numbers, which this model reads"
                )
            end = image.stop
            placed[image.start : end] = True
        self._check_whole(images, params)
        if (placed != (token_ids == form.token_id)).any():
            raise RequestError(
                f"the prompt has {int((token_ids == form.token_id).sum())} tokens that stand for"
                f" images (token id {form.token_id}), its {len(images)} images have"
                f" {int(placed.sum())} in such places; leave the model's image token out of text"
            )

    def _grid_positions(self, length: int, images: Sequence[PlacedImage]) -> GridPositions | None:
        form = self._image_form
        if form is None or not form.grid or not images:
            return None
        return GridPositions.of(length, images)

    def _check_whole(self, images: Sequence[PlacedImage], params: SamplingParams) -> None:
        """That a step has room for every image whose tokens see each other."""
        longest = max((len(i.image.rows) for i in images if i.image.whole), default=0)
        if longest and params.prompt_logprobs is not None:
            raise RequestError("prompt_logprobs: this model gives prompts with images none")
        room = self._limits.max_tokens_per_step - self._limits.max_sequences + 1
        if longest > room:
            raise RequestTooLarge(
                f"an image has {longest} tokens, which are computed in one step; beside"
                f" limits.max_sequences {self._limits.max_sequences} it has room for {room}"
                f" (limits.max_tokens_per_step {self._limits.max_tokens_per_step}); raise the one"
                " or lower the other"
            )

    def _features(self, prompt: str | Sequence[int] | SoundPrompt) -> Array | None:
        """The prompt, where it is what a model hears. Raises `RequestError` where it is not."""
        shape = self._heard
        given = prompt.features if isinstance(prompt, SoundPrompt) else None
        if shape is None and given is None:
            return None
        if given is None or given.shape != shape or not np.isfinite(given).all():
            what = "text or token ids" if given is None else f"a sound {list(given.shape)}"
            expected = "text or token ids" if shape is None else f"a finite sound {list(shape)}"
            raise RequestError(f"the prompt is {what}, and this model takes {expected}")
        return given.astype(np.float32, copy=False)

    def _check_source(self, length: int, *, heard: bool) -> None:
        """That the encoder can read so many tokens, and a short answer fits beside them."""
        if length == 0:
            raise RequestError("the prompt is empty; it needs at least one token")
        beside = (self._limits.cache_blocks - 1) * self._block_size
        longest = beside if heard else min(self._limits.max_context, beside)
        if length > longest:
            raise RequestTooLarge(
                f"the prompt has {length} tokens, the encoder reads {longest} at most"
                f" (limits.max_context {self._limits.max_context}, limits.cache_blocks"
                f" {self._limits.cache_blocks}); shorten the prompt, or raise the limit"
            )

    def _max_tokens(
        self, prompt_length: int, params: SamplingParams, source_length: int = 0
    ) -> int:
        """How many tokens it may make: what it asks for, as far as the context reaches."""
        if prompt_length == 0:
            raise RequestError("the prompt is empty; it needs at least one token")
        held = -(-source_length // self._block_size)  # blocks
        context = min(self._context, (self._limits.cache_blocks - held) * self._block_size)
        room = context - prompt_length
        if room < max(params.min_tokens, 1):
            needs = f"min_tokens of {params.min_tokens}" if params.min_tokens > 1 else "one to make"
            limits = self._limits
            bound = f"limits.max_context ({limits.max_context})"
            if self._context < limits.max_context:
                bound = (
                    f"the {self._context} tokens that limits.cache_blocks ({limits.cache_blocks}) "
                    f"blocks of {self._block_size} hold"
                )
            raise RequestTooLarge(
                f"the prompt has {prompt_length} tokens, which with {needs} is more than {bound}; "
                "shorten the prompt, or raise the limit"
            )
        return room if params.max_tokens is None else min(params.max_tokens, room)

    def _samplers(
        self, token_ids: list[int], params: SamplingParams, sound: SoundPrompt | None
    ) -> list[SequenceSampler]:
        bad_words: list[list[int]] = []
        if params.bad_words:
            if self._tokenizer is None:
                raise RequestError("bad_words: this engine loop has no tokenizer to read them with")
            bad_words = bad_words_token_ids(params.bad_words, self._tokenizer.encode)
        constraint = sound.constraint if sound is not None else self._constraint(params)
        eos = frozenset[int]() if params.ignore_eos else self.eos_token_ids
        return [
            SequenceSampler(
                params,
                prompt_token_ids=token_ids,
                vocab_size=self._vocab_size,
                eos_token_ids=eos,
                bad_words_token_ids=bad_words,
                index=index,
                constraint=constraint.copy() if constraint and index else constraint,
            )
            for index in range(params.n)
        ]

    def _constraint(self, params: SamplingParams) -> Constraint | None:
        if params.structured_outputs is None:
            return None
        if self._grammars is None:
            raise RequestError("structured_outputs: this engine loop has no grammars")
        return self._grammars.constraint(params.structured_outputs)

    def _streams(self, token_ids: TokenIds, params: SamplingParams) -> list[TextStream]:
        tokenizer = self._tokenizer
        make: Callable[[], Decoder] | None = None
        if tokenizer is not None:

            def make() -> Decoder:
                return tokenizer.incremental(token_ids.tolist(), params.skip_special_tokens)

        elif params.stop:
            raise RequestError("stop: this engine loop has no tokenizer, so there is no text")
        return [
            TextStream(make, params.stop, keep_stop=params.include_stop) for _ in range(params.n)
        ]
