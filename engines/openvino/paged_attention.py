"""OpenVINO's paged attention, which Python reaches through a private name.

The operands are those of release 2026.4; their number changed between releases, so it is checked
before anything is built. What each means: `PagedAttentionExtension` of OpenVINO's own source,
src/core/src/op/paged_attention.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import PartialShape, Shape, Type, op

from paddock.engines.protocol import BuildError
from paddock.graph.op import Op
from paddock.graph.ops import Attention, RelativeAttention

BINDING = "_PagedAttentionExtension"
RELEASE = "2026.4"
OPERANDS = 28


@dataclass(frozen=True)
class Heads:
    """What the compiler cannot read off the operands."""

    kv_heads: int
    key_size: int
    value_size: int


def check_binding() -> None:
    """Raise `BuildError` unless this OpenVINO's paged attention takes what is built here."""
    make: Callable[..., Any] | None = getattr(op, BINDING, None)
    advice = f"install the release that this Paddock is made for: pip install openvino=={RELEASE}.*"
    if make is None:
        raise BuildError(f"openvino {ov.__version__} has no openvino.op.{BINDING}; {advice}")
    unknown = [op.Parameter(Type.dynamic, PartialShape.dynamic()) for _ in range(OPERANDS)]
    try:
        make([parameter.output(0) for parameter in unknown])
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BuildError(
            f"openvino {ov.__version__}: openvino.op.{BINDING} does not take {OPERANDS} operands"
            f" ({reason}); {advice}"
        ) from error


def takes(attention: Op) -> bool:
    """Whether the kernel computes this: it knows no soft cap on scores, and no biases but ALiBi."""
    if isinstance(attention, RelativeAttention):
        return False
    return isinstance(attention, Attention) and attention.soft_cap is None


def paged_attention(
    qkv: Sequence[Any],
    caches: Sequence[Any],
    *,
    past_lengths: Any,
    sequence_starts: Any,
    block_table: Any,
    block_starts: Any,
    longest: Any,
    scale: float,
    window: int | None,
    alibi: tuple[float, ...] | None,
    sinks: Any | None = None,
    token_types: Any | None = None,
    heads: Heads,
) -> Any:
    """q, k, v [tokens, heads x size] -> [tokens, heads x value size].

    `longest` is the number of tokens, cached and new, of the step's longest sequence. A window
    counts the token itself, as Paddock's does. Neighbours of `token_types` 1 [tokens] see each
    other; 0 is text.
    """
    operands = [
        *qkv,
        *caches,
        past_lengths,
        sequence_starts,
        block_table,
        block_starts,
        op.Constant(Type.f32, Shape([]), [scale]),
        op.Constant(Type.i32, Shape([]), [window or 0]),
        _none(np.float32) if alibi is None else op.Constant(np.array(alibi, np.float32)),
        longest,
        _none(np.int32),  # score aggregation window
        _none(np.int32),  # rotated block indices
        _none(np.int32),  # rotation deltas
        _none(np.float32),  # rotation trigonometry
        _none(np.float32),  # sparse attention: threshold
        op.Constant(Type.i32, Shape([]), [0]),  # sparse attention: block size
        op.Constant(Type.i32, Shape([]), [0]),  # sparse attention: stride
        _none(np.float32, 0, 0, 0, 0) if sinks is None else sinks,
        op.Constant(Type.i32, Shape([]), [0]),  # adaptive eviction: start size
        _none(np.int32),  # adaptive eviction: evictable sizes
        _none(np.int32),  # adaptive eviction: diversity block set indices
        _none(np.int32),  # adaptive eviction: their starts
        _none(np.int32) if token_types is None else token_types,
        _none(np.uint8),  # query-to-query bias
        _none(np.int32),  # its starts
    ]
    node = getattr(op, BINDING)([_output(x) for x in operands])
    # Without these the compiler does not know the shapes of the caches.
    info = node.get_rt_info()
    info["num_k_heads"] = info["num_v_heads"] = heads.kv_heads
    info["k_head_size"], info["v_head_size"] = heads.key_size, heads.value_size
    return node.output(0)


def _output(x: Any) -> Any:
    return x if isinstance(x, ov.Output) else x.output(0)


def _none(kind: type[np.generic], *shape: int) -> Any:
    types = {np.int32: Type.i32, np.float32: Type.f32, np.uint8: Type.u8}
    return op.Constant(types[kind], Shape(list(shape or (0,))), np.array([], dtype=kind))
