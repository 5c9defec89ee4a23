"""What a sequence's next token may be, where a grammar says it."""

from __future__ import annotations

from typing import Protocol, Self

from paddock.graph.dtype import Array
from paddock.runtime.errors import RequestError
from paddock.runtime.sampling.structured_outputs import StructuredOutputs


class ConstraintError(RequestError):
    """A grammar that cannot be followed, or that takes too much to follow."""


class Constraint(Protocol):
    """One sequence's place in a grammar."""

    def restrict(self, row: Array) -> None:
        """Set the logits f32 [V] of what may not come next to -inf. Raises `ConstraintError`."""

    def accept(self, token_id: int) -> None:
        """The sequence goes on with `token_id`. Raises `ConstraintError`."""

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing but an end could follow."""

    def copy(self) -> Self:
        """Another sequence at the same place."""


class Grammars(Protocol):
    """Makes constraints; `paddock.runtime.sampling.grammar.GuidanceGrammars` does."""

    def constraint(self, wanted: StructuredOutputs) -> Constraint:
        """At the beginning of a text. Raises `ConstraintError` for what is no grammar."""
