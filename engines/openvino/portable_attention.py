"""Attention over the paged cache in OpenVINO's standard operations, for what its own kernel lacks.

A step's sequences are laid side by side, each padded to the longest: queries [sequences, longest,
...], keys [sequences, cached + longest, ...]. Cached rows are gathered from their blocks; the
step's own keys and values are outputs of the model, and the session puts them into their blocks
when the step has run. Nothing but the rows that are read or written is moved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import openvino as ov
from openvino import PartialShape, Shape, Type, op
from openvino import opset16 as opset

from paddock.engines.protocol import StepInputs
from paddock.graph import Array
from paddock.graph.ops import Attention, CacheBlocks, CrossAttention, RelativeAttention
from paddock.graph.tensor import fixed

NEVER = 2**31 - 1  # the position of a key that is padding: no query is as late
INPUTS = ("query_rows", "query_positions", "cached_rows", "key_positions", "token_rows")
SOURCE_INPUTS = ("source_rows", "new_source_rows", "source_key_positions")


@dataclass(frozen=True)
class Keys:
    """Which inputs say where the keys of a step lie."""

    cached: str  # [S, P] rows of the cache
    new: str  # [S, L] rows among the step's own keys
    positions: str  # [S, P + L]


TEXT = Keys("cached_rows", "query_rows", "key_positions")
SOURCE = Keys(*SOURCE_INPUTS)
_DTYPES = {
    "f32": (np.dtype(np.float32), Type.f32),
    "f16": (np.dtype(np.float16), Type.f16),
    "bf16": (np.dtype(ml_dtypes.bfloat16), Type.bf16),
}


def padded(step: StepInputs, block_size: int, spare_row: int) -> dict[str, Array]:
    """The arrays of `INPUTS` for a step; rows of a cache count its tokens from block 0 on.

    S sequences, at most L new tokens and P cached ones: query_rows [S, L] (rows of the packed
    tokens), query_positions [S, L], cached_rows [S, P], key_positions [S, P + L], token_rows [T]
    (where the packed tokens are among the S x L). Cached padding is `spare_row`, which holds
    zeros; new padding repeats the sequence's first token, so that nobody meets another's values.
    """
    starts = step.sequence_starts.astype(np.int64)
    past = step.past_lengths.astype(np.int64)
    new = np.diff(starts)
    longest, cached = int(new.max()), max(int(past.max()), 1)
    column = np.arange(longest)
    is_query = column < new[:, None]
    offsets = np.where(is_query, column, 0)
    positions = past[:, None] + offsets
    row = np.arange(cached)
    is_cached = row < past[:, None]
    blocks = np.minimum(
        step.block_starts[:-1, None].astype(np.int64) + row // block_size,
        len(step.block_table) - 1,
    )
    slots = step.block_table[blocks].astype(np.int64) * block_size + row % block_size
    made = {
        "query_rows": np.minimum(starts[:-1, None] + offsets, starts[-1] - 1),
        "query_positions": positions,
        "cached_rows": np.where(is_cached, slots, spare_row),
        "key_positions": np.concatenate(
            [np.where(is_cached, row, NEVER), np.where(is_query, positions, NEVER)], axis=1
        ),
        "token_rows": np.flatnonzero(is_query),
    }
    return {name: array.astype(np.int32) for name, array in made.items()}


def padded_source(step: StepInputs, block_size: int, spare_row: int) -> dict[str, Array]:
    """The arrays of `SOURCE_INPUTS` for a step of an encoder-decoder.

    S sequences, at most P tokens of a source in the cache and L in the step: source_rows [S, P],
    new_source_rows [S, L] (among the packed source tokens, and one row of zeros behind them, which
    is padding), source_key_positions [S, P + L]: 0, which every query sees, or `NEVER`.
    """
    starts = _source(step.source_starts)
    new, lengths = np.diff(starts), _source(step.source_lengths)
    past = np.where(new > 0, 0, lengths)
    row, column = np.arange(max(int(past.max()), 1)), np.arange(int(new.max()))
    is_cached, is_new = row < past[:, None], column < new[:, None]
    table = _source(step.source_table)
    blocks = np.minimum(
        _source(step.source_table_starts)[:-1, None] + row // block_size, len(table) - 1
    )
    made = {
        "source_rows": np.where(
            is_cached, table[blocks] * block_size + row % block_size, spare_row
        ),
        "new_source_rows": np.where(is_new, starts[:-1, None] + column, starts[-1]),
        "source_key_positions": np.where(np.concatenate([is_cached, is_new], axis=1), 0, NEVER),
    }
    return {name: array.astype(np.int32) for name, array in made.items()}


def written_source_rows(step: StepInputs, block_size: int) -> Array:
    """The cache row of each packed source token of the step."""
    starts, table = _source(step.source_starts), _source(step.source_table)
    sequence = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    offset = np.arange(starts[-1]) - starts[sequence]
    blocks = _source(step.source_table_starts)[sequence] + offset // block_size
    rows: Array = table[blocks] * block_size + offset % block_size
    return rows


def _source(array: Array | None) -> Array:
    if array is None:
        raise ValueError("the step has no sources, which this model reads")
    return array.astype(np.int64)


def written_rows(step: StepInputs, block_size: int) -> Array:
    """The cache row of each packed token of the step."""
    sequence = np.repeat(np.arange(len(step.past_lengths)), np.diff(step.sequence_starts))
    blocks = step.block_starts[sequence] + step.positions // block_size
    rows: Array = step.block_table[blocks].astype(np.int64) * block_size
    return rows + step.positions % block_size


class CacheRows:
    """One cache slot in memory of ours; the block behind the last stays zero, as padding."""

    def __init__(self, source: CacheBlocks, block_size: int, dtype: str) -> None:
        self.key = source.key
        self._token = fixed(source.shape[2:])
        self._block_size = block_size
        self._dtype, self._type = _DTYPES[dtype]
        self.block_bytes = block_size * int(np.prod(self._token)) * self._dtype.itemsize
        self._rows: Array = np.zeros(0)

    def allocate(self, blocks: int) -> Any:
        """A tensor [blocks + 1, block size, *token], for the model's input."""
        shape = (blocks + 1, self._block_size, *self._token)
        array = np.zeros(shape, self._dtype)
        self._rows = array.reshape(shape[0] * shape[1], -1)
        # Bytes, because OpenVINO's binding does not know bfloat16 of ml_dtypes.
        return ov.Tensor(array.reshape(-1).view(np.uint8), Shape(list(shape)), self._type)

    def write(self, rows: Array, values: Array) -> None:
        """Keep `values` [tokens, features] in `rows`."""
        self._rows[rows] = values.astype(self._dtype, copy=False)


