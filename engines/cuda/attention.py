"""How attention becomes kernels: writing keys and values, then cuDNN's attention or one of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from paddock.engines.cuda.cudnn_attention import Problem
from paddock.engines.cuda.device import Instruction
from paddock.engines.cuda.fused import ProjectedAttention
from paddock.engines.cuda.launching import PROCESSORS, Room, Sized
from paddock.engines.cuda_plugin import TYPE
from paddock.graph import DType
from paddock.graph import ops as F

if TYPE_CHECKING:
    from paddock.engines.cuda.gpu import GPU

MAX_SPLITS = 32
WITH_CUDNN = 2  # tokens of a step from which on cuDNN's attention is the faster one
CAUSAL, WHOLE, SOURCE = 0, 1, 2  # MODE of the kernels
EVERYTHING = 1 << 28  # tokens that a token sees ahead of itself
_FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class Rule:
    """How scores become weights, beside what an op's operands say."""

    scale: float
    window: int | None = None
    soft_cap: float | None = None
    slopes: tuple[float, ...] | None = None
    sinks: Any = None
    biases: Any = None
    buckets: Any = None
    """Of distances -reach ... reach, i32: rows of `biases`."""

    @property
    def reach(self) -> int:
        return 0 if self.buckets is None else (int(self.buckets.shape[0]) - 1) // 2

    @property
    def plain(self) -> bool:
        """Whether nothing is added to scores."""
        return self.slopes is None and self.biases is None


def _with_tensor_cores(dtype: DType, size: int, value_size: int) -> bool:
    if dtype not in (DType.F16, DType.BF16) or size != value_size:
        return False
    return size % 16 == 0 and size <= 256


