"""Attention within whole sequences: packed tokens are laid out padded, and packed again.

OpenVINO has no ragged attention without a cache. Every layer reads the same few index tensors,
which are made once for a graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from openvino import Shape, Type, op
from openvino import opset16 as opset

from paddock.graph.ops import BidirectionalAttention

# Added to the scores of keys that a token does not see; two of them are still finite.
UNSEEN = float(np.finfo(np.float32).min) / 4


@dataclass(frozen=True)
class Padding:
    """Where tokens lie in [sequences, longest], and back; from `sequence_starts`."""

    index: Any  # i32 [sequences, longest]: the token at each place, any token where there is none
    mask: Any  # f32 [sequences, 1, 1, longest]: 0 where there is a token, else UNSEEN
    back: Any  # i32 [tokens]: the place of each token in [sequences * longest]
    distances: Any  # i32 [longest, longest]: j - i
    lengths: Any  # i32 [sequences]
    longest: Any  # i32 []

    @staticmethod
    def of(starts: Any, tokens: Any) -> Padding:
        """`starts`: i32 [sequences + 1]; `tokens`: anything [tokens, ...]."""
        first = opset.slice(starts, _i32(0), _i32(-1), _i32(1), _i32(0))
        last = opset.slice(starts, _i32(1), _i32(np.iinfo(np.int32).max), _i32(1), _i32(0))
        lengths = opset.subtract(last, first)
        longest = opset.reduce_max(lengths, _i32(0), False)
        places = opset.range(_scalar(0), longest, _scalar(1), "i32")
        count = opset.gather(opset.shape_of(tokens, "i32"), _scalar(0), _scalar(0))
        index = opset.add(opset.unsqueeze(first, _i32(1)), opset.unsqueeze(places, _i32(0)))
        index = opset.minimum(index, opset.subtract(count, _scalar(1)))
        there = opset.less(opset.unsqueeze(places, _i32(0)), opset.unsqueeze(lengths, _i32(1)))
        mask = opset.select(there, _f32(0.0), _f32(UNSEEN))
        # How much further back in the padded form a token lies: what its predecessors lack.
        numbers = opset.range(_scalar(0), count, _scalar(1), "i32")
        begun = opset.greater_equal(
            opset.unsqueeze(numbers, _i32(1)), opset.unsqueeze(last, _i32(0))
        )
        lacking = opset.unsqueeze(opset.subtract(longest, lengths), _i32(0))
        before = opset.multiply(opset.convert(begun, "i32"), lacking)
        back = opset.add(numbers, opset.reduce_sum(before, _i32(1), False))
        distances = opset.subtract(
            opset.unsqueeze(places, _i32(0)), opset.unsqueeze(places, _i32(1))
        )
        return Padding(index, opset.unsqueeze(mask, _i32(1, 2)), back, distances, lengths, longest)


def attention(attend: BidirectionalAttention, inputs: list[Any], padding: Padding) -> Any:
    """q [tokens, heads, size], k and v, starts and perhaps a table -> [tokens, heads, size]."""
    q, k, v = (_padded(x, padding) for x in inputs[:3])
    heads, kv_heads = (x.get_output_partial_shape(0)[1].get_length() for x in (q, k))
    if heads != kv_heads:
        shared = np.repeat(np.arange(kv_heads, dtype=np.int32), heads // kv_heads)
        k, v = (opset.gather(x, opset.constant(shared), _scalar(1)) for x in (k, v))
    mask = padding.mask
    if attend.window is not None:
        near = opset.less_equal(opset.abs(padding.distances), _scalar(attend.window))
        mask = opset.add(mask, opset.select(near, _f32(0.0), _f32(UNSEEN)))
    if attend.buckets is not None:
        mask = opset.add(mask, _biases(attend, inputs[4], padding))
    y = opset.scaled_dot_product_attention(q, k, v, mask, _f32(attend.scale), causal=False)
    y = opset.transpose(y, _i32(0, 2, 1, 3))
    size = y.get_output_partial_shape(0)[3].get_length()
    flat = opset.reshape(y, _i64(-1, heads, size), False)
    return opset.gather(flat, padding.back, _scalar(0))


def mean(x: Any, padding: Padding) -> Any:
    """x [tokens, size] -> the same, each row the mean of its sequence's."""
    padded = opset.gather(x, padding.index, _scalar(0))
    there = opset.convert(opset.equal(padding.mask, _f32(0.0)), "f32")
    sums = opset.matmul(opset.squeeze(there, _i32(1)), padded, False, False)
    lengths = opset.unsqueeze(opset.convert(padding.lengths, "f32"), _i32(1))
    means = opset.divide(opset.squeeze(sums, _i32(1)), lengths)
    return opset.gather(means, opset.divide(padding.back, padding.longest), _scalar(0))


def _padded(x: Any, padding: Padding) -> Any:
    """[tokens, heads, size] -> [sequences, heads, longest, size]."""
    return opset.transpose(opset.gather(x, padding.index, _scalar(0)), _i32(0, 2, 1, 3))


def _biases(attend: BidirectionalAttention, table: Any, padding: Padding) -> Any:
    """[1, heads, longest, longest]. Buckets are looked up: all far distances share the last."""
    reach = attend.max_distance
    buckets = attend.bucket_of(np.arange(-reach, reach + 1)).astype(np.int32)
    near = opset.clamp(padding.distances, -reach, reach)
    bucket = opset.gather(opset.constant(buckets), opset.add(near, _scalar(reach)), _scalar(0))
    biases = opset.gather(table, bucket, _scalar(0))
    return opset.unsqueeze(opset.transpose(biases, _i32(2, 0, 1)), _i32(0))


def _i32(*values: int) -> Any:
    return op.Constant(Type.i32, Shape([len(values)]), [int(v) for v in values])


def _i64(*values: int) -> Any:
    return op.Constant(Type.i64, Shape([len(values)]), list(values))


def _scalar(value: int) -> Any:
    return op.Constant(Type.i32, Shape([]), [value])


def _f32(value: float) -> Any:
    return op.Constant(Type.f32, Shape([]), [value])
