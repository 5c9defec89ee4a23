"""A recipe's model from Python: build or find its engine, start it, ask it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeGuard, cast

from paddock.recipes import pipeline
from paddock.recipes.any_checkpoint import recipe_for
from paddock.recipes.compose import compose
from paddock.recipes.progress import SILENT, Progress
from paddock.runtime.audio.sound_file import SoundLimits, decode, read_sound
from paddock.runtime.errors import RequestError
from paddock.runtime.generate import generate
from paddock.runtime.handle import RequestHandle
from paddock.runtime.images.image_source import ImageSource, has_images
from paddock.runtime.images.prepared import ImagePrompt
from paddock.runtime.outputs import (
    Increment,
    PromptLogprobs,
    RequestResult,
    SequenceResult,
    Timing,
)
from paddock.runtime.queue_room import when_there_is_room, when_there_is_room_async
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.scheduling.request import FinishReason
from paddock.runtime.speech.listening import Asked, Listening
from paddock.runtime.speech.sound_prompt import SoundPrompt
from paddock.runtime.speech.speech_tokens import SpeechTask
from paddock.runtime.speech.transcribe import transcribe
from paddock.runtime.speech.transcript import Transcript
from paddock.runtime.text.chat_template import Message

if TYPE_CHECKING:
    from paddock.graph.dtype import Array
    from paddock.recipes.schema import Recipe
    from paddock.runtime.encoders.encoder import Classification, Embedding, TaggedText
    from paddock.runtime.images.sight import Sight
    from paddock.runtime.loop import Loop
    from paddock.runtime.sampling.sampler import SampledToken
    from paddock.runtime.stats import Stats
    from paddock.runtime.text.tokenizer import Tokenizer

Prompt: TypeAlias = str | Sequence[int] | Sequence[Message] | ImagePrompt | SoundPrompt
"""Text, token ids, the messages of a chat (to which the chat template is applied), or what
`Tokenizer` and `Sight` made of these, or one window of sound."""
Input: TypeAlias = str | tuple[str, str] | Sequence[int]
"""What is embedded or classified: a text, a pair of texts, or token ids."""
Params: TypeAlias = SamplingParams | Sequence[SamplingParams] | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request; those of all `n` continuations together."""

    prompt_tokens: int
    prompt_tokens_cached: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of one prompt. `text` and its neighbours are the first continuation's."""

    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    sequences: tuple[SequenceResult, ...]
    """All `n` continuations."""
    prompt_logprobs: PromptLogprobs | None
    usage: Usage
    timing: Timing

    @property
    def text(self) -> str:
        return self.sequences[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.sequences[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.sequences[0].finish_reason

    @property
    def stop_reason(self) -> int | str | None:
        return self.sequences[0].stop_reason

    @property
    def logprobs(self) -> tuple[SampledToken, ...] | None:
        return self.sequences[0].logprobs


class LLM:
    """A started recipe, to be asked from any thread or event loop.

    >>> from paddock import LLM, SamplingParams
    >>> llm = LLM("demo")
    >>> first, second = llm.generate(["The ls command", "A package is"])
    >>> len(llm.generate("To copy a file, use", SamplingParams(max_tokens=8))[0].token_ids)
    8

    Overrides are those of the command line. Sampling settings that a call leaves out are the
    recipe's (`llm.default_params`).

    >>> llm.recipe.name, llm.default_params.temperature
    ('demo', 0.0)
    >>> llm.close()

    As a context manager it closes itself, which ends the engine's thread and gives its memory
    back; so does the end of the program.
    """

    def __init__(
        self,
        name: str,
        *overrides: str,
        config_dir: str | Path | Sequence[str | Path] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Compose recipe `name`, build its engine or find it in the cache, and start it.

        A name with a slash is a folder with a checkpoint, or a hub repository `Org/Name`.
        `config_dir`: one or more folders of recipes of your own. `progress` None: bars on stderr
        where that is a terminal. Raises the `PaddockError` of the room that found something wrong.
        """
        folders = [config_dir] if isinstance(config_dir, str | Path) else list(config_dir or ())
        recipe_name, implied = recipe_for(name)
        recipe = compose(recipe_name, (*implied, *overrides), folders).recipe
        self._running = pipeline.start(recipe, progress=progress or _default_progress())
        self._defaults = SamplingParams(**self._running.sampling_defaults)

    @classmethod
    def of(cls, running: pipeline.Running) -> Self:
        """The same over a recipe that was started already; it belongs to the `LLM` then."""
        llm = cls.__new__(cls)
        llm._running = running
        llm._defaults = SamplingParams(**running.sampling_defaults)
        return llm

    @property
    def _loop(self) -> Loop:
        return self._running.loop

    @property
    def recipe(self) -> Recipe:
        """What was composed."""
        return self._running.recipe

    @property
    def tokenizer(self) -> Tokenizer:
        """`encode`, `decode`, `apply_chat_template`, ..."""
        return self._running.tokenizer

    @property
    def running(self) -> pipeline.Running:
        """The parts: built engine, loop, timings."""
        return self._running

    @property
    def default_params(self) -> SamplingParams:
        """What a call without settings gets: the recipe's, and generation_config.json's."""
        return self._defaults

    def resolve(self, params: SamplingParams | None) -> SamplingParams:
        """`params` with the recipe's settings where it leaves something out."""
        if params is None:
            return self._defaults
        given = {name: getattr(params, name) for name in params.model_fields_set}
        return SamplingParams(**{**self._running.sampling_defaults, **given})

    def stats(self) -> Stats:
        """Running and waiting sequences, cache use, tokens per second, totals."""
        return self._loop.stats()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        on_completion: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Continue one or many prompts together; answers are in the order of the prompts.

        `params`: for all, or one for each. As many prompts as you like: what does not fit into
        the queue is held back here. `on_completion` is told each prompt's number and answer, in
        order, as soon as it and all before it are there. Raises `RequestError`; nothing is left
        running then.

        >>> from paddock import LLM, SamplingParams
        >>> with LLM("demo") as llm:
        ...     completions = llm.generate(
        ...         ["The file", [0, 318, 402], [{"role": "user", "content": "What is apt?"}]],
        ...         SamplingParams(max_tokens=4, n=2, temperature=0.7, seed=1),
        ...     )
        >>> [len(completion.sequences) for completion in completions]
        [2, 2, 2]
        """
        asked = _listed(prompts)

        def tell(index: int, result: RequestResult) -> None:
            if on_completion is not None:
                on_completion(index, _completion(asked[index], result))

        results = generate(
            self._loop,
            [self._token_ids(prompt) for prompt in asked],
            self._params_of_each(params, len(asked)),
            on_result=tell,
        )
        return [_completion(prompt, result) for prompt, result in zip(asked, results, strict=True)]

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Completion:
        """The answer to a conversation, through the checkpoint's chat template.

        Of a model that sees, a message's content may be a list of parts, images among them:
        `[{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is this?"}]`, where
        `image` is a path or the bytes of a file.

        >>> from paddock import LLM, SamplingParams
        >>> with LLM("demo") as llm:
        ...     answer = llm.chat([{"role": "user", "content": "What does ls do?"}])
        >>> answer.usage.completion_tokens == len(answer.token_ids)
        True
        """
        return self.generate([messages], params)[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Increment]:
        """Increments as they come, of all `n` continuations. Leaving the iterator cancels.

        >>> from paddock import LLM, SamplingParams
        >>> with LLM("demo") as llm:
        ...     pieces = list(llm.stream("The file", SamplingParams(max_tokens=6)))
        >>> sum(len(piece.token_ids) for piece in pieces)
        6
        """
        return _stream(self.submit(prompt, params))

    async def agenerate(
        self, prompts: Prompt | Sequence[Prompt], params: Params = None
    ) -> list[Completion]:
        """`generate` for coroutines; cancelling the task cancels its requests.

        >>> import asyncio
        >>> from paddock import LLM, SamplingParams
        >>> async def main() -> int:
        ...     with LLM("demo") as llm:
        ...         both = await asyncio.gather(
        ...             llm.agenerate("A file", SamplingParams(max_tokens=3)),
        ...             llm.agenerate("A user", SamplingParams(max_tokens=3)),
        ...         )
        ...     return sum(len(completion.token_ids) for [completion] in both)
        >>> asyncio.run(main())
        6
        """
        asked = _listed(prompts)
        settings = self._params_of_each(params, len(asked))
        handles: list[RequestHandle] = []
        try:
            for prompt, each in zip(asked, settings, strict=True):
                handles.append(await self._asubmit_when_room(prompt, each))
            return [
                _completion(prompt, await handle.aresult())
                for prompt, handle in zip(asked, handles, strict=True)
            ]
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    async def astream(
        self, prompt: Prompt, params: SamplingParams | None = None
    ) -> AsyncIterator[Increment]:
        """`stream` for coroutines.

        >>> import asyncio
        >>> from paddock import LLM, SamplingParams
        >>> async def main() -> int:
        ...     with LLM("demo") as llm:
        ...         chunks = llm.astream("The file", SamplingParams(max_tokens=5))
        ...         return sum([len(chunk.token_ids) async for chunk in chunks])
        >>> asyncio.run(main())
        5
        """
        with await self._asubmit_when_room(prompt, self.resolve(params)) as handle:
            async for increment in handle:
                yield increment

    def embed(
        self,
        texts: str | Sequence[Input],
        *,
        prompt_name: str | None = None,
        dimensions: int | None = None,
    ) -> list[Embedding]:
        """A vector of each text, of a model that gives vectors: pooled as its files say.

        Also pairs of texts and token ids, many at once; answers are in their order. More settings
        (`truncate`, `prompt`) and the same for coroutines: `llm.running.encoder`.

        >>> from paddock import LLM
        >>> with LLM("demo", "task=embed", "pooling=mean", "normalize=true") as llm:
        ...     first, second = llm.embed(["The ls command", "A package is"])
        >>> first.vector.shape, round(float(first.vector @ first.vector), 4)
        ((256,), 1.0)
        """
        encoder = self._running.encoder
        asked = [texts] if isinstance(texts, str) else texts
        return encoder.embed(asked, prompt_name=prompt_name, dimensions=dimensions)

    def classify(self, texts: str | Sequence[Input]) -> list[Classification]:
        """The labels of each text or pair of texts, likeliest first, of a classifier."""
        asked = [texts] if isinstance(texts, str) else texts
        return self._running.encoder.classify(asked)

    def tag(self, texts: str | Sequence[str]) -> list[TaggedText]:
        """The label of each token of each text, of a classifier of tokens."""
        return self._running.encoder.tag([texts] if isinstance(texts, str) else texts)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """How well the second text of each pair fits the first, a query.

        Of a cross-encoder, what it says; of a model that gives vectors, their cosine.
        """
        return self._running.encoder.score(pairs)

    def transcribe(
        self,
        sounds: Sequence[str | Path | bytes | Array],
        *,
        task: SpeechTask = "transcribe",
        language: str | None = None,
        prompt: str = "",
        temperature: float = 0.0,
    ) -> list[Transcript]:
        """What is said in each sound, with times, of a model that hears; sounds of any length.

        A sound is a file, its bytes (WAV, FLAC, OGG, MP3), or samples in [-1, 1], 16000 a second.
        `language` (`fr`) is the one spoken, else the recipe's `answer_language`, else it is heard;
        `task="translate"` writes English. `prompt` is text that came before, whose spelling is
        taken up. `temperature` 0 also means more where the likeliest text is no good. Raises
        `RequestError`.
        """
        hearing = self._running.hearing
        if hearing is None:
            raise RequestError(f"{self.recipe.name} hears nothing; choose a recipe that does")
        asked = Asked(task, language, prompt, temperature)
        return transcribe(
            self._loop, [Listening(hearing, _samples(sound), asked) for sound in sounds]
        )

    def submit(self, prompt: Prompt, params: SamplingParams | None = None) -> RequestHandle:
        """Queue one prompt, waiting for room in the queue; the handle streams or waits.

        For priorities, deadlines and refusal in the place of waiting: `llm.running.loop.submit`.
        """
        asked = self._token_ids(prompt), self.resolve(params)
        return when_there_is_room(self._loop, partial(self._loop.submit, *asked))

    def close(self) -> None:
        """End the engine's thread and give its memory back. What is unfinished is cancelled."""
        self._running.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _params_of_each(self, params: Params, count: int) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [self.resolve(params)] * count
        if len(params) != count:
            raise RequestError(f"expected params for each of {count} prompts, found {len(params)}")
        return [self.resolve(each) for each in params]

    def _token_ids(self, prompt: Prompt) -> str | Sequence[int] | ImagePrompt | SoundPrompt:
        """What the loop takes: text and token ids as they are, a chat as token ids."""
        if isinstance(prompt, str | ImagePrompt | SoundPrompt):
            return prompt
        if _is_chat(prompt):
            return encode_chat(prompt, self.tokenizer, self._running.sight)
        return cast(Sequence[int], prompt)

    async def _asubmit_when_room(self, prompt: Prompt, params: SamplingParams) -> RequestHandle:
        asked = self._token_ids(prompt), params
        return await when_there_is_room_async(self._loop, partial(self._loop.submit, *asked))


def encode_chat(
    messages: Sequence[Message], tokenizer: Tokenizer, sight: Sight | None
) -> list[int] | ImagePrompt:
    """A conversation as the loop takes it; images may be files of this machine.

    Raises `RequestError`, for images, too, that a model without `sight` cannot see.
    """
    source = ImageSource(files=True)
    if sight is not None:
        return sight.encode_chat(messages, source)
    if has_images(messages):
        raise RequestError("the conversation has images, and this model sees none")
    return tokenizer.encode_chat(messages)


def _default_progress() -> Progress:
    if sys.stderr is None or not sys.stderr.isatty():
        return SILENT
    from paddock.progress_bars import ProgressBars

    return ProgressBars()


def _samples(sound: str | Path | bytes | Array) -> Array:
    """16000 a second. Raises `RequestError`."""
    if isinstance(sound, str | Path):
        return read_sound(sound)
    return decode(sound, SoundLimits()) if isinstance(sound, bytes) else sound


def _stream(handle: RequestHandle) -> Iterator[Increment]:
    with handle:
        yield from handle


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt as a list of one. Raises `RequestError` for what is neither."""
    if isinstance(prompts, str | ImagePrompt | SoundPrompt):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise RequestError(
            f"expected a prompt or a list of prompts, found {type(prompts).__name__}"
        )
    if prompts and (isinstance(prompts[0], int) or _is_chat(prompts)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _is_chat(prompt: Sequence[Any]) -> TypeGuard[Sequence[Message]]:
    return len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _completion(prompt: Prompt, result: RequestResult) -> Completion:
    return Completion(
        prompt=prompt,
        prompt_token_ids=result.prompt_token_ids,
        sequences=result.sequences,
        prompt_logprobs=result.prompt_logprobs,
        usage=Usage(
            prompt_tokens=len(result.prompt_token_ids),
            prompt_tokens_cached=result.prompt_tokens_cached,
            completion_tokens=sum(len(sequence.token_ids) for sequence in result.sequences),
        ),
        timing=result.timing,
    )
