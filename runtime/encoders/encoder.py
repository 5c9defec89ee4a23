"""Vectors, labels and scores of texts: what an encoder is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from paddock.graph.dtype import Array
from paddock.graph.errors import nearest
from paddock.runtime.encoders.encoder_loop import EncoderLoop, EncoderStats
from paddock.runtime.encoders.pooling import Reads, normalized, pool, reads_of
from paddock.runtime.encoders.sentence_files import SentenceFiles
from paddock.runtime.errors import RequestError, RequestTooLarge
from paddock.runtime.queue_room import when_there_is_room, when_there_is_room_async
from paddock.runtime.text.tokenizer import Encoded, Tokenizer

Input: TypeAlias = str | tuple[str, str] | Sequence[int]
"""A text, a pair of texts, or token ids with the special ones among them."""
Truncate: TypeAlias = Literal["end", "start", "never"]
"""Where texts that are too long are cut; never: they are refused."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """A text as a vector."""

    vector: Array  # f32 [dimensions]
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Classification:
    """A text's labels, likeliest first."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    """Probabilities, or, of models with one output, whatever their activation gives."""
    logits: Array
    """f32 [labels], in the model's own order."""
    tokens: int
    truncated: bool

    @property
    def label(self) -> str:
        return self.labels[0]

    @property
    def score(self) -> float:
        return self.scores[0]


@dataclass(frozen=True, slots=True)
class TokenLabel:
    """What one token of a text was classified as."""

    start: int
    """Of its characters in the text: the first, and behind the last."""
    end: int
    text: str
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class TaggedText:
    """A text whose tokens were classified, the special ones left out."""

    tokens: tuple[TokenLabel, ...]
    token_count: int
    truncated: bool


@dataclass(frozen=True)
class Classifier:
    """What a classifier's logits mean."""

    labels: tuple[str, ...]
    reads: Reads
    activation: Literal["softmax", "sigmoid", "identity"]

    def scores(self, logits: Array) -> Array:
        """[..., labels] -> the same, after the activation."""
        match self.activation:
            case "identity":
                return logits
            case "sigmoid":
                return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))
            case "softmax":
                shifted = np.exp(logits - logits.max(-1, keepdims=True))
                return np.asarray(shifted / shifted.sum(-1, keepdims=True))


