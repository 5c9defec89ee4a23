"""How large a step's arrays may be: what the optimisation profiles are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from paddock.engines.protocol import BuildError

CONTEXT, GENERATION = 0, 1  # numbers of the two profiles
PROFILES = ("context", "generation")

DEFAULT_SEQUENCES = 16
DEFAULT_STEP_TOKENS = 2048


@dataclass(frozen=True)
class Bounds:
    """Sizes that a plan is compiled for."""

    max_context: int
    """Tokens of the longest sequence."""
    max_sequences: int
    """Rows of a call [S, L]."""
    max_step_tokens: int
    """Padded tokens of a call, S x L."""
    max_source: int | None = None
    """Tokens of the longest source of an encoder-decoder; None, as many as of a sequence."""
    max_row: int | None = None
    """Tokens of a row of a call at most; None, as many as a call has."""
    max_patches: int | None = None
    """Rows that an image has at most; None where the model sees none."""
    patches_per_row: int = 1
    """Of an image, of which the model makes one row: an image has a multiple of them."""
    slot_multiple: int = 16
    """Slots hold a multiple of so many tokens, so that each begins at a multiple of 256 bytes."""

    @property
    def capacity(self) -> int:
        """Tokens that a slot of the cache holds: one more than a sequence has, at least.

        A row that takes no part in a call writes its one token there.
        """
        return -(-(self.max_context + 1) // self.slot_multiple) * self.slot_multiple

    @property
    def longest_source(self) -> int:
        return self.max_source or self.max_context

    @property
    def source_capacity(self) -> int:
        """Tokens of a source that a slot holds, one more than any has."""
        return -(-(self.longest_source + 1) // self.slot_multiple) * self.slot_multiple

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row of a call."""
        longest = min(self.max_step_tokens, self.max_context)
        return min(longest, self.max_row or longest)

    @property
    def max_images(self) -> int:
        """Of a call."""
        return max(1, self.max_step_tokens // (self.max_patches or 1))

    def longest(self, of: str) -> int:
        """Tokens of the longest row of a call, of a source, or of an image."""
        if of == "source":
            return self.longest_source
        return self.longest_row if of == "step" else self.max_patches or 1

    @staticmethod
    def of(options: Mapping[str, Any]) -> Bounds:
        """From an engine's options. Raises `BuildError` where they contradict each other."""
        context = int(options["max_context"])
        sequences = int(options.get("max_sequences") or DEFAULT_SEQUENCES)
        tokens = options.get("max_tokens_per_step") or max(
            min(DEFAULT_STEP_TOKENS, context), sequences
        )
        for name, value in (("max_context", context), ("max_sequences", sequences)):
            if value < 1:
                raise BuildError(f"limits.{name} is {value}, expected 1 at least")
        if tokens < sequences:
            raise BuildError(
                f"limits.max_tokens_per_step is {tokens}, limits.max_sequences {sequences}: each"
                " sequence takes a token in every step, so the first must not be less"
            )
        source = options.get("max_source")
        return Bounds(context, sequences, int(tokens), int(source) if source else None)

    def as_json(self) -> dict[str, int]:
        """What is not as it is by default."""
        usual = {field.name: field.default for field in fields(self)}
        return {key: value for key, value in asdict(self).items() if value != usual[key]}

    def shapes(self, profile: int, dims: tuple[int | str, ...]) -> list[tuple[int, ...]]:
        """Least, usual and largest shape of an input whose dimensions have these names."""
        longest = self.longest_row
        tokens = {CONTEXT: (1, min(512, longest), longest), GENERATION: (1, 1, 1)}[profile]
        sequences = (1, min(8, self.max_sequences), self.max_sequences)
        if profile == CONTEXT:
            sequences = (1, 1, self.max_sequences)
        rows = (
            (1, 1, self.max_step_tokens)
            if profile == CONTEXT
            else (1, sequences[1], self.max_sequences)
        )
        # All tokens of a call along one axis, as pipeline stages hand them on.
        flat = rows if profile == GENERATION else (1, tokens[1], self.max_step_tokens)
        source = self.longest_source
        sources = {CONTEXT: (1, min(512, source), source), GENERATION: (1, 1, 1)}[profile]
        images = self.max_images if profile == CONTEXT else 1
        least, patches = self.patches_per_row, self.max_patches or 1
        sizes = {
            IMAGES: (1, 1, images),
            PATCHES: (least, patches, patches) if profile == CONTEXT else (least,) * 3,
            SEQUENCES: sequences,
            TOKENS: tokens,
            ROWS: rows,
            FLAT: flat,
            SOURCES: sources,
        }
        return [tuple(d if isinstance(d, int) else sizes[d][i] for d in dims) for i in range(3)]


# Names of the dimensions that a profile bounds; TensorRT knows those that share a name as equal.
SEQUENCES, TOKENS, ROWS, FLAT = "sequences", "tokens", "rows", "flat_tokens"
SOURCES = "source_tokens"
IMAGES, PATCHES = "images", "image_patches"
