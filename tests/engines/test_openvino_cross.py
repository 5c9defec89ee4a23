"""A decoder's attentions on openvino: biases by distance, and a source in the same cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paddock.engines import openvino, reference
from paddock.engines.openvino.portable_attention import (
    NEVER,
    padded_source,
    written_source_rows,
)
from paddock.engines.openvino.session import ONE_TOKEN
from paddock.engines.protocol import BuildError
from paddock.graph import Array, DType, Graph, Tensor, use_graph
from paddock.graph import ops as F
from paddock.graph.tensor import BLOCK_SIZE, BLOCKS
from paddock.layers import Step
from paddock.recipes import verify
from tests.engines.lowered import Held

VOCAB = 50
TWO = replace(
    ONE_TOKEN,
    source_ids=np.zeros(3, np.int64),
    source_positions=np.arange(3),
    source_starts=np.array([0, 0, 3], np.int32),
    source_lengths=np.array([5, 3], np.int32),
    source_table=np.array([3, 1, 2], np.int32),
    source_table_starts=np.array([0, 2, 3], np.int32),
)


def decoder(
    heads: int, kv_heads: int, size: int, value_size: int, dtype: DType
) -> tuple[Graph, dict[str, Array]]:
    """Everything looked up by token; the sum of both attentions, so that either's error shows."""
    random = np.random.default_rng([heads, kv_heads, size])
    arrays: dict[str, Array] = {}

    def weight(name: str, *shape: int) -> Tensor:
        arrays[name] = (2 * random.standard_normal(shape)).astype(dtype.numpy)
        tensor: Tensor = F.Weight(name, dtype, shape)()
        return tensor

    with use_graph(Graph(dtype)) as graph:
        step = Step.inputs(128)

        def rows(name: str, ids: Tensor, heads: int, size: int) -> Tensor:
            return F.reshape(F.gather(weight(name, VOCAB, heads * size), ids), heads, size)

        caches = tuple(
            F.CacheBlocks(name, dtype, (BLOCKS, BLOCK_SIZE, kv_heads, width))()
            for name, width in (("keys", size), ("values", value_size))
        )
        own = F.attention(
            rows("q", step.token_ids, heads, size),
            rows("k", step.token_ids, kv_heads, size),
            rows("v", step.token_ids, kv_heads, value_size),
            caches=(caches[0], caches[1]),
            sequence_starts=step.sequence_starts,
            past_lengths=step.past_lengths,
            block_table=step.block_table,
            block_starts=step.block_starts,
            scale=0.2,
            biases=weight("biases", 16, heads),
            max_distance=20,
        )
        source = F.cross_attention(
            rows("q2", step.token_ids, heads, size),
            rows("k2", step.source_ids, kv_heads, size),
            rows("v2", step.source_ids, kv_heads, value_size),
            caches=(caches[0], caches[1]),
            sequence_starts=step.sequence_starts,
            source_starts=step.source_starts,
            source_lengths=step.source_lengths,
            source_table=step.source_table,
            source_table_starts=step.source_table_starts,
            scale=0.2,
        )
        y = F.reshape(own + source, heads * value_size)
        head = weight("head", VOCAB, heads * value_size)
        graph.outputs = (F.cast(F.linear(F.gather(y, step.logit_rows), head), DType.F32),)
    return graph, arrays


@pytest.mark.parametrize(("dtype", "bound"), [(DType.F32, 1e-5), (DType.BF16, 0.02)])
@pytest.mark.parametrize("shape", [(4, 4, 8, 8), (6, 2, 16, 12), (3, 1, 10, 10)])
def test_it_computes_what_the_definitions_say(
    shape: tuple[int, int, int, int], dtype: DType, bound: float
) -> None:
    graph, arrays = decoder(*shape, dtype)
    settings = {"threads": 1}
    ours = openvino.build(graph, settings).open(Held(arrays), settings)
    theirs = reference.build(graph, {}).open(Held(arrays), {})
    asked = verify.Asked(sources=True)
    errors = verify.errors(verify.run(ours, asked), verify.run(theirs, asked))
    assert errors.max() < bound


def test_a_cache_in_8_bits_is_refused() -> None:
    graph, _ = decoder(2, 2, 8, 8, DType.F32)
    with pytest.raises(BuildError, match="a soft cap, biases or a source"):
        openvino.build(graph, {"cache_dtype": "u8"})


def test_padding_of_sources_is_zeros() -> None:
    """One source is in the cache, one comes: each row that padding reads is one of zeros."""
    made = padded_source(TWO, 4, 99)
    assert made["source_rows"].tolist() == [[12, 13, 14, 15, 4], [99] * 5]
    assert made["new_source_rows"].tolist() == [[3, 3, 3], [0, 1, 2]]  # of three, and zeros
    seen = [[0] * 5 + [NEVER] * 3, [NEVER] * 5 + [0] * 3]
    assert made["source_key_positions"].tolist() == seen
    assert written_source_rows(TWO, 4).tolist() == [8, 9, 10]