class Encoder:
    """A started encoder: asked from any thread or event loop.

    `files` says how hidden states become a vector; `classifier` is set where the model has labels
    in the place of hidden states.
    """

    def __init__(
        self,
        loop: EncoderLoop,
        tokenizer: Tokenizer,
        files: SentenceFiles,
        *,
        max_tokens: int,
        classifier: Classifier | None = None,
    ) -> None:
        """`max_tokens`: beyond it texts are cut."""
        self.loop, self.tokenizer, self.files = loop, tokenizer, files
        self.max_tokens, self.classifier = max_tokens, classifier

    def stats(self) -> EncoderStats:
        return self.loop.stats()

    def close(self) -> None:
        """What waits is cancelled."""
        self.loop.close(drain=False)

    # --- vectors --------------------------------------------------------------------------------

    def embed(
        self,
        inputs: Sequence[Input],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        truncate: Truncate = "end",
        wait: bool = True,
    ) -> list[Embedding]:
        """A vector of each input, in their order.

        `prompt_name`: one of the checkpoint's prompts, put before each text; `prompt`: the text
        itself. `dimensions`: the first so many, for models trained so that these say most
        (Matryoshka, arxiv.org/abs/2205.13147). `wait` false raises `QueueFull` in the place of
        waiting for room. Raises `RequestError`.
        """
        work = self._embed(inputs, prompt_name, prompt, truncate)
        rows = self._results([item for item, _ in work], wait)
        return [
            self._embedding(item, r, n, dimensions) for (item, n), r in zip(work, rows, strict=True)
        ]

    async def aembed(
        self,
        inputs: Sequence[Input],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        truncate: Truncate = "end",
        wait: bool = True,
    ) -> list[Embedding]:
        """`embed` for coroutines; cancelling the task cancels what waits."""
        work = await asyncio.to_thread(self._embed, inputs, prompt_name, prompt, truncate)
        rows = await self._aresults([item for item, _ in work], wait)
        return [
            self._embedding(item, r, n, dimensions) for (item, n), r in zip(work, rows, strict=True)
        ]

    def _embed(
        self,
        inputs: Sequence[Input],
        prompt_name: str | None,
        prompt: str | None,
        truncate: Truncate,
    ) -> list[tuple[_Item, int]]:
        """What is to be run, each with the tokens of its prompt that do not count in pooling."""
        if self.classifier is not None:
            raise RequestError(
                f"this model gives labels ({', '.join(self.classifier.labels[:5])}), not vectors;"
                " ask it to classify or to score"
            )
        said = self._prompt(prompt_name, prompt)
        left_out = 0
        if said and not self.files.include_prompt:
            # The prompt's tokens and what stands before them; the end token follows the text.
            encoded = self.tokenizer.encode_within(said, limit=self.max_tokens)
            left_out = len(encoded.ids) - int(bool(encoded.special[-1]))
        reads = reads_of(self.files.pooling, without_prompt=left_out > 0)
        return [
            (self._item(each, truncate, reads, said), left_out if isinstance(each, str) else 0)
            for each in inputs
        ]

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return prompt
        name = name or self.files.default_prompt
        if name is None:
            return ""
        if name not in self.files.prompts:
            known = ", ".join(self.files.prompts) or "none"
            raise RequestError(
                f"prompt_name: the model has no prompt {name!r}"
                f"{nearest(name, self.files.prompts)}; it has {known}"
            )
        return self.files.prompts[name]

    def _embedding(
        self, item: _Item, rows: Array, prompt: int, dimensions: int | None
    ) -> Embedding:
        vector = pool(rows, self.files.pooling, prompt)
        for dense in self.files.dense:
            vector = dense(vector)
        if dimensions is not None:
            if not 0 < dimensions <= len(vector):
                raise RequestError(
                    f"dimensions is {dimensions}, the model's vectors have {len(vector)}"
                )
            vector = vector[:dimensions]
        if self.files.normalize:
            vector = normalized(vector)
        return Embedding(vector, len(item.ids), item.truncated)

    # --- labels and scores ------------------------------------------------------------------------

    def classify(
        self, inputs: Sequence[Input], *, truncate: Truncate = "end", wait: bool = True
    ) -> list[Classification]:
        """The labels of each text or pair. Raises `RequestError`."""
        classifier = self._classifier("first")
        work = [self._item(each, truncate, "first") for each in inputs]
        rows = self._results(work, wait)
        return [_classified(classifier, i, r) for i, r in zip(work, rows, strict=True)]

    async def aclassify(
        self, inputs: Sequence[Input], *, truncate: Truncate = "end", wait: bool = True
    ) -> list[Classification]:
        """`classify` for coroutines."""
        classifier = self._classifier("first")
        work = [await asyncio.to_thread(self._item, i, truncate, "first") for i in inputs]
        rows = await self._aresults(work, wait)
        return [_classified(classifier, i, r) for i, r in zip(work, rows, strict=True)]

    def tag(
        self, texts: Sequence[str], *, truncate: Truncate = "end", wait: bool = True
    ) -> list[TaggedText]:
        """The label of each token of each text. Raises `RequestError`."""
        classifier = self._classifier("all")
        work = [self._item(each, truncate, "all") for each in texts]
        rows = self._results(work, wait)
        return [
            _tagged(classifier, text, i, r) for text, i, r in zip(texts, work, rows, strict=True)
        ]

    def score(
        self, pairs: Sequence[tuple[str, str]], *, truncate: Truncate = "end", wait: bool = True
    ) -> list[float]:
        """How well the second text of each pair fits the first.

        Of a cross-encoder, its one output after its activation; of an encoder of vectors, the
        cosine of the two (with the prompts `query` and `document`, where it has them).
        """
        if self.classifier is None:
            queries, documents = zip(*pairs, strict=True) if pairs else ((), ())
            return _cosines(
                self.embed(queries, prompt=self._of("query"), truncate=truncate, wait=wait),
                self.embed(documents, prompt=self._of("document"), truncate=truncate, wait=wait),
            )
        self._scores_pairs()
        return [c.score for c in self.classify(list(pairs), truncate=truncate, wait=wait)]

    async def ascore(
        self, pairs: Sequence[tuple[str, str]], *, truncate: Truncate = "end", wait: bool = True
    ) -> list[float]:
        """`score` for coroutines."""
        if self.classifier is None:
            queries, documents = zip(*pairs, strict=True) if pairs else ((), ())
            first, second = await asyncio.gather(
                self.aembed(queries, prompt=self._of("query"), truncate=truncate, wait=wait),
                self.aembed(documents, prompt=self._of("document"), truncate=truncate, wait=wait),
            )
            return _cosines(first, second)
        self._scores_pairs()
        found = await self.aclassify(list(pairs), truncate=truncate, wait=wait)
        return [c.score for c in found]

    def _of(self, role: Literal["query", "document"]) -> str | None:
        """The prompt for a side of a pair: as sentence-transformers' encode_query chooses it."""
        names = ("query",) if role == "query" else ("document", "passage", "corpus")
        return next((self.files.prompts[n] for n in names if n in self.files.prompts), None)

    def _scores_pairs(self) -> None:
        labels = self._classifier("first").labels
        if len(labels) != 1:
            raise RequestError(
                f"this model has {len(labels)} labels ({', '.join(labels[:5])}), a score has one;"
                " ask it to classify"
            )

    def _classifier(self, reads: Reads) -> Classifier:
        found = self.classifier
        if found is None:
            raise RequestError("this model has no labels; ask it to embed")
        if found.reads != reads:
            what, ask = ("tokens", "tag") if found.reads == "all" else ("whole texts", "classify")
            raise RequestError(f"this model labels {what}; ask it to {ask}")
        return found

    # --- sequences ------------------------------------------------------------------------------

    def _item(self, value: Input, truncate: Truncate, reads: Reads, prompt: str = "") -> _Item:
        limit = self.max_tokens
        if isinstance(value, str):
            encoded = self._encoded(prompt + value, None, truncate)
        elif isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
            encoded = self._encoded(value[0], value[1], truncate)
        else:
            ids = list(value)
            if not ids or not all(type(i) is int for i in ids):
                raise RequestError("expected a text, a pair of texts, or token ids")
            if len(ids) > limit and truncate == "never":
                raise RequestTooLarge(_too_long(len(ids), limit))
            kept = ids[-limit:] if truncate == "start" else ids[:limit]
            return _Item(kept, [0] * len(kept), reads, len(kept) < len(ids), [], [])
        return _Item(
            encoded.ids,
            encoded.type_ids,
            reads,
            encoded.truncated,
            encoded.offsets,
            encoded.special,
        )

    def _encoded(self, text: str, pair: str | None, truncate: Truncate) -> Encoded:
        if self.files.lower_case:
            text, pair = text.lower(), None if pair is None else pair.lower()
        encoded = self.tokenizer.encode_within(
            text, pair, limit=self.max_tokens, side="left" if truncate == "start" else "right"
        )
        if encoded.truncated and truncate == "never":
            count = len(self.tokenizer.encode_within(text, pair, limit=1 << 30).ids)
            raise RequestTooLarge(_too_long(count, self.max_tokens))
        if not encoded.ids:
            raise RequestError("the text is empty: it has no tokens")
        return encoded

    def _results(self, work: Sequence[_Item], wait: bool) -> list[Array]:
        futures: list[Future[Array]] = []
        try:
            for item in work:
                submit = partial(self._submit, item)
                futures.append(when_there_is_room(self.loop, submit) if wait else submit())
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    async def _aresults(self, work: Sequence[_Item], wait: bool) -> list[Array]:
        futures: list[Future[Array]] = []
        try:
            for item in work:
                submit = partial(self._submit, item)
                futures.append(
                    await when_there_is_room_async(self.loop, submit) if wait else submit()
                )
            return [await asyncio.wrap_future(future) for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def _submit(self, item: _Item) -> Future[Array]:
        return self.loop.submit(item.ids, item.type_ids, reads=item.reads)


@dataclass(frozen=True, slots=True)
class _Item:
    """One sequence to be run."""

    ids: list[int]
    type_ids: list[int]
    reads: Reads
    truncated: bool
    offsets: list[tuple[int, int]]
    special: list[bool]


def _classified(classifier: Classifier, item: _Item, rows: Array) -> Classification:
    logits = rows[0]
    scores = classifier.scores(logits)
    order = np.argsort(-scores, kind="stable")
    return Classification(
        tuple(classifier.labels[i] for i in order),
        tuple(float(scores[i]) for i in order),
        logits,
        len(item.ids),
        item.truncated,
    )


def _tagged(classifier: Classifier, text: str, item: _Item, rows: Array) -> TaggedText:
    found = []
    for scores, (start, end), special in zip(
        classifier.scores(rows), item.offsets, item.special, strict=True
    ):
        best = int(scores.argmax())
        if not special:
            label, score = classifier.labels[best], float(scores[best])
            found.append(TokenLabel(start, end, text[start:end], label, score))
    return TaggedText(tuple(found), len(item.ids), item.truncated)


def _cosines(queries: Sequence[Embedding], documents: Sequence[Embedding]) -> list[float]:
    return [
        float(normalized(q.vector) @ normalized(d.vector))
        for q, d in zip(queries, documents, strict=True)
    ]


def _too_long(count: int, limit: int) -> str:
    return f"the text has {count} tokens, the model takes {limit}; shorten it, or let it be cut"
