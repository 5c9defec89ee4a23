"""Constraints by llguidance, which follows JSON schemas, Lark grammars and regular expressions.

Masks are made ahead in a thread of their own: when a token is accepted, the mask of the next one
is computed (with the interpreter's lock released) while the engine runs the step in between.
"""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from paddock.graph.dtype import Array
from paddock.runtime.sampling.constraint import ConstraintError
from paddock.runtime.sampling.structured_outputs import StructuredOutputs
from paddock.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `json.dumps` writes it: a model that may write any whitespace may never stop doing so."""
MAX_GRAMMAR_ITEMS = 200_000
"""Symbols of a grammar once it is compiled."""
COMPILE_FUEL = 200_000
"""Regular expressions that compiling makes; some milliseconds of work (llguidance's default is five
times that)."""
STEP_FUEL = 100_000
"""The same for one token. `(a{1000}){1000}` spends it in 0.2 s and is refused; with the default it
holds a core for 3 s."""


class GuidanceGrammars:
    """Compiles what requests ask for, for one tokenizer. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """vocab_size: logits of a row, which may be more than the tokenizer has tokens."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = Lock()
        self._backend: LLTokenizer | None = None  # takes a second with a large vocabulary
        self._masks = ThreadPoolExecutor(1, thread_name_prefix="paddock-masks")

    def constraint(self, wanted: StructuredOutputs) -> GuidanceConstraint:
        """See `Grammars`."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            max_grammar_size=MAX_GRAMMAR_ITEMS,
            initial_lexer_fuel=COMPILE_FUEL,
            step_lexer_fuel=STEP_FUEL,
            verbose_errors=False,
        )
        try:
            matcher = LLMatcher(
                self._llguidance_tokenizer(), _grammar(wanted), log_level=0, limits=limits
            )
        except ValueError as error:
            raise ConstraintError(f"structured_outputs: {_one_line(error)}") from None
        if matcher.is_error():
            raise ConstraintError(f"structured_outputs: {_one_line(matcher.get_error())}")
        constraint = GuidanceConstraint(matcher, self._vocab_size, self._masks)
        constraint.allowed()  # the first step is the dearest: its cost is the asker's
        return constraint

    def close(self) -> None:
        self._masks.shutdown(wait=False, cancel_futures=True)

    def _llguidance_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        with self._lock:
            if self._backend is None:
                ends = sorted(i for i in self._tokenizer.eos_token_ids if i < self._vocab_size)
                if not ends:
                    raise ConstraintError(
                        "structured_outputs: the tokenizer has no end-of-sequence token, so no"
                        " text of it can be complete"
                    )
                self._backend = LLTokenizer(
                    self._tokenizer.to_json(),
                    n_vocab=max(self._vocab_size, self._tokenizer.vocab_size),
                    eos_token=ends,
                )
            return self._backend


class GuidanceConstraint:
    """One sequence's place in a grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, masks: ThreadPoolExecutor) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._masks = masks
        self._mask: Future[Array] | None = None
        self._finished = matcher.is_stopped()

    def restrict(self, row: Array) -> None:
        """See `Constraint`."""
        np.putmask(row, ~self.allowed(), -np.inf)

    def allowed(self) -> Array:
        """bool [V]: what may come next. Raises `ConstraintError`."""
        if self._mask is None:
            self._mask = self._masks.submit(self._compute)
        return self._mask.result()

    def accept(self, token_id: int) -> None:
        """See `Constraint`."""
        if self._mask is not None:
            self._mask.result()  # the matcher is one thread's at a time
            self._mask = None
        if not self._matcher.consume_token(token_id):
            raise ConstraintError(
                f"structured_outputs: token {token_id} does not fit:"
                f" {_one_line(self._matcher.get_error())}"
            )
        self._finished = self._matcher.is_stopped()
        if not self._finished:
            self._mask = self._masks.submit(self._compute)

    @property
    def finished(self) -> bool:
        """See `Constraint`."""
        return self._finished

    def copy(self) -> Self:
        """See `Constraint`."""
        self.allowed()  # the matcher is one thread's at a time
        return type(self)(self._matcher.deep_copy(), self._vocab_size, self._masks)

    def _compute(self) -> Array:
        """bool [V]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise ConstraintError(f"structured_outputs: {_one_line(self._matcher.get_error())}")
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)


def _grammar(wanted: StructuredOutputs) -> str:
    from llguidance import LLMatcher

    if wanted.grammar is not None:
        return LLMatcher.grammar_from_lark(wanted.grammar)
    if wanted.regex is not None:
        return LLMatcher.grammar_from_regex(wanted.regex)
    if wanted.choice is not None:
        texts = (json.dumps(text, ensure_ascii=False) for text in wanted.choice)
        return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))
    schema: Any = {"type": "object"}
    if wanted.json_schema is not None:
        schema = wanted.json_schema
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise ConstraintError(f"structured_outputs.json: not JSON: {error}") from None
    return LLMatcher.grammar_from_json_schema(_as_object(schema), overrides=JSON_FORM)  # type: ignore[arg-type]


def _as_object(schema: Any) -> dict[str, Any]:
    """The schema `true` as an object. Raises `ConstraintError` for `false`, and what is none."""
    if schema is True:
        return {}
    if schema is False:
        raise ConstraintError("structured_outputs.json: no text is valid under the schema `false`")
    if not isinstance(schema, dict):
        raise ConstraintError(
            f"structured_outputs.json: a schema is an object, found {type(schema).__name__}"
        )
    return schema


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:500]