def splits(sequences: int, groups: int) -> int:
    """Into how many shares a sequence's tokens are cut, so that every processor has some."""
    return max(1, min(MAX_SPLITS, 4 * PROCESSORS // (sequences * groups)))


def _cache8(cache: Any) -> dict[str, int]:
    """What kernels are compiled with for a cache of e4m3."""
    return {"CACHE8": 1} if cache.dtype.itemsize == 1 else {}


def _singles_scratch(tokens: int, heads: int, kv_heads: int, size: int) -> list[Room]:
    shares = splits(tokens, kv_heads * ceil(heads // kv_heads / 16))
    if shares == 1:
        return []
    return [((tokens, heads, shares, size), _FLOAT), ((tokens, heads, shares, 2), _FLOAT)]


def projected_scratch(sized: Sized) -> list[Room]:
    a, qkv = sized.op, sized.types[0]
    assert isinstance(a, ProjectedAttention)
    tokens = qkv.size(0)
    rooms: list[Room] = [((tokens, a.heads, a.size), qkv.dtype.numpy)]
    if sized.singles and _with_tensor_cores(qkv.dtype, a.size, a.value_size):
        rooms += _singles_scratch(sized.singles, a.heads, a.kv_heads, a.size)
    return rooms


def attention_scratch(sized: Sized) -> list[Room]:
    q, k, v = sized.types[:3]
    if sized.singles and _with_tensor_cores(q.dtype, q.size(2), v.size(2)):
        return _singles_scratch(sized.singles, q.size(1), k.size(1), q.size(2))
    return []


def projected(gpu: GPU, i: Instruction) -> None:
    a, dtype = i.op, i.types[0].dtype
    assert isinstance(a, ProjectedAttention)
    qkv, *rest = i.inputs
    q_norm, k_norm = (rest.pop(0), rest.pop(0)) if a.norm_eps is not None else (None, None)
    cos, sin = (rest.pop(0), rest.pop(0)) if a.turned else (None, None)
    rule = Rule(a.scale, a.window, a.soft_cap, sinks=rest.pop() if a.sinks else None)
    q = i.scratch[0]
    q_width, k_width, _ = a.widths
    width, address, item = qkv.shape[1], qkv.data.ptr, qkv.itemsize
    places = (address, address + q_width * item, address + (q_width + k_width) * item)
    _store(
        gpu,
        dtype,
        places,
        (width, width, width),
        (q_norm, k_norm, a.norm_eps or 0.0),
        (cos, sin, a.interleaved),
        q,
        rest,
        (a.heads, a.kv_heads, a.size, a.value_size),
    )
    _attend(gpu, i, dtype, q, rest, i.scratch[1:], a.kv_heads, rule)


def attention(gpu: GPU, i: Instruction) -> None:
    """`Attention`, and those with a last operand of sinks or of biases by distance."""
    a, dtype = i.op, i.types[0].dtype
    assert isinstance(a, F.Attention)
    q, k, v, *rest = i.inputs
    rule = Rule(a.scale, a.window, a.soft_cap, a.alibi)
    if isinstance(a, F.SinkAttention):
        rule = replace(rule, sinks=rest.pop())
    elif isinstance(a, F.RelativeAttention):
        biases = rest.pop()
        rows = int(biases.shape[0])
        back = np.maximum(-np.arange(-a.max_distance, a.max_distance + 1), 0)
        buckets = gpu.lookup((a, rows), lambda: a.bucket_of(back, rows))
        rule = replace(rule, biases=biases, buckets=buckets)
    _store_only(gpu, dtype, k, v, rest)
    _attend(gpu, i, dtype, q, rest, i.scratch, v.shape[1], rule)


def _store_only(gpu: GPU, dtype: DType, k: Any, v: Any, rest: Sequence[Any]) -> None:
    """Keys and values into their blocks, as they are."""
    if k.shape[0] == 0:
        return
    _, kv_heads, size = k.shape
    value_size = v.shape[2]
    _store(
        gpu,
        dtype,
        (None, k.data.ptr, v.data.ptr),
        (0, kv_heads * size, kv_heads * value_size),
        (None, None, 0.0),
        (None, None, False),
        None,
        rest,
        (0, kv_heads, size, value_size),
        tokens=k.shape[0],
    )


def bidirectional(gpu: GPU, i: Instruction) -> None:
    """Within whole sequences of the step, without a cache."""
    a, dtype = i.op, i.types[0].dtype
    assert isinstance(a, F.BidirectionalAttention)
    q, k, v, starts, *table = i.inputs
    rule = Rule(a.scale, a.window)
    if table:
        distances = np.arange(-a.max_distance, a.max_distance + 1)
        buckets = gpu.lookup(a, lambda: a.bucket_of(distances))
        rule = Rule(a.scale, a.window, biases=table[0], buckets=buckets)
    _attend_to(gpu, WHOLE, dtype, (q, k, v, i.outputs[0]), (starts, None, None, None), rule)


def cross(gpu: GPU, i: Instruction) -> None:
    """To a source that lies in blocks of its own, after what is new of it was written there."""
    a, dtype = i.op, i.types[0].dtype
    assert isinstance(a, F.CrossAttention)
    q, k, v, key_cache, value_cache, starts, source_starts, lengths, table, table_starts = i.inputs
    _store_only(
        gpu, dtype, k, v, (key_cache, value_cache, source_starts, None, table, table_starts)
    )
    _attend_to(
        gpu,
        SOURCE,
        dtype,
        (q, key_cache, value_cache, i.outputs[0]),
        (starts, lengths, table, table_starts),
        Rule(a.scale),
    )


def _store(
    gpu: GPU,
    dtype: DType,
    places: tuple[int | None, int, int],
    strides: tuple[int, int, int],
    norm: tuple[Any, Any, float],
    angles: tuple[Any, Any, bool],
    q: Any,
    rest: Sequence[Any],
    sizes: tuple[int, int, int, int],
    tokens: int | None = None,
) -> None:
    key_cache, value_cache, starts, past, table, block_starts = rest
    heads, kv_heads, size, value_size = sizes
    q_norm, k_norm, eps = norm
    cos, sin, interleaved = angles
    stored = (heads if q is not None else 0) + 2 * kv_heads
    count = q.shape[0] if tokens is None else tokens
    block_size = key_cache.shape[2]
    whole = cos is None or (cos.shape[1] == size and not interleaved)
    aligned = all(n % 8 == 0 for n in strides) and _is_power(block_size)
    places_in = (*places, *map(np.int64, strides), q_norm, k_norm, np.float32(eps), cos, sin)
    cached = (q, key_cache, value_cache, starts, past, table, block_starts)
    sequences = np.int32(starts.shape[0] - 1)
    if size == value_size in (64, 128, 256) and dtype is not DType.F32 and whole and aligned:
        gpu.launch(
            gpu.function("store", "store_fast", TYPE=TYPE[dtype], SIZE=size, **_cache8(key_cache)),
            (ceil(count * stored * (size // 8) / 256),),
            256,
            *places_in,
            *cached,
            sequences,
            *map(np.int32, (heads, kv_heads, count, block_size.bit_length() - 1)),
        )
        return
    gpu.launch(
        gpu.function("store", "store", TYPE=TYPE[dtype], **_cache8(key_cache)),
        (count, ceil(stored / 8)),
        256,
        *places_in,
        np.int32(0 if cos is None else cos.shape[1]),
        np.int32(interleaved),
        *cached,
        sequences,
        *map(np.int32, (heads, kv_heads, size, value_size, block_size)),
        shared=8 * max(size, value_size) * 4,
    )


def _attend(
    gpu: GPU,
    i: Instruction,
    dtype: DType,
    q: Any,
    rest: Sequence[Any],
    rooms: Sequence[Any],
    kv_heads: int,
    rule: Rule,
) -> None:
    """Causally over the cache."""
    key_cache, value_cache, starts, past, table, block_starts = rest
    (z,) = i.outputs
    heads, size = q.shape[1:]
    block_size = key_cache.shape[2]
    fast = _with_tensor_cores(dtype, size, z.shape[2]) and _is_power(block_size) and rule.plain
    if fast and _attend_with_cudnn(gpu, i, dtype, q, rest, kv_heads, rule):
        return
    places, step = (q, key_cache, value_cache, z), (starts, past, table, block_starts)
    singles = 0 if i.bucket is None else i.bucket.singles
    if not fast or not singles:
        _attend_to(gpu, CAUSAL, dtype, places, step, rule)
        return
    if not i.decodes:
        _attend_to(gpu, CAUSAL, dtype, places, step, rule, singles=singles)
    groups = kv_heads * ceil(heads // kv_heads / 16)
    stages, eighths = 2 if size > 128 else 3, _cache8(key_cache)
    line = (size + 8) * 2
    shared = 16 * line + 4 * stages * 2 * 16 * line
    if eighths:
        shared = (16 + 4 * 2 * 16) * line + 4 * stages * 2 * 16 * (size + 16)
    gpu.launch(
        gpu.function(
            "attend", "attend_singles", TYPE=TYPE[dtype], SIZE=size, MODE=CAUSAL, **eighths
        ),
        (singles, groups, splits(singles, groups)),
        128,
        q,
        key_cache,
        value_cache,
        z,
        *(rooms or (None, None)),
        gpu.counters,
        starts,
        past,
        table,
        block_starts,
        np.int32(heads),
        np.int32(kv_heads),
        np.int32(block_size.bit_length() - 1),
        np.float32(rule.scale),
        np.int32(rule.window or 0),
        np.float32(rule.soft_cap or 0.0),
        rule.sinks,
        shared=shared,
    )


def _is_power(n: int) -> bool:
    return n & (n - 1) == 0


def _attend_to(
    gpu: GPU,
    mode: int,
    dtype: DType,
    places: tuple[Any, Any, Any, Any],
    step: tuple[Any, Any, Any, Any],
    rule: Rule,
    *,
    singles: int = 0,
) -> None:
    """Steps of any shape, less the leading ones of `singles` sequences that have one token.

    `places` are queries, keys, values, result; keys and values lie in blocks or, `WHOLE`, packed as
    queries do. `step`: starts, lengths, block table, its starts.
    """
    q, keys, _, z = places
    tokens, heads, size = q.shape
    sequences, value_size = step[0].shape[0] - 1, z.shape[2]
    kv_heads, block_size = keys.shape[1], 1 if mode == WHOLE else keys.shape[2]
    fast = _with_tensor_cores(dtype, size, value_size) and _is_power(block_size) and rule.plain
    eighths = _cache8(keys)
    if fast:
        sharing = heads // kv_heads
        window, ahead = rule.window or 0, 0 if mode == CAUSAL else EVERYTHING
        if mode == WHOLE and rule.window is not None:
            window, ahead = rule.window + 1, rule.window
        shared = (64 + 4 * 64) * (size + 8) * 2
        if eighths:
            shared = 3 * 64 * (size + 8) * 2 + 4 * 64 * (size + 16)
        gpu.launch(
            gpu.function(
                "attend", "attend_tiles", TYPE=TYPE[dtype], SIZE=size, MODE=mode, **eighths
            ),
            (ceil(tokens * sharing / 64) + sequences, kv_heads),
            128,
            *places,
            *step,
            np.int32(sequences),
            np.int32(heads),
            np.int32(kv_heads),
            np.int32(block_size.bit_length() - 1),
            np.float32(rule.scale),
            np.int32(window),
            np.int32(ahead),
            np.float32(rule.soft_cap or 0.0),
            rule.sinks,
            np.int32(singles),
            shared=shared,
        )
        return
    gpu.launch(
        gpu.function("attend_any", "attend_any", TYPE=TYPE[dtype], MODE=mode, **eighths),
        (tokens, heads),
        128,
        *places,
        *step,
        *(np.int32(n) for n in (sequences, heads, kv_heads, size, value_size, block_size)),
        np.float32(rule.scale),
        np.int32(-1 if rule.window is None else rule.window),
        np.float32(rule.soft_cap or 0.0),
        None if rule.slopes is None else gpu.constant(rule.slopes),
        rule.sinks,
        rule.biases,
        rule.buckets,
        np.int32(rule.reach),
        shared=(size + value_size) * 4,
    )


def _attend_with_cudnn(
    gpu: GPU,
    i: Instruction,
    dtype: DType,
    q: Any,
    rest: Sequence[Any],
    kv_heads: int,
    rule: Rule,
) -> bool:
    """Enqueue cuDNN's attention where it is there and takes this; says whether it did."""
    tokens, heads, size = q.shape
    bucket = i.bucket
    if gpu.cudnn is None or bucket is None or size not in (64, 128):
        return False
    if rule.window is not None or rule.soft_cap is not None or rule.sinks is not None:
        return False
    if tokens < WITH_CUDNN or _cache8(rest[0]):
        return False
    key_cache, value_cache, *step = rest
    row = heads * size
    tables, queries, lengths, offsets = gpu.pages(bucket.singles, bucket.prompts, row, step)
    places = {
        "q": q.data.ptr,
        "k": key_cache.data.ptr,
        "v": value_cache.data.ptr,
        "o": i.outputs[0].data.ptr,
        "table": tables.data.ptr,
        "queries": queries.data.ptr,
        "lengths": lengths.data.ptr,
        "offsets": offsets.data.ptr,
    }
    blocks, _, block_size, _ = key_cache.shape

    def problem(sequences: int, longest: int) -> Problem:
        return Problem(
            dtype,
            sequences,
            longest,
            heads,
            kv_heads,
            size,
            block_size,
            blocks,
            gpu.max_blocks,
            rule.scale,
        )

    if bucket.singles:
        gpu.cudnn.run(problem(bucket.singles, 1), places)
    if bucket.prompts:  # behind the singles, whose padding may cover rows of these
        for name, array in (("table", tables), ("queries", queries), ("lengths", lengths)):
            places[name] = array.data.ptr + bucket.singles * array.strides[0]
        gpu.cudnn.run(problem(bucket.prompts, max(bucket.longest, 2)), places)
    return True
