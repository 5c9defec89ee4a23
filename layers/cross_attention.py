"""A decoder's attention to what the encoder made of its source."""

from paddock.graph import Module, Tensor, current_mesh
from paddock.graph import ops as F
from paddock.layers.attention import Attention
from paddock.layers.linear import ColumnLinear, RowLinear
from paddock.layers.step import Step


class CrossAttention(Module):
    """Every token sees the whole source.

    Keys and values of the source lie in the cache of `beside`, the self-attention of the same
    layer, in blocks of their own: both have heads of one shape.
    """

    def __init__(
        self,
        hidden: int,
        *,
        heads: int,
        head_dim: int,
        beside: Attention,
        scale: float | None = None,
        bias: bool = True,
    ) -> None:
        size = heads * head_dim
        self.q_proj = ColumnLinear(hidden, {"q": size}, unit=head_dim, bias=bias)
        self.kv_proj: Module = ColumnLinear(
            hidden, {"k": size, "v": size}, unit=head_dim, bias=bias
        )
        self.o_proj = RowLinear(size, hidden, unit=head_dim, bias=bias)
        self.head_dim = head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self._beside = (beside,)  # in a tuple: it is the layer's, not this module's child

    def forward(self, x: Tensor, source: Tensor, step: Step) -> Tensor:
        """x: [tokens, hidden], source: [source tokens, hidden] -> [tokens, hidden]."""
        self.o_proj.weight.local_shape(current_mesh())  # says what cannot be divided, and how
        (q,) = self.q_proj(x)
        k, v = self.kv_proj(source)
        (beside,) = self._beside
        y = F.cross_attention(
            *(self._heads(y) for y in (q, k, v)),
            caches=(beside.key_cache.tensor, beside.value_cache.tensor),
            sequence_starts=step.sequence_starts,
            source_starts=step.source_starts,
            source_lengths=step.source_lengths,
            source_table=step.source_table,
            source_table_starts=step.source_table_starts,
            scale=self.scale,
        )
        return self.o_proj(F.reshape(y, y.type.size(1) * y.type.size(2)))

    def _heads(self, y: Tensor) -> Tensor:
        """[n, heads * head_dim] -> [n, heads, head_dim], as many as this rank has."""
        return F.reshape(y, y.type.size(1) // self.head_dim, self.head_dim)