@dataclass
class PortableAttention:
    """What the layers of a model share while it is lowered."""

    block_size: int
    dtype: str = "f32"
    parameters: dict[str, Any] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)  # cache slot -> the step's rows for it
    written_sources: dict[str, Any] = field(default_factory=dict)  # the same of its sources
    _masks: dict[int | str | None, Any] = field(default_factory=dict)
    _shared: dict[str, Any] = field(default_factory=dict)

    def cache(self, source: CacheBlocks) -> Any:
        """The model's input for a cache slot."""
        shape = PartialShape([-1, self.block_size, *fixed(source.shape[2:])])
        return self._parameter(source.key, _DTYPES[self.dtype][1], shape)

    def lower(
        self,
        attention: Attention,
        qkv: tuple[Any, Any, Any],
        caches: tuple[Any, Any],
        keys: tuple[str, str],
        sizes: tuple[int, int, int, int],
        sinks: Any | None = None,
        biases: Any | None = None,
    ) -> Any:
        """q, k, v [tokens, heads, size] -> [tokens, heads, value size].

        `keys` names the two cache slots; `sizes` is heads, key heads, key size, value size;
        `biases` is the table [buckets, heads] of a `RelativeAttention`.
        """
        heads, kv_heads, _, _ = sizes
        group = heads // kv_heads
        q, k, v = _flat(qkv, sizes)
        self.written |= {keys[0]: k, keys[1]: v}
        scores = self._scores(q, k, caches[0], TEXT, attention.scale, sizes)
        if attention.soft_cap is not None:
            cap = _f32(attention.soft_cap)
            scores = opset.multiply(opset.tanh(opset.divide(scores, cap)), cap)
        # [sequences, key heads, group, longest, keys]
        merged = opset.shape_of(scores)
        scores = opset.reshape(scores, self._apart(kv_heads, group, None), False)
        if biases is not None:
            assert isinstance(attention, RelativeAttention)
            scores = opset.add(scores, self._biases(attention, biases, kv_heads, group))
        if attention.alibi is not None:
            slopes = np.asarray(attention.alibi, np.float32).reshape(1, kv_heads, group, 1, 1)
            scores = opset.add(scores, opset.multiply(op.Constant(slopes), self._distances()))
        scores = opset.select(self._mask(attention.window), scores, _f32(-3e38))
        if sinks is None:
            weights = opset.softmax(scores, -1)
        else:
            lost = opset.reshape(sinks, _i64(1, kv_heads, group, 1, 1), False)
            shape = opset.concat([self._apart(kv_heads, group, 1)], 0)
            every = opset.concat([scores, opset.broadcast(lost, shape)], -1)
            weights = opset.slice(opset.softmax(every, -1), _i64(0), _i64(-1), _i64(1), _i64(4))
        return self._weighted(opset.reshape(weights, merged, False), v, caches[1], TEXT, sizes)

    def lower_cross(
        self,
        attention: CrossAttention,
        qkv: tuple[Any, Any, Any],
        caches: tuple[Any, Any],
        keys: tuple[str, str],
        sizes: tuple[int, int, int, int],
    ) -> Any:
        """The same of a decoder's tokens to its source: k and v [source tokens, heads, size]."""
        q, *source = _flat(qkv, sizes)
        self.written_sources |= dict(zip(keys, source, strict=True))
        # A row of zeros behind them, so that padding is nobody's.
        k, v = (opset.pad(x, _i64(0, 0), _i64(1, 0), "constant") for x in source)
        scores = self._scores(q, k, caches[0], SOURCE, attention.scale, sizes)
        if "source" not in self._masks:
            positions = opset.unsqueeze(self._input(SOURCE.positions), _i64(1, 2))
            self._masks["source"] = opset.equal(positions, op.Constant(Type.i32, Shape([]), [0]))
        scores = opset.select(self._masks["source"], scores, _f32(-3e38))
        return self._weighted(opset.softmax(scores, -1), v, caches[1], SOURCE, sizes)

    def _scores(
        self,
        q: Any,
        k: Any,
        cache: Any,
        keys: Keys,
        scale: float,
        sizes: tuple[int, int, int, int],
    ) -> Any:
        """[sequences, key heads, queries that share a key head x longest, keys]."""
        heads, kv_heads, size, _ = sizes
        queries = opset.gather(q, self._input("query_rows"), _i64s(0))
        queries = opset.reshape(queries, _i64(0, 0, kv_heads, heads // kv_heads, size), True)
        queries = opset.transpose(queries, _i64(0, 2, 3, 1, 4))
        queries = opset.reshape(queries, _i64(0, kv_heads, -1, size), True)
        queries = opset.multiply(queries, _f32(scale))
        # Cached and new keys apart, whose scores are joined: joining keys would copy them again.
        return opset.concat(
            [
                opset.matmul(queries, self._cached(cache, keys, kv_heads, size), False, True),
                opset.matmul(queries, self._new(k, keys, kv_heads, size), False, True),
            ],
            -1,
        )

    def _weighted(
        self, weights: Any, v: Any, cache: Any, keys: Keys, sizes: tuple[int, int, int, int]
    ) -> Any:
        """The values, weighted as `_scores` are laid out: [tokens, heads, value size]."""
        heads, kv_heads, _, size = sizes
        cached, new = self._split(weights, keys)
        made = opset.add(
            opset.matmul(cached, self._cached(cache, keys, kv_heads, size), False, False),
            opset.matmul(new, self._new(v, keys, kv_heads, size), False, False),
        )
        made = opset.reshape(made, self._apart(kv_heads, heads // kv_heads, size), False)
        made = opset.transpose(made, _i64(0, 3, 1, 2, 4))
        made = opset.reshape(made, _i64(-1, heads * size), False)
        made = opset.gather(made, self._input("token_rows"), _i64s(0))
        return opset.reshape(made, _i64(0, heads, size), True)

    def _cached(self, cache: Any, keys: Keys, kv_heads: int, size: int) -> Any:
        """Cached rows of each sequence: [sequences, key heads, cached, size], gathered as such."""
        name = f"{keys.cached} {kv_heads}"
        if name not in self._shared:
            heads = op.Constant(np.arange(kv_heads, dtype=np.int32).reshape(1, -1, 1))
            rows = opset.unsqueeze(self._input(keys.cached), _i64(1))
            count = op.Constant(Type.i32, Shape([]), [kv_heads])
            self._shared[name] = opset.add(opset.multiply(rows, count), heads)
        rows = opset.reshape(cache, _i64(-1, size), False)
        return opset.convert(opset.gather(rows, self._shared[name], _i64s(0)), "f32")

    def _new(self, new: Any, keys: Keys, kv_heads: int, size: int) -> Any:
        """The step's rows of each sequence: [sequences, key heads, longest, size]."""
        rows = opset.gather(new, self._input(keys.new), _i64s(0))
        rows = opset.reshape(rows, _i64(0, 0, kv_heads, size), True)
        return opset.transpose(rows, _i64(0, 2, 1, 3))

    def _split(self, weights: Any, keys: Keys) -> tuple[Any, Any]:
        """Along the keys: those of cached ones, and of new ones."""
        cached, end = self._size(keys.cached, 1), self._size(keys.positions, 1)
        axis, step = _i64(3), _i64(1)
        return (
            opset.slice(weights, _i64(0), cached, step, axis),
            opset.slice(weights, cached, end, step, axis),
        )

    def _mask(self, window: int | None) -> Any:
        """Whether a query sees a key: [sequences, 1, 1, longest, keys]."""
        if window not in self._masks:
            queries, keys = self._positions()
            seen = opset.less_equal(keys, queries)
            if window is not None:
                first = opset.subtract(queries, op.Constant(Type.i32, Shape([]), [window]))
                seen = opset.logical_and(seen, opset.greater(keys, first))
            self._masks[window] = seen
        return self._masks[window]

    def _positions(self) -> tuple[Any, Any]:
        if "queries" not in self._shared:
            self._shared["queries"] = opset.unsqueeze(self._input("query_positions"), _i64(1, 2, 4))
            self._shared["keys"] = opset.unsqueeze(self._input("key_positions"), _i64(1, 2, 3))
        return self._shared["queries"], self._shared["keys"]

    def _distances(self) -> Any:
        """How far behind its query a key is, as a number from 0 down."""
        if "distances" not in self._shared:
            queries, keys = self._positions()
            self._shared["distances"] = opset.convert(
                opset.subtract(opset.minimum(keys, queries), queries), "f32"
            )
        return self._shared["distances"]

    def _biases(self, attention: RelativeAttention, table: Any, kv_heads: int, group: int) -> Any:
        """By how far back each key lies: [sequences, key heads, group, longest, keys]."""
        name = f"biases {table.get_name()} {attention.max_distance}"
        if name not in self._shared:
            queries, keys = (
                opset.squeeze(x, _i64(1, 2)) for x in self._positions()
            )  # [S, L, 1], [S, 1, K]
            reach = op.Constant(Type.i32, Shape([]), [attention.max_distance])
            back = opset.subtract(queries, opset.minimum(keys, queries))
            every = np.arange(attention.max_distance + 1)
            buckets = table.get_output_partial_shape(0)[0].get_length()
            rows = op.Constant(attention.bucket_of(every, buckets).astype(np.int32))
            bucket = opset.gather(rows, opset.minimum(back, reach), _i64s(0))
            found = opset.transpose(opset.gather(table, bucket, _i64s(0)), _i64(0, 3, 1, 2))
            self._shared[name] = opset.reshape(found, self._apart(kv_heads, group, None), False)
        return self._shared[name]

    def _apart(self, kv_heads: int, group: int, last: int | None) -> Any:
        """The shape [sequences, key heads, group, longest, last], `last` None for all keys."""
        name = f"shape {kv_heads} {group} {last}"
        if name not in self._shared:
            sequences, longest = self._size("query_rows", 0), self._size("query_rows", 1)
            end = self._size("key_positions", 1) if last is None else _i64(last)
            parts = [sequences, _i64(kv_heads), _i64(group), longest, end]
            self._shared[name] = opset.concat(parts, 0)
        return self._shared[name]

    def _size(self, key: str, axis: int) -> Any:
        name = f"size {key} {axis}"
        if name not in self._shared:
            shape = opset.shape_of(self._input(key))
            self._shared[name] = opset.gather(shape, _i64(axis), _i64s(0))
        return self._shared[name]

    def _input(self, key: str) -> Any:
        axes = 1 if key == "token_rows" else 2
        return self._parameter(key, Type.i32, PartialShape([-1] * axes))

    def _parameter(self, key: str, kind: Type, shape: PartialShape) -> Any:
        if key not in self.parameters:
            node = op.Parameter(kind, shape)
            node.set_friendly_name(key)
            node.output(0).get_tensor().set_names({key})
            self.parameters[key] = node
        return self.parameters[key]


def _flat(qkv: tuple[Any, Any, Any], sizes: tuple[int, int, int, int]) -> list[Any]:
    """[tokens, heads, size] -> [tokens, heads x size], of q, k and v."""
    heads, kv_heads, key_size, value_size = sizes
    features = (heads * key_size, kv_heads * key_size, kv_heads * value_size)
    return [opset.reshape(x, _i64(0, n), True) for x, n in zip(qkv, features, strict=True)]


def _i64(*values: int) -> Any:
    return op.Constant(Type.i64, Shape([len(values)]), list(values))


def _i64s(value: int) -> Any:
    return op.Constant(Type.i64, Shape([]), [value])


def _f32(value: float) -> Any:
    return op.Constant(Type.f32, Shape([]), [value])
