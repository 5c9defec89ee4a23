"""Ops that this engine runs in one or two kernels: what its passes make of the zoo's.

Each has the NumPy definition that its kernels are tested against. Between the parts of a fused op
nothing is rounded, except where a kernel must: what goes into a product has the operands' type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paddock.graph import Array, DType, GraphError
from paddock.graph.op import Op
from paddock.graph.ops import (
    ACTIVATIONS,
    Add,
    Attention,
    Linear,
    RMSNorm,
    Rotary,
    SinkAttention,
)
from paddock.graph.ops.elementwise import widen
from paddock.graph.tensor import Shape, TensorType


@dataclass(frozen=True)
class FusedLinear(Op):
    """gate(norm(x) W^T + bias) + residual, each part only where it is asked for.

    Operands: x [n, inputs], weight [outputs, inputs], then, in this order, the norm's weight
    [inputs], the bias [outputs], the residual [n, result]. With `gate`, an activation, the first
    half of the outputs is gated by it and multiplied with the second.
    """

    norm_eps: float | None = None
    bias: bool = False
    gate: str | None = None
    residual: bool = False
    dtype: DType | None = None  # of the result; None: x's

    @property
    def operands(self) -> int:
        return 2 + (self.norm_eps is not None) + self.bias + self.residual

    def infer(self, x: TensorType, weight: TensorType, *rest: TensorType) -> TensorType:
        if len(rest) != self.operands - 2:
            raise GraphError(f"expected {self.operands} operands, got {2 + len(rest)}")
        left = list(rest)
        if self.norm_eps is not None:
            x = RMSNorm(self.norm_eps).infer(x, left.pop(0))
        y = Linear().infer(x, weight)
        if self.bias:
            y = Add().infer(y, left.pop(0))
        if self.gate is not None:
            if self.gate not in ACTIVATIONS or y.size(1) % 2:
                raise GraphError(f"no gate {self.gate!r} over the two halves of {y}")
            y = y.with_shape(y.shape[0], y.size(1) // 2)
        if self.residual:
            y = Add().infer(y, left.pop(0))
        return y if self.dtype is None else TensorType(self.dtype, y.shape)

    def compute(self, x: Array, weight: Array, *rest: Array) -> Array:
        left = list(rest)
        if self.norm_eps is not None:
            x = RMSNorm(self.norm_eps).compute(x, left.pop(0))
        y = widen(x) @ widen(weight).T
        if self.bias:
            y = y + widen(left.pop(0))
        if self.gate is not None:
            half = y.shape[1] // 2
            y = ACTIVATIONS[self.gate](y[:, :half]) * y[:, half:]
        if self.residual:
            y = y + widen(left.pop(0))
        return y.astype(x.dtype if self.dtype is None else self.dtype.numpy)


@dataclass(frozen=True)
class ProjectedAttention(Op):
    """Attention from a fused projection: queries and keys normed and turned, keys cached, attended.

    Operands: qkv [tokens, (heads + kv heads) x size + kv heads x value size], then the norms'
    weights of q and k [size] where `norm_eps` is given, cosines and sines where `turned`, then the
    caches and the step's arrays as `Attention` has them, and with `sinks` those of `SinkAttention`.
    """

    heads: int
    kv_heads: int
    size: int
    value_size: int
    scale: float
    window: int | None = None
    soft_cap: float | None = None
    norm_eps: float | None = None
    turned: bool = False
    interleaved: bool = False
    sinks: bool = False

    has_effects: ClassVar[bool] = True  # it writes into the caches

    @property
    def widths(self) -> tuple[int, int, int]:
        """Columns of q, k and v."""
        kv = self.kv_heads
        return self.heads * self.size, kv * self.size, kv * self.value_size

    @property
    def _attention(self) -> Attention:
        kind = SinkAttention if self.sinks else Attention
        return kind(self.scale, self.window, self.soft_cap)

    def infer(self, qkv: TensorType, *rest: TensorType) -> TensorType:
        if qkv.rank != 2 or qkv.size(1) != sum(self.widths):
            raise GraphError(f"expected [tokens, {sum(self.widths)}], got {qkv}")
        left = list(rest)
        q = qkv.with_shape(qkv.shape[0], self.heads, self.size)
        k = qkv.with_shape(qkv.shape[0], self.kv_heads, self.size)
        v = qkv.with_shape(qkv.shape[0], self.kv_heads, self.value_size)
        if self.norm_eps is not None:
            q, k = (RMSNorm(self.norm_eps).infer(x, left.pop(0)) for x in (q, k))
        if self.turned:
            cos, sin = left.pop(0), left.pop(0)
            q, k = (Rotary(self.interleaved).infer(x, cos, sin) for x in (q, k))
        return self._attention.infer(q, k, v, *left)

    def compute(self, qkv: Array, *rest: Array) -> Array:
        left = list(rest)
        tokens = len(qkv)
        q_width, k_width, _ = self.widths
        q = qkv[:, :q_width].reshape(tokens, self.heads, self.size)
        k = qkv[:, q_width : q_width + k_width].reshape(tokens, self.kv_heads, self.size)
        v = qkv[:, q_width + k_width :].reshape(tokens, self.kv_heads, self.value_size)
        if self.norm_eps is not None:
            q, k = (RMSNorm(self.norm_eps).compute(x, left.pop(0)) for x in (q, k))
        if self.turned:
            cos, sin = left.pop(0), left.pop(0)
            q, k = (Rotary(self.interleaved).compute(x, cos, sin) for x in (q, k))
        return self._attention.compute(q, k, v, *left)


@dataclass(frozen=True)
class Gated(Op):
    """act(first half of the last axis) * second half: x [..., 2 x inner] -> [..., inner]."""

    kind: str

    def infer(self, x: TensorType) -> TensorType:
        if x.size(-1) % 2 or self.kind not in ACTIVATIONS:
            raise GraphError(f"no gate {self.kind!r} over the two halves of {x}")
        shape: Shape = (*x.shape[:-1], x.size(-1) // 2)
        return TensorType(x.dtype, shape)

    def compute(self, x: Array) -> Array:
        wide, half = widen(x), x.shape[-1] // 2
        y: Array = ACTIVATIONS[self.kind](wide[..., :half]) * wide[..., half:]
        return y.astype(x.dtype)
