"""What one engine step feeds to every layer."""

from dataclasses import dataclass, replace

from paddock.graph import DType, Tensor
from paddock.graph.ops import input_tensor
from paddock.graph.tensor import (
    AREA_STARTS,
    IMAGE_PATCHES,
    IMAGE_STARTS,
    ROWS,
    SEQUENCES,
    SOURCE_TABLE,
    SOURCE_TOKENS,
    STARTS,
    TABLE,
    TOKENS,
)


@dataclass(frozen=True)
class Step:
    """The step's arrays as tensors, named as in `paddock.engines.protocol.StepInputs`.

    `max_context` is the longest sequence that the engine is built for, in tokens; rotary scalings
    that depend on the length are fixed by it.
    """

    token_ids: Tensor  # i64 [tokens]
    positions: Tensor  # i64 [tokens]
    sequence_starts: Tensor  # i32 [sequences + 1]
    past_lengths: Tensor  # i32 [sequences]
    block_table: Tensor  # i32 [table]
    block_starts: Tensor  # i32 [sequences + 1]
    sequence_slots: Tensor  # i32 [sequences]
    logit_rows: Tensor  # i64 [rows]
    token_types: Tensor  # i64 [tokens]
    source_ids: Tensor  # i64 [source tokens]
    source_positions: Tensor  # i64 [source tokens]
    source_starts: Tensor  # i32 [sequences + 1]
    source_lengths: Tensor  # i32 [sequences]
    source_table: Tensor  # i32 [source table]
    source_table_starts: Tensor  # i32 [sequences + 1]
    image_positions: Tensor  # i64 [image patches]
    image_starts: Tensor  # i32 [images + 1]
    image_rows: Tensor  # i64 [tokens]
    max_context: int

    @property
    def states(self) -> tuple[Tensor, Tensor, Tensor]:
        """What ops that keep a state of each sequence ask for."""
        return self.sequence_starts, self.past_lengths, self.sequence_slots

    @property
    def source(self) -> "Step":
        """The step as an encoder's layers see it that stand before a decoder's."""
        return replace(
            self,
            token_ids=self.source_ids,
            positions=self.source_positions,
            sequence_starts=self.source_starts,
        )

    @property
    def images(self) -> "Step":
        """The step as a vision tower's layers see it: sequences are images, tokens patches."""
        return replace(self, positions=self.image_positions, sequence_starts=self.image_starts)

    @property
    def image_areas(self) -> "Step":
        """The same where a layer sees no more of an image than an area."""
        starts = input_tensor("image_area_starts", DType.I32, AREA_STARTS)
        return replace(self.images, sequence_starts=starts)

    @property
    def patch_places(self) -> tuple[Tensor, Tensor]:
        """In what row and what column of its image a patch is, i64 [image patches] each."""
        return (
            input_tensor("image_patch_rows", DType.I64, IMAGE_PATCHES),
            input_tensor("image_patch_columns", DType.I64, IMAGE_PATCHES),
        )

    @property
    def grid_positions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where a token is in time, in an image's rows and in its columns, i64 [tokens] each."""
        time, row, column = (
            input_tensor(f"{axis}_positions", DType.I64, TOKENS)
            for axis in ("time", "row", "column")
        )
        return time, row, column

    def patches(self, size: int) -> Tensor:
        """The images' patches, f32 [image patches, size]."""
        return input_tensor("image_patches", DType.F32, IMAGE_PATCHES, size)

    def features(self, size: int) -> Tensor:
        """What an encoder reads that hears: f32 [source tokens, size]."""
        return input_tensor("source_features", DType.F32, SOURCE_TOKENS, size)

    @staticmethod
    def inputs(max_context: int) -> "Step":
        """A step whose tensors are inputs of the current graph."""
        return Step(
            token_ids=input_tensor("token_ids", DType.I64, TOKENS),
            positions=input_tensor("positions", DType.I64, TOKENS),
            sequence_starts=input_tensor("sequence_starts", DType.I32, STARTS),
            past_lengths=input_tensor("past_lengths", DType.I32, SEQUENCES),
            block_table=input_tensor("block_table", DType.I32, TABLE),
            block_starts=input_tensor("block_starts", DType.I32, STARTS),
            sequence_slots=input_tensor("sequence_slots", DType.I32, SEQUENCES),
            logit_rows=input_tensor("logit_rows", DType.I64, ROWS),
            token_types=input_tensor("token_types", DType.I64, TOKENS),
            source_ids=input_tensor("source_ids", DType.I64, SOURCE_TOKENS),
            source_positions=input_tensor("source_positions", DType.I64, SOURCE_TOKENS),
            source_starts=input_tensor("source_starts", DType.I32, STARTS),
            source_lengths=input_tensor("source_lengths", DType.I32, SEQUENCES),
            source_table=input_tensor("source_table", DType.I32, SOURCE_TABLE),
            source_table_starts=input_tensor("source_table_starts", DType.I32, STARTS),
            image_positions=input_tensor("image_positions", DType.I64, IMAGE_PATCHES),
            image_starts=input_tensor("image_starts", DType.I32, IMAGE_STARTS),
            image_rows=input_tensor("image_rows", DType.I64, TOKENS),
            max_context=max_context,
        )
