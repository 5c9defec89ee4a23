"""A decoder's attention to its source, whose keys and values lie in caches of their own.

A call [S, L] brings sources [S, E] for rows that begin. Where none does, E is 1, and what the
encoder makes of that one token is written behind all sources, where nobody looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt.attention import SOURCE, rows_of, scaled, updated
from paddock.engines.tensorrt.bounds import SEQUENCES
from paddock.engines.tensorrt.network import Tensor, annotate
from paddock.graph import DType, Node
from paddock.graph import ops as F

if TYPE_CHECKING:
    from paddock.engines.tensorrt.lowering import Lowering

OF_SOURCE = ".source"
"""Behind a cache's name, that of what lies there of sources."""


def cross_attention(state: Lowering, node: Node, inputs: list[Any]) -> Any:
    """[tokens, heads, size] -> [tokens, heads, size], by the attention layer."""
    op, network = node.op, state.network
    assert isinstance(op, F.CrossAttention)
    q, k, v = inputs[:3]
    q = rows_of(state, scaled(state, q, op.scale, node.inputs[0].dtype), node.inputs[0])
    keys, values = (
        updated(
            state,
            _cache(state, cache),
            rows_of(state, x, like, SOURCE),
            state.feed("source_write_indices", "step", DType.I32, SEQUENCES),
        )
        for cache, x, like in zip(node.inputs[3:5], (k, v), node.inputs[1:3], strict=True)
    )
    softmax = network.enum("AttentionNormalizationOp", "SOFTMAX")
    if network.flavour.features.ragged_attention:
        none = network.enum("CausalMaskKind", "NONE")
        layer = network.layer("attention_v2", q, keys, values, softmax, none)
        network.set(layer, "key_value_lengths", _lengths(state))
    else:
        layer = network.layer("attention", q, keys, values, softmax, False)
        network.set(layer, "mask", _written(state))
    network.set(layer, "decomposable", True)
    annotate(layer, scale=op.scale)
    heads, size = node.inputs[0].type.size(1), node.inputs[2].type.size(2)
    return state.view(network.output(layer), (-1, heads, size), before=(0, 2, 1, 3))


def _lengths(state: Lowering) -> Tensor:
    """i32 [S]: tokens of each row's source."""
    return state.feed("source_lengths", "step", DType.I32, SEQUENCES)


def _cache(state: Lowering, operand: Any) -> Tensor:
    op = operand.node.op
    if not isinstance(op, F.CacheBlocks):
        raise BuildError(f"{operand.node.where}: a cache is expected, not a {op.name}")
    heads, size = operand.type.size(2), operand.type.size(3)
    name, capacity = op.key + OF_SOURCE, state.bounds.source_capacity
    return state.feed(name, "cache", op.dtype, SEQUENCES, heads, capacity, size)


def _written(state: Lowering) -> Tensor:
    """bool [S, 1, 1, capacity]: whether a place holds a token of the row's source."""

    def make() -> Tensor:
        places = np.arange(state.bounds.source_capacity, dtype=np.int32).reshape(1, 1, 1, -1)
        places = state.network.constant(places, DType.I32)
        return state.elementwise("LESS", places, state.view(_lengths(state), (-1, 1, 1, 1)))

    return state.once("written", make)
